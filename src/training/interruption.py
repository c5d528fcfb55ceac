"""SIGTERM, SIGHUP, Ctrl-C and the death of a data worker: a training saves before it ends."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing.process
import os
import signal
import struct
import threading
import time

# Seconds after a first signal in which another one counts as the same request: a batch system signals a process and then
# its whole process group.
ECHO = 2.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SA_SIGINFO, SA_ONSTACK, SA_FLAGS = 4, 0x08000000, 136  # of sigaction(2); the last is where its struct has the flags
SS_DISABLE = 2  # of sigaltstack(2)


class Interruption:
    """A context in which SIGTERM, SIGHUP and SIGINT ask the training to stop instead of ending the process. SIGHUP stays
    ignored where it is (nohup).

    The first signal sets `number`, and `name` to what it means. The same signal again, `ECHO` seconds later or
    after, ends the process at once with the status 128 + number, and so does any before `can_save` is set.

    No signal is blocked: a forkserver, such as CANN's, would unblock it. MindSpore and CANN replace handlers, so `hold` sets
    ours again before each step. Python calls a handler only when the main thread is back from C++, where it may wait for
    data or for a device. So `look`, which is the handler, is also called by the thread of `watch.Watch`; Python's wake-up
    pipe has the numbers of the signals that have come.

    MindSpore (2.8) makes two signals of its own, each a SIGTERM from this process to itself: from Ctrl-C within a graph, and
    when a data worker has died. The latter is known by the dead worker; `number` is then the signal that ended it, and
    it never counts as a second one.
    """

    _active = None
    _hooked = False

    def __enter__(self):
        self.number, self.name, self.can_save, self.first, self.lock = 0, '', False, {}, threading.Lock()
        self.libc, self.stack = ctypes.CDLL(None), ctypes.create_string_buffer(1 << 16)
        self.source, self.sink = os.pipe()
        for end in (self.source, self.sink):
            os.set_blocking(end, False)
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        self.earlier = {n: old for n, old in handlers.items() if n != signal.SIGHUP or old != signal.SIG_IGN}
        self.wakeup = signal.set_wakeup_fd(-1)
        self.hold()
        Interruption._active = self
        if not Interruption._hooked:
            Interruption._hooked = True
            os.register_at_fork(after_in_child=_leave_to_the_parent)
        return self

    def __exit__(self, *_):
        Interruption._active = None
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.wakeup)
        self.libc.sigaltstack(struct.pack('@PiN', 0, SS_DISABLE, 0), None)
        with self.lock:
            os.close(self.source)
            os.close(self.sink)
            self.source = None

    def hold(self):
        """Set the handlers again, in the main thread; takes 30 us.

        SIGTERM's runs on a stack of its own, on which the kernel leaves who sent the signal: see `_from_here`.
        """
        for number in self.earlier:
            signal.signal(number, self.look)
        signal.set_wakeup_fd(self.sink, warn_on_full_buffer=False)
        self.libc.sigaltstack(struct.pack('@PiN', ctypes.addressof(self.stack), 0, len(self.stack)), None)
        action = ctypes.create_string_buffer(256)  # struct sigaction
        self.libc.sigaction(signal.SIGTERM, None, action)
        flags = struct.unpack_from('i', action, SA_FLAGS)[0] | SA_SIGINFO | SA_ONSTACK
        struct.pack_into('i', action, SA_FLAGS, flags)
        self.libc.sigaction(signal.SIGTERM, action, None)

    def look(self, *_):
        """Take the signals that have come since the last time."""
        if self.lock.acquire(blocking=False):  # else another thread is at it, or this handler has interrupted it
            try:
                for number in self._read():
                    self._take(number)
            finally:
                self.lock.release()

    def _read(self):
        with contextlib.suppress(BlockingIOError):  # none has come
            return [number for number in os.read(self.source, 64) if number in self.earlier] if self.source else []
        return []

    def _take(self, number):
        again, name = False, signal.Signals(number).name
        worker = _dead_worker() if number == signal.SIGTERM and self._from_here() else None
        if worker:
            number, name = worker
        else:
            # MindSpore sends it to ranks, too, when they have lost each other; Ctrl-C reaches their launcher instead.
            if number == signal.SIGTERM and self._from_here() and os.environ.get('RANK_SIZE', '1') == '1':
                number, name = signal.SIGINT, 'SIGINT'
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


def data_workers() -> list[int]:
    """Pids of MindSpore's data workers and of the process that cleans up after them, also of dead ones that it has not
    waited for. Other children, such as CANN's compilers, have other names."""
    # `multiprocessing.active_children` would wait for dead ones, and how they ended would be lost.
    found = [
        getattr(child._popen, 'pid', None) for child in list(multiprocessing.process._children) if child.name[:3] == 'Map'
    ]
    return sorted(filter(None, found))


def _dead_worker():
    """(signal number, what happened) of a data worker that has died, None if there is none. One that was told to end says
    no more than that: the whole process group was."""
    for pid in data_workers():
        with contextlib.suppress(ChildProcessError):
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is None or end.si_code == os.CLD_EXITED and end.si_status == 0:
                continue
            if end.si_code == os.CLD_EXITED:
                return signal.SIGKILL, f'a data worker (pid {pid}) ended with the status {end.si_status}'
            if end.si_status == signal.SIGKILL:
                why = 'probably for lack of memory (fewer --num_workers need less)'
                return signal.SIGKILL, f'a data worker (pid {pid}) was killed, {why}'
            name = signal.Signals(end.si_status).name
            return end.si_status, name if end.si_status in SIGNALS else f'a data worker (pid {pid}) died of {name}'
    return None


def _leave_to_the_parent():
    """In a forked data worker: ignore Ctrl-C and a closed terminal, which reach the whole process group and concern the
    parent; let SIGTERM end the worker, as MindSpore ends its workers by it, and so does the death of the parent, which
    workers do not always notice."""
    if Interruption._active:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        Interruption._active = None
