"""Rank tables: both formats are read, and every error in one is found, with its place."""

import copy
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from src import environment
from src.cluster import launch, make_rank_table, rank_table
from src.cluster.servers import Device
from src.errors import InputError

ROOT = str(Path(__file__).resolve().parents[2])


def new_format(servers=2, devices=2):
    return {
        'version': '1.0',
        'server_count': str(servers),
        'status': 'completed',
        'server_list': [
            {
                'server_id': f'10.0.0.{s}',
                'host_nic_ip': 'reserve',
                'device': [
                    {'device_id': str(d), 'device_ip': f'192.168.{s}.{d}', 'rank_id': str(s * devices + d)}
                    for d in range(devices)
                ],
            }
            for s in range(servers)
        ],
    }


def old_format(servers=2, devices=2):
    count = str(servers * devices)
    return {
        'board_id': '0x0020',
        'chip_info': '910',
        'deploy_mode': 'lab',
        'group_count': '1',
        'group_list': [
            {
                'device_num': count,
                'server_num': str(servers),
                'group_name': '',
                'instance_count': count,
                'instance_list': [
                    {
                        'devices': [{'device_id': str(d), 'device_ip': f'192.168.{s}.{d}'}],
                        'rank_id': str(s * devices + d),
                        'server_id': f'10.0.0.{s}',
                    }
                    for s in range(servers)
                    for d in range(devices)
                ],
            }
        ],
        'para_plane_nic_location': 'device',
        'para_plane_nic_name': ['eth0'],
        'para_plane_nic_num': '1',
        'status': 'completed',
    }


def findings(tmp_path, data, rank_size=None):
    path = tmp_path / 'table.json'
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return rank_table.check(path, rank_size)


def change(table, path, value):
    """Set, or with None delete, the entry at `path` such as server_list.0.device.1.rank_id."""
    *way, last = [int(key) if key.isdigit() else key for key in path.split('.')]
    for key in way:
        table = table[key]
    if value is None:
        del table[last]
    else:
        table[last] = value


@pytest.mark.parametrize('make', [new_format, old_format, lambda: modelarts()])
def test_formats_read_the_same(make, tmp_path):
    path = tmp_path / 'table.json'
    path.write_text(json.dumps(make()))
    table = rank_table.read(path)
    assert [server.server_id for server in table.servers] == ['10.0.0.0', '10.0.0.1']
    assert table.servers[1].devices == [Device(0, '192.168.1.0', 2), Device(1, '192.168.1.1', 3)]
    assert [device.rank_id for device in table.devices] == [0, 1, 2, 3]


def test_version_1_2_and_extra_keys(tmp_path):
    table = new_format()
    table |= {'version': '1.2', 'super_pod_list': [{'super_pod_id': '0', 'server_list': [{}]}]}
    table['server_list'][0]['device'][0] |= {'super_device_id': '0', 'backup_device_ip': '1.2.3.4'}
    assert findings(tmp_path, table) == []


@pytest.mark.parametrize('address', ['fe80::1', '', None])
def test_addresses_of_a_single_server(address, tmp_path):
    table = new_format(1, 2)
    change(table, 'server_list.0.device.1.device_ip', address)
    assert findings(tmp_path, table) == []


