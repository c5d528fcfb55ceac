"""SIGTERM, SIGINT and the death of a data worker: a training saves before it ends."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from multiprocessing.popen_fork import Popen

from tqdm import tqdm

from src.processes import ECHO, states

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """A context in which SIGTERM and SIGINT ask the training to stop instead of ending the process.

    The first signal sets `number`, and `name` to what it means. A second one, more than `ECHO` seconds later, ends the
    process at once with the status 128 + number, and so does one that comes before `can_save` is set.

    MindSpore also sends this process a SIGTERM when one of its data workers has died. That never counts as a second
    signal. As the first, it is told from a person's by the dead worker; `number` is then the signal that ended the worker.

    Python would run a signal handler only after the graph of a step has returned, and MindSpore (2.8) turns a SIGINT
    within a graph into SIGTERM. So the signals are blocked, here and in all threads made from now on, and a thread waits
    for them. A signal may still reach an older thread, such as those of NumPy's OpenBLAS unless OPENBLAS_NUM_THREADS is 1;
    it then comes through Python's wake-up pipe.
    """

    _active = None
    _hooked = False

    def __enter__(self):
        self.number, self.name, self.told, self.can_save, self.lock = 0, '', None, False, threading.Lock()
        self.ended, self.poll = {}, Popen.poll
        Popen.poll = self._noting_ends()
        self.source, self.sink = os.pipe()
        os.set_blocking(self.sink, False)
        self.handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self.wakeup = signal.set_wakeup_fd(self.sink, warn_on_full_buffer=False)
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        Interruption._active = self
        if not Interruption._hooked:
            Interruption._hooked = True
            os.register_at_fork(after_in_child=_leave_to_the_parent)
        for watch in (self._watch_blocked, self._watch_pipe):
            threading.Thread(target=watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        Interruption._active = None
        Popen.poll = self.poll
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
        signal.set_wakeup_fd(self.wakeup)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        os.write(self.sink, b'\0')  # ends its thread
        os.close(self.sink)

    def _noting_ends(self):
        """A `Popen.poll` for `multiprocessing` that keeps exit codes, as MindSpore may ask for a dead worker's before us."""

        def poll(process, flag=os.WNOHANG):
            code = self.poll(process, flag)
            if code is not None:
                self.ended[process.pid] = code
            return code

        return poll

    def _watch_blocked(self):
        while Interruption._active is self:
            found = signal.sigtimedwait(SIGNALS, 0.2)
            if found:
                self._received(found.si_signo, found.si_pid == os.getpid() or found.si_pid in states(os.getpid()))

    def _watch_pipe(self):
        while (received := os.read(self.source, 1)) not in (b'', b'\0'):
            if received[0] in SIGNALS:
                self._received(received[0])
        os.close(self.source)

    def _received(self, number, ours=False):
        """Take a signal; `ours` if this process or one of its children sent it."""
        with self.lock:
            first = self.told is None
            if ours and self.number or not first and time.monotonic() < self.told + ECHO:
                return
            if not ours:
                self.told = time.monotonic()
            if self.number and first:  # it ends already, because of a worker
                return
            worker = None if self.number else _dead_worker(self.ended, 1 if ours else 0)
            number, name = worker or (number, signal.Signals(number).name)
            if self.number or not self.can_save:
                why = 'again' if self.number else 'before the first step'
                print(f'{name} {why}: stopped at once', file=sys.stderr, flush=True)
                os._exit(128 + number)
            self.number, self.name = number, name
            line = f'{name}: stops after this step and saves; a second signal, {ECHO:g} s later or after, stops at once'
            tqdm.write(line, sys.stderr)  # above the progress bar
            sys.stderr.flush()


def _dead_worker(ended, seconds):
    """(signal number, what happened) if within `seconds` a data worker is found that has died, but not of one of `SIGNALS`;
    else None. `ended`: {process id: exit code as of `multiprocessing`} of workers that MindSpore has waited for."""
    until = time.monotonic() + seconds
    while True:
        for pid, code in {**ended, **_zombies()}.items():
            if code == -signal.SIGKILL:
                return signal.SIGKILL, (
                    f'a data worker (pid {pid}) was killed, probably for lack of memory (fewer --num_workers need less)'
                )
            if code < 0 and -code not in SIGNALS:
                return -code, f'a data worker (pid {pid}) died of {signal.Signals(-code).name}'
            if code > 0:
                return signal.SIGKILL, f'a data worker (pid {pid}) ended with the status {code}'
        if time.monotonic() >= until:
            return None
        time.sleep(0.05)


def _zombies():
    """{process id: exit code} of the children that have ended and were not waited for yet; MindSpore will do that."""
    found = {}
    for pid in (pid for pid, letter in states(os.getpid()).items() if letter == 'Z'):
        with contextlib.suppress(ChildProcessError):
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end:
                found[pid] = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
    return found


def _leave_to_the_parent():
    """In a forked data worker: ignore Ctrl-C, which reaches the whole process group and concerns the parent; let SIGTERM
    end the worker, as MindSpore ends its workers by it, and so does the death of the parent, which workers do not always
    notice."""
    if Interruption._active:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, Interruption._active.mask)
        Interruption._active = None
