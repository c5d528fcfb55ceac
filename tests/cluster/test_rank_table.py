"""Rank tables: both formats are read, and what users get wrong in one is named."""

import json
import socket

import pytest

from src import environment
from src.cluster import rank_table
from src.cluster.rank_table import Device, Server, local_server
from src.errors import InputError
from tests.cluster.launching import table, template_2

DEVICES = [[Device(0, 0), Device(1, 1)], [Device(0, 2), Device(1, 3)]]
PLAIN = [Server([f'127.0.0.{k + 1}'], devices) for k, devices in enumerate(DEVICES)]
# hccl.json of MindCluster: the servers in any order, ids that are no addresses.
ROWS = [
    {'device': row, 'server_id': f'8f{k}c-77', 'host_ip': f'10.1.2.{k}', 'container_ip': f'172.16.{k}.8'}
    for k, row in enumerate([entry['device'] for entry in json.loads(table(2, 2))['server_list']])
]
HCCL = [Server([f'172.16.{k}.8', f'10.1.2.{k}', f'8f{k}c-77'], devices) for k, devices in enumerate(DEVICES)]
MINDCLUSTER = json.dumps({'status': 'completed', 'server_list': ROWS[::-1]})


@pytest.mark.parametrize('text, servers', [(table(2, 2), PLAIN), (template_2(2, 2), PLAIN), (MINDCLUSTER, HCCL)])
def test_formats(text, servers, tmp_path):
    (tmp_path / 'table.json').write_bytes(b'\xef\xbb\xbf' + text.encode())  # with a byte order mark
    assert rank_table.read(tmp_path / 'table.json') == servers


@pytest.mark.parametrize(
    'old, new, problem',
    [
        ('completed', 'initializing', 'status \'initializing\' must be "completed"'),
        ('"rank_id": "3"', '"rank_id": "2"', 'rank 2 or device 1 of server 127.0.0.2 is listed twice'),
        ('"rank_id": "3"', '"rank_id": "4"', 'rank 3 of 4 is missing'),
        ('device_id', 'device', "'device_id' is missing"),
    ],
)
def test_what_is_wrong_is_named(old, new, problem, tmp_path):
    (tmp_path / 'table.json').write_text(table(2, 2).replace(old, new))
    with pytest.raises(InputError) as error:
        rank_table.read(tmp_path / 'table.json')
    assert str(error.value).startswith(f'rank table {tmp_path}/table.json: {problem}')
    assert str(error.value).endswith('; python -m src.cluster.rank_table make writes one')


def test_file_of_a_container_is_waited_for(tmp_path, monkeypatch):
    """It is missing at first, then incomplete, empty, and complete. In another directory nothing is waited for."""
    lines, path, later = [], tmp_path / 'jobstart_hccl.json', iter(['{"status": "initializing"}', '', template_2(2, 2)])
    with pytest.raises(InputError, match='Is a directory'):
        rank_table.read(tmp_path, lines.append)
    monkeypatch.setattr(rank_table, 'MODELARTS', str(tmp_path))
    monkeypatch.setattr(rank_table.time, 'sleep', lambda _: path.write_text(next(later)))
    assert len(rank_table.read(tmp_path, lines.append)) == 2
    assert lines == [f'rank table {tmp_path} is not completed yet; waiting up to 300 s']


def test_local_server(monkeypatch):
    away = Server(['10.0.0.0'], [Device(0, 0)])
    for name in ('127.0.0.1', socket.gethostname()):
        found = [away, Server(['203.0.113.7', name], [Device(0, 1)])]
        assert local_server(found) is found[1] and local_server(found, '10.0.0.0') is away
    elsewhere = [away, Server(['no..name'], [])]
    with pytest.raises(InputError, match='0 servers of the rank table have an address of this'):
        local_server(elsewhere)
    monkeypatch.setenv('MA_CURRENT_HOST_IP', '10.0.0.0')  # the host's address, in a container
    assert local_server(elsewhere) is away


def test_command_line(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        rank_table.main([*map(str, arguments)])
        return capsys.readouterr().out

    path = tmp_path / 'my table.json'
    assert run('make', '--devices', 8, '--server_id', '10.0.0.5', '10.0.0.6', '--output', path) == ''
    assert run('check', path) == f'{path}: 16 ranks on 2 server(s), valid\n'
    assert rank_table.read(path)[1] == Server(['10.0.0.6'], [Device(i, 8 + i) for i in range(8)])
    monkeypatch.setattr(environment, 'npus', lambda: [4, 5, 10])  # as a container has them
    assert rank_table.parse(json.loads(run('make', '--devices', 2)))[0].devices == [Device(4, 0), Device(5, 1)]
