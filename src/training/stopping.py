"""SIGTERM, SIGHUP, Ctrl-C, the death of a data worker, errors: a training run is saved before it ends."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing.process
import os
import signal
import struct
import threading
import time
from typing import TYPE_CHECKING

import psutil

from src.errors import InputError, TrainingError, input_error, report
from src.heartbeat import ECHO
from src.weights import checkpoint

if TYPE_CHECKING:
    from src.training.checkpoints import Checkpoints
    from src.training.state import State

LOOK, PATIENCE, SILENCE = 0.2, 4, 20  # seconds between two looks; for the step that a signal waits for; without data
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SA_SIGINFO, SA_ONSTACK, SA_FLAGS = 4, 0x08000000, 136  # of sigaction(2); the last is where its struct has the flags


class Signals:
    """A context in which SIGTERM, SIGHUP and SIGINT set `number`, and `name` to what it means, instead of ending the
    process. SIGHUP stays ignored where it is (nohup).

    The same signal ECHO seconds later ends it at once, with the status 128 + number, and so does any before
    `can_save` is set. No signal is blocked: a forkserver, such as CANN's, would unblock it. MindSpore and CANN replace
    handlers, so `install` is called before each step. Python calls a handler only when the main thread is back from C++,
    where it may wait for data or for a device; its wake-up pipe has the numbers at once, and `look` reads them, also from
    the thread of `Guard`.

    MindSpore (2.8) sends itself a SIGTERM for Ctrl-C within a graph, and when a data worker has died: that one is known by
    the dead worker, `number` is then the signal that ended it, and it never counts as a second one.
    """

    active = None

    def __init__(self):
        self.number, self.name, self.can_save, self.first, self.lock = 0, '', False, {}, threading.Lock()
        self.handlers = {}

    def __enter__(self):
        self.libc, self.stack = ctypes.CDLL(None), ctypes.create_string_buffer(1 << 16)
        self.source, self.end = os.pipe()
        os.set_blocking(self.source, False), os.set_blocking(self.end, False)
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.handlers = {n: old for n, old in before.items() if n != signal.SIGHUP or old != signal.SIG_IGN}
        self.install()
        if Signals.active is None:
            os.register_at_fork(after_in_child=_leave_to_the_parent)
        Signals.active = self
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self.libc.sigaltstack(struct.pack('@PiN', 0, 2, 0), None)  # SS_DISABLE
        with self.lock:
            self.handlers = {}
            os.close(self.source), os.close(self.end)

    def install(self) -> None:
        """Set the handlers, in the main thread; takes 30 us. SIGTERM's runs on a stack of its own, on which the kernel
        leaves who sent it, see `_from_here`."""
        if not self.handlers:
            return
        for number in self.handlers:
            signal.signal(number, self.look)
        signal.set_wakeup_fd(self.end, warn_on_full_buffer=False)
        self.libc.sigaltstack(struct.pack('@PiN', ctypes.addressof(self.stack), 0, len(self.stack)), None)
        action = ctypes.create_string_buffer(256)  # struct sigaction
        self.libc.sigaction(signal.SIGTERM, None, action)
        flags = struct.unpack_from('i', action, SA_FLAGS)[0] | SA_SIGINFO | SA_ONSTACK
        struct.pack_into('i', action, SA_FLAGS, flags)
        self.libc.sigaction(signal.SIGTERM, action, None)

    def look(self, *_: object) -> None:
        """Take the signals that have come since the last time."""
        if self.lock.acquire(blocking=False):  # else another thread is at it, or this handler has interrupted it
            with contextlib.suppress(BlockingIOError):  # none has come
                for number in os.read(self.source, 64) if self.handlers else ():
                    if number in self.handlers:
                        self._take(number)
            self.lock.release()

    def _take(self, number):
        own = number == signal.SIGTERM and self._from_here()
        worker, again = _dead_worker() if own else None, False
        # MindSpore sends it to ranks, too, when they have lost each other; Ctrl-C reaches their launcher instead.
        number = signal.SIGINT if own and os.environ.get('RANK_SIZE', '1') == '1' else number
        number, name = worker or (number, signal.Signals(number).name)
        if not worker:
            now = time.monotonic()
            again = now >= self.first.setdefault(number, now) + ECHO
        if again or not (self.can_save or self.number):
            why = 'again' if again else 'before the first step'
            with contextlib.suppress(OSError):  # and not by `print`, in which this handler may have interrupted the thread
                os.write(2, f'{name} {why}: stopped at once\n'.encode())
            os._exit(128 + number)
        if not self.number:
            self.name, self.number = name, number

    def _from_here(self):
        """Whether this process itself sent the last SIGTERM: the beginning of siginfo_t (sigaction(2)) in 64-bit Linux,
        number, errno, code (SI_USER), padding, pid and user."""
        return struct.pack('6i', signal.SIGTERM, 0, 0, 0, os.getpid(), os.getuid()) in self.stack.raw


def _leave_to_the_parent():
    """In a forked data worker: ignore what reaches the whole process group and concerns the parent; let SIGTERM end the
    worker, as MindSpore ends its workers by it, and so does the death of the parent, which they do not always notice."""
    if Signals.active and Signals.active.handlers:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        Signals.active.handlers = {}


def data_workers() -> list[int]:
    """Pids of MindSpore's data workers and of the process that cleans up after them, also of dead ones that it has not
    waited for. Other children, such as CANN's compilers, have other names."""
    # `multiprocessing.active_children` would wait for dead ones, and how they ended would be lost.
    children = [child for child in list(multiprocessing.process._children) if child.name[:3] == 'Map']
    return sorted(filter(None, (getattr(child._popen, 'pid', None) for child in children)))


