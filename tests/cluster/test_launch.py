"""How the launcher supervises, ends and restarts the processes that it starts."""

import re
import signal
import time

import pytest

from src.cluster import launch
from tests.cluster.launching import Launch, table

READY = "note('ready', 0)\ntime.sleep(300)\n"
SAVES = (
    "def save(number, _): time.sleep({}), print('saved', number), note('saved', number), sys.exit(143)\n"
    'signal.signal(signal.SIGTERM, save), signal.signal(signal.SIGINT, save)\n'
)


def test_success(tmp_path):
    """A child that outlives its rank, as a data worker may, is ended too."""
    script = "note('pid_child', subprocess.Popen(['sleep', '100'], start_new_session=True).pid)\n"
    script += "print('rank', rank, sys.argv[1:])\n"
    assert Launch(tmp_path, script).end()[0] == 0
    status, out, err = (run := Launch(tmp_path, script, '--lr', '-1')).end()
    options = "['--lr', '-1', '--device_target', 'Ascend', '--rank_size', '2']"
    assert (status, out) == (0, f'rank 0 {options}\n'), err
    assert run.log(1) == f'rank 1 {options}\n' and run.log(1, '.1').startswith("rank 1 ['--device_target'")
    assert err == 'launch: 2 ranks, Ascend; logs in results/2p/<rank>/train.log\n'


SLEEPS = 'time.sleep(300)'
ENDS = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); note('ready', 0); {SLEEPS}"
DIES = "wait_for('ready0'); [print('line', i) for i in range(30)]; print('[INFO] DISTRIBUTED(5'); sys.exit(7)"
LINES = 'the last lines of results/2p/1/train.log:\n' + ''.join(f'line {i}\n' for i in range(10, 30))
LOST = 'worker 1 is the first one timed out'


@pytest.mark.parametrize(
    'rank0, rank1, scheduler, status, message',
    [
        # What ranks end with after the launcher's SIGTERM, or after status 4, is not the cause.
        (ENDS, DIES, None, 7, f'rank 1 failed first: status 7; {LINES}'),
        ('sys.exit(4)', 'time.sleep(1); sys.exit(7)', None, 7, 'rank 1 failed first: status 7'),
        # When a rank is lost, the scheduler fails too, and may do so first.
        ("wait_for('lost'); time.sleep(.5); sys.exit(3)", SLEEPS, '', 3, 'rank 0 failed first: status 3'),
        (SLEEPS, SLEEPS, '', 5, 'scheduler failed first: status 5'),
        (SLEEPS, SLEEPS, LOST, 1, 'rank 1 stopped answering the scheduler; the last lines'),
    ],
)
def test_first_failure_is_named(rank0, rank1, scheduler, status, message, tmp_path):
    fails = f"import sys\nprint({scheduler!r}, flush=True)\nopen('lost', 'w').close()\nsys.exit(5)"
    patch = f'supervisor.SYMPTOM = {0.1 if rank0 == SLEEPS else 60}'
    scheduler = 'pass' if scheduler is None else fails
    got, _, err = Launch(tmp_path, f'if rank == 0: {rank0}\nelse: {rank1}\n', patch=patch, scheduler=scheduler).end()
    assert got == status and f'launch: {message}' in err and err.count('failed first') + err.count('stopped answering') == 1


def test_signal_reaches_the_ranks_once(tmp_path):
    """Never as SIGINT, which MindSpore handles itself; and a batch system signals a process, then its whole group."""
    run = Launch(tmp_path, SAVES.format(0.5) + READY, patch='supervisor.ECHO = 60')
    run.wait_for('ready0', 'ready1')
    run.process.send_signal(signal.SIGHUP)
    run.wait_for_line('SIGHUP passed on; ranks have 60 s to save')
    run.process.send_signal(signal.SIGINT)
    status, out, err = run.end()
    assert status == 128 + signal.SIGHUP and 'failed' not in err and out == run.log(1) == f'saved {signal.SIGTERM:d}\n'


def test_second_signal_kills(tmp_path):
    """Also where handling a signal takes longer than the launcher looks for ends of its processes, as on a busy machine."""
    patch = 'supervisor.ECHO, old = 0.1, supervisor.Signals._received\n'
    patch += 'supervisor.Signals._received = lambda *given: (supervisor.time.sleep(0.3), old(*given))'
    run = Launch(tmp_path, SAVES.format(90) + READY, patch=patch)
    run.wait_for('ready0', 'ready1')
    run.process.terminate()
    run.wait_for_line('SIGTERM passed on')
    time.sleep(0.2)
    run.process.terminate()
    status, _, err = run.end()
    assert status == 143 and 'rank 0, 1 did not end in time: killed' in err and not (tmp_path / 'saved0').exists()


