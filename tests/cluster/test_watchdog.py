"""A training that hangs: how long it is waited for, and what is then said. Fake ranks, real signals."""

import os
import re
import time

import pytest

from src import heartbeat
from src.cluster.watchdog import STALL, TELLING, Watchdog, _parse
from src.heartbeat import Heartbeat
from tests.cluster.test_restarts import Launch


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def two():
    """(clock, watchdog of two ranks, their beats)"""
    clock = Clock()
    with Watchdog(2, clock=clock) as watchdog:
        yield clock, watchdog, [Heartbeat({heartbeat.FILE: watchdog.path, 'RANK_ID': str(rank)}) for rank in (0, 1)]


def test_nothing_is_watched_before_the_first_beat(two):
    clock, watchdog, _ = two
    clock.now = 1e6
    assert watchdog.look(['0', '1']) is None and watchdog.step is None and watchdog.progress == 0 and not watchdog.saved


def stalls_after(seconds, clock, watchdog):
    start = clock.now
    for clock.now in (start + seconds - 1, start + seconds + 1):
        assert bool(watchdog.look(['0', '1'])) == (clock.now > start + seconds), clock.now - start
    return True


@pytest.mark.parametrize('doing, times', [('steps', 1), ('saving', 3), ('compiling', 6), ('evaluating', 6)])
def test_limits(doing, times, two):
    """At least ten minutes, and more for what takes longer than a step, on this rank or on one that the others wait for."""
    clock, watchdog, ranks = two
    ranks[0](doing, 1)
    ranks[1]('steps', 1)
    watchdog.look(['0', '1'])
    assert stalls_after(times * STALL, clock, watchdog)


def test_three_times_the_slowest_so_far(two):
    clock, watchdog, ranks = two
    for clock.now, step in ((0, 1), (500, 2), (510, 3)):
        for rank in ranks:
            rank('steps', step)
        watchdog.look(['0', '1'])
    assert stalls_after(1500, clock, watchdog)


def test_which_rank_lags_and_who_is_no_longer_watched(two):
    clock, watchdog, ranks = two
    for rank, step in ((0, 5), (1, 4)):
        ranks[rank]('steps', step)
    watchdog.look(['0', '1'])
    clock.now = 2 * STALL
    assert watchdog.look(['0', '1']) == '1' and watchdog.look(['0']) == '0' and watchdog.look([]) is None
    assert watchdog.silence('1') == 'no beat for 1200 s after step 4'
    ranks[1]('steps', 5, saved=1)
    assert watchdog.look(['0', '1']) is None and watchdog.saved and watchdog.step == 6


def test_stopped_before_the_first_beat(two):
    """As long as for a compilation; not before it was seen to be stopped, nor after it goes on."""
    clock, watchdog, ranks = two
    clock.now = 1e5
    assert watchdog.look(['0', '1'], ['1']) is None
    clock.now += 6 * STALL - 1
    assert watchdog.look(['0', '1'], []) is None and watchdog.look(['0', '1'], ['1']) is None
    clock.now += 6 * STALL - 1
    assert watchdog.look(['0', '1'], ['1']) is None
    clock.now += 2
    ranks[0]('steps', 1)
    assert watchdog.look(['0', '1'], ['1']) == '1' and watchdog.silence('1') == 'no beat yet'


def test_given_timeout():
    clock = Clock()
    for timeout, stalls in ((0, False), (5, True)):
        with Watchdog(1, timeout, clock) as watchdog:
            Heartbeat({heartbeat.FILE: watchdog.path})('steps', 1)
            clock.now = 0.0
            watchdog.look(['0'])
            clock.now = 6.0
            assert bool(watchdog.look(['0'])) == stalls


def test_progress_is_counted_from_the_first_step(two):
    clock, watchdog, ranks = two
    for clock.now, step in ((10, 7), (500, 8), (900, 9)):
        ranks[0]('steps', step)
        watchdog.look(['0'])
    assert watchdog.progress == 400  # compilation is none


def test_without_a_launcher_nothing_is_written(monkeypatch):
    monkeypatch.setattr(os, 'pwrite', lambda *_: pytest.fail('written'))
    Heartbeat({})('steps', 1)
    Heartbeat({heartbeat.FILE: '/proc/1/fd/no such file'})('steps', 1)


def test_what_other_programs_write_there_is_no_beat():
    for record in (b'', b'\0' * 64, b'\xff' * 64, b'1 2 3', b'a b c d'):
        assert _parse(record) is None


# ---- real launchers

HANGS = {
    # name: (what rank 1 does after step 3, where its stack is, or None)
    'stopped': ('os.kill(os.getpid(), signal.SIGSTOP)', None),
    'full pipe': ('os.write(os.pipe()[1], bytes(1 << 20))', 'in <module>'),
    'C code that holds the lock of Python': ('import ctypes; ctypes.PyDLL(None).sleep(100)', 'in <module>'),
    'callback': ('def on_train_step_end(): time.sleep(100)\n    on_train_step_end()', 'in on_train_step_end'),
    'data worker': (
        'read, write = os.pipe()\n    def never_returns(): time.sleep(100)\n    if os.fork() == 0: never_returns()\n'
        '    def next_batch(): os.read(read, 1)\n    print("no data for 20 s; the processes that load them", flush=True)\n'
        '    next_batch()',
        'in next_batch',
    ),
}