@pytest.mark.parametrize(
    'path, value, finding',
    [
        ('status', 'initializing', 'status: "initializing" must be "completed"'),
        ('status', None, 'status: missing'),
        ('version', '3.0', 'version: "3.0" must be "1.0" or "1.2"'),
        ('server_count', '3', 'server_count: 3, but 2 listed'),
        ('server_count', 2, 'server_count: 2 must be a string'),
        ('server_count', 'two', 'server_count: "two" must be a string of digits'),
        ('server_list.0.device', {}, 'server_list[0].device: an object must be a list'),
        ('server_list.0.device', [], 'server_list[0].device: is empty'),
        ('server_list.0.device.1', 5, 'server_list[0].device[1]: 5 must be an object'),
        (
            'server_list.1.server_id',
            '10.0.0.0',
            'server_list[1].server_id: "10.0.0.0" is already at server_list[0].server_id',
        ),
        ('server_list.1.server_id', ' ', 'server_list[1].server_id: " " must have 1 to 64 characters'),
        ('server_list.1.container_ip', 7, 'server_list[1].container_ip: 7 must be a string'),
        (
            'server_list.1.device.1.rank_id',
            '2',
            'server_list[1].device[1].rank_id: rank 2 is already at server_list[1].device[0].rank_id',
        ),
        ('server_list.1.device.1.rank_id', '4', 'server_list[1].device[1].rank_id: 4 is not in 0..3'),
        ('server_list.1.device.1.rank_id', '-1', 'server_list[1].device[1].rank_id: "-1" must be a string of digits'),
        ('server_list.1.device.1.rank_id', 3, 'server_list[1].device[1].rank_id: 3 must be a string'),
        (
            'server_list.1.device.1.rank_id',
            '9' * 5000,
            f'server_list[1].device[1].rank_id: "{"9" * 56}... must be a string of digits',
        ),
        (
            'server_list.1.device.1.device_id',
            '0',
            'server_list[1].device[1].device_id: device 0 of this server is already at server_list[1].device[0].device_id',
        ),
        (
            'server_list.0.device.1.device_ip',
            '1.2.3.256',
            'server_list[0].device[1].device_ip: "1.2.3.256" is not an IP address',
        ),
        ('server_list.0.device.1.device_ip', None, 'server_list[0].device[1].device_ip: missing'),
        (
            'server_list.1.device.0.device_ip',
            '192.168.0.1',
            'server_list[1].device[0].device_ip: "192.168.0.1" is already at server_list[0].device[1].device_ip',
        ),
    ],
)
def test_one_finding(path, value, finding, tmp_path):
    table = new_format()
    change(table, path, value)
    assert finding in findings(tmp_path, table)


@pytest.mark.parametrize(
    'path, value, finding',
    [
        ('group_count', '2', 'group_count: 2, but 1 listed'),
        ('group_list.0.device_num', '3', 'group_list[0].device_num: 3, but 4 listed'),
        ('group_list.0.server_num', '1', 'group_list[0].server_num: 1, but 2 listed'),
        ('group_list.0.instance_count', '8', 'group_list[0].instance_count: 8, but 4 listed'),
        (
            'group_list.0.instance_list.2.rank_id',
            '1',
            'group_list[0].instance_list[2].rank_id: rank 1 is already at group_list[0].instance_list[1].rank_id',
        ),
        (
            'group_list.0.instance_list.2.devices.0.device_ip',
            'x',
            'group_list[0].instance_list[2].devices[0].device_ip: "x" is not an IP address',
        ),
    ],
)
def test_one_finding_in_the_older_format(path, value, finding, tmp_path):
    table = old_format()
    change(table, path, value)
    assert findings(tmp_path, table) == [finding]


def modelarts(servers=2, devices=2):
    """Template 2 as ModelArts writes it: an instance is a container with all its devices, and there are no ranks."""
    table = old_format(servers, devices)
    (group,) = table['group_list']
    instances = [
        {
            'devices': [device for part in group['instance_list'][s * devices :][:devices] for device in part['devices']],
            'pod_name': f'ma-job-1-worker-{s}',
            'server_id': f'10.0.0.{s}',
        }
        for s in range(servers)
    ]
    group = {'device_count': group['device_num'], 'group_name': 'worker', 'instance_count': str(servers)}
    return {'group_count': '1', 'group_list': [group | {'instance_list': instances}], 'status': 'completed'}


