"""How the launcher supervises, ends and restarts the processes that it starts."""

import os
import re
import signal
import time

import pytest

from src.cluster import launch
from tests.cluster.launching import RANK, Launch, table

# Like a data worker that outlives its rank.
CHILD = RANK + "note('pid_child', subprocess.Popen(['sleep', '100'], start_new_session=True).pid)\n"
SAVES = (
    RANK + "def save(number, _):\n    time.sleep(SECONDS); print('saved', number); note('saved', number); sys.exit(143)\n"
    "signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save); note('ready', 0)\ntime.sleep(300)\n"
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
    [('sys.exit(7)', 7, 'status 7'), ('os.kill(os.getpid(), 9)', 137, 'signal SIGKILL (out of memory, or killed by hand)')],
)
def test_first_failure_is_named(tmp_path, death, status, how):
    """With its last lines; the others get SIGTERM, and what they then end with is not the cause."""
    dies = f"for i in range(30): print('line', i)\n  print('[INFO] DISTRIBUTED(5,7f,python)', flush=True)\n  {death}\n"
    waits = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\nnote('ready', 0)\n"
    script = (
        CHILD + f"if rank == 1:\n  while not os.path.exists('ready0'): time.sleep(.01)\n  {dies}{waits}time.sleep(300)\n"
    )
    got, _, err = Launch(tmp_path, script).end()
    lines = ''.join(f'line {i}\n' for i in range(10, 30))
    assert got == status
    assert err.endswith(f'launch: rank 1 failed first: {how}; the last lines of results/2p/1/train.log:\n{lines}')


def test_rank_that_ignores_sigterm(tmp_path):
    script = RANK + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('ready', 0)\n"
    script += "while not os.path.exists('ready1'): time.sleep(.01)\nif rank == 0: sys.exit(3)\ntime.sleep(300)\n"
    status, _, err = Launch(tmp_path, script, '--grace', '1').end()
    assert status == 3 and 'rank 0 failed first: status 3' in err and 'rank 1 did not end in time: killed' in err


LOST = 'worker 1 is the first one timed out'


@pytest.mark.parametrize(
    'lost, rank0, symptom, status, message',
    [
        ('', 'time.sleep(.5); sys.exit(3)', 60, 3, 'rank 0 failed first: status 3'),
        ('', 'pass', 0.1, 5, 'scheduler failed first: status 5'),
        (LOST, 'pass', 0.1, 1, 'rank 1 stopped answering the scheduler; the last lines'),
        (LOST.replace('1', '9'), 'sys.exit(143)', 60, 4, 'rank 9 stopped answering the scheduler; it is on another server'),
    ],
)
def test_failing_scheduler_is_blamed_only_if_no_rank_is(lost, rank0, symptom, status, message, tmp_path):
    """When a rank is lost, the scheduler fails too, and may do so first."""
    scheduler = f"import sys\nprint({lost!r}, flush=True)\nopen('lost', 'w').close()\nsys.exit(5)"
    script = RANK + f"while not os.path.exists('lost'): time.sleep(.01)\nif rank == 0: {rank0}\ntime.sleep(300)\n"
    got, _, err = Launch(tmp_path, script, patch=f'supervisor.SYMPTOM = {symptom}', scheduler=scheduler).end()
    assert got == status and f'launch: {message}' in err and err.count('failed first') + err.count('stopped answering') == 1


def test_rank_that_follows_another_is_not_the_cause(tmp_path):
    """It ends with status 4, here before the one that fails, which is still saving."""
    status, _, err = Launch(tmp_path, RANK + 'time.sleep(rank)\nsys.exit(7 if rank else 4)\n').end()
    assert status == 7 and 'rank 1 failed first: status 7' in err


@pytest.mark.parametrize('numbers', [[signal.SIGHUP], [signal.SIGINT, signal.SIGINT, signal.SIGTERM]])
def test_signal_reaches_the_ranks_once(tmp_path, numbers):
    """Never as SIGINT, which MindSpore handles itself; and a batch system signals a process, then its whole group."""
    run = Launch(tmp_path, SAVES.replace('SECONDS', '.5'), patch='supervisor.ECHO = 60')
    run.wait_for('ready0', 'ready1')
    for number in numbers:
        run.process.send_signal(number)
        time.sleep(0.1)
    status, out, err = run.end()
    assert status == 128 + numbers[0] and 'failed' not in err and out == run.log(1) == f'saved {signal.SIGTERM:d}\n'
    assert f'{signal.Signals(numbers[0]).name} passed on; ranks have 60 s to save' in err


def test_second_signal_kills(tmp_path):
    """Also where handling a signal takes longer than the launcher looks for ends of its processes, as on a busy machine."""
    patch = 'supervisor.ECHO, old = 0.1, supervisor.Signals._received\n'
    patch += 'supervisor.Signals._received = lambda *given: (supervisor.time.sleep(0.3), old(*given))'
    run = Launch(tmp_path, SAVES.replace('SECONDS', '90'), patch=patch)
    run.wait_for('ready0', 'ready1')
    run.process.terminate()
    run.wait_for_line('SIGTERM passed on')
    time.sleep(0.2)
    run.process.terminate()
    assert run.end()[0] == 143 and not (tmp_path / 'saved0').exists()


def test_ranks_die_with_a_killed_launcher(tmp_path):
    run = Launch(tmp_path, RANK + "note('ready', 0)\ntime.sleep(300)\n")
    run.wait_for('ready0', 'ready1')
    run.process.kill()
    assert run.end(patience=60)[0] == -9


