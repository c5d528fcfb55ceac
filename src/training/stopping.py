"""SIGTERM, SIGHUP, Ctrl-C, the death of a data worker, errors: a training run is saved before it ends."""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import psutil

from src.errors import InputError, Interrupted, TrainingError, input_error, report
from src.heartbeat import ECHO, end_with_parent
from src.weights import checkpoint

if TYPE_CHECKING:
    from src.training.checkpoints import Checkpoints

LOOK, PATIENCE, SILENCE = 0.2, 4, 20  # seconds between two looks; for the step that a signal waits for; without data
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """A context in which SIGTERM, SIGHUP and SIGINT set `number`, and `name` to what it means, instead of ending the
    process. SIGHUP stays ignored where it is (nohup).

    The same signal ECHO seconds later ends it at once, with the status 128 + number, and so does any before
    `can_save` is set. Python calls a handler only when the main thread is back from C++, where it may wait for data or for a
    device; but its wake-up pipe has the numbers at once, and a thread reads them. No signal is blocked: a forkserver,
    such as CANN's, would unblock it. MindSpore and CANN replace handlers, so `install` is called before each step.

    MindSpore (2.8) sends itself a SIGTERM when a data worker has died: `number` is then the signal that ended the worker,
    and it never counts as a second one. Within a graph it makes a SIGTERM of Ctrl-C, too: in the foreground of a terminal
    SIGTERM counts as Ctrl-C.
    """

    active = None

    def __init__(self):
        self.number, self.name, self.can_save, self.first, self.handlers = 0, '', False, {}, {}
        self.known = set()  # data workers whose death has been taken

    def __enter__(self):
        self.source, self.end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.end, False)
        self.prepare_worker = end_with_parent(signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.handlers = {n: old for n, old in before.items() if n != signal.SIGHUP or old != signal.SIG_IGN}
        self.install()
        if Signals.active is None:
            os.register_at_fork(after_in_child=_leave_to_the_parent)
        Signals.active = self
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self.handlers = {}
        os.close(self.end)  # which ends the thread

    def install(self) -> None:
        """Set the handlers, in the main thread; takes 20 us."""
        for number in self.handlers:
            signal.signal(number, lambda *_: None)
        if self.handlers:
            signal.set_wakeup_fd(self.end, warn_on_full_buffer=False)

    def _read(self):
        while numbers := os.read(self.source, 64):
            for number in numbers:
                if number in self.handlers:
                    self._take(number)
        os.close(self.source)

    def _take(self, number):
        again, worker = False, _dead_worker(self.known) if number == signal.SIGTERM else None
        if worker:
            number, name = worker
            self.known.update(data_workers())  # MindSpore now ends the others
        else:
            number = signal.SIGINT if number == signal.SIGTERM and _in_foreground() else number
            now, name = time.monotonic(), signal.Signals(number).name
            again = now >= self.first.setdefault(number, now) + ECHO
        if again or not (self.can_save or self.number):
            with contextlib.suppress(OSError):  # and not by `print`, in which the main thread may be
                os.write(2, f'{name} {"again" if again else "before the first step"}: stopped at once\n'.encode())
            os._exit(128 + number)
        if not self.number:
            self.name, self.number = name, number


def _in_foreground():
    """Whether Ctrl-C in the terminal at standard input reaches this process."""
    with contextlib.suppress(OSError):  # no terminal, or not ours
        return os.tcgetpgrp(0) == os.getpgrp()
    return False


def _leave_to_the_parent():
    """In a forked data worker: ignore what reaches the whole process group and concerns the parent; let SIGTERM end the
    worker, as MindSpore ends its workers by it, and so does the death of the parent, which they do not always notice."""
    if Signals.active and Signals.active.handlers:
        Signals.active.prepare_worker()
        signal.set_wakeup_fd(-1)
        os.close(Signals.active.end)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
        Signals.active.handlers = {}


def data_workers() -> list[int]:
    """Pids of MindSpore's data workers and of the process that cleans up after them, also of dead ones that it has not
    waited for. Other children, such as CANN's compilers, have other names."""
    # `multiprocessing.active_children` would wait for dead ones, and how they ended would be lost.
    children = [child for child in list(multiprocessing.process._children) if child.name[:3] == 'Map']
    return sorted(filter(None, (getattr(child._popen, 'pid', None) for child in children)))


def _dead_worker(known=()):
    """(signal number, what happened) of a data worker, none of `known`, that has died; None if there is none. One that ended
    by one of SIGNALS means no more than that: the whole process group was sent it."""
    for pid in {*data_workers()} - {*known}:
        with contextlib.suppress(ChildProcessError):
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is None or end.si_status == 0:
                continue
            worker, status = f'a data worker (pid {pid})', end.si_status
            if end.si_code == os.CLD_EXITED:
                return signal.SIGKILL, f'{worker} ended with the status {status}'
            if status in SIGNALS:
                return status, signal.Signals(status).name
            why = ', probably for lack of memory; lower --num_workers' if status == signal.SIGKILL else ''
            return status, f'{worker} was killed by {signal.Signals(status).name}{why}'
    return None


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
    state, found = checkpoints.state, checkpoint.by_age(checkpoints.follow())
    newest = f'the newest checkpoint is {found[-1]}' if found else 'there is no checkpoint'
    if not whole and not state.changing.acquire(blocking=False):
        return f'the last step was cut short, its weights are not saved; {newest}'
    if state.step == state.plan.start:
        return f'no step was done; {newest}'
    state.stopping = True
    try:
        return f'step {state.step} is saved in {checkpoints.save()}, resume with {state.again}'
    except TrainingError as problem:  # of the disk
        return str(problem)


class Guard(threading.Thread):
    """A thread for the time in which the main thread waits in C++, for data or for a device, where it neither sees a signal
    nor could save: it logs signals and stalls, and saves and ends the process if the main thread does not.

    All ranks hold the same weights (each its own batch norm statistics), and the failing one may be the only one between two
    steps; so each may save, into rank 0's directory.
    """

    def __init__(self, checkpoints: Checkpoints):
        super().__init__(daemon=True)
        self.state, self.checkpoints, self.signalled, self.silence = checkpoints.state, checkpoints, None, SILENCE
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
        elif (waiting := state.waiting) is None:
            self.silence = SILENCE
        elif now - waiting > self.silence:
            self.silence *= 2
            found = [f'{pid} ({psutil.Process(pid).status()})' for pid in data_workers() if psutil.pid_exists(pid)]
            workers = ', '.join(found) or 'none, only this process'
            state.run.log(f'no data for {now - waiting:.0f} s; data workers: {workers}')

    def _exit(self, error):
        """End the process at once with the one line and the status of `error`; MindSpore then ends the data workers."""
        self.state.metrics.end(self.state.step, error)
        report(error)
        os._exit(error.exit_status)