@pytest.mark.parametrize(
    'path, value, finding',
    [
        ('group_list.0.device_count', '3', 'group_list[0].device_count: 3, but 4 listed'),
        ('group_list.0.instance_count', '4', 'group_list[0].instance_count: 4, but 2 listed'),
        (
            'group_list.0.instance_list.1.rank_id',
            '1',
            'group_list[0].instance_list[1].devices: 2 devices, but a rank has one',
        ),
        (
            'group_list.0.instance_list.1.devices.1.device_id',
            '0',
            'group_list[0].instance_list[1].devices[1].device_id: device 0 of this server is already at '
            'group_list[0].instance_list[1].devices[0].device_id',
        ),
    ],
)
def test_one_finding_in_the_table_of_modelarts(path, value, finding, tmp_path):
    table = modelarts()
    change(table, path, value)
    assert finding in findings(tmp_path, table)


def test_directory_in_place_of_the_file(tmp_path, monkeypatch):
    """As ModelArts mounts it; there, but not elsewhere, a missing file is waited for."""
    told = []
    assert rank_table.check(tmp_path) == ['no jobstart_hccl.json or hccl.json in this directory']
    rank_table.wait(tmp_path, told.append)
    assert not told
    monkeypatch.setattr(rank_table, 'MODELARTS', str(tmp_path))

    def later():
        for text in ('{"status": "initializing"}', json.dumps(modelarts())):
            time.sleep(0.1)
            (tmp_path / 'jobstart_hccl.json').write_text(text)

    thread = threading.Thread(target=later)
    thread.start()
    rank_table.wait(tmp_path, told.append, patience=30, every=0.02)
    thread.join()
    assert len(told) == 1 and run('check', tmp_path).stdout == f'{tmp_path}: 4 ranks on 2 server(s), nothing to report\n'


def test_rank_order_and_size(tmp_path):
    table = new_format(1, 2)
    table['server_list'][0]['device'].reverse()
    assert findings(tmp_path, table, 8) == [
        'server_list[0].device[1].rank_id: rank 0 is after rank 1; ranks must ascend in the table',
        'the table has 2 ranks, but rank_size is 8',
    ]


# ---- as MindCluster's Ascend Operator writes hccl.json: compact, the fields of a server in this order, the servers by rank


def hccl_json(newer=True, status='completed', physical=(4, 5)):
    """Two pods with two devices each; the older form has the host's address as server_id."""
    rows = []
    for s, host in enumerate(('10.1.2.30', '10.1.2.4')):
        row = {
            'device': [
                {'device_id': str(d), 'device_ip': f'192.168.{10 + s}.{d}', 'rank_id': str(2 * s + i)}
                for i, d in enumerate(physical)
            ],
            'server_id': f'8f{9 - s}c-77' if newer else host,
        }
        rows.append(row | ({'host_ip': host} if newer else {}) | {'container_ip': f'172.16.{s}.8'})
    table = {'status': status, 'server_list': rows, 'server_count': '2', 'version': '1.0'}
    return json.dumps(table, separators=(',', ':'))


@pytest.mark.parametrize('newer', [True, False])
def test_mindcluster(newer, tmp_path):
    """Servers need not be in the order of their names; the container's address comes first."""
    path = tmp_path / 'hccl.json'
    path.write_text(hccl_json(newer))
    table = rank_table.read(path)
    assert [server.names for server in table.servers] == (
        [['172.16.0.8', '10.1.2.30', '8f9c-77'], ['172.16.1.8', '10.1.2.4', '8f8c-77']]
        if newer
        else [['172.16.0.8', '10.1.2.30'], ['172.16.1.8', '10.1.2.4']]
    )
    assert [(device.device_id, device.rank_id) for device in table.devices] == [(4, 0), (5, 1), (4, 2), (5, 3)]
    change(
        data := json.loads(path.read_text()), 'server_list.0.host_ip', ''
    )  # as MindCluster writes it for an unknown address
    path.write_text(json.dumps(data))
    assert '' not in rank_table.read(path).servers[0].names


def test_byte_order_mark(tmp_path):
    assert findings(tmp_path, b'\xef\xbb\xbf' + json.dumps(new_format()).encode()) == []


