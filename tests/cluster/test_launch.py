"""The launcher: what it would start on NPUs, and how it supervises the processes that it starts."""

import functools
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.cluster import launch, logs, rank_table, supervisor
from src.cluster.jobs import SCHEDULER, make_jobs
from src.cluster.make_rank_table import make
from src.cluster.servers import Device, RankTable, Server, is_local, local_server
from src.errors import InputError
from src.options import load_settings

ROOT = str(Path(__file__).resolve().parents[2])
PYTHON = [sys.executable, '-u']


def servers(*sizes):
    ranks = iter(range(sum(sizes)))
    return RankTable(
        [
            Server(f'10.0.0.{k}', [Device(i, f'192.168.{k}.{i}', next(ranks)) for i in range(size)])
            for k, size in enumerate(sizes)
        ]
    )


# ---- what is started: MindSpore's dynamic cluster, which 2.8 starts from on Ascend too


@pytest.mark.parametrize('sizes, here', [((1,), 0), ((8,), 0), ((8, 8), 0), ((8, 8), 1)])
def test_ascend_environment(sizes, here):
    table = servers(*sizes)
    inherited = {'HOME': '/root', 'MS_ROLE': 'MS_WORKER', 'MS_SCHED_PORT': '1', 'RANK_ID': '9', 'DEVICE_ID': '3'}
    inherited |= dict.fromkeys(('RANK_TABLE_FILE', 'RANK_TABLE', 'MINDSPORE_HCCL_CONFIG_PATH'), '/a/t.json')
    jobs = make_jobs(table, table.servers[here], 'Ascend', ['t r.py', '--lr', '1'], port=8118, environ=inherited)
    common = {
        'HOME': '/root',
        'RANK_SIZE': str(sum(sizes)),
        'MS_WORKER_NUM': str(sum(sizes)),
        'MS_SCHED_HOST': '127.0.0.1' if len(sizes) == 1 else '10.0.0.0',
        'MS_SCHED_PORT': '8118',
        'MS_TOPO_TIMEOUT': '600',
        'LOCAL_RANKS': str(sizes[here]),
        'LOCAL_CORES': '1',
        'HCCL_CONNECT_TIMEOUT': '600',
        'HCCL_EXEC_TIMEOUT': '1836',
    }
    scheduler = ('scheduler', [sys.executable, '-c', SCHEDULER], common | {'MS_ROLE': 'MS_SCHED', 'RANK_ID': '0'})
    ranks = range(sum(sizes[:here]), sum(sizes[: here + 1]))
    assert jobs == [scheduler] * (here == 0) + [
        (
            str(rank),
            [*PYTHON, 't r.py', '--lr', '1'],
            common | {'MS_ROLE': 'MS_WORKER', 'MS_NODE_ID': str(rank), 'RANK_ID': str(rank), 'DEVICE_ID': str(i)},
        )
        for i, rank in enumerate(ranks)
    ]


def test_ascend_physical_ids_and_own_timeouts():
    table = servers(2)
    table.servers[0].devices[1].device_id = 5
    start = functools.partial(make_jobs, table, table.servers[0], 'Ascend', ['t.py'], port=1, bind_core=True)
    job = start(cores=(0, 1, 2, 3), environ={'HCCL_CONNECT_TIMEOUT': '7200'})[2]
    assert job[1] == ['taskset', '-c', '2,3', *PYTHON, 't.py']
    assert (job[2]['DEVICE_ID'], job[2]['HCCL_CONNECT_TIMEOUT']) == ('5', '7200')
    with pytest.raises(InputError, match='2 ranks, but 1 cores'):
        start(cores=(0,))


