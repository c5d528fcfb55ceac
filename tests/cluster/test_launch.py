"""How the launcher supervises, ends and restarts the processes that it starts."""

import os
import re
import signal
import time

import pytest

from src.cluster import launch, rank_table, supervisor
from src.errors import InputError
from tests.cluster.launching import RANK, Launch, table

# Like a data worker that outlives its rank.
CHILD = RANK + "note('pid_child', subprocess.Popen(['sleep', '100'], start_new_session=True).pid)\n"
SAVES = (
    RANK + "def save(number, _):\n    time.sleep(SECONDS); print('saved', number); note('saved', number); sys.exit(143)\n"
    "signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save); note('ready', 0)\ntime.sleep(100)\n"
)


def test_success(tmp_path):
    script = CHILD + "print('rank', rank, sys.argv[1:], len(os.sched_getaffinity(0)))\n"
    assert Launch(tmp_path, script).end()[0] == 0
    status, out, err = (run := Launch(tmp_path, script, '--bind_core', '--lr', '-1')).end()
    cores = len(os.sched_getaffinity(0))
    options = "['--lr', '-1', '--device_target', 'Ascend', '--rank_size', '2']"
    assert (status, out) == (0, f'rank 0 {options} {max(1, cores // 2)}\n'), err
    assert run.log(1).startswith(f'rank 1 {options}') and run.log(1, '.1').endswith(f"'2'] {cores}\n")
    assert err == 'launch: 2 ranks, Ascend; logs in results/2p/<rank>/train.log\n'


@pytest.mark.parametrize(
    'death, status, how',
    [
        ('sys.exit(7)', 7, 'status 7'),
        ('os._exit(137)', 137, 'status 137'),  # of a rank whose data worker was killed
        ('os.kill(os.getpid(), 9)', 137, 'signal SIGKILL (out of memory, or killed by hand)'),
    ],
)
def test_first_failure_is_named(tmp_path, death, status, how):
    """With its last lines; the others get SIGTERM, and what they then end with is not the cause."""
    dies = f"for i in range(30): print('line', i)\n  print('[INFO] DISTRIBUTED(5,7f,python)', flush=True)\n  {death}\n"
    waits = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\nnote('ready', 0)\n"
    script = (
        CHILD + f"if rank == 1:\n  while not os.path.exists('ready0'): time.sleep(.01)\n  {dies}{waits}time.sleep(100)\n"
    )
    got, _, err = Launch(tmp_path, script).end()
    lines = ''.join(f'line {i}\n' for i in range(10, 30))
    assert got == status
    assert err.endswith(f'launch: rank 1 failed first: {how}; the last lines of results/2p/1/train.log:\n{lines}')


def test_rank_that_ignores_sigterm(tmp_path):
    script = RANK + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('ready', 0)\n"
    script += "while not os.path.exists('ready1'): time.sleep(.01)\nif rank == 0: sys.exit(3)\ntime.sleep(100)\n"
    status, _, err = Launch(tmp_path, script, '--grace', '1').end()
    assert status == 3 and 'rank 0 failed first: status 3' in err and 'killed: 1 did not end in time' in err


LOST = (
    'The total number of timed out node is 1. Timed out node list is: [const vector]{1}, worker 1 is the first one timed out'
)


@pytest.mark.parametrize(
    'scheduler, rank0, status, message',
    [
        ('sys.exit(1)', 'time.sleep(.5); sys.exit(3)', 3, 'rank 0 failed first: status 3'),
        (f'print({LOST!r}); sys.exit(1)', 'time.sleep(100)', 1, 'rank 1 stopped answering the scheduler; the last lines'),
        ('sys.exit(5)', 'time.sleep(100)', 5, 'scheduler failed first: status 5'),
        (
            f'print({LOST.replace("worker 1", "worker 9")!r}); sys.exit(1)',
            'time.sleep(.5); sys.exit(143)',
            4,
            'rank 9 stopped answering the scheduler; it is on another server',
        ),
    ],
)
def test_failing_scheduler_is_blamed_only_if_no_rank_is(scheduler, rank0, status, message, tmp_path):
    """When a rank is lost, the scheduler fails too, and may do so first."""
    waits = "import os, sys, time\nwhile not os.path.exists('ready0'): time.sleep(.01)\n"
    script = RANK + f"note('ready', 0)\nif rank == 0: {rank0}\ntime.sleep(100)\n"
    got, _, err = Launch(tmp_path, script, scheduler=waits + scheduler).end()
    assert got == status and f'launch: {message}' in err and err.count('failed first') + err.count('stopped answering') == 1


