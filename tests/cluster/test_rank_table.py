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
# Template 2 of which an instance is a rank.
INSTANCES = [
    {'devices': [{'device_id': f'{rank % 2}'}], 'rank_id': f'{rank}', 'server_id': f'127.0.0.{rank // 2 + 1}'}
    for rank in range(4)
]
WITH_RANKS = json.dumps({'group_list': [{'instance_list': INSTANCES}], 'status': 'completed'})
# hccl.json of MindCluster: the servers in any order, ids that are no addresses.
ROWS = [
    {
        'device': [{'device_id': f'{i}', 'rank_id': f'{2 * s + i}'} for i in range(2)],
        **{'server_id': f'8f{9 - s}c-77', 'host_ip': f'10.1.2.{s}', 'container_ip': f'172.16.{s}.8'},
    }
    for s in (1, 0)
]
HCCL = [Server([f'172.16.{k}.8', f'10.1.2.{k}', f'8f{9 - k}c-77'], devices) for k, devices in enumerate(DEVICES)]


@pytest.mark.parametrize(
    'text, servers',
    [
        (table(2, 2), PLAIN),
        (template_2(2, 2), PLAIN),
        (WITH_RANKS, PLAIN),
        (json.dumps({'status': 'completed', 'server_list': ROWS}), HCCL),
    ],
)
def test_formats(text, servers, tmp_path):
    (tmp_path / 'table.json').write_bytes(b'\xef\xbb\xbf' + text.encode())  # with a byte order mark
    assert rank_table.read(tmp_path / 'table.json') == servers


@pytest.mark.parametrize(
    'old, new, problem',
    [
        ('completed', 'initializing', 'status \'initializing\' must be "completed"'),
        ('"rank_id": "3"', '"rank_id": "2"', 'rank 2 or device 1 of server 127.0.0.2 is listed twice'),
        ('"rank_id": "3"', '"rank_id": "4"', 'rank 3 of 4 is missing'),
        ('"device_id": "1"', '"device_id": "0"', 'rank 1 or device 0 of server 127.0.0.1 is listed twice'),
        ('device_id', 'device', "'device_id' is missing"),
        (table(2, 2), '[]', "'list' object"),
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
    assert not lines
    monkeypatch.setattr(rank_table, 'MODELARTS', str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(rank_table.time, 'sleep', lambda _: path.write_text(next(later)))
        assert len(rank_table.read(tmp_path, lines.append)) == 2
    assert lines == [f'rank table {tmp_path} is not completed yet; waiting up to 300 s']
    monkeypatch.setattr(rank_table, 'PATIENCE', 0.1)
    path.write_text('{"status": "initializing"}')
    with pytest.raises(InputError, match='must be "completed"'):
        rank_table.read(tmp_path, lines.append)


@pytest.mark.parametrize('names', [['127.0.0.1'], [socket.gethostname()], ['203.0.113.7', '127.0.0.1', '8a5-f1']])
def test_local_server(names, monkeypatch):
    away = Server(['10.0.0.0'], [Device(0, 0)])
    found = [away, Server(names, [Device(0, 1)])]
    assert local_server(found) is local_server(found, names[-1]) is found[1]
    assert local_server(found, '10.0.0.0') is away
    for server_id, what in ((None, 'an address of this'), ('x', 'x')):
        with pytest.raises(InputError, match=f'0 servers of the rank table have {what}'):
            local_server([away, Server(['no..name'], [])], server_id)
    monkeypatch.setenv('MA_CURRENT_HOST_IP', '10.0.0.0')  # the host's address, in a container
    assert local_server([away, Server(['no..name'], [])]) is away


def test_command_line(tmp_path, monkeypatch, capfd):
    def run(*arguments):
        """(exit status, what is printed)"""
        try:
            return rank_table.main([*map(str, arguments)]) or 0, ''.join(capfd.readouterr())
        except SystemExit as exit_:
            return exit_.code, ''.join(capfd.readouterr())

    path = tmp_path / 'my table.json'
    assert run('make', '--devices', 8, '--server_id', '10.0.0.5', '10.0.0.6', '--output', path) == (0, '')
    assert run('check', path, '--rank_size', 16) == (0, f'{path}: 16 ranks on 2 server(s), valid\n')
    assert run('check', path, '--rank_size', 8) == (2, f'error: rank table {path} has 16 ranks, but rank_size is 8\n')
    assert rank_table.read(path)[1] == Server(['10.0.0.6'], [Device(i, 8 + i) for i in range(8)])
    no_folder = tmp_path / 'a/b'
    assert run('make', '--devices', 1, '--output', no_folder) == (2, f'error: {no_folder}: No such file or directory\n')
    for i in (10, 4, 5):  # as a container has them
        (tmp_path / f'davinci{i}').touch()
    monkeypatch.setattr(environment, 'NPUS', str(tmp_path / 'davinci[0-9]*'))
    assert rank_table.parse(json.loads(rank_table.make(2)))[0].devices == [Device(4, 0), Device(5, 1)]
    assert run('make', '--devices', 8) == (2, 'error: 8 devices: must be 1 to 3 here\n')
