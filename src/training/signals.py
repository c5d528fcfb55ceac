"""SIGTERM, SIGHUP, Ctrl-C and the death of a data worker are noted, for the training run to be saved before it ends."""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import signal
import threading
import time

from src.heartbeat import ECHO, end_with_parent

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
        if worker := _dead_worker() if number == signal.SIGTERM else None:
            again, (number, name) = False, worker
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


def _dead_worker():
    """(signal number, what happened) of a data worker that has died; None if there is none. One that ended by one of SIGNALS
    means no more than that: the whole process group was sent it."""
    # `multiprocessing.active_children` would wait for dead ones, and how they ended would be lost. `Map...` are MindSpore's
    # workers; other children, such as CANN's compilers, have other names.
    children = [child for child in list(multiprocessing.process._children) if child.name[:3] == 'Map']
    for pid in filter(None, (getattr(child._popen, 'pid', None) for child in children)):
        with contextlib.suppress(ChildProcessError):
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end and end.si_code != os.CLD_EXITED and end.si_status in SIGNALS:
                return end.si_status, signal.Signals(end.si_status).name
            if end and end.si_status:
                how = 'status' if end.si_code == os.CLD_EXITED else 'signal'
                problem = f'a data worker (pid {pid}) ended by {how} {end.si_status}'
                return signal.SIGKILL, f'{problem}; if memory is short, lower --num_workers'
    return None
