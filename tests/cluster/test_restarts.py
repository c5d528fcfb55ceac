"""The launcher starts a training again: when, how often, from where, and on several servers all together. Fake ranks."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from src.cluster import agreement
from src.cluster.outcome import Outcome, culprit, exit_status
from src.cluster.restarts import Restarts, worst
from src.errors import ElsewhereError
from tests.cluster.test_launch import ROOT, alive

FAILED = Outcome(1, 1, 'rank 1, status 1', 'last', step=5)
# What a rank begins with. It beats, and appends its options to a file.
RANK = """
import json, os, signal, subprocess, sys, threading, time
from src.heartbeat import Heartbeat, dump_stacks_on_request
dump_stacks_on_request()
rank, beat = os.environ['RANK_ID'], Heartbeat()
open('pid' + rank, 'w').write(str(os.getpid()))
with open('starts' + rank, 'a') as file:
    print(json.dumps(sys.argv[1:]), file=file)
start = len(open('starts' + rank).readlines())
first = int(rank) // int(os.environ['LOCAL_RANKS']) * int(os.environ['LOCAL_RANKS'])
while not all(os.path.exists(f'starts{r}') for r in range(first, first + int(os.environ['LOCAL_RANKS']))):
    time.sleep(0.01)
def steps(first, last, seconds=0.01):
    for step in range(first, last + 1):
        time.sleep(seconds)
        beat('steps', step)
"""


class Launch:
    """A launch of a small script on the Ascend path, whose pauses between restarts are a tenth of a second."""

    def __init__(self, cwd, script, *options, servers=1, size=2, server=0, patch='pass'):
        self.cwd = cwd
        table = {
            'version': '1.0',
            'server_count': str(servers),
            'status': 'completed',
            'server_list': [
                {
                    'server_id': f'127.0.0.{k + 1}',
                    'device': [
                        {'device_id': str(i), 'device_ip': f'10.0.{k}.{i}', 'rank_id': str(k * size + i)}
                        for i in range(size)
                    ],
                }
                for k in range(servers)
            ],
        }
        (cwd / 'table.json').write_text(json.dumps(table))
        (cwd / 'script.py').write_text(RANK + script)
        patches = f'jobs.SCHEDULER, restarts.PAUSE = "pass", 0.1; {patch}'
        code = f'from src.cluster import agreement, jobs, launch, logs, restarts; {patches}; launch.main()'
        where = ['--server_id', f'127.0.0.{server + 1}'] if servers > 1 else []
        self.process = subprocess.Popen(
            [sys.executable, '-c', code, 'table.json', 'script.py', '--device_target', 'Ascend', *where, *options],
            cwd=cwd,
            env=os.environ | {'PYTHONPATH': ROOT},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def end(self):
        """(exit status, stderr); no rank may be left."""
        _, err = self.process.communicate(timeout=60)
        for path in self.cwd.glob('pid*'):
            assert not alive(int(path.read_text())), path.name
        return self.process.returncode, err

    def starts(self, rank=0):
        """[options of each start of a rank]"""
        return [json.loads(line) for line in (self.cwd / f'starts{rank}').read_text().splitlines()]


# ---- the decision


def test_pauses_grow_and_the_count_is_kept():
    counter = Restarts(8)
    pauses = [counter.judge(FAILED._replace(step=step)) for step in range(1, 10)]
    assert [v.pause for v in pauses] == [10, 20, 40, 80, 160, 320, 600, 600, None]
    assert pauses[1].line == (
        'restart 2 of 8 in 20 s, from where it began, as nothing was saved: rank 1, status 1 at step 2: last'
    )
    assert pauses[8].line == 'given up after 8 restart(s) (--max_restarts): rank 1, status 1 at step 9'


def test_an_hour_of_progress_resets_the_count():
    counter = Restarts(2)
    assert [counter.judge(FAILED._replace(step=k)).pause for k in (1, 2)] == [10, 20]
    assert counter.judge(FAILED._replace(step=3, progress=3600.0)).pause == 10
    assert [counter.judge(FAILED._replace(step=k, progress=3599.0)).pause for k in (4, 5)] == [20, None]


def test_the_same_step_twice_running_is_given_up():
    counter = Restarts(9)
    assert counter.judge(FAILED).pause and counter.judge(FAILED._replace(step=6)).pause and counter.judge(FAILED).pause
    assert counter.judge(FAILED) == (1, None, 'given up: step 5 has failed twice running: rank 1, status 1', False)
    early = FAILED._replace(step=None)  # before the first beat no step is to blame
    assert [counter.judge(early).pause for _ in range(2)] == [80, 160]


def test_what_comes_from_outside_blames_no_step():
    """A server that is taken away twice in the first step after a resume, or in its compilation."""
    counter, killed = Restarts(9), FAILED._replace(code=-9, status=137, outside=True)
    assert all(counter.judge(killed).pause for _ in range(3)) and counter.judge(FAILED).pause
    assert counter.judge(killed).pause and counter.judge(FAILED).pause and counter.judge(FAILED).pause is None


@pytest.mark.parametrize(
    'change, line',
    [
        ({'code': 2, 'status': 2}, 'not started again: rank 1, status 1 at step 5 means unusable input'),
        ({'code': 3, 'status': 3}, 'not started again: rank 1, status 1 at step 5 means a training that has gone wrong'),
        ({'signalled': True, 'status': 143}, ''),
        ({'cause': '', 'status': 0}, ''),
    ],
)
def test_never_started_again(change, line):
    outcome = FAILED._replace(**change)
    assert Restarts(3).judge(outcome) == (outcome.status, None, line, False)


def test_checkpoint_is_remembered():
    counter = Restarts(3)
    assert counter.judge(FAILED._replace(saved=True)).saved and counter.judge(FAILED._replace(step=6)).saved


def test_statuses():
    assert [exit_status(code) for code in (7, 137, 200, -9, -15, 0)] == [7, 137, 200, 137, 143, 1]


def test_consequences_of_anothers_end_are_not_the_cause():
    elsewhere = ElsewhereError.exit_status
    assert culprit([('0', elsewhere), ('1', 137)], [], None) == ('1', 137)
    assert culprit([('0', elsewhere)], [], None) == ('0', elsewhere)
    other, own = FAILED._replace(code=elsewhere, status=elsewhere, step=7), FAILED._replace(code=137, status=137)
    assert worst([other, own]) == worst([own, other]) == own._replace(step=7)
    assert worst([own, FAILED._replace(code=2)]).code == 2 and worst([Outcome(0), other]).code == elsewhere
    assert worst([own, FAILED._replace(signalled=True, status=143)]).status == 143


# ---- real launchers


def test_restarts_from_the_newest_checkpoint(tmp_path):
    script = """
