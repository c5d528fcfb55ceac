"""What a training does that gets no further: real processes and signals, with a cell instead of a compiled graph."""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor, nn

from src import heartbeat
from src.cluster.watchdog import Watchdog
from src.data.bad_records import BadRecords
from src.errors import InputError, Interrupted, TrainingError
from src.evaluation import evaluation
from src.training import interruption
from src.training.callbacks import Checkpoints, Evaluations
from src.training.monitor import TrainingMonitor
from src.training.plan import Plan
from src.training.watch import Watch
from src.weights import checkpoint
from tests import processes
from tests.training.test_callbacks import Run

ROOT = Path(__file__).resolve().parents[2]


def callbacks(directory, asked, log=print, rank=0, sink=False):
    """Monitor, checkpoints of every second step, and watch of a training of 100 steps."""
    bad = BadRecords(per_epoch=80, epochs=10)
    monitor = TrainingMonitor(
        log, np.ones(100, np.float32), Plan(8, 1, 10, 100), 1, interruption=asked, directory=directory, bad=bad
    )
    saved = Checkpoints(monitor, 2, directory, nn.Dense(2, 2), {'config': {}}, 3, spare=rank > 0)
    return monitor, saved, Watch(monitor, saved, asked, rank, sink)


def nobody(**given):
    """An `Interruption` without signals."""
    fields = {'number': 0, 'name': '', 'can_save': False, 'first': {}, 'hold': lambda: None, 'look': lambda: None}
    return SimpleNamespace(**{**fields, **given})


# After an error.


@pytest.fixture
def training(tmp_path):
    lines, asked = [], nobody()
    made = SimpleNamespace(lines=lines, asked=asked, directory=tmp_path)
    made.monitor, made.saved, made.watch = callbacks(tmp_path, asked, lines.append)
    made.run = Run([made.monitor, made.saved, made.watch])
    yield made
    made.watch.close()


def names(directory):
    return [p.name for p in checkpoint.by_age(directory)]


@pytest.mark.parametrize(
    'error', [InputError('a.jpg: away'), RuntimeError('report\nsrc.errors.InputError: a.jpg: away\n...')]
)
def test_last_whole_step_is_saved_whatever_ends_the_training(training, error):
    for _ in range(3):
        training.run.step()
    end = training.watch.after(error)
    assert str(end) == f'a.jpg: away; step 3 is saved in {training.directory}/inceptionv4-0_3.ckpt, go on with --resume auto'
    assert end.exit_status == 2 and names(training.directory)[-1] == 'inceptionv4-0_3.ckpt'
    assert checkpoint.load(training.directory / 'inceptionv4-0_3.ckpt')[1]['position'] == 24


def test_error_that_is_nobodys_input_keeps_its_traceback(training):
    training.run.step()
    assert training.watch.after(ZeroDivisionError()) is None
    assert training.lines[-1].startswith('step 1 is saved in ') and names(training.directory) == ['inceptionv4-0_1.ckpt']


def test_nothing_is_saved_of_a_step_that_was_cut_short(training):
    for _ in range(3):
        training.run.step()
    training.run.call('on_train_step_begin')
    end = training.watch.after(InputError('a.jpg: away'))
    assert str(end) == (
        'a.jpg: away; a step was cut short, whose weights are not whole and are not saved; the newest checkpoint '
        f'is {training.directory}/inceptionv4-0_2.ckpt'
    )
    assert names(training.directory) == ['inceptionv4-0_2.ckpt']


def test_nothing_is_saved_of_weights_that_are_lost(training):
    for _ in range(3):
        training.run.step()
    with pytest.raises(TrainingError) as lost:
        training.run.step(loss=float('nan'))
    assert training.watch.after(lost.value) is None and names(training.directory) == ['inceptionv4-0_2.ckpt']
    assert training.monitor.moving.locked()  # nobody else can save them either


def test_steps_of_a_stage_are_timed_anew(training):
    """Those of larger images take longer: the patience of the stage before would be too short."""
    training.run.step()
    assert training.watch.shortest is not None
    training.run.call('on_train_begin')
    assert training.watch.shortest is None


def test_nothing_was_done_yet(training):
    assert str(training.watch.after(InputError('x'))) == 'x; no step was done; there is no checkpoint'


