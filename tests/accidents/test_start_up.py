"""How ranks are started: from a number or a rank table of any form, on one server or two; by hand with one, not at all."""

import json
import os

import pytest

import eval
import train
from tests.cluster.launching import Launch, table, template_2
from tests.test_end_to_end import message_of

TABLES = ('RANK_TABLE_FILE', 'RANK_TABLE', 'MINDSPORE_HCCL_CONFIG_PATH')
DUMP = "import json, os; json.dump(dict(os.environ), open(os.environ.get('MS_NODE_ID', 'scheduler'), 'w'))"


def launched(folder, ranks, *options, servers=1, script=DUMP, scheduler=DUMP, **more):
    """[(exit status, output)] of a launcher on each of so many servers, all of them this machine."""
    inherited = dict.fromkeys(TABLES, '/user/config/jobstart_hccl.json') | {'MS_ROLE': 'MS_PSERVER', 'RANK_ID': '5'}
    more |= {'ranks': ranks, 'scheduler': scheduler, 'environ': inherited}
    # Of this process alone, and none that the system gives to others.
    port = ['--master_port', str(10000 + os.getpid() % 20000)] if servers > 1 else []
    places = [['--server_id', f'127.0.0.{k + 1}', *port] if servers > 1 else [] for k in range(servers)]
    runs = [Launch(folder, script, *options, *place, **more) for place in places]
    return [(status, out + err) for status, out, err in (run.end() for run in runs)]


def environments(folder, size):
    """([environment of each rank], that of the scheduler)"""
    *ranks, scheduler = (json.loads((folder / name).read_text()) for name in [*map(str, range(size)), 'scheduler'])
    return ranks, scheduler


@pytest.mark.parametrize('servers, devices, given', [(1, 1, '1'), (1, 8, table), (2, 4, template_2)])
def test_environment_of_ranks_and_scheduler(servers, devices, given, tmp_path):
    """1, 8 and 2 x 4 NPUs: a dynamic cluster with one scheduler on the first server, whatever is inherited."""
    if callable(given):
        (tmp_path / 'config').mkdir()
        (tmp_path / 'config/jobstart_hccl.json').write_text(given(servers, devices))
    ended = launched(tmp_path, 'config' if callable(given) else given, servers=servers, npus=range(devices))
    assert [status for status, _ in ended] == [0] * servers, ended
    ranks, scheduler = environments(tmp_path, servers * devices)
    shared = dict.fromkeys(('MS_WORKER_NUM', 'RANK_SIZE'), str(servers * devices)) | {'LOCAL_RANKS': str(devices)}
    shared |= {'MS_SCHED_HOST': '127.0.0.1', 'MS_SCHED_PORT': scheduler['MS_SCHED_PORT'], 'HCCL_EXEC_TIMEOUT': '1836'}
    shared |= dict.fromkeys(('MS_TOPO_TIMEOUT', 'HCCL_CONNECT_TIMEOUT'), '600')
    for rank, found in enumerate(ranks):
        own = {'MS_ROLE': 'MS_WORKER', 'MS_NODE_ID': str(rank), 'RANK_ID': str(rank), 'DEVICE_ID': str(rank % devices)}
        assert shared | own == {name: found.get(name) for name in shared | own}
    assert scheduler['MS_ROLE'] == 'MS_SCHED' and 'DEVICE_ID' not in scheduler and 'MS_NODE_ID' not in scheduler
    assert not any(set(TABLES) & found.keys() for found in (*ranks, scheduler))


def test_devices_of_a_container(tmp_path):
    """Its NPUs are 4 to 7 of the host: CANN counts them from 0, and so does a number; a table has the host's numbers."""
    (tmp_path / 'table.json').write_text(template_2(1, 4, first=4))
    for given in ('4', 'table.json'):
        assert [status for status, _ in launched(tmp_path, given, npus=range(4, 8))] == [0]
        assert [found['DEVICE_ID'] for found in environments(tmp_path, 4)[0]] == list('0123')
    ((status, text),) = launched(tmp_path, '8', npus=range(4, 8))
    assert status == 2 and 'error: 8 devices: must be 1 to 4 here' in text


REDUCE = """
import numpy as np, mindspore as ms
from mindspore.communication import get_group_size, get_rank, init
ms.set_device('CPU')
init()
total = ms.ops.AllReduce()(ms.Tensor(np.float32(1 + get_rank())))
note('sum', f'rank {get_rank()} of {get_group_size()}, sum {total}')
"""


@pytest.mark.slow
@pytest.mark.compiles
def test_rank_lost_on_another_server(tmp_path):
    """What MindSpore makes of two servers, with its own scheduler; only the device is not an NPU. The scheduler notices the
    loss, whose rank waits for the lost one as in HCCL: on the CPU it would fail itself."""
    (tmp_path / 'table.json').write_text(table(2, 1))
    script = REDUCE + 'if rank: os._exit(7)\ntime.sleep(300)\n'
    (first, text), (second, other) = launched(tmp_path, 'table.json', servers=2, npus=range(1), script=script, scheduler='')
    for rank in range(2):
        assert json.loads((tmp_path / f'sum{rank}').read_text()) == f'rank {rank} of 2, sum 3.0'
    assert (first, second) == (4, 7) and 'failed first' not in text, text + other
    assert 'launch: rank 1 stopped answering the scheduler; it is on another server' in text
    assert 'launch: rank 1 failed first: status 7' in other


@pytest.mark.parametrize('program, name', [(train, TABLES[0]), (train, TABLES[1]), (eval, TABLES[2])])
def test_rank_table_in_the_environment_of_a_program(program, name, monkeypatch, capsys):
    """Eight such processes would each train alone."""
    monkeypatch.setenv(name, '/config/hccl.json')
    line = message_of(program.main, ['--ckpt_path', '.', '--device_target', 'CPU'], capsys)
    assert f'{name} is set, but this is a single process; start all ranks with scripts/run_distribute_train.sh /conf' in line


def test_two_runs_from_one_directory(tmp_path):
    """The second one's advice is a thing that can be done; one that begins while the first is ending waits for it."""
    waits = "note('there', 0)\nwait_for('go')\n"
    first = Launch(tmp_path, waits)
    first.wait_for('there0', 'there1')
    refused = Launch(tmp_path, waits, patch='launch.BUSY = 0.2').process.communicate()[1].splitlines()[-1]
    assert f'error: results/2p is in use by pid {first.process.pid}' in refused
    assert 'start this run in another working directory, below which its logs go to results/2p' in refused
    second = Launch(tmp_path, waits, patch='launch.BUSY = 300')
    second.wait_for_line('waiting 300 s for its end')
    (tmp_path / 'go').touch()
    assert first.end()[0] == second.end()[0] == 0
