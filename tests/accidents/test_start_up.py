"""How ranks are started: from a number or a rank table of any form, on one server or two; by hand with one, not at all."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import eval as evaluation
import train
from src.cluster.jobs import SCHEDULER
from tests.cluster.test_restarts import free_port

ROOT = Path(__file__).resolve().parents[2]
TABLES = ('RANK_TABLE_FILE', 'RANK_TABLE', 'MINDSPORE_HCCL_CONFIG_PATH')
DUMP = "import json, os; json.dump(dict(os.environ), open(os.environ.get('MS_NODE_ID', 'scheduler'), 'w'))"


def table(servers, devices=8):
    """As the first server sees it, where all addresses are those of this machine."""
    return {
        'version': '1.0',
        'server_count': str(servers),
        'status': 'completed',
        'server_list': [
            {
                'server_id': f'127.0.0.{k + 1}',
                'device': [
                    {'device_id': str(i), 'device_ip': f'10.0.{k}.{i}', 'rank_id': str(k * devices + i)}
                    for i in range(devices)
                ],
            }
            for k in range(servers)
        ],
    }


def template_2(servers, devices=8, first=0):
    """jobstart_hccl.json of ModelArts: an instance is a container with its devices; ranks are not in it."""
    instances = [
        {
            'devices': [{'device_id': str(first + i), 'device_ip': f'10.0.{k}.{i}'} for i in range(devices)],
            'pod_name': f'job-inceptionv4-{k}',
            'server_id': f'127.0.0.{k + 1}',
        }
        for k in range(servers)
    ]
    group = {'device_count': str(servers * devices), 'group_name': 'job-inceptionv4', 'instance_list': instances}
    return {'group_count': '1', 'group_list': [group | {'instance_count': str(servers)}], 'status': 'completed'}


class Launchers:
    """A launcher on each of so many servers, all of them this machine with made NPUs, of a script or of DUMP."""

    def __init__(self, folder, rank_table, *options, servers=1, npus=range(8), script=DUMP, scheduler=DUMP):
        self.folder, self.port = folder, free_port()
        for number in npus:
            (folder / f'davinci{number}').touch()
        (folder / 'script.py').write_text(script)
        code = (
            'from src import environment; from src.cluster import jobs, launch, restarts; '
            f'environment.NPUS = {str(folder / "davinci[0-9]*")!r}; environment.check = lambda: None; '
            f'restarts.PAUSE = 0.1; jobs.SCHEDULER = {scheduler!r} or jobs.SCHEDULER; launch.main()'
        )
        inherited = dict.fromkeys(TABLES, '/user/config/jobstart_hccl.json') | {'MS_ROLE': 'MS_PSERVER', 'RANK_ID': '5'}
        command = [sys.executable, '-c', code, str(rank_table), 'script.py', '--device_target', 'Ascend', *options]
        several = [['--master_port', str(self.port), '--server_id', f'127.0.0.{k + 1}'] for k in range(servers)]
        self.processes = [
            subprocess.Popen(
                [*command, *(several[k] if servers > 1 else [])],
                cwd=folder,
                env={**os.environ, **inherited, 'PYTHONPATH': str(ROOT)},
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for k in range(servers)
        ]

    def end(self):
        """[(exit status, output)] of the launchers."""
        texts = [process.communicate(timeout=100)[0] for process in self.processes]
        return [(process.returncode, text) for process, text in zip(self.processes, texts)]

    def environments(self, size):
        """([environment of each rank], that of the scheduler)"""
        files = [*map(str, range(size)), 'scheduler']
        *ranks, scheduler = (json.loads((self.folder / name).read_text()) for name in files)
        return ranks, scheduler


@pytest.mark.parametrize(
    'servers, devices, given',
    [(1, 1, '1'), (1, 8, '8'), (1, 8, table), (2, 8, table), (1, 8, template_2), (2, 8, template_2)],
)
def test_environment_of_ranks_and_scheduler(servers, devices, given, tmp_path):
    """1, 8 and 2 x 8 NPUs: a dynamic cluster with one scheduler on the first server, whatever is inherited."""
    if callable(given):
        (tmp_path / 'config').mkdir()
        (tmp_path / 'config/jobstart_hccl.json').write_text(json.dumps(given(servers, devices)))
    launchers = Launchers(tmp_path, 'config' if callable(given) else given, servers=servers, npus=range(devices))
    assert [status for status, _ in launchers.end()] == [0] * servers
    ranks, scheduler = launchers.environments(servers * devices)
    shared = {
        'MS_WORKER_NUM': str(servers * devices),
        'RANK_SIZE': str(servers * devices),
        'MS_SCHED_HOST': '127.0.0.1',
        'HCCL_CONNECT_TIMEOUT': '600',
        'HCCL_EXEC_TIMEOUT': '1836',
    }
    for rank, found in enumerate(ranks):
        own = {'MS_ROLE': 'MS_WORKER', 'MS_NODE_ID': str(rank), 'RANK_ID': str(rank), 'DEVICE_ID': str(rank % devices)}
        assert shared | own == {name: found.get(name) for name in shared | own}
    assert scheduler['MS_ROLE'] == 'MS_SCHED' and 'DEVICE_ID' not in scheduler and 'MS_NODE_ID' not in scheduler
    for found in (*ranks, scheduler):
        assert not set(TABLES) & found.keys()
        assert found['MS_SCHED_PORT'] == (str(launchers.port) if servers > 1 else scheduler['MS_SCHED_PORT'])


def test_devices_of_a_container(tmp_path):
    """Its NPUs are 4 to 7 of the host: CANN counts them from 0, and so does a number; a table has the host's numbers."""
    (tmp_path / 'table.json').write_text(json.dumps(template_2(1, 4, first=4)))
    for given in ('4', 'table.json'):
        launchers = Launchers(tmp_path, given, npus=range(4, 8))
        assert [status for status, _ in launchers.end()] == [0]
        assert [found['DEVICE_ID'] for found in launchers.environments(4)[0]] == list('0123')
    ((status, text),) = Launchers(tmp_path, '8', npus=range(4, 8)).end()
    assert status == 2 and 'error: RANK_TABLE 8: a number of devices must be 1 to 4 here' in text