if start == 1:
    steps(1, 3)
    beat(saved=1)
    steps(4, 6)
    if rank == '1':
        print('about to end', flush=True)
        os.kill(os.getpid(), 9)
    time.sleep(100)
"""
    run = Launch(tmp_path, script, '--max_restarts', '3', '--overwrite', 'true')
    status, err = run.end()
    options = ['--device_target', 'Ascend', '--overwrite', 'true', '--rank_size', '2']
    assert status == 0 and run.starts(0) == run.starts(1) == [
        options,
        [*options, '--resume', 'auto', '--overwrite', 'false'],
    ]
    assert err.splitlines()[-1] == (
        'launch: restart 1 of 3 in 0.1 s, from the newest checkpoint: rank 1, signal SIGKILL (out of memory, or killed by '
        'hand) at step 7: about to end'
    )


def test_nothing_saved_begins_where_it_began(tmp_path):
    """Its options say where: `--resume PATH`, or over an older training, which `--resume auto` would go on with."""
    # Rank 0 alone: a rank that is ended before it has counted its start is one behind.
    script = 'steps(1, start)\nif rank == "0" and start < 3: sys.exit(137)\n'
    run = Launch(tmp_path, script, '--max_restarts', '3', '--overwrite', 'true')
    status, err = run.end()
    assert status == 0 and len(run.starts()) == 3 and all(options == run.starts()[0] for options in run.starts())
    assert 'restart 2 of 3 in 0.2 s, from where it began, as nothing was saved: rank ' in err


@pytest.mark.parametrize('status, meaning', [(2, 'unusable input'), (3, 'a training that has gone wrong')])
def test_bad_input_and_lost_weights_are_not_tried_again(status, meaning, tmp_path):
    run = Launch(tmp_path, f'steps(1, 2)\nif rank == "1": sys.exit({status})\ntime.sleep(100)', '--max_restarts', '3')
    got, err = run.end()
    assert got == status and len(run.starts()) == 1
    assert err.splitlines()[-1] == f'launch: not started again: rank 1, status {status} at step 3 means {meaning}'


def test_same_step_twice(tmp_path):
    run = Launch(tmp_path, 'steps(1, 4)\nbeat(saved=1)\nif rank == "1": sys.exit(7)\ntime.sleep(100)', '--max_restarts', '9')
    status, err = run.end()
    assert status == 7 and len(run.starts()) == 2
    assert err.splitlines()[-1] == 'launch: given up: step 5 has failed twice running: rank 1, status 7'


@pytest.mark.parametrize('how', ['os.kill(os.getpid(), 9)', 'os.kill(os.getpid(), signal.SIGTERM)', 'sys.exit(137)'])
def test_same_step_twice_from_outside(how, tmp_path):
    run = Launch(tmp_path, f'steps(1, 4)\nif rank == "1" and start < 4: {how}\n', '--max_restarts', '9')
    status, err = run.end()
    assert status == 0 and len(run.starts(1)) == 4 and 'restart 3 of 9 in 0.4 s' in err


@pytest.mark.parametrize('when', ['running', 'pausing'])
def test_a_signal_to_the_launcher_ends_it(when, tmp_path):
    script = 'steps(1, start)\n' + ('time.sleep(100)' if when == 'running' else 'sys.exit(5)')
    run = Launch(tmp_path, script, '--max_restarts', '9', patch='restarts.PAUSE = 60')
    if when == 'running':
        while not (tmp_path / 'starts1').exists() or not (tmp_path / 'starts0').exists():
            time.sleep(0.02)
        time.sleep(0.3)
    else:
        assert any('restart 1 of 9' in line for line in iter(run.process.stderr.readline, ''))
    run.process.send_signal(signal.SIGTERM)
    status, _ = run.end()
    assert status == 143 and len(run.starts()) == 1


def test_a_rank_that_was_asked_to_end_by_hand_is_started_again(tmp_path):
    run = Launch(tmp_path, 'steps(1, 2)\nif start == 1 and rank == "0": sys.exit(143)\n', '--max_restarts', '1')
    status, err = run.end()
    assert status == 0 and len(run.starts(0)) == 2 and 'rank 0, status 143' in err


@pytest.mark.parametrize(
    'options, message',
    [
        (['--max_restarts', '-1'], '--max_restarts -1: must be 0 or more'),
        (['--stall_timeout', 'inf'], '--stall_timeout inf: must be 0 or more seconds'),
    ],
)
def test_bad_options(options, message, tmp_path):
    status, err = Launch(tmp_path, '', *options).end()
    assert status == 2 and message in err


# ---- several servers: launchers of one machine


def free_port():
    """One after which the next is free as well: the scheduler takes the first, the launchers the second."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as probe, socket.socket() as before:
            probe.bind(('', 0))
            before.bind(('', port := probe.getsockname()[1] - 1))
            return port