def test_devices_of_a_container():
    """A table has physical numbers, while CANN counts the devices of a container from 0."""
    table = servers(3)
    for device, number in zip(table.servers[0].devices, (5, 4, 7)):
        device.device_id = number
    start = functools.partial(make_jobs, table, table.servers[0], 'Ascend', ['t.py'], port=1)
    jobs = start(npus=[4, 5, 7], environ={'ASCEND_RT_VISIBLE_DEVICES': '0', 'MS_SERVER_NUM': '0'})
    assert [env.get('DEVICE_ID') for _, _, env in jobs] == [None, '1', '0', '2']
    assert not any({'ASCEND_RT_VISIBLE_DEVICES', 'MS_SERVER_NUM'} & env.keys() for _, _, env in jobs)
    assert [env['DEVICE_ID'] for _, _, env in start(npus=list(range(8)), environ={})[1:]] == ['5', '4', '7']
    with pytest.raises(InputError, match='device 4 of the rank table is not here; there are /dev/davinci0, /dev/davinci5'):
        start(npus=[0, 5], environ={})
    # A number of devices counts as CANN does, among those that the user lets it see.
    visible = {'ASCEND_RT_VISIBLE_DEVICES': '4,5,6,7,8'}
    assert all(env['ASCEND_RT_VISIBLE_DEVICES'] == '4,5,6,7,8' for _, _, env in start(environ=visible))


def test_cpu_environment():
    table = servers(1, 2)  # on the CPU all of it runs here
    scheduler, *ranks = make_jobs(
        table, table.servers[1], 'CPU', ['t.py'], port=7000, cores=range(6), environ={'RANK_TABLE_FILE': '/t'}
    )
    common = {
        'MS_WORKER_NUM': '3',
        'MS_SCHED_HOST': '127.0.0.1',
        'MS_SCHED_PORT': '7000',
        'MS_TOPO_TIMEOUT': '600',
        'RANK_SIZE': '3',
        'LOCAL_RANKS': '3',
        'LOCAL_CORES': '6',
        'OMP_NUM_THREADS': '2',
    }
    assert scheduler == ('scheduler', [sys.executable, '-c', SCHEDULER], common | {'MS_ROLE': 'MS_SCHED', 'RANK_ID': '0'})
    assert ranks == [
        (
            str(r),
            [*PYTHON, 't.py'],
            common | {'MS_ROLE': 'MS_WORKER', 'MS_NODE_ID': str(r), 'RANK_ID': str(r), 'DEVICE_ID': d},
        )
        for r, d in enumerate('001')
    ]


def test_local_server(monkeypatch):
    table = servers(1, 1)
    table.servers[1].server_id = '127.0.0.1'
    assert local_server(table) is table.servers[1]
    assert local_server(table, '10.0.0.0') is table.servers[0]
    assert local_server(servers(1)).server_id == '10.0.0.0'  # the only one
    table.servers[1].server_id = socket.gethostname()
    assert local_server(table) is table.servers[1]
    with pytest.raises(InputError, match='--server_id x is not in'):
        local_server(table, 'x')
    table.servers[1].server_id, table.servers[1].addresses = '8a5-f1', ['203.0.113.7', '127.0.0.1']
    assert local_server(table) is local_server(table, '203.0.113.7') is table.servers[1]
    table.servers[1].addresses.pop()
    with pytest.raises(InputError, match='0 servers of the rank table'):
        local_server(table)
    for name in ('XDL_IP', 'MA_CURRENT_HOST_IP'):  # the host's address, in a container
        with monkeypatch.context() as patch:
            patch.setenv(name, '10.0.0.0')
            assert local_server(table) is table.servers[0]
    for name in ('0.0.0.0', '203.0.113.7', 'a' * 70, '\ud800', 'no..name'):
        assert not is_local(name)


def test_scheduler_of_containers():
    """Containers are reached by their own addresses; server ids need not be addresses, but MindSpore wants one."""
    table = servers(1, 1)
    for names, found in ((['192.168.149.3', '10.0.0.9'], '192.168.149.3'), (['localhost'], '127.0.0.1')):
        table.servers[0].addresses = names
        ((_, _, env),) = make_jobs(table, table.servers[1], 'Ascend', ['t.py'], port=1)
        assert env['MS_SCHED_HOST'] == found
    table.servers[0].addresses, table.servers[0].server_id = [], 'no..name'
    with pytest.raises(InputError, match="no address is known of 'no..name', the first server"):
        make_jobs(table, table.servers[1], 'Ascend', ['t.py'], port=1)


