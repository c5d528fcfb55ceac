"""What a training run does that gets no further: real processes and signals, with a cell instead of a compiled graph."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from src.data.bad_records import BadRecords
from src.errors import InputError, Interrupted, TrainingError
from src.training import stopping
from src.training.stopping import Guard, save_after
from src.weights import checkpoint
from tests import processes
from tests.training.steps import Training, raising, signals

ROOT = Path(__file__).resolve().parents[2]


def names(directory):
    return [path.name for path in checkpoint.by_age(directory)]


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path, options=['--save_checkpoint_steps', '2'], signals=signals())


def after(training, error):
    return save_after(error, training.state, training.checkpoints)


@pytest.mark.parametrize(
    'error', [InputError('a.jpg: away'), RuntimeError('report\nsrc.errors.InputError: a.jpg: away\n...')]
)
def test_last_whole_step_is_saved_whatever_ends_the_training(training, tmp_path, error):
    training.step(3)
    end = after(training, error)
    assert str(end) == f'a.jpg: away; step 3 is saved in {tmp_path}/inceptionv4-0_3.ckpt, resume with --resume auto'
    assert end.exit_status == 2 and names(tmp_path) == ['inceptionv4-0_2.ckpt', 'inceptionv4-0_3.ckpt']


def test_error_that_is_nobodys_input_keeps_its_traceback(training, tmp_path):
    training.step()
    assert after(training, ZeroDivisionError()) is None
    assert training.lines[-1].startswith('step 1 is saved in ') and names(tmp_path) == ['inceptionv4-0_1.ckpt']


def test_nothing_is_saved_of_weights_that_are_not_whole(training, tmp_path, monkeypatch):
    """Of no step, of one that was cut short, of one after which the weights are lost, on a full disk."""
    assert str(after(training, InputError('x'))) == 'x; no step was done; there is no checkpoint'
    training.state.changing.release()
    training.step(2)
    with raising(OSError(28, 'No space left on device'), checkpoint, 'write', monkeypatch):
        training.step()
        assert str(after(training, InputError('x'))).startswith('x; checkpoint of step 3 not saved: No space left')
    training.state.changing.release()
    training.monitor.on_train_step_begin(training)
    assert str(after(training, InputError('x'))) == (
        'x; the last step was cut short, its weights are not saved; the newest checkpoint is '
        f'{tmp_path}/inceptionv4-0_2.ckpt'
    )
    assert after(training, TrainingError('loss is nan')) is None and names(tmp_path) == ['inceptionv4-0_2.ckpt']


def test_error_of_a_data_worker_that_died(training):
    """MindSpore's error about it comes beside the signal that says what happened."""
    training.step()
    training.state.signals.number, training.state.signals.name = 9, 'a data worker (pid 7) was killed'
    end = after(training, RuntimeError('data pipeline'))
    assert isinstance(end, Interrupted) and end.exit_status == 137
    assert str(end).startswith('a data worker (pid 7) was killed: stopped after step 1 of 100; ')


@pytest.mark.parametrize('rank, stopping_, saved', [(0, True, True), (1, False, True), (1, True, False)])
def test_who_saves_on_several_ranks(tmp_path, monkeypatch, rank, stopping_, saved):
    """Rank 0, if all have agreed on the step; else whoever is between two steps. One that is there already stays."""
    training, ended = Training(tmp_path, rank=rank, signals=signals(15, 'SIGTERM')), []
    training.state.signals.number = 0
    training.step()
    training.state.signals.number, training.state.stopping = 15, stopping_
    guard = Guard(training.state, training.checkpoints)
    monkeypatch.setattr(guard, '_exit', ended.append)
    guard.leave()
    assert [end.exit_status for end in ended] == [143] and names(tmp_path) == ['inceptionv4-0_1.ckpt'] * saved
    if saved and rank:
        path = tmp_path / 'inceptionv4-0_1.ckpt'
        path.write_bytes(b'of rank 0')
        training.checkpoints.saved = 0
        assert training.checkpoints.save() == path and path.read_bytes() == b'of rank 0'


# A main thread that hangs.


class Hanging:
    """A process that has done three steps and then hangs in `body`."""

    def __init__(self, directory, body, sink=False):
        self.directory = directory
        code = f"""
import multiprocessing, os, signal, subprocess, sys, threading, time
from pathlib import Path
from src.data.bad_records import BadRecords
from src.errors import InputError
from src.training import stopping
from tests.training.steps import Training
stopping.SILENCE, stopping.PATIENCE = 1, 1.5
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
with stopping.Signals() as signals:
    run = Training(Path({str(directory)!r}), options=['--save_checkpoint_steps', '2'], signals=signals, sink={sink},
                   bad=BadRecords(80, 10))
    run.state.run = run.state.run._replace(log=lambda line: print(line, flush=True))
    with stopping.Guard(run.state, run.checkpoints):
        run.step(3)
        {body}
        print('hangs', flush=True)
        time.sleep(60)
"""
        output = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
        self.process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, start_new_session=True, **output)
        self.text = ''
        self.read_until('hangs\n')

    def read_until(self, expected):
        while not re.search(expected, self.text):
            line = self.process.stdout.readline()
            assert line, self.text
            self.text += line

    def end(self):
        """Exit status."""
        self.text += self.process.communicate(timeout=60)[0]
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