def test_initializing_is_waited_for(tmp_path):
    """MindCluster's file is incomplete at first, then empty, then complete."""
    path, told = tmp_path / 'hccl.json', []
    path.write_text('{\n    "status":"initializing"\n}\n')

    def later():
        for text in ('', hccl_json(status='initializing'), '{"status":"comp', hccl_json()):
            time.sleep(0.05)
            path.write_text(text)

    thread = threading.Thread(target=later)
    thread.start()
    rank_table.wait(path, told.append, patience=30, every=0.02)
    thread.join()
    assert rank_table.check(path) == [] and told == [f'rank table "{path}" is not completed yet; waits for up to 30 s']
    rank_table.wait(path, told.append)
    path.write_text('no table')
    rank_table.wait(path, told.append)  # other errors are not waited for; `read` reports them
    rank_table.wait(tmp_path / 'missing', told.append)
    assert len(told) == 1


def test_waiting_has_an_end(tmp_path, capsys, monkeypatch):
    path = tmp_path / 'hccl.json'
    path.write_text('{"status":"initializing"}')
    monkeypatch.setattr(rank_table, 'PATIENCE', 0.1)
    with pytest.raises(SystemExit) as exit_:
        launch.main([str(path), __file__])
    err = capsys.readouterr().err.splitlines()
    assert (
        exit_.value.code == 2
        and err[-2].startswith('launch: rank table ')
        and err[-1] == (f'error: rank table "{path}": still not completed after 0.1 s; do all containers of this job run?')
    )


def test_all_findings_at_once(tmp_path):
    table = new_format()
    for path, value in (
        ('status', 'x'),
        ('server_count', '9'),
        ('server_list.0.device.0.device_ip', 'y'),
        ('server_list.1.device.1.rank_id', '7'),
    ):
        change(table, path, value)
    assert len(findings(tmp_path, table, 8)) == 5
    with pytest.raises(InputError, match=r'status: .*; server_count: .*rank_id: 7 is not in 0..3$'):
        rank_table.read(tmp_path / 'table.json')


@pytest.mark.parametrize(
    'data, finding',
    [
        (b'{"a": 1,\n "b" 2}', "not JSON: line 2, column 6: Expecting ':' delimiter"),
        (b'', 'not JSON: line 1, column 1: Expecting value'),
        (b'\xff', "not JSON: 'utf-8' codec"),
        (b'[' * 200000, 'not a rank table: nested too deeply'),
        (b' ' * (1 << 20) + b'{}', 'larger than 1048576 bytes'),
        (b'{"server_list": NaN}', 'not JSON: NaN is not a JSON value'),
        (b'9' * 9999, 'the file holds Infinity, not an object'),
        (b'[]', 'the file holds a list, not an object'),
        (b'{}', 'neither server_list'),
        (b'{"server_list": "\\ud800\\n"}', r'server_list: "\ud800\n" must be a list'),
    ],
)
def test_hostile_files(data, finding, tmp_path):
    assert any(text.startswith(finding) for text in findings(tmp_path, data))


def test_no_file(tmp_path):
    for path in (tmp_path / 'none', 'a\0b'):
        assert len(rank_table.check(path)) == 1


def test_mutated_tables_never_raise(tmp_path):
    chance = random.Random(1)
    values = [None, True, 0, -1, 1e400, '', '0', '1', 'x' * 100, '\ud800', [], {}, [[]], {'device': [1]}]

    def places(node):
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            yield node, key
            yield from places(node[key])

    for turn in range(200):
        table = copy.deepcopy(chance.choice([new_format, old_format])())
        for _ in range(chance.randint(1, 3)):
            node, key = chance.choice(list(places(table)))
            if chance.random() < 0.3:
                del node[key]
            else:
                node[key] = copy.deepcopy(chance.choice(values))
        data = json.dumps(table).replace('Infinity', '1e999').encode()
        if turn % 4 == 0:
            cut = chance.randrange(len(data))
            data = data[:cut] + bytes([chance.randrange(256)]) + data[cut + chance.randrange(3) :]
        if findings(tmp_path, data):
            with pytest.raises(InputError):
                rank_table.read(tmp_path / 'table.json')