def test_full_disk_at_the_end(training, monkeypatch):
    training.run.step()
    monkeypatch.setattr(checkpoint, 'write', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    assert re.match(
        'x; checkpoint of step 1 not saved: No space left on device; it needs ', str(training.watch.after(InputError('x')))
    )


def test_error_of_a_data_worker_that_died(training):
    """MindSpore's error about it comes beside the signal that says what happened."""
    training.run.step()
    training.asked.number, training.asked.name = 9, 'a data worker (pid 7) was killed'
    end = training.watch.after(RuntimeError('data pipeline'))
    assert isinstance(end, Interrupted) and end.exit_status == 137 and names(training.directory) == ['inceptionv4-0_1.ckpt']
    assert str(end).startswith('a data worker (pid 7) was killed: stopped after step 1 of 100; ')


def test_another_rank_saves_what_the_first_did_not(tmp_path):
    """Into the first one's directory, whose checkpoint of the same step it leaves alone."""
    asked = nobody()
    for step, there in ((1, False), (2, True)):
        monitor, _, watch = callbacks(tmp_path / str(step), asked, rank=1)
        run = Run([monitor, watch])
        for _ in range(step):
            run.step()
        path = tmp_path / str(step) / f'inceptionv4-0_{step}.ckpt'
        if there:
            path.parent.mkdir()
            path.write_bytes(b'of rank 0')
        assert str(watch.after(InputError('x'))) == f'x; step {step} is saved in {path}, go on with --resume auto'
        assert (path.read_bytes() == b'of rank 0') == there
        watch.close()


def test_sink_that_ends_is_stopped_there_and_saved(training):
    """Where data workers have failed, but the data have lasted until its end."""
    training.run.step(5)
    training.monitor.bad.fail(InputError('a.jpg: away'))
    training.run.step(5)
    assert training.run.stopped and names(training.directory)[-1] == 'inceptionv4-1_10.ckpt'
    assert str(training.monitor.error_of_stop()).startswith('a.jpg: away; stopped after step 10 of 100; ')


# A main thread that hangs.


class Hanging:
    """A process that has done three steps and then hangs in `body`."""

    def __init__(self, directory, body, sink=False):
        self.directory = directory
        code = f"""
import multiprocessing, os, signal, subprocess, sys, threading, time
from src.training import watch
from src.errors import InputError
from src.training.interruption import Interruption
from tests.training.test_callbacks import Run
from tests.training.test_watch import callbacks
watch.SILENCE, watch.PATIENCE = 1, 1.5
def worker():
    # Pid of a data worker; when it dies, this process tells itself, as MindSpore's signal handler does.
    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=[60], name='MapWorker0', daemon=True)
    child.start()
    def tell():
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        os.kill(os.getpid(), signal.SIGTERM)
        print('told itself', flush=True)
    threading.Thread(target=tell, daemon=True).start()
    return child.pid
with Interruption() as interruption:
    monitor, saved, looking = callbacks({str(directory)!r}, interruption, sink={sink})
    run = Run([monitor, saved, looking])
    for _ in range(3):
        run.step()
    {body}
    print('hangs', flush=True)
    time.sleep(60)
"""
        self.process = subprocess.Popen(
            [sys.executable, '-c', code],
            cwd=ROOT,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.text = ''
        self.read_until('hangs\n')

    def read_until(self, expected):
        while not re.search(expected, self.text):
            line = self.process.stdout.readline()
            assert line, self.text
            self.text += line

    def end(self):
        """Exit status."""
        self.text += self.process.communicate(timeout=30)[0]
        return self.process.returncode


@pytest.fixture
def hanging(compiles, tmp_path):
    made = []

    def make(*args, **kwargs):
        made.append(Hanging(tmp_path, *args, **kwargs))
        return made[0]

    yield make
    for one in made:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)  # its children too, also the stopped ones
        one.process.wait()


def test_no_data_worker_outlives_the_process(hanging):
    one = hanging('os.fork() or time.sleep(60)')
    (worker,) = processes.children(one.process.pid)
    one.process.kill()
    assert one.end() == -signal.SIGKILL  # waits until no process has its output open any more
    end = time.monotonic() + 10  # the kernel is still at it
    while processes.lives(worker):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_no_data_and_then_a_signal(hanging):
    """Says which process is to blame, wakes it, and saves the last whole step though no further one comes."""
    stalled = hanging("""subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # not one
    os.kill(child := worker(), signal.SIGSTOP)
    print(child)""")
    child = stalled.text.split()[-2]
    stalled.read_until(
        rf'no data for 1 s; the processes that load them: {child} is stopped \(kill -CONT {child} wakes it\)\n'
    )
    asked = time.monotonic()
    stalled.process.terminate()
    assert stalled.end() == 143 and time.monotonic() - asked < 10
    assert f'process {child} was stopped and is woken\n' in stalled.text
    assert re.search(
        r'^SIGTERM: stopped after step 3 of 100; checkpoints in .*, go on with --resume auto$', stalled.text, re.M
    )
    assert names(stalled.directory) == ['inceptionv4-0_2.ckpt', 'inceptionv4-0_3.ckpt']


def test_second_signals(hanging):
    """In a step, which must end first: an echo, another signal, and MindSpore's about a dead data worker change nothing."""
    busy = hanging("""run.call('on_train_step_begin')
    print(worker(), flush=True)""")
    worker = int(busy.text.split()[-2])
    busy.process.terminate()
    time.sleep(0.3)
    busy.process.terminate()
    time.sleep(interruption.ECHO + 1)  # beyond the patience of the watch, too
    busy.process.send_signal(signal.SIGHUP)
    os.kill(worker, signal.SIGKILL)  # the process then sends itself SIGTERM
    busy.read_until('told itself\n')
    time.sleep(0.5)
    assert busy.process.poll() is None and names(busy.directory) == ['inceptionv4-0_2.ckpt']
    busy.process.terminate()
    assert busy.end() == 143
    assert 'SIGTERM: stops after this step and saves; the same signal again, 2 s later or after, stops' in busy.text
    assert busy.text.endswith('SIGTERM again: stopped at once\n')


def test_death_of_a_data_worker_is_named(hanging):
    """And a signal of the person's that follows is the first, not the second."""
    busy = hanging("""run.call('on_train_step_begin')
    os.kill(worker(), signal.SIGKILL)""")
    busy.read_until(
        r'a data worker \(pid \d+\) was killed, probably for lack of memory \(fewer --num_workers need less\): stops'
    )
    busy.process.terminate()
    time.sleep(0.5)
    assert busy.process.poll() is None


def die(number):
    """Of the signal, whatever handler another test has left."""
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


@pytest.mark.parametrize(
    'ending, number, name',
    [
        (partial(die, signal.SIGKILL), 9, 'was killed, probably for lack of memory'),
        (partial(die, signal.SIGXCPU), 24, 'of SIGXCPU'),
        (partial(os._exit, 3), 9, 'ended with the status 3'),
        (partial(die, signal.SIGTERM), 15, 'SIGTERM'),
        (partial(os._exit, 0), None, ''),
    ],
)
def test_how_a_data_worker_died(ending, number, name):
    """Where the whole process group was told to end, it is no news that workers did; another child is not looked at."""
    for process_name in ('Process-1', 'MapWorker0'):
        child = multiprocessing.get_context('fork').Process(target=ending, name=process_name)
        child.start()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        found = interruption._dead_worker()
        child.join()
        if process_name == 'Process-1':
            assert found is None
    assert (found or [None])[0] == number and (number is None or name in found[1])


@pytest.mark.parametrize('rank, stopping, saved', [(0, True, True), (1, False, True), (1, True, False)])
def test_who_saves_on_several_ranks(tmp_path, monkeypatch, rank, stopping, saved):
    """Rank 0, if all have agreed on the step; else whoever is between two steps, as the others may be inside one."""
    asked = nobody(name='SIGTERM')
    monitor, _, watch = callbacks(tmp_path, asked, rank=rank)
    watch.close()
    run = Run([monitor, watch])
    run.step()
    asked.number, monitor.stopping, ended = 15, stopping, []
    monkeypatch.setattr('src.training.watch._exit', ended.append)
    watch._leave()
    assert [end.exit_status for end in ended] == [143] and names(tmp_path) == ['inceptionv4-0_1.ckpt'] * saved


# An error in a data worker while the device is inside a sink.


def test_error_in_a_sink_is_told_at_once(hanging):
    """The device waits for data that do not come: what it holds is not saved, and the process ends in seconds."""
    sink = hanging(
        """run.call('on_train_step_begin')
    if os.fork() == 0:
        monitor.bad.fail(InputError('a.jpg: away'))
        os._exit(0)""",
        sink=True,
    )
    begin = time.monotonic()
    sink.read_until('error in a data worker: a.jpg: away\n')
    assert time.monotonic() - begin < 1
    assert sink.end() == 2 and time.monotonic() - begin < 5
    assert re.search(
        '^error: a.jpg: away; a step was cut short, whose weights are not whole and are not saved; the newest '
        'checkpoint is .*inceptionv4-0_2.ckpt$',
        sink.text,
        re.M,
    )
    assert names(sink.directory) == ['inceptionv4-0_2.ckpt']


def test_worker_that_stands_still_in_a_sink_is_named(hanging):
    sink = hanging(
        """run.call('on_train_step_begin')
    os.kill(worker(), signal.SIGSTOP)""",
        sink=True,
    )
    sink.read_until(r'no step for \d+ s; the processes that load them: \d+ is stopped \(kill -CONT \d+ wakes it\)\n')


def test_state_that_is_saved_is_a_whole_one(tmp_path, monkeypatch):
    """Asked at any moment while steps change one weight after the other: every weight is that of the step's end."""
    asked, ended = nobody(number=15, name='SIGTERM'), []
    monitor, saved, watch = callbacks(tmp_path, asked)
    watch.close()
    monkeypatch.setattr('src.training.watch._exit', ended.append)
    saved.cell = nn.SequentialCell([nn.Dense(2, 2) for _ in range(3)])

    class Step:
        def on_train_begin(self, _):
            pass

        def on_train_step_begin(self, _):
            for parameter in saved.cell.get_parameters():
                parameter.set_data(Tensor(np.full(parameter.shape, monitor.step + 1, np.float32)))
                time.sleep(0.001)

        def on_train_step_end(self, _):
            time.sleep(0.002)

    run, tries = Run([monitor, Step(), watch]), 0
    steps = threading.Thread(target=lambda: [run.step() for _ in range(99)])
    steps.start()
    while steps.is_alive():
        tries += 1
        time.sleep(0.0013)
        before = len(ended)
        watch._leave()
        if len(ended) > before:
            state, info = checkpoint.load(saved.path)
            assert len(state) == 6 and all((value == info['step']).all() for value in state.values())
            monitor.moving.release()
    assert len(set(names(tmp_path))) <= 3 and 10 < len(ended) < tries


def test_launcher_sees_what_the_training_does(tmp_path, monkeypatch):
    """A beat after every step, and before compiling, saving and evaluating."""
    seen = []
    with Watchdog(1) as watchdog:
        monkeypatch.setenv(heartbeat.FILE, watchdog.path)
        monitor, saved, watch = callbacks(tmp_path, nobody())

        def look(*_):
            watchdog.look(['0'])
            seen.append(tuple(watchdog.states['0'])[1:])

        write = checkpoint.write
        monkeypatch.setattr(checkpoint, 'write', lambda *what: (look(), write(*what)))
        run = Run([monitor, saved, Evaluations(monitor, 2, look), watch])
        look()
        for _ in range(2):
            run.step()
            look()
        watch.close()
    assert seen[:2] == [(0, 0, 'compiling'), (1, 0, 'steps')]
    assert seen[2:] == [(2, 0, 'saving'), (2, 1, 'evaluating'), (2, 1, 'steps')]


class Images(nn.Cell):
    """Counts one image, without a graph."""

    def __call__(self, image, label):
        return Tensor(np.ones(4, np.float32))


def test_evaluation_beats_after_every_batch(monkeypatch):
    """So that a long one is no stall."""
    with Watchdog(1) as watchdog:
        monkeypatch.setenv(heartbeat.FILE, watchdog.path)
        monitor = SimpleNamespace(heartbeat=heartbeat.Heartbeat(os.environ), interruption=SimpleNamespace(number=0))
        batches = [(Tensor(np.ones(4, np.float32)),) * 2] * 5
        data = SimpleNamespace(create_tuple_iterator=lambda num_epochs: iter(batches), get_dataset_size=lambda: 5)
        evaluation.evaluate(Images(), data, 5, should_stop=partial(TrainingMonitor.asked_to_stop, monitor))
        assert os.pread(watchdog.file, heartbeat.SIZE, 0).split()[0] == b'5'