def test_rank_that_follows_another_is_not_the_cause(tmp_path):
    """It ends with status 4, here before the one that fails, which is still saving."""
    status, _, err = Launch(tmp_path, RANK + 'time.sleep(2 * rank)\nsys.exit(7 if rank else 4)\n').end()
    assert status == 7 and 'rank 1 failed first: status 7' in err


@pytest.mark.parametrize('numbers', [[signal.SIGINT], [signal.SIGHUP], [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]])
def test_signal_reaches_the_ranks_once(tmp_path, numbers):
    """Never as SIGINT, which MindSpore handles itself; and a batch system signals a process, then its whole group."""
    run = Launch(tmp_path, SAVES.replace('SECONDS', '.5'))
    run.wait_for('ready0', 'ready1')
    for number in numbers:
        run.process.send_signal(number)
        time.sleep(0.1)
    status, out, err = run.end()
    assert status == 128 + numbers[0] and 'failed' not in err and out == run.log(1) == f'saved {signal.SIGTERM:d}\n'
    assert f'{signal.Signals(numbers[0]).name} passed on; ranks have 60 s to save and exit' in err


def test_second_signal_kills(tmp_path):
    run = Launch(tmp_path, SAVES.replace('SECONDS', '50'))
    run.wait_for('ready0', 'ready1')
    run.process.terminate()
    time.sleep(supervisor.ECHO + 0.5)
    run.process.terminate()
    assert run.end()[0] == 143 and not (tmp_path / 'saved0').exists()


def test_ranks_die_with_a_killed_launcher(tmp_path):
    run = Launch(tmp_path, RANK + "note('ready', 0)\ntime.sleep(100)\n")
    run.wait_for('ready0', 'ready1')
    run.process.kill()
    run.process.wait()
    time.sleep(1)
    assert run.end()[0] == -9


def test_screen_may_close(tmp_path):
    run = Launch(tmp_path, RANK + 'for i in range(5):\n  print(i)\n  time.sleep(.2)\n')
    run.process.stdout.close()
    run.process.stdout = None
    assert run.end()[0] == 0 and run.log(0).split() == list('01234')


# ---- restarts


def test_restarts_from_the_newest_checkpoint(tmp_path):
    script = RANK + 'if start == 1:\n  steps(1, 3)\n  heartbeat(saved=1)\n  steps(4, 6)\n  time.sleep(.3)\n'
    script += '  if rank == 1: os.kill(os.getpid(), 9)\n  time.sleep(100)\n'
    status, _, err = (run := Launch(tmp_path, script, '--max_restarts', '3', '--overwrite', 'true')).end()
    options = ['--overwrite', 'true', '--device_target', 'Ascend', '--rank_size', '2']
    assert status == 0 and run.starts(0) == run.starts(1) == [
        options,
        [*options, '--resume', 'auto', '--overwrite', 'false'],
    ]
    assert err.splitlines()[-1] == (
        'launch: restart 1 of 3 in 0.1 s, from the newest checkpoint: rank 1 failed first: signal SIGKILL (out of memory, '
        'or killed by hand) at step 7'
    )


def test_nothing_saved_begins_where_it_began_and_is_given_up(tmp_path):
    """Its options say where: `--resume PATH`, or over an older run, which `--resume auto` would resume."""
    script = RANK + 'steps(1, start)\nif rank == 0: sys.exit(137)\n'
    status, _, err = (run := Launch(tmp_path, script, '--max_restarts', '2', '--overwrite', 'true')).end()
    assert status == 137 and len(run.starts()) == 3 and all(options == run.starts()[0] for options in run.starts())
    assert 'restart 2 of 2 in 0.2 s, from the beginning, as nothing was saved: rank 0' in err
    assert 'launch: not started again after 2 restarts (--max_restarts): rank 0 failed first: status 137' in err


def test_a_new_checkpoint_resets_the_count(monkeypatch):
    outcomes = iter([(7, 'rank 1', saved) for saved in (False, False, True, False, False)])
    given = []
    monkeypatch.setattr(launch, 'PAUSE', 0)
    signals = type('Signals', (list,), {'wait': lambda *_: False})()
    assert launch.with_restarts(lambda resume: given.append(resume) or next(outcomes), 2, signals) == 7
    assert given == [False, False, False, True, True]