def run(*arguments):
    return subprocess.run(
        [sys.executable, '-m', 'src.cluster.rank_table', *map(str, arguments)], cwd=ROOT, text=True, capture_output=True
    )


def test_command_line(tmp_path):
    path, hccn = tmp_path / 'my table.json', tmp_path / 'hccn.conf'
    hccn.write_text(''.join(f'address_{i}=192.168.10{i}.2\nnetmask_{i}=255.255.255.0\n' for i in range(8)))
    made = run('make', '--devices', 8, '--hccn', hccn, '--server_id', '10.0.0.5', '--output', path)
    assert (made.returncode, made.stdout, made.stderr) == (0, '', '')
    (server,) = rank_table.read(path).servers
    assert server.server_id == '10.0.0.5'
    assert server.devices == [Device(i, f'192.168.10{i}.2', i) for i in range(8)]
    assert sorted(os.listdir(tmp_path)) == ['hccn.conf', 'my table.json']
    good = run('check', path, '--rank_size', 8)
    assert (good.returncode, good.stdout) == (0, f'{path}: 8 ranks on 1 server(s), nothing to report\n')
    path.write_text(path.read_text().replace('completed', 'x').replace('"7"', '"6"'))
    bad = run('check', path)
    assert bad.returncode == 2 and len(bad.stdout.splitlines()) == 3 and not bad.stderr


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--devices', '5', '--hccn', 'HCCN'], 'no address_X for device 2, 3, 4; `hccn_tool -i X -ip -g`'),
        (['--devices', '2', '--hccn', 'HCCN'], 'an unsound table: server_list[0].device[1].device_ip: '),
        (['--devices', '1', '--hccn', 'none'], '--hccn none: No such file'),
        (['--devices', '0'], 'must be 1 to 1024'),
        (['--devices', '1', '--hccn', 'HCCN', '--output', '/proc/x'], '--output /proc/x: '),
    ],
)
def test_make_errors(arguments, message, tmp_path, capsys):
    (tmp_path / 'HCCN').write_text('address_0=10.0.0.1\naddress_1=10.0.0.1\n')
    with pytest.raises(SystemExit) as exit_:
        rank_table.main(['make', *[str(tmp_path / 'HCCN') if word == 'HCCN' else word for word in arguments]])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and message in err and err.count('\n') == 1


def test_make_in_a_container(tmp_path, monkeypatch):
    """The table has the physical numbers of the devices that the container has."""
    (tmp_path / 'HCCN').write_text(''.join(f'address_{i}=10.0.0.{i}\n' for i in range(8)))
    for i in (10, 4, 5):
        (tmp_path / f'davinci{i}').touch()
    monkeypatch.setattr(environment, 'NPUS', str(tmp_path / 'davinci[0-9]*'))
    assert environment.npus() == [4, 5, 10]
    devices = json.loads(make_rank_table.make(2, str(tmp_path / 'HCCN'), '10.0.0.1'))['server_list'][0]['device']
    assert devices == [{'device_id': str(i), 'device_ip': f'10.0.0.{i}', 'rank_id': str(i - 4)} for i in (4, 5)]
    with pytest.raises(InputError, match='--devices 8, but there are 3 NPUs here'):
        make_rank_table.make(8, str(tmp_path / 'HCCN'))


@pytest.mark.skipif(os.path.exists('/etc/hccn.conf'), reason='a machine with NPUs')
def test_make_without_npus(tmp_path):
    made = run('make', '--devices', 2)
    (tmp_path / 'table.json').write_text(made.stdout)
    assert 'hccn_tool' in made.stderr and len(rank_table.read(tmp_path / 'table.json').devices) == 2
