"""A training that gets no further says why, and whatever ends it, its last whole step is kept."""

import os
import signal
import threading
import time

from mindspore.train import Callback

from src.errors import InputError, TrainingError, input_error, report
from src.processes import states
from src.weights import checkpoint

LOOK = 0.2  # seconds between two looks
PATIENCE = 4  # seconds for the next step of a training that was told to end
SILENCE = 20  # seconds without data after which it is said, and again after twice as many
STATES = {
    'T': 'is stopped (kill -CONT {} wakes it)',
    't': 'is held by a debugger',
    'D': 'waits for a disk or a network',
    'R': 'runs',
    'S': 'sleeps',
    'Z': 'has died',
}


class Watch(Callback):
    """The last of the callbacks; a thread of its own sees what the main one, waiting for data or a device, cannot.

    What may be saved: the weights move while `monitor.moving` is held, from the beginning of a step to the check of its
    outputs. In between they are those of `monitor.step`, and whoever holds the lock keeps them so. In a step they are not
    whole: an optimizer may have updated some of them. That holds for a sink that has failed, too. Its counter
    `global_step` says which step was the last to begin its update, but not that the update was finished when the device
    stopped, nor that a device in error gives back what it holds; so nothing is saved then.

    Args:
        checkpoints (monitor.Checkpoints): on every rank; all ranks hold the same weights (each its own batch norm
            statistics), and the one that fails may be the only one between two steps.
        rank (int), sink (bool): of this process; whether `monitor` sees only the ends of sinks.
    """

    def __init__(self, monitor, checkpoints, interruption, rank=0, sink=False):
        super().__init__()
        self.monitor, self.checkpoints, self.interruption, self.rank, self.sink = (
            monitor,
            checkpoints,
            interruption,
            rank,
            sink,
        )
        self.waiting, self.silence, self.shortest, self.asked, self.told = None, SILENCE, None, None, False
        self.closed = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def on_train_begin(self, run_context):
        self.waiting = time.monotonic()

    def on_train_step_begin(self, run_context):
        self.waiting = None

    def on_train_step_end(self, run_context):
        self.waiting, self.silence = time.monotonic(), SILENCE
        self.shortest = min(self.shortest or self.monitor.duration, self.monitor.duration)

    def on_train_end(self, run_context):
        self.waiting = None

    def close(self):
        self.closed.set()

    def after(self, error):
        """What ends the program where `error` has ended the training; None for `error` itself. Saves the last whole step."""
        end = time.monotonic() + 1
        while isinstance(error, RuntimeError) and not self.interruption.number and time.monotonic() < end:
            time.sleep(0.05)  # the death of a data worker is told by a signal beside the error
        if isinstance(error, TrainingError):  # of weights that are lost, or of a save that failed
            return None
        kept = self._keep()
        if self.interruption.number:
            return self.monitor.end()
        known = input_error(error)
        if known is None:
            self.monitor.log(kept)
            return None
        return InputError(f'{known}; {kept}')

    def _keep(self):
        """Save the last whole step; says what is there now."""
        newest = checkpoint.by_age(self.checkpoints.directory)
        newest = f'the newest checkpoint is {newest[-1]}' if newest else 'there is no checkpoint'
        if not self.monitor.moving.acquire(blocking=False):
            return f'a step was cut short, whose weights are not whole and are not saved; {newest}'
        if self.monitor.step == self.monitor.start:
            return f'no step was done; {newest}'
        self.monitor.stopping = True
        try:
            return f'step {self.monitor.step} is saved in {self.checkpoints.act()}, go on with --resume auto'
        except TrainingError as problem:  # of the disk
            return str(problem)

    def _run(self):
        while not self.closed.wait(LOOK):
            now, moving = time.monotonic(), self.monitor.moving.locked()
            if self.interruption.number:
                if not self.asked:
                    self.asked = now
                    self._wake()
                if not moving and now > max(self.asked, self.monitor.changed) + PATIENCE:
                    self._leave()
            elif self.sink and self.monitor.bad.failure:
                self._fail(now, moving)
            else:
                self._speak(now, moving)

    def _leave(self):
        """End the process, whose main thread has come to nothing since it was told to end."""
        if not self.monitor.moving.acquire(blocking=False):  # a step has begun after all
            return
        error = self.monitor.end()
        try:
            if self.rank == 0 or not self.monitor.stopping:  # if all ranks have agreed on the step, rank 0 saves
                self.monitor.stopping = True
                self.checkpoints.act()
        except TrainingError as problem:
            error = problem
        _exit(error)

    def _fail(self, now, moving):
        """A data worker has failed. The device, inside a sink, would wait 900 s for what does not come: it gets the time
        that a sink takes, as the data may last until its end; then the monitor stops the training there."""
        failure = self.monitor.bad.failure
        if not self.told:
            self.told = True
            self.monitor.log(f'error in a data worker: {failure}')
        if moving and now > self.monitor.changed + max(PATIENCE, 2 * (self.shortest or 0)):
            _exit(InputError(f'{failure}; {self._keep()}'))

    def _speak(self, now, moving):
        if self.waiting:
            what, since = 'data', self.waiting
        elif self.sink and moving and self.shortest and set(states(os.getpid()).values()) & set('TtD'):
            what, since = 'step', max(self.monitor.changed, self.monitor.changed + 2 * self.shortest - SILENCE)
        else:
            return
        if now - since > self.silence:
            self.silence *= 2
            workers = [f'{pid} {STATES.get(state, state).format(pid)}' for pid, state in sorted(states(os.getpid()).items())]
            self.monitor.log(
                f'no {what} for {now - since:.0f} s; '
                + (f'the processes that load them: {", ".join(workers)}' if workers else 'this process loads them itself')
            )

    def _wake(self):
        """A stopped data worker would keep the training from its end."""
        for pid in (pid for pid, state in states(os.getpid()).items() if state == 'T'):
            self.monitor.log(f'process {pid} was stopped and is woken')
            os.kill(pid, signal.SIGCONT)


def _exit(error):
    """End the process at once; MindSpore's cleaning process then ends the data workers."""
    report(error)
    os._exit(error.exit_status)