def test_ranks_die_with_a_killed_launcher(tmp_path):
    (run := Launch(tmp_path, READY)).wait_for('ready0', 'ready1')
    run.process.kill()
    assert run.end()[0] == -9


def test_when_it_is_not_started_again(monkeypatch, capsys):
    """After so many restarts without a new checkpoint; after bad input and lost weights at once."""
    outcomes, given = iter([(7, 'rank 1 failed', saved) for saved in (False, False, True, False, False)]), []
    monkeypatch.setattr(launch, 'PAUSE', 0)
    assert launch.with_restarts(lambda resume: given.append(resume) or next(outcomes), 2, []) == 7
    assert given == [False, False, False, True, True]
    assert capsys.readouterr().err.endswith('launch: not started again after 2 restarts (--max_restarts): rank 1 failed\n')
    for status in (2, 3):
        assert launch.with_restarts(lambda _, status=status: (status, 'rank 1 failed', True), 2, []) == status
        assert capsys.readouterr().err == 'launch: not started again: rank 1 failed\n'


def test_signal_in_the_pause_before_a_restart(tmp_path):
    run = Launch(tmp_path, 'sys.exit(5)', '--max_restarts', '9', patch='launch.PAUSE = 60')
    run.wait_for_line('restart 1 of 9 in 60 s')
    run.process.terminate()
    assert run.end()[0] == 143 and len(run.starts()) == 1


# With Python's lock held; the child is a data worker.
WORKER = 'def never_returns(): time.sleep(300)\n    if os.fork() == 0: never_returns()\n'
WORKER += '    import ctypes; ctypes.PyDLL(None).sleep(300)'
ENDS_OF_A_RANK = {
    'stopped': ('os.kill(os.getpid(), signal.SIGSTOP)', r'hangs: no heartbeat for \d+ s after step 3'),
    'sleeping': (WORKER, r'hangs: no heartbeat for \d+ s after step 3'),
    'killed': ('os.kill(os.getpid(), 9)', r'failed first: signal SIGKILL \(out of memory, or killed by hand\)'),
}


@pytest.mark.parametrize('how', ENDS_OF_A_RANK)
def test_failed_or_hanging_rank_is_named_and_started_again(how, tmp_path):
    """From the newest checkpoint; before there is one a run begins where its options say: `--resume PATH`, or over an older
    run, which `auto` would resume. What hangs has left its stacks, and those of its data workers."""
    code, what = ENDS_OF_A_RANK[how]
    script = f'if start == 1:\n  steps(1, 3)\n  heartbeat(saved={how == "killed":d})\n  if rank == 1:\n    {code}\n'
    script += f'  steps(4, 4)\n  {SLEEPS}\n'
    run = Launch(tmp_path, script, '--lr', '1', '--stall_timeout', '3', '--max_restarts', '1', '--grace', '1')
    status, _, err = run.end()
    options = ['--lr', '1', '--device_target', 'Ascend', '--rank_size', '2']
    resume, where = [], 'from the beginning, as nothing was saved'
    if how == 'killed':
        resume, where = ['--resume', 'auto', '--overwrite', 'false'], 'from the newest checkpoint'
    assert status == 0 and run.starts(0) == run.starts(1) == [options, [*options, *resume]], err
    assert re.search(rf'^launch: restart 1 of 1 in 0.1 s, {where}: rank 1 {what}$', err, re.M), err
    assert how == 'killed' or 'most recent call first' in run.log(0, '.1')
    assert how != 'sleeping' or 'in never_returns' in run.log(1, '.1')


@pytest.mark.parametrize(
    'arguments, message',
    [
        ('table.json', 'device 0 of the rank table is not here; there are /dev/davinci4, /dev/davinci5'),
        ('2 --grace -5', '--grace -5: must be 0 or more'),
        ('2 --master_port 70000', 'port 70000: '),
        ('table.json --server_id b', '0 servers of the rank table have b; choose one by --server_id: 127.0.0.1'),
        ('table.json --max_restarts 2', '--max_restarts 2 is for a single server; for several see deploy/slurm.sh'),
    ],
)
def test_input_errors(arguments, message, tmp_path):
    (tmp_path / 'table.json').write_text(table(2))
    ranks, *options = arguments.split()
    status, _, err = Launch(tmp_path, '', *options, ranks=ranks, npus=(4, 5)).end()
    assert status == 2 and f'error: {message}' in err, err
