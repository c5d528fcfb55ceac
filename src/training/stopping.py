"""How a training run that is ended by a signal or an error is saved first."""

from __future__ import annotations

import os
import threading
import time

from src.errors import InputError, Interrupted, TrainingError, input_error, report
from src.heartbeat import ECHO
from src.training.checkpoints import Checkpoints
from src.weights import checkpoint

LOOK, PATIENCE = 0.2, 4  # seconds between two looks; for the step that a signal waits for


def save_after(error: Exception, checkpoints: Checkpoints) -> InputError | None:
    """Save the last whole step after `error` has ended the training run. Returns the error that the program ends with, None
    if that is `error` itself."""
    state, end = checkpoints.state, time.monotonic() + 1
    while isinstance(error, RuntimeError) and not state.signals.number and time.monotonic() < end:
        time.sleep(0.05)  # where a data worker has died, a signal comes beside the error
    if isinstance(error, TrainingError):  # the weights are spoilt, or could not be saved
        return None
    saved, known = _save_whole_step(checkpoints), input_error(error)
    if state.signals.number:
        return state.error()
    if known is None:
        state.run.log(saved)
    return known and InputError(f'{known}; {saved}')


def _save_whole_step(checkpoints, whole=False):
    """Save the weights unless a step, or a sink, is changing them: then they are not `whole`. Returns a sentence on what was
    saved."""
    state = checkpoints.state
    found = checkpoint.by_age(state.directory)
    newest = f'the newest checkpoint is {found[-1]}' if found else 'there is no checkpoint'
    if not whole and not state.changing.acquire(blocking=False):
        return f'the last step was cut short, its weights are not saved; {newest}'
    if state.step == state.plan.start:
        return f'no step was done; {newest}'
    state.stopping = True
    try:
        return f'step {state.step} is saved in {checkpoints.save()}, resume with --resume auto'
    except TrainingError as problem:  # of the disk
        return str(problem)


class Guard(threading.Thread):
    """A thread for the time in which the main thread waits in C++, for data or for a device, where it neither sees a signal
    nor could save: it logs signals, and saves and ends the process if the main thread does not.

    All ranks hold the same weights (each its own batch norm statistics), and the failing one may be the only one between two
    steps; so each may save, into rank 0's directory.
    """

    def __init__(self, checkpoints: Checkpoints):
        super().__init__(daemon=True)
        self.state, self.checkpoints, self.signalled = checkpoints.state, checkpoints, None
        self.closed = threading.Event()

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self.closed.set()

    def run(self):
        """The thread."""
        while not self.closed.wait(LOOK):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """What the thread does a few times a second."""
        state = self.state
        if state.signals.number:
            if self.signalled is None:
                self.signalled = now
                state.run.log(f'{state.signals.name}: saving after this step; send it again after {ECHO:g} s to quit now')
            if now > max(self.signalled, state.since) + PATIENCE and state.changing.acquire(blocking=False):
                # The main thread waits between two steps. Where all ranks stop at one step, rank 0 saves.
                saves = state.run.rank == 0 or not state.stopping
                saved = _save_whole_step(self.checkpoints, whole=True) if saves else 'rank 0 saves'
                self._exit(Interrupted(f'{state.signals.name}: {saved}', state.signals.number))
        elif state.run.sink and state.bad.failure:  # the device would wait 900 s for data; those at hand may last
            if state.changing.locked() and now > state.since + max(PATIENCE, 2 * state.seconds):
                self._exit(InputError(f'{state.bad.failure}; {_save_whole_step(self.checkpoints)}'))

    def _exit(self, error):
        """End the process at once with the one line and the status of `error`; MindSpore then ends the data workers."""
        self.state.metrics.end(self.state.step, error)
        report(error)
        os._exit(error.exit_status)