def test_no_data_and_then_a_signal(hanging):
    """Names the data workers, and saves the last whole step though no further one comes; no worker outlives the process."""
    stalled = hanging('print(worker())')
    child = int(stalled.text.split()[-2])
    stalled.read_until(rf'no data for 1 s; data workers: {child} \(sleeping\)\n')
    stalled.process.terminate()
    assert stalled.end() == 143
    assert 'SIGTERM: saving after this step; send it again after 2 s to quit now\n' in stalled.text
    assert re.search(
        '^SIGTERM: stopped after step 3 of 100; checkpoints in .*, resume with --resume auto$', stalled.text, re.M
    )
    assert names(stalled.directory) == ['inceptionv4-0_2.ckpt', 'inceptionv4-0_3.ckpt']
    end = time.monotonic() + 30  # the kernel is still at it
    while processes.lives(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not processes.lives(child)


def test_second_signals(hanging):
    """In a step, which must end first: an echo, another signal, and MindSpore's about a dead data worker change nothing."""
    busy = hanging("""run.monitor.on_train_step_begin(run)
        print(worker(), flush=True)""")
    worker = int(busy.text.split()[-2])
    busy.process.terminate()
    time.sleep(0.3)
    busy.process.terminate()
    time.sleep(stopping.ECHO + 1)  # beyond the patience of the guard, too
    busy.process.send_signal(signal.SIGHUP)
    os.kill(worker, signal.SIGKILL)  # the process then sends itself SIGTERM
    busy.read_until('told itself\n')
    assert busy.process.poll() is None and names(busy.directory) == ['inceptionv4-0_2.ckpt']
    busy.process.terminate()
    assert busy.end() == 143 and busy.text.endswith('SIGTERM again: stopped at once\n')


def test_death_of_a_data_worker_is_named(hanging):
    """And a signal of the person's that follows is the first, not the second."""
    busy = hanging("""run.monitor.on_train_step_begin(run)
        os.kill(worker(), signal.SIGKILL)""")
    busy.read_until(
        r'a data worker \(pid \d+\) was killed by SIGKILL, probably for lack of memory; lower --num_workers: saving'
    )
    busy.process.terminate()
    time.sleep(0.5)
    assert busy.process.poll() is None


def test_error_in_a_sink_ends_it_at_once(hanging):
    """The device waits for data that do not come: what it holds is not saved, and the process ends in seconds."""
    sink = hanging(
        """run.monitor.on_train_step_begin(run)
        run.state.bad.fail(InputError('a.jpg: away'))""",
        sink=True,
    )
    assert sink.end() == 2 and names(sink.directory) == ['inceptionv4-0_2.ckpt']
    assert re.search('^error: a.jpg: away; the last step was cut short, .* is .*inceptionv4-0_2.ckpt$', sink.text, re.M)


def test_sink_that_ends_is_stopped_there_and_saved(tmp_path):
    """Where data workers have failed, but the data have lasted until its end."""
    training = Training(tmp_path, bad=BadRecords(80, 10))
    training.step(steps=5)
    training.state.bad.fail(InputError('a.jpg: away'))
    training.step(steps=5)
    assert training.stopped and names(tmp_path) == ['inceptionv4-1_10.ckpt']
    assert str(training.state.error()).startswith('a.jpg: away; stopped after step 10 of 100; ')


def die(number):
    """Of the signal, whatever handler another test has left."""
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


@pytest.mark.parametrize(
    'ending, number, name',
    [
        (partial(die, signal.SIGXCPU), 24, 'was killed by SIGXCPU'),
        (partial(os._exit, 3), 9, 'ended with the status 3'),
        (partial(die, signal.SIGTERM), 15, 'SIGTERM'),
        (partial(os._exit, 0), None, ''),
    ],
)
def test_how_a_data_worker_died(ending, number, name):
    """Where the whole process group was told to end, it is no news that workers did; another child is not looked at."""
    for process_name in ('Process-1', 'MapWorker0'):
        child = get_context('fork').Process(target=ending, name=process_name)
        child.start()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        found = stopping._dead_worker()
        child.join()
        if process_name == 'Process-1':
            assert found is None
    assert (found or [None])[0] == number and (number is None or name in found[1])
