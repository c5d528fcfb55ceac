"""A training that hangs says why, and whatever ends a training, its last whole step is saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import psutil
from mindspore.train import Callback

from src.errors import InputError, TrainingError, input_error, report
from src.training.callbacks import Checkpoints
from src.training.interruption import ECHO, Interruption, data_workers
from src.training.monitor import TrainingMonitor
from src.weights import checkpoint

LOOK = 0.2  # seconds between two looks
PATIENCE = 4  # seconds for the next step of a training that was told to end
SILENCE = 20  # seconds without data after which it is said, and again after twice as many
STATES = {
    psutil.STATUS_STOPPED: 'is stopped (kill -CONT {} wakes it)',
    psutil.STATUS_TRACING_STOP: 'is held by a debugger',
    psutil.STATUS_DISK_SLEEP: 'waits for a disk or a network',
    psutil.STATUS_RUNNING: 'runs',
    psutil.STATUS_SLEEPING: 'sleeps',
    psutil.STATUS_ZOMBIE: 'has died',
}
HELD_UP = {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_DISK_SLEEP}


class Watch(Callback):
    """Looks at the training from a thread of its own, as the main thread may be waiting in C++ for data or for a device,
    where it neither sees a signal nor could save. The last of the callbacks.

    When the weights may be saved: `monitor.moving` is locked from the beginning of a step to the check of its outputs.
    Between two steps the weights are those of `monitor.step`, and whoever holds the lock keeps them so. Within a step they
    are not whole, as the optimizer may have updated some of them. The same is true of a sink that has failed: its counter
    `global_step` tells the last step that began its update, but not whether the update was finished when the device
    stopped, nor whether a device in error returns what it holds. So nothing is saved then.

    Args:
        checkpoints (Checkpoints): on every rank. All ranks hold the same weights (each its own batch norm statistics), and
            the failing one may be the only one between two steps.
        rank (int): of this process.
        sink (bool): the monitor sees only the ends of sinks, not of steps.
    """

    def __init__(
        self,
        monitor: TrainingMonitor,
        checkpoints: Checkpoints,
        interruption: Interruption,
        rank: int = 0,
        sink: bool = False,
    ):
        super().__init__()
        self.monitor, self.checkpoints, self.interruption = monitor, checkpoints, interruption
        self.rank, self.sink = rank, sink
        self.waiting, self.silence, self.shortest, self.asked, self.told = None, SILENCE, None, None, False
        self.closed = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def on_train_begin(self, run_context):
        """Called before the first step."""
        self.waiting, self.shortest = time.monotonic(), None  # steps of another size take another time

    def on_train_step_begin(self, run_context):
        """Called before a step, or a sink of steps."""
        self.waiting = None

    def on_train_step_end(self, run_context):
        """Called after a step, or a sink of steps."""
        self.waiting, self.silence = time.monotonic(), SILENCE
        self.shortest = min(self.shortest or self.monitor.duration, self.monitor.duration)

    def on_train_end(self, run_context):
        """Called after the last step."""
        self.waiting = None

    def close(self):
        """End the thread."""
        self.closed.set()

    def after(self, error: Exception) -> InputError | None:
        """Save the last whole step after `error` has ended the training. Returns the error that the program ends with, None
        if that is `error` itself."""
        end = time.monotonic() + 1
        while isinstance(error, RuntimeError) and not self.interruption.number and time.monotonic() < end:
            time.sleep(0.05)  # where a data worker has died, a signal comes beside the error
        if isinstance(error, TrainingError):  # the weights are spoilt, or could not be saved
            return None
        kept = self._keep()
        if self.interruption.number:
            return self.monitor.error_of_stop()
        known = input_error(error)
        if known is None:
            self.monitor.log(kept)
            return None
        return InputError(f'{known}; {kept}')

    def _keep(self):
        """Save the last whole step. Returns a sentence on what has been saved."""
        self.checkpoints.settle()
        newest = checkpoint.by_age(self.checkpoints.directory)
        newest = f'the newest checkpoint is {newest[-1]}' if newest else 'there is no checkpoint'
        if not self.monitor.moving.acquire(blocking=False):
            return f'a step was cut short, whose weights are not whole and are not saved; {newest}'
        if self.monitor.step == self.monitor.plan.start:
            return f'no step was done; {newest}'
        self.monitor.stopping = True
        try:
            return f'step {self.monitor.step} is saved in {self.checkpoints.save()}, go on with {self.monitor.again}'
        except TrainingError as problem:  # of the disk
            return str(problem)

    def _run(self):
        while not self.closed.wait(LOOK):
            self.interruption.look()
            now, moving = time.monotonic(), self.monitor.moving.locked()
            if self.interruption.number:
                if not self.asked:
                    self.asked = now
                    again = f'; the same signal again, {ECHO:g} s later or after, stops at once'
                    again *= bool(self.interruption.first)  # it came from outside
                    self.monitor.log(f'{self.interruption.name}: stops after this step and saves{again}')
                    self._wake()
                if not moving and now > max(self.asked, self.monitor.changed) + PATIENCE:
                    self._leave()
            elif self.sink and self.monitor.bad.failure:
                self._fail(now, moving)
            else:
                self._speak(now, moving)

    def _leave(self):
        """End the process: it was told to, and its main thread has not reached the end of a step."""
        if not self.monitor.moving.acquire(blocking=False):  # a step has just begun
            return
        error = self.monitor.error_of_stop()
        try:
            if self.rank == 0 or not self.monitor.stopping:  # where all ranks stop at the same step, rank 0 saves
                self.monitor.stopping = True
                self.checkpoints.save()
        except TrainingError as problem:
            error = problem
        self.monitor.metrics.end(self.monitor.step, error)
        _exit(error)

    def _fail(self, now, moving):
        """End the process: a data worker has failed, and a device inside a sink would wait 900 s for its data.

        It gets the time of a sink first. The data at hand may last until the sink's end, where the monitor stops the
        training.
        """
        failure = self.monitor.bad.failure
        if not self.told:
            self.told = True
            self.monitor.log(f'error in a data worker: {failure}')
        if moving and now > self.monitor.changed + max(PATIENCE, 2 * (self.shortest or 0)):
            error = InputError(f'{failure}; {self._keep()}')
            self.monitor.metrics.end(self.monitor.step, error)
            _exit(error)

    def _speak(self, now, moving):
        if self.waiting:
            what, since = 'data', self.waiting
        elif self.sink and moving and self.shortest and {*_workers().values()} & HELD_UP:
            what, since = 'step', max(self.monitor.changed, self.monitor.changed + 2 * self.shortest - SILENCE)
        else:
            return
        if now - since > self.silence:
            self.silence *= 2
            workers = [f'{pid} {STATES.get(letter, letter).format(pid)}' for pid, letter in _workers().items()]
            self.monitor.log(
                f'no {what} for {now - since:.0f} s; '
                + (f'the processes that load them: {", ".join(workers)}' if workers else 'this process loads them itself')
            )

    def _wake(self):
        """Wake data workers that are stopped, as the training waits for them."""
        for pid in (pid for pid, letter in _workers().items() if letter == psutil.STATUS_STOPPED):
            self.monitor.log(f'process {pid} was stopped and is woken')
            os.kill(pid, signal.SIGCONT)


def _workers():
    """{pid: state} of the data workers."""
    found = {}
    for pid in data_workers():
        with contextlib.suppress(psutil.NoSuchProcess):
            found[pid] = psutil.Process(pid).status()
    return found


def _exit(error):
    """End the process at once with the one line and the status of `error`; MindSpore then ends the data workers."""
    report(error)
    os._exit(error.exit_status)