def _dead_worker():
    """(signal number, what happened) of a data worker that has died, None if there is none. One that ended by one of SIGNALS
    means no more than that: the whole process group was sent it."""
    for pid in data_workers():
        with contextlib.suppress(ChildProcessError):
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is None or end.si_code == os.CLD_EXITED and end.si_status == 0:
                continue
            if end.si_code == os.CLD_EXITED:
                return signal.SIGKILL, f'a data worker (pid {pid}) ended with the status {end.si_status}'
            name = signal.Signals(end.si_status).name
            why = ', probably for lack of memory; lower --num_workers' if end.si_status == signal.SIGKILL else ''
            return (
                end.si_status,
                name if end.si_status in SIGNALS else f'a data worker (pid {pid}) was killed by {name}{why}',
            )
    return None


def save_after(error: Exception, state: State, checkpoints: Checkpoints) -> InputError | None:
    """Save the last whole step after `error` has ended the training run. Returns the error that the program ends with, None
    if that is `error` itself."""
    end = time.monotonic() + 1
    while isinstance(error, RuntimeError) and not state.signals.number and time.monotonic() < end:
        time.sleep(0.05)  # where a data worker has died, a signal comes beside the error
    if isinstance(error, TrainingError):  # the weights are spoilt, or could not be saved
        return None
    saved, known = _save_whole_step(state, checkpoints), input_error(error)
    if state.signals.number:
        return state.error()
    if known is None:
        state.run.log(saved)
    return known and InputError(f'{known}; {saved}')


def _save_whole_step(state, checkpoints):
    """Save the weights unless a step, or a sink, is changing them: they are not whole then. Returns a sentence on
    what was saved."""
    found = checkpoint.by_age(checkpoints.settle())
    newest = f'the newest checkpoint is {found[-1]}' if found else 'there is no checkpoint'
    if not state.changing.acquire(blocking=False):
        return f'the last step was cut short, its weights are not saved; {newest}'
    if state.step == state.plan.start:
        return f'no step was done; {newest}'
    state.stopping = True
    try:
        return f'step {state.step} is saved in {checkpoints.save()}, resume with {state.again}'
    except TrainingError as problem:  # of the disk
        return str(problem)


class Guard:
    """A thread for the time in which the main thread waits in C++, for data or for a device, where it neither sees a signal
    nor could save: it logs signals and stalls, and saves and ends the process if the main thread does not.

    All ranks hold the same weights (each its own batch norm statistics), and the failing one may be the only one between two
    steps; so each may save, into rank 0's directory.
    """

    def __init__(self, state: State, checkpoints: Checkpoints):
        self.state, self.checkpoints, self.signalled, self.silence = state, checkpoints, None, SILENCE
        self.closed = threading.Event()

    def __enter__(self):
        threading.Thread(target=self._run, daemon=True).start()

    def __exit__(self, *_):
        self.closed.set()

    def _run(self):
        while not self.closed.wait(LOOK):
            self.state.signals.look()
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """What the thread does a few times a second."""
        state, changing = self.state, self.state.changing.locked()
        if state.signals.number:
            if self.signalled is None:
                self.signalled = now
                again = f'; send it again after {ECHO:g} s to quit now' if state.signals.first else ''
                state.run.log(f'{state.signals.name}: saving after this step{again}')
            if not changing and now > max(self.signalled, state.since) + PATIENCE and state.changing.acquire(blocking=False):
                self.leave()
        elif state.run.sink and state.bad.failure:  # the device would wait 900 s for data; those at hand may last
            if changing and now > state.since + max(PATIENCE, 2 * state.seconds):
                self._exit(InputError(f'{state.bad.failure}; {_save_whole_step(state, self.checkpoints)}'))
        elif (waiting := state.waiting) is None:
            self.silence = SILENCE
        elif now - waiting > self.silence:
            self.silence *= 2
            found = [f'{pid} ({psutil.Process(pid).status()})' for pid in data_workers() if psutil.pid_exists(pid)]
            state.run.log(
                f'no data for {now - waiting:.0f} s; data workers: {", ".join(found) or "none, only this process"}'
            )

    def leave(self) -> None:
        """End the process after a signal: its main thread is between two steps and does not come back."""
        state, error = self.state, self.state.error()
        try:
            if state.run.rank == 0 or not state.stopping:  # where all ranks stop at the same step, rank 0 saves
                state.stopping = True
                self.checkpoints.save()
        except TrainingError as problem:
            error = problem
        self._exit(error)

    def _exit(self, error):
        """End the process at once with the one line and the status of `error`; MindSpore then ends the data workers."""
        self.state.metrics.end(self.state.step, error)
        report(error)
        os._exit(error.exit_status)