def test_option():
    assert launch.option(['--a', '1', '--b=2', '--a', '3'], 'a') == '3'
    assert launch.option(['--a', '1', '--b=2'], 'b') == '2'
    assert launch.option(['--a'], 'a') is None


# ---- the processes: fake ranks and a fake scheduler on the Ascend path, without MindSpore

NO_SCHEDULER = "from src.cluster import jobs, launch; jobs.SCHEDULER = 'pass'; launch.main()"


class Launch:
    """A launch of a small script in a directory with a space in its name."""

    def __init__(self, tmp_path, script, *options, size=2, target='Ascend'):
        self.cwd = tmp_path / 'a directory'
        self.cwd.mkdir(exist_ok=True)
        devices = [{'device_id': str(i), 'rank_id': str(i)} for i in range(size)]
        (self.cwd / 'rank table.json').write_text(
            json.dumps(
                {
                    'version': '1.0',
                    'server_count': '1',
                    'status': 'completed',
                    'server_list': [{'server_id': 'here', 'device': devices}],
                }
            )
        )
        (self.cwd / 'the script.py').write_text(
            "import os, signal, subprocess, sys, time\nrank = os.environ['RANK_ID']\n"
            "open('pid' + rank, 'w').write(str(os.getpid()))\n" + script
        )
        self.process = subprocess.Popen(
            [
                sys.executable,
                *(['-m', 'src.cluster.launch'] if target == 'CPU' else ['-c', NO_SCHEDULER]),
                'rank table.json',
                'the script.py',
                '--device_target',
                target,
                *options,
            ],
            cwd=self.cwd,
            env=os.environ | {'PYTHONPATH': ROOT},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def end(self):
        """(exit status, stdout, stderr); no process that wrote a file pid* may be left."""
        out, err = self.process.communicate(timeout=60)
        assert 'Traceback' not in err or 'Traceback' in ''.join(p.read_text() for p in self.cwd.rglob('*.log'))
        for path in self.cwd.glob('pid*'):
            assert not alive(int(path.read_text())), path.name
        return self.process.returncode, out, err

    def log(self, rank, suffix=''):
        return (self.cwd / f'results/2p/{rank}/train.log{suffix}').read_text()

    def wait_for(self, *names):
        limit = time.monotonic() + 60
        while not all((self.cwd / name).exists() for name in names):
            assert time.monotonic() < limit and self.process.poll() is None
            time.sleep(0.02)


def alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


# Like a data worker that outlives its rank.
CHILD = (
    "child = subprocess.Popen(['sleep', '100'], start_new_session=True)\n"
    "open('pid_child' + rank, 'w').write(str(child.pid))\n"
)
READY = "open('ready' + rank, 'w').close()\n"


def test_success(tmp_path):
    script = "print('rank', rank, sys.argv[1:])\n" + CHILD
    assert Launch(tmp_path, script).end()[0] == 0
    run = Launch(tmp_path, script, '--bind_core', '--lr', '-1')
    status, out, err = run.end()
    options = "['--device_target', 'Ascend', '--lr', '-1', '--rank_size', '2']"
    assert (status, out) == (0, f'rank 0 {options}\n') and run.log(1) == f'rank 1 {options}\n'
    assert run.log(1, '.1') == "rank 1 ['--device_target', 'Ascend', '--rank_size', '2']\n"  # of the run before


@pytest.mark.parametrize(
    'death, status, cause',
    [
        ('sys.exit(7)', 7, 'status 7'),
        ('os._exit(137)', 137, 'status 137'),
        ("raise ValueError('no')", 1, 'status 1'),
        ('os.kill(os.getpid(), 9)', 137, 'signal SIGKILL (out of memory, or killed by hand)'),
    ],
)
def test_one_rank_fails(tmp_path, death, status, cause):
    run = Launch(
        tmp_path,
        CHILD + f"if rank == '1':\n  for i in range(30): print('line', i)\n  time.sleep(.2)\n  {death}\ntime.sleep(100)\n",
    )
    got, out, err = run.end()
    assert got == status
    report = err[err.index('launch: rank 1 failed first') :].splitlines()
    assert report[0] == (f'launch: rank 1 failed first: {cause}; the last lines of results/2p/1/train.log:')
    assert len(report) == 21 and report[1:] == run.log(1).splitlines()[-20:]


def test_rank_that_ignores_sigterm(tmp_path):
    run = Launch(
        tmp_path,
        'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n' + READY + "while not os.path.exists('ready1'): time.sleep(.01)\n"
        "if rank == '0': sys.exit(3)\ntime.sleep(100)\n",
        '--grace',
        '1',
    )
    status, _, err = run.end()
    assert status == 3 and 'rank 0 failed first: status 3' in err and 'killed: 1 did not end in time' in err


FOLLOWS = """
def fail(*_):
    print('checkpoint saved')
    print('[ERROR] KERNEL(1,7f,python):2026-11-24-06:54:32 [allreduce.cc:89] Launch] failed.')
    raise RuntimeError('Launch kernel failed')
"""


def test_stopped_rank_is_named_not_the_one_that_waited_for_it(tmp_path):
    run = Launch(
        tmp_path,
        FOLLOWS + "if rank == '1':\n  print('last words', flush=True)\n"
        "  os.kill(os.getpid(), signal.SIGSTOP)\nprint('step: 1')\ntime.sleep(1.5)\nfail()\n",
        '--grace',
        '1',
    )
    status, out, err = run.end()
    assert status == 1 and out == 'step: 1\ncheckpoint saved\n' and 'Traceback' in run.log(0)
    lines = err.splitlines()
    assert lines[2].startswith('launch: rank 1 is stopped (by SIGSTOP or a debugger) and the others wait for it; kill -CONT')
    assert lines[3:] == [
        'launch: killed: 1 did not end in time',
        'launch: rank 1 stopped answering: it is stopped; the last lines of results/2p/1/train.log:',
        'last words',
    ]


def test_stopped_rank_may_go_on(tmp_path):
    run = Launch(
        tmp_path, "if rank == '1':\n  os.kill(os.getpid(), signal.SIGSTOP)\n" + READY + 'time.sleep(3)\nsys.exit(4)\n'
    )
    run.wait_for('pid1', 'ready0')
    for line in iter(run.process.stderr.readline, ''):
        if 'kill -CONT' in line:
            break
    time.sleep(0.5)
    os.kill(int((run.cwd / 'pid1').read_text()), signal.SIGCONT)
    status, _, err = run.end()
    assert status == 4 and 'launch: rank 1 goes on\nlaunch: rank 0 failed first: status 4' in err


def test_consequences_of_a_killed_rank_stay_in_the_log(tmp_path):
    run = Launch(
        tmp_path,
        FOLLOWS + 'signal.signal(signal.SIGTERM, fail)\n' + READY + "while not os.path.exists('ready0'): time.sleep(.01)\n"
        "if rank == '1': os.kill(os.getpid(), 9)\ntime.sleep(100)\n",
    )
    status, out, err = run.end()
    assert status == 137 and out == 'checkpoint saved\n' and '[ERROR]' in run.log(0)
    assert 'Traceback' not in err and 'launch: rank 1 failed first: signal SIGKILL (out of memory, or killed by hand)' in err


SCHEDULER_ERROR = (
    'RuntimeError: The total number of timed out node is 1. Timed out node list is: [const vector]{1}, '
    'worker 1 is the first one timed out, please check its log.'
)


@pytest.mark.parametrize(
    'scheduler, rank0, status, message',
    [
        ('sys.exit(1)', 'time.sleep(.5); sys.exit(3)', 3, 'launch: rank 0 failed first: status 3'),
        (
            f'print({SCHEDULER_ERROR!r}); sys.exit(1)',
            'time.sleep(.5); sys.exit(3)',
            1,
            'launch: rank 1 stopped answering: the scheduler heard no more of it',
        ),
        ('sys.exit(5)', 'time.sleep(100)', 5, 'launch: scheduler failed first: status 5'),
        ('os.kill(os.getpid(), 9)', 'time.sleep(100)', 137, 'launch: scheduler failed first: signal SIGKILL'),
        (
            f'print({SCHEDULER_ERROR.replace("worker 1", "worker 9")!r}); sys.exit(1)',
            'time.sleep(.5); sys.exit(3)',
            4,
            'launch: rank 9, on another server, stopped answering: the scheduler heard no more of it',
        ),
    ],
)
def test_failing_scheduler_is_blamed_only_if_no_rank_is(scheduler, rank0, status, message, tmp_path):
    """When a rank is lost, the scheduler fails too, and may do so first."""
    jobs = [
        (name, [sys.executable, '-uc', f'import os, sys, time; {code}'], dict(os.environ))
        for name, code in (('scheduler', scheduler), ('0', rank0), ('1', 'time.sleep(100)'))
    ]
    code = (
        f"from src.cluster.supervisor import Supervisor; raise SystemExit(Supervisor({jobs!r}, 'results', 60).run().status)"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env=os.environ | {'PYTHONPATH': ROOT}, text=True, capture_output=True
    )
    assert done.returncode == status and done.stderr.startswith(message), done.stderr
    assert done.stderr.count('failed first') + done.stderr.count('stopped answering') == 1


SAVES = (
    'def save(number, frame):\n'
    "    time.sleep(.5); print('saved', number); open('saved' + rank, 'w'); sys.exit(0)\n"
    'signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)\n' + READY + 'time.sleep(100)\n'
)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_reaches_the_ranks_once(tmp_path, number):
    run = Launch(tmp_path, SAVES)
    run.wait_for('ready0', 'ready1')
    run.process.send_signal(number)
    status, out, err = run.end()
    assert status == 128 + number and 'failed' not in err
    assert out == run.log(1) == f'saved {signal.SIGTERM:d}\n'  # never SIGINT, which MindSpore handles itself


def test_second_signal_kills(tmp_path):
    run = Launch(tmp_path, SAVES.replace('time.sleep(.5)', 'time.sleep(50)'))
    run.wait_for('ready0', 'ready1')
    for _ in range(2):
        run.process.send_signal(signal.SIGTERM)
        time.sleep(supervisor.ECHO + 0.2)
    assert run.end()[0] == 143 and not (run.cwd / 'saved0').exists()


def test_echo_of_a_signal_does_not(tmp_path):
    """Batch systems signal a process and then its whole group."""
    run = Launch(tmp_path, SAVES)
    run.wait_for('ready0', 'ready1')
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        run.process.send_signal(number)
        time.sleep(0.15)
    status, _, err = run.end()
    assert status == 143 and (run.cwd / 'saved0').exists() and (run.cwd / 'saved1').exists() and 'killed' not in err


def test_one_launcher_at_a_time(tmp_path, monkeypatch, capsys):
    """A second launcher waits for the first to end, and is refused if it does not, before anything is changed."""
    first = Launch(tmp_path, SAVES)
    first.wait_for('ready0', 'ready1')
    monkeypatch.chdir(first.cwd)
    monkeypatch.setattr(launch, 'RESTART', 0.3)
    with pytest.raises(SystemExit) as exit_:
        launch.main(['rank table.json', 'the script.py', '--device_target', 'Ascend'])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and f'error: results/2p is in use by pid {first.process.pid} on ' in err
    assert not (first.cwd / 'results/2p/0/train.log.1').exists()
    second = Launch(tmp_path, READY.replace('ready', 'again'))
    lines = iter(second.process.stderr.readline, '')
    assert any('waiting 30 s for its end' in line for line in lines)
    first.process.send_signal(signal.SIGTERM)
    # In this order: the ranks of the second, which write the same files with process ids, may run when the first has ended.
    assert second.end()[0] == 0 and first.end()[0] == 143
    assert (first.cwd / 'again1').exists() and 'saved' in first.log(1, '.1')


def test_old_logs_are_kept(tmp_path):
    log = tmp_path / 'train.log'
    for text in 'abcdefgh':
        log.write_text(text)
        logs.keep_old(str(log))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        f'train.log.{k}': 'hgfed'[k - 1] for k in range(1, logs.OLD_LOGS + 1)
    }