@pytest.mark.parametrize('status', [2, 3])
def test_bad_input_and_lost_weights_are_not_tried_again(status, tmp_path):
    script = RANK + f'steps(1, 2)\nif rank == 1: sys.exit({status})\ntime.sleep(100)'
    got, _, err = (run := Launch(tmp_path, script, '--max_restarts', '3')).end()
    assert got == status and len(run.starts()) == 1
    assert err.splitlines()[-1].startswith(f'launch: not started again: rank 1 failed first: status {status}')


def test_signal_in_the_pause_before_a_restart(tmp_path):
    run = Launch(tmp_path, RANK + 'sys.exit(5)', '--max_restarts', '9', patch='launch.PAUSE = 60')
    assert any('restart 1 of 9 in 60 s' in line for line in iter(run.process.stderr.readline, ''))
    run.process.terminate()
    assert run.end()[0] == 143 and len(run.starts()) == 1


# ---- hangs

HANGS = {
    'stopped': ('os.kill(os.getpid(), signal.SIGSTOP)', ''),
    'C code that holds the lock of Python': ('import ctypes; ctypes.PyDLL(None).sleep(100)', 'script.py'),
    'data worker': (
        'read, write = os.pipe()\n    def never_returns(): time.sleep(100)\n    if os.fork() == 0: never_returns()\n'
        '    os.read(read, 1)',
        'in never_returns',
    ),
}


@pytest.mark.parametrize('name', HANGS)
def test_hang_is_named_ended_and_started_again(name, tmp_path):
    code, where = HANGS[name]
    script = RANK + f'steps(1, 3)\nif start == 1:\n  if rank == 1:\n    {code}\n  steps(4, 4)\n  time.sleep(100)\n'
    run = Launch(tmp_path, script, '--stall_timeout', '1', '--max_restarts', '1', '--grace', '1')
    status, _, err = run.end()
    assert status == 0 and len(run.starts(1)) == 2, err
    hangs = rf'rank 1 hangs \({"stopped" if name == "stopped" else "sleeping"}\): no heartbeat for \d+ s after step 3'
    assert re.search(rf'^launch: {hangs}; the last lines of results/2p/1/train.log:$', err, re.M), err
    assert re.search(rf'^launch: restart 1 of 1 in 0.1 s, from the beginning, as nothing was saved: {hangs} at', err, re.M)
    assert where in run.log(1, '.1') and 'most recent call first' in run.log(0, '.1')


def test_stopped_rank_is_woken_and_saves(tmp_path):
    """All ranks can then stop after the same step, as after any SIGTERM; so one that is only slow, which is left alone."""
    script = RANK + (
        'signal.signal(signal.SIGTERM, lambda *_: (heartbeat(saved=1), sys.exit(143)))\nheartbeat("compiling", 0)\n'
        'time.sleep(2.5)\nsteps(1, 3)\nif start == 1 and rank == 1: os.kill(os.getpid(), signal.SIGSTOP)\n'
        'if start == 1: time.sleep(100)\n'
    )
    status, _, err = Launch(tmp_path, script, '--stall_timeout', '2', '--max_restarts', '1').end()
    assert status == 0 and err.count('hangs') == 2 and 'did not end in time' not in err
    assert 'restart 1 of 1 in 0.1 s, from the newest checkpoint: rank 1 hangs (stopped)' in err


# ---- what users get wrong


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['missing.json', __file__], 'missing.json: No such file'),
        (['2', 'no.py'], 'no.py: No such file'),
        (['2', __file__, '--rank_size', '3'], '--rank_size 3, but the rank table has 2 ranks'),
        (['0', __file__], '0 devices: must be 1 to 1024'),
        (['2', __file__, '--grace', '-5'], '--grace -5: must be 0 or more'),
        (['2', __file__, '--master_port', '70000'], 'port 70000: '),
        (['2', __file__, '--server_id', 'b'], '0 servers of the rank table have b; choose one by --server_id: 127.0.0.1'),
        (
            ['two.json', __file__, '--max_restarts', '2'],
            '--max_restarts 2 is for a single server; leave it out, Slurm (deploy/',
        ),
    ],
)
def test_input_errors(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'two.json').write_text(table(2))
    with pytest.raises(SystemExit) as exit_:
        launch.main([*arguments, '--device_target', 'Ascend'])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and f'error: {message}' in err, err


def test_device_that_is_not_here():
    given = rank_table.one_server(2)
    with pytest.raises(InputError, match='device 1 of the rank table is not here; there are /dev/davinci0, /dev/davinci5'):
        launch.Launch(given, given.servers[0], 'Ascend', [0, 5]).jobs(['a.py'], None)
