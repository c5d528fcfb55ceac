"""What a training run does that gets no further: real processes and signals, with a cell instead of a compiled graph."""

import contextlib
import os
import signal
import time
from functools import partial
from unittest import mock

import pytest

from src.errors import InputError, TrainingError
from src.heartbeat import ECHO
from src.training import stopping
from src.training.stopping import Guard, save_after
from src.weights import checkpoint
from tests.processes import Program
from tests.training.steps import Training, names


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path, options=['--save_checkpoint_steps', '2'])


@pytest.mark.parametrize('error', [RuntimeError('a\nsrc.errors.InputError: a.jpg: away\n...'), ZeroDivisionError()])
def test_last_whole_step_is_saved_whatever_ends_the_training(training, tmp_path, error):
    """An error that is nobody's input keeps its traceback."""
    training.step(3)
    end, saved = save_after(error, training.checkpoints), f'step 3 is saved in {tmp_path}/inceptionv4-0_3.ckpt, resume with'
    assert names(tmp_path) == ['inceptionv4-0_2.ckpt', 'inceptionv4-0_3.ckpt']
    if isinstance(error, ZeroDivisionError):
        assert end is None and training.logged(saved)
    else:
        assert str(end) == f'a.jpg: away; {saved} --resume auto'


def test_nothing_is_saved_of_weights_that_are_not_whole(training, tmp_path):
    """Of no step, of one that was cut short, of one after which the weights are lost, on a full disk."""
    error = InputError('x')
    assert str(save_after(error, training.checkpoints)) == 'x; no step was done; there is no checkpoint'
    training.state.changing.release()
    training.step(2)
    with mock.patch.object(checkpoint, 'write', side_effect=OSError(28, 'No space left on device')):
        training.step()
        assert str(save_after(error, training.checkpoints)).startswith('x; checkpoint of step 3 not saved: No space left')
    training.state.changing.release()
    training.monitor.on_train_step_begin(training)
    assert f'the newest checkpoint is {tmp_path}/inceptionv4-0_2.ckpt' in str(save_after(error, training.checkpoints))
    assert save_after(TrainingError('loss is nan'), training.checkpoints) is None
    assert names(tmp_path) == ['inceptionv4-0_2.ckpt']


@pytest.mark.parametrize('rank, agreed, saved', [(0, True, True), (1, False, True), (1, True, False)])
def test_who_saves_on_several_ranks(tmp_path, monkeypatch, rank, agreed, saved):
    """Rank 0, if all have agreed on the step; else whoever is between two steps."""
    training, ended = Training(tmp_path, rank=rank), []
    training.step()
    training.state.signals.number, training.state.signals.name, training.state.stopping = 15, 'SIGTERM', agreed
    guard = Guard(training.checkpoints)
    monkeypatch.setattr(guard, '_exit', ended.append)
    for seconds in (0, stopping.PATIENCE - 1, stopping.PATIENCE + 1):
        assert not ended
        guard.look(time.monotonic() + seconds)
    assert [end.exit_status for end in ended] == [143] and names(tmp_path) == ['inceptionv4-0_1.ckpt'] * saved


# A main thread that hangs.

HANGING = """
import multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from src.data.pipeline import BadRecords
from src.errors import InputError
from src.training import stopping
from src.training.signals import Signals
from tests.training.steps import Training
stopping.PATIENCE = 1.5
def worker():
    # Pid of a data worker; when it dies, this process sends itself a signal, as MindSpore does.
    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=[600], name='MapWorker0', daemon=True)
    child.start()
    def look():
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        os.kill(os.getpid(), signal.SIGTERM)
        run.state.run.log('SIGTERM to itself')
    threading.Thread(target=look, daemon=True).start()
    return child.pid
with Signals() as signals:
    run = Training(Path('log'), options=['--save_checkpoint_steps', '2'], signals=signals, sink=%s, bad=BadRecords(80, 10))
    # Line by line in one write, as threads write here.
    run.state.run = run.state.run._replace(log=lambda line: os.write(1, f'{line}\\n'.encode()))
    with stopping.Guard(run.checkpoints):
        run.step(3)
        %s
        run.state.run.log('hangs')
        time.sleep(600)
"""


@pytest.fixture
def hanging(compiles, tmp_path):
    """Makes a process that has done three steps and then hangs in `body`."""
    (tmp_path / 'log').mkdir()
    heeds = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # also where this suite runs under nohup
    with contextlib.ExitStack() as stack:

        def make(body, sink=False):
            program = stack.enter_context(Program(tmp_path, '-c', HANGING % (sink, body), preexec_fn=heeds))
            program.reach('^hangs$')
            return program

        yield make


@pytest.mark.parametrize(
    'status, cause', [(143, 'SIGTERM'), (137, r'a data worker \(pid \d+\) ended by signal 9; if memory is short, lower \S+')]
)
def test_last_whole_step_is_saved_while_no_data_come(hanging, tmp_path, status, cause):
    """At a signal to the whole process group, or when a data worker was killed; no worker outlives the process."""
    stalled = hanging('run.state.run.log(worker())')
    [worker] = stalled.found(r'^(\d+)$')
    if status == 143:
        os.killpg(stalled.process.pid, signal.SIGTERM)
    else:
        os.kill(int(worker), signal.SIGKILL)
    stalled.end(status)
    assert stalled.found(f'^{cause}: saving after this step; send it again after 2 s to quit now$')
    assert stalled.found(f'^{cause}: step 3 is saved in log/inceptionv4-0_3.ckpt, resume with --resume auto$')
    assert names(tmp_path / 'log') == ['inceptionv4-0_2.ckpt', 'inceptionv4-0_3.ckpt']


def test_second_signals(hanging, tmp_path):
    """In a step, which must end first: another signal, and that of MindSpore about a dead data worker, change nothing."""
    busy = hanging('run.monitor.on_train_step_begin(run); run.state.run.log(worker())')
    [worker] = busy.found(r'^(\d+)$')
    busy.process.send_signal(signal.SIGHUP)
    busy.reach('^SIGHUP: saving')
    busy.process.terminate()
    time.sleep(ECHO + 1)  # beyond the patience of the guard, too
    os.kill(int(worker), signal.SIGKILL)
    busy.reach('^SIGTERM to itself$')
    time.sleep(1)  # for a process that takes it for a second one
    assert busy.process.poll() is None and names(tmp_path / 'log') == ['inceptionv4-0_2.ckpt']
    busy.process.send_signal(signal.SIGHUP)
    busy.end(129)
    assert busy.found('^SIGHUP again: stopped at once$')


def test_error_in_a_sink_ends_it_at_once(hanging, tmp_path):
    """The device waits for data that do not come: what it holds is not saved, and the process ends in seconds."""
    body = "run.monitor.on_train_step_begin(run); run.state.bad.fail(InputError('a.jpg: away'))"
    sink = hanging(body, sink=True)
    sink.end(2)
    assert names(tmp_path / 'log') == ['inceptionv4-0_2.ckpt'] and sink.found('^error: a.jpg: away; the last step was cut')