@pytest.mark.parametrize('name', HANGS)
def test_hang_is_named_ended_and_started_again(name, tmp_path):
    code, where = HANGS[name]
    script = (
        f'steps(1, 3)\nif start == 1:\n  if rank == "1":\n    {code}\n  steps(4, 4)\n'
        '  def waits(): time.sleep(100)\n  waits()\n'
    )
    run = Launch(tmp_path, script, '--stall_timeout', '1', '--max_restarts', '1', '--grace', '1')
    status, err = run.end()
    assert status == 0 and len(run.starts(1)) == 2, err
    assert re.search(r'^launch: the training hangs; rank 1 lags: no beat for 1 s after step 3$', err, re.M)
    log = (tmp_path / 'results/2p/1/train.log.1').read_text()
    if where:
        assert re.search(
            rf'^launch: rank 1: no beat for 1 s after step 3, File ".*script.py", line \d+,? {where}; stacks of all threads '
            'in results/2p/1/train.log$',
            err,
            re.M,
        ), err
        assert where in log
    else:
        assert re.search('^launch: rank 1: no beat .*, it is stopped .* and cannot say where$', err, re.M)
    assert re.search(
        r'^launch: rank 0: no beat for \d s after step 4, File .* in waits; stacks of all threads in', err, re.M
    )
    why = 'it is stopped' if name == 'stopped' else 'no beat for 1 s after step 3'
    assert (
        f'launch: restart 1 of 1 in 0.1 s, from where it began, as nothing was saved: rank 1, stopped answering: {why} at s'
        in err
    )
    if name == 'data worker':
        assert 'in never_returns' in log and 'launch: rank 1 wrote: no data for 20 s; ' in err


def test_stopped_rank_is_woken_and_saves(tmp_path):
    """All ranks can then stop after the same step, as after any SIGTERM."""
    script = (
        'signal.signal(signal.SIGTERM, lambda *_: (beat(saved=1), sys.exit(143)))\nsteps(1, 3)\n'
        'if start == 1:\n  if rank == "1": os.kill(os.getpid(), signal.SIGSTOP)\n  time.sleep(100)\n'
    )
    run = Launch(tmp_path, script, '--stall_timeout', '1', '--max_restarts', '1')
    status, err = run.end()
    assert status == 0 and 'restart 1 of 1 in 0.1 s, from the newest checkpoint: rank 1, stopped answering' in err
    assert 'did not end in time' not in err


def test_stopped_before_it_has_beaten(tmp_path):
    run = Launch(
        tmp_path,
        'if start == 1 and rank == "1": os.kill(os.getpid(), signal.SIGSTOP)\nif start == 1: time.sleep(100)\nsteps(1, 3)\n',
        *('--stall_timeout', '0.2', '--max_restarts', '1', '--grace', '1'),
    )
    status, err = run.end()
    assert status == 0 and 'launch: the training hangs; rank 1 lags: no beat yet' in err
    assert (
        'restart 1 of 1 in 0.1 s, from where it began, as nothing was saved: rank 1, stopped answering: it is stopped' in err
    )


def test_rank_that_beats_slowly_is_left_alone(tmp_path):
    run = Launch(tmp_path, 'beat("compiling", 0)\ntime.sleep(2)\nsteps(1, 3, .5)\n', '--stall_timeout', '1')
    status, err = run.end()
    assert status == 0 and 'hangs' not in err


def test_screen_that_nobody_reads(tmp_path):
    """The launcher still notices what happens, although rank 0 has written more than the pipe holds."""
    script = 'if rank == "0": print("x\\n" * 200000, flush=True)\nsteps(1, 3)\nif rank == "1": sys.exit(7)\ntime.sleep(100)'
    run = Launch(tmp_path, script, '--grace', '1', patch='logs.PATIENCE = 1')
    start = time.monotonic()
    assert run.process.wait(30) == 7 and time.monotonic() - start < 20
    run.process.stdout.close()
    assert 'rank 1 failed first: status 7' in run.process.stderr.read()


@pytest.mark.parametrize(
    'line, tells',
    [
        (b'[ERROR] HCCL_ADPT(7,python):2026-11-24 [hccl_adapter.cc:89] Init] failed', True),
        (b'EI0002: Notify register times out', True),
        (b'[WARNING] MD(7,python): [data_queue_op.cc:1] queue of the device is empty', True),
        (b'GetNext failed', True),
        (b'no step for 40 s; the processes that load them: 7 sleeps', True),
        (b'step: 100 epoch: 0.1 FPS: 3000.0 loss: 5.000', False),
        (b'EINSUM', False),
    ],
)
def test_lines_of_the_logs_that_are_shown(line, tells):
    assert bool(TELLING.search(line)) == tells