def pair(tmp_path, script, *options, patch='pass', which=(0, 1)):
    start = functools.partial(Launch, tmp_path, script, servers=2, patch=patch)
    common = ['--max_restarts', '3', '--master_port', str(free_port()), *options]
    return [start(*common, server=server) for server in which]


def test_servers_start_and_restart_together(tmp_path):
    """Rank 3, on the second server, dies; all four ranks are ended at once and started again."""
    script = 'steps(1, 2)\nbeat(saved=1)\nif start == 1:\n  if rank == "3": sys.exit(137)\n  time.sleep(100)\n'
    runs = pair(tmp_path, script)
    (first, err0), (second, err1) = (run.end() for run in runs)
    assert (first, second) == (0, 0), err0 + err1
    line = 'launch: restart 1 of 3 in 0.1 s, from the newest checkpoint: rank 3, status 137 at step 3'
    assert line in err0 and line in err1
    assert [len(runs[0].starts(rank)) for rank in range(4)] == [2] * 4
    assert runs[0].starts(0)[1][-4:] == ['--resume', 'auto', '--overwrite', 'false'] == runs[0].starts(3)[1][-4:]


def test_no_server_starts_alone(tmp_path):
    (run,) = pair(tmp_path, 'steps(1, 2)\n', patch='agreement.WAIT = 1', which=(1,))
    status, err = run.end()
    assert status == 1 and not (tmp_path / 'starts2').exists()
    assert err.splitlines()[-2:] == [
        'launch: waits for the launchers of all 2 servers, 1 s at most',
        'launch: given up: server 1 of 2 is gone or has not come; the other servers do not go on alone',
    ]


@pytest.mark.parametrize('gone, how', [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_server_that_is_gone_makes_the_other_give_up(gone, how, tmp_path):
    runs = pair(tmp_path, 'steps(1, 2)\ntime.sleep(100)\n', patch='agreement.GONE = 2; agreement.ALIVE = 0.5')
    while not all((tmp_path / f'starts{rank}').exists() for rank in range(4)):
        time.sleep(0.02)
    runs[gone].process.send_signal(how)
    err = runs[1 - gone].process.communicate(timeout=30)[1]
    assert runs[1 - gone].process.returncode == ElsewhereError.exit_status
    assert f'given up: server {gone + 1} of 2 is gone or has not come; the other servers do not go on alone' in err
    assert 'restart 1' not in err
    runs[gone].process.kill()
    runs[gone].process.wait()
    time.sleep(1)  # its ranks die with it
    runs[gone].end()


def test_a_signal_to_one_server_ends_all(tmp_path):
    script = 'signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\nsteps(1, 2)\ntime.sleep(100)\n'
    runs = pair(tmp_path, script)
    while not all((tmp_path / f'starts{rank}').exists() for rank in range(4)):
        time.sleep(0.02)
    time.sleep(0.5)
    runs[0].process.send_signal(signal.SIGTERM)
    (first, _), (second, err) = (run.end() for run in runs)
    assert (first, second) == (143, 143) and err.splitlines()[-1] == 'launch: another server was asked to end'
    assert [len(runs[0].starts(rank)) for rank in range(4)] == [1] * 4


def test_strangers_on_the_port_do_no_harm(tmp_path):
    first = agreement.Agreement(0, 2, '127.0.0.1', port := free_port() + 1)
    with socket.create_connection(('127.0.0.1', port)) as stranger:
        stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
        assert not first._all_ready() and not first._all_ready() and not first.peers and first.lost is None
    with pytest.raises(agreement.InputError, match='Address already in use'):
        agreement.Agreement(0, 2, '127.0.0.1', port)
    first.close()