def test_ranks_die_with_a_killed_launcher(tmp_path):
    run = Launch(tmp_path, READY + 'time.sleep(100)\n')
    run.wait_for('ready0', 'ready1')
    run.process.kill()
    run.process.communicate()
    time.sleep(0.5)
    assert run.end()[0] == -9


def test_screen_may_close(tmp_path):
    run = Launch(tmp_path, 'for i in range(5):\n  print(i)\n  time.sleep(.2)\n')
    run.process.stdout.close()
    run.process.stdout = None
    assert run.end()[0] == 0 and run.log(0).split() == list('01234')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['missing.json', __file__], 'no such file'),
        (['2', 'no.py'], 'no script no.py'),
        (['2', __file__, '--rank_size', '3'], '--rank_size 3, but the rank table has 2 ranks'),
        (['2', __file__, '--device_target', 'TPU'], 'must be auto, Ascend or CPU'),
        (['0', __file__], 'a number of devices must be 1 to 1024'),
        (['1025', __file__, '--device_target', 'Ascend'], 'a number of devices must be 1 to 1024'),
        (['2', __file__, '--grace', '-5'], '--grace -5: must be 0 or more seconds'),
        (['2', __file__, '--grace', 'nan'], '--grace nan: must be 0 or more seconds'),
        (['2', __file__, '--master_port', '80'], '--master_port 80: must be 1024 to 65534'),
        (['2', __file__, '--server_id', 'b'], "--server_id b is not in the rank table ('127.0.0.1')"),
    ],
)
def test_input_errors(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        launch.main(arguments)
    assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_port_in_use(capsys):
    with socket.socket() as taken, pytest.raises(SystemExit):
        taken.bind(('', 0))
        taken.listen()
        launch.main(['2', __file__, '--device_target', 'CPU', '--master_port', str(taken.getsockname()[1])])
    assert 'Address already in use' in capsys.readouterr().err


# ---- a real cluster

REDUCE = """
import numpy as np, mindspore as ms
from mindspore.communication import init, get_rank, get_group_size
ms.set_device('CPU')
init()
total = ms.ops.AllReduce()(ms.Tensor(np.float32(1 + get_rank())))
# A single write, because MindSpore's log lines come between two.
sys.stdout.write(f"sum {total} {get_group_size()} {os.environ['OMP_NUM_THREADS']}\\n")
"""


@pytest.mark.compiles
def test_two_cpu_ranks_reduce(tmp_path):
    run = Launch(tmp_path, REDUCE, target='CPU')
    status, out, err = run.end()
    assert status == 0, err
    expected = f'sum 3.0 2 {max(1, len(os.sched_getaffinity(0)) // 2)}\n'
    assert expected in out and expected in run.log(1) and '[INFO] DISTRIBUTED' not in out


@pytest.mark.slow
def test_real_rank_that_stops(tmp_path):
    """The other rank fails after half a minute and the scheduler a little later; neither is the cause."""
    run = Launch(
        tmp_path,
        REDUCE + READY + 'for i in range(3000):\n    time.sleep(.05)\n'
        '    ms.ops.AllReduce()(ms.Tensor(np.float32(1))).asnumpy()\n',
        target='CPU',
    )
    run.wait_for('ready0', 'ready1')
    time.sleep(2)
    os.kill(int((run.cwd / 'pid1').read_text()), signal.SIGSTOP)
    run.process.wait(120)
    status, out, err = run.end()
    assert status == 1 and 'Traceback' not in out + err and '[ERROR]' not in out + err and 'failed first' not in err
    assert 'launch: rank 1 stopped answering: it is stopped; the last lines of results/2p/1/train.log:' in err


# ---- the script


def test_script(tmp_path):
    root = tmp_path / 'a copy'
    (root / 'scripts').mkdir(parents=True)
    script = root / 'scripts' / 'run_distribute_train.sh'
    for name in ('run_distribute_train.sh', 'environment.sh'):
        shutil.copy(os.path.join(ROOT, 'scripts', name), root / 'scripts')
    usage = subprocess.run(['bash', script], capture_output=True, text=True)
    assert usage.returncode == 2 and usage.stderr.startswith('usage: ') and usage.stderr.count('\n') == 3
    (root / '.venv' / 'bin').mkdir(parents=True)
    python = root / '.venv' / 'bin' / 'python'
    python.write_text('#!/bin/bash\necho "$PYTHONPATH"\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    got = subprocess.run(
        ['bash', script, 'my table.json', '--data_dir', 'my data'],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={'PATH': os.environ['PATH']},
    )
    assert got.stdout.splitlines() == [
        str(root),
        f'{root}/scripts/module.py',
        'src.cluster.launch',
        'my table.json',
        f'{root}/train.py',
        '--data_dir',
        'my data',
    ]


# ---- docs/ascend.md


def test_ascend_document(tmp_path):
    """docs/ascend.md names files, options and messages that exist, and its merged rank table is sound."""
    with open(os.path.join(ROOT, 'docs', 'ascend.md')) as file:
        text = file.read()
    files = re.findall(r'(?:scripts|src|tests)/\w+\.\w+', text)
    assert len(files) > 10 and not [path for path in files if not os.path.exists(os.path.join(ROOT, path))]
    known = load_settings([]).keys() | {'server_id', 'master_port'}
    ours = re.sub('```bash\ndocker .*?```|`--[a-z]+-[^`]*`|`--(network|device) [^`]*`', '', text, flags=re.DOTALL)
    ours = ours.replace('--devices', '').replace('--output', '')  # of src.cluster.rank_table and src.training.scaling
    assert set(re.findall(r'--(\w+)', ours)) <= known
    programs = [os.path.join(ROOT, 'train.py'), *glob.glob(os.path.join(ROOT, 'src/**/*.py'), recursive=True)]
    source = ''.join(open(path).read() for path in programs)
    for message in (
        'compiling the {name}',
        ' and run once in ',
        'nothing to report',
        'time to the first ',
        ', compilation included: ',
        ' training images, labels from ',
        'failed first: ',
        ' ranks, {target}; logs in ',
        ' passed on; ',
        ' images/s',
        '; checkpoints in ',
        ' (auto: MindSpore sees no NPU)',
        ' steps in sinks of ',
        ' servers of the rank table (',
        ' have an address of ',
        ' at step ',
    ):
        assert message in source, message
    for k in (1, 2):
        (tmp_path / f'server{k % 2}.json').write_text(make(8, hccn(tmp_path, k), f'10.0.0.{k}'))
    merge = re.search(r'python - server0.json.*?\nEND\n', text, re.DOTALL)[0].replace('python ', f'{sys.executable} ', 1)
    subprocess.run(['bash', '-c', merge], cwd=tmp_path, check=True)
    assert rank_table.check(tmp_path / 'rank_table.json', 16) == []


def hccn(folder, k):
    path = folder / f'hccn{k}.conf'
    path.write_text(''.join(f'address_{i}=192.168.{k}.{i}\n' for i in range(8)))
    return str(path)