def test_screen_may_close(tmp_path):
    run = Launch(tmp_path, RANK + 'for i in range(5):\n  print(i)\n  time.sleep(.2)\n')
    run.process.stdout.close()
    run.process.stdout = None
    assert run.end()[0] == 0 and run.log(0).split() == list('01234')


def test_restarts_from_the_newest_checkpoint(tmp_path):
    script = RANK + "if start == 1:\n  steps(1, 3)\n  heartbeat(saved=1)\n  note('ready', 0)\n"
    script += (
        "  while not os.path.exists('ready0'): time.sleep(.01)\n  if rank == 1: os.kill(os.getpid(), 9)\n  time.sleep(300)\n"
    )
    status, _, err = (run := Launch(tmp_path, script, '--max_restarts', '3', '--overwrite', 'true')).end()
    options = ['--overwrite', 'true', '--device_target', 'Ascend', '--rank_size', '2']
    again = [*options, '--resume', 'auto', '--overwrite', 'false']
    assert status == 0 and run.starts(0) == run.starts(1) == [options, again]
    cause = 'rank 1 failed first: signal SIGKILL (out of memory, or killed by hand)'
    assert err.splitlines()[-1] == f'launch: restart 1 of 3 in 0.1 s, from the newest checkpoint: {cause}'


def test_a_new_checkpoint_resets_the_count(monkeypatch, capsys):
    """Without one a run begins where its options say: `--resume PATH`, or over an older run, which `auto` would resume."""
    outcomes, given = iter([(7, 'rank 1 failed', saved) for saved in (False, False, True, False, False)]), []
    monkeypatch.setattr(launch, 'PAUSE', 0)
    signals = type('Signals', (list,), {'wait': lambda *_: False})()
    assert launch.with_restarts(lambda resume: given.append(resume) or next(outcomes), 2, signals) == 7
    assert given == [False, False, False, True, True]
    err = capsys.readouterr().err
    assert 'launch: restart 2 of 2 in 0 s, from the beginning, as nothing was saved: rank 1 failed' in err
    assert err.endswith('launch: not started again after 2 restarts (--max_restarts): rank 1 failed\n')


@pytest.mark.parametrize('status', [2, 3])
def test_bad_input_and_lost_weights_are_not_tried_again(status, tmp_path):
    script = RANK + f'if rank == 1: sys.exit({status})\ntime.sleep(300)'
    got, _, err = (run := Launch(tmp_path, script, '--max_restarts', '3')).end()
    assert got == status and len(run.starts()) == 1
    assert err.splitlines()[-1].startswith(f'launch: not started again: rank 1 failed first: status {status}')


def test_signal_in_the_pause_before_a_restart(tmp_path):
    run = Launch(tmp_path, RANK + 'sys.exit(5)', '--max_restarts', '9', patch='launch.PAUSE = 60')
    run.wait_for_line('restart 1 of 9 in 60 s')
    run.process.terminate()
    assert run.end()[0] == 143 and len(run.starts()) == 1


WORKER = 'read, write = os.pipe()\n    def never_returns(): time.sleep(300)\n    if os.fork() == 0: never_returns()\n'
HANGS = {
    'stopped': ('os.kill(os.getpid(), signal.SIGSTOP)', ''),
    'sleeping': (f'{WORKER}    import ctypes; ctypes.PyDLL(None).sleep(300)', 'in never_returns'),  # with Python's lock held
}


@pytest.mark.parametrize('state', HANGS)
def test_hang_is_named_ended_and_started_again(state, tmp_path):
    code, where = HANGS[state]
    script = RANK + f'if start == 1:\n  steps(1, 3)\n  if rank == 1:\n    {code}\n  steps(4, 4)\n  time.sleep(300)\n'
    run = Launch(tmp_path, script, '--stall_timeout', '3', '--max_restarts', '1', '--grace', '1')
    status, _, err = run.end()
    assert status == 0 and len(run.starts(1)) == 2, err
    hangs = rf'rank 1 hangs \({state}\): no heartbeat for \d+ s after step 3'
    assert re.search(rf'^launch: {hangs}; the last lines of results/2p/1/train.log:$', err, re.M), err
    assert re.search(rf'^launch: restart 1 of 1 in 0.1 s, from the beginning, as nothing was saved: {hangs}$', err, re.M)
    assert where in (log := run.log(1, '.1')) and 'most recent call first' in run.log(0, '.1')
    assert state == 'stopped' or 'script.py' in log


@pytest.mark.parametrize(
    'arguments, message',
    [
        ('missing.json two.json', 'missing.json: No such file'),
        ('2 no.py', 'no.py: No such file'),
        ('here.json two.json', 'device 0 of the rank table is not here; there are /dev/davinci4, /dev/davinci5'),
        ('2 two.json --rank_size 3', '--rank_size 3, but the rank table has 2 ranks'),
        ('2 two.json --grace -5', '--grace -5: must be 0 or more'),
        ('2 two.json --master_port 70000', 'port 70000: '),
        ('2 two.json --server_id b', '0 servers of the rank table have b; choose one by --server_id: 127.0.0.1'),
        ('two.json two.json --max_restarts 2', '--max_restarts 2 is for a single server; for several see deploy/slurm.sh'),
    ],
)
def test_input_errors(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'two.json').write_text(table(2))
    (tmp_path / 'here.json').write_text(table(1))
    monkeypatch.setattr(launch.environment, 'npus', lambda: [4, 5] * ('here' in arguments))
    monkeypatch.setattr(launch.environment, 'check', lambda: None)
    with pytest.raises(SystemExit) as exit_:
        launch.main([*arguments.split(), '--device_target', 'Ascend'])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and f'error: {message}' in err, err