# Two steps of a real cluster; the first start fails after them, the second has the same port.
RANK = """
import os, sys, time, numpy as np, mindspore as ms
from mindspore.communication import get_group_size, get_rank, init
from src import heartbeat
ms.set_device('CPU')
init()
total = ms.ops.AllReduce()(ms.Tensor(np.float32(1 + get_rank())))
rank = get_rank()
starts = f'starts{rank}'
print(f'rank {rank} of {get_group_size()}, sum {total}', file=open(starts, 'a'))
heartbeat.Heartbeat()('steps', len(open(starts).readlines()))
if rank == 1 and len(open(starts).readlines()) == 1:
    sys.exit(7)
"""
LAST = 'ms.ops.AllReduce()(ms.Tensor(np.float32(1))).asnumpy()'


@pytest.mark.compiles
def test_launcher_starts_a_dynamic_cluster(tmp_path):
    """What MindSpore makes of it, with its own scheduler: two launchers, one rank each, started again together on the same
    port. Only the device is not an NPU."""
    (tmp_path / 'table.json').write_text(json.dumps(table(2, 1)))
    options = ['--max_restarts', '1']
    launchers = Launchers(tmp_path, 'table.json', *options, servers=2, npus=range(1), script=RANK + LAST, scheduler='')
    found = launchers.end()
    assert [status for status, _ in found] == [0, 0], found
    assert all('restart 1 of 1' in text and 'rank 1, status 7' in text for _, text in found)
    for rank in range(2):
        assert (tmp_path / f'starts{rank}').read_text() == f'rank {rank} of 2, sum 3.0\n' * 2


@pytest.mark.slow
@pytest.mark.compiles
def test_a_single_rank_joins_too(tmp_path):
    """Otherwise the scheduler waits for it for ten minutes, then fails and takes the training with it."""
    (tmp_path / 'table.json').write_text(json.dumps(table(1, 1)))
    script = "from src import options, runtime; print(runtime.start(options.load_settings(['--device_target', 'CPU'])))"
    ended = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SCHEDULER!r}]); open('ended', 'w')"
    ((status, text),) = Launchers(tmp_path, 'table.json', npus=range(1), script=script, scheduler=ended).end()
    assert status == 0 and 'rank=0, world=1' in text and (tmp_path / 'ended').exists(), text


@pytest.mark.compiles
@pytest.mark.slow
def test_lost_rank_of_another_server(tmp_path):
    """Without --max_restarts launchers do not talk; the scheduler notices that a rank of the other server is gone."""
    (tmp_path / 'table.json').write_text(json.dumps(table(2, 1)))
    # As a rank that waits for another one in HCCL: on the CPU it would fail itself.
    script = RANK.replace('sys.exit(7)', 'os._exit(7)') + 'time.sleep(100)'
    launchers = Launchers(tmp_path, 'table.json', servers=2, npus=range(1), script=script, scheduler='')
    (first, text), (second, said) = launchers.end()
    assert (first, second) == (4, 7), text + said
    assert 'launch: rank 1, on another server, stopped answering' in text and 'failed first' not in text
    assert 'launch: rank 1 failed first: status 7' in said


@pytest.mark.parametrize('name', TABLES)
@pytest.mark.parametrize('program', ['train', 'eval'])
def test_rank_table_in_the_environment_of_a_program(name, program, data, monkeypatch, tmp_path, capsys):
    """One line, before MindSpore would say what helps nobody."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, '/user/config/jobstart_hccl.json')
    main = {'train': train.main, 'eval': evaluation.main}[program]
    with pytest.raises(SystemExit) as exit_:
        main(['--data_dir', str(data), '--device_target', 'CPU', '--log_dir', 'l', '--ckpt_path', 'l'])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and err.count('\n') == 1, err
    assert err.startswith(f'error: {name}=/user/config/jobstart_hccl.json is set: MindSpore 2.8 starts from no rank table')
    assert f'unset {name}' in err and 'scripts/run_distribute_train.sh /user/config/jobstart_hccl.json' in err


def test_two_trainings_from_one_directory(tmp_path):
    """The second one's advice is a thing that can be done."""
    waits = "import os, time\nopen('there', 'w').close()\nwhile not os.path.exists('go'): time.sleep(.05)\n"
    first = Launchers(tmp_path, '2', script=waits, scheduler='pass')
    while not (tmp_path / 'there').exists():
        assert first.processes[0].poll() is None
        time.sleep(0.05)
    code = 'from src.cluster import jobs, launch; launch.RESTART, jobs.SCHEDULER = 0.2, "pass"; launch.main()'
    command = [sys.executable, '-c', code, '2', str(tmp_path / 'script.py'), '--device_target', 'Ascend']
    again = {'env': {**os.environ, 'PYTHONPATH': str(ROOT)}, 'capture_output': True, 'text': True}
    second = subprocess.run([*command, '--log_dir', 'other'], cwd=tmp_path, **again)
    line = second.stderr.splitlines()[-1]
    assert second.returncode == 2 and f'results/2p is in use by pid {first.processes[0].pid}' in line
    assert 'start this training in another working directory, below which its logs go to results/2p' in line
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere/go').touch()
    assert subprocess.run(command, cwd=tmp_path / 'elsewhere', **again).returncode == 0
    (tmp_path / 'go').touch()
    assert first.end()[0][0] == 0
