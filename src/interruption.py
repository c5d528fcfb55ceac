"""SIGTERM and SIGINT: a training saves before it ends."""
import os
import signal
import sys
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds after the first signal in which another is taken for its echo: where a whole process group is told to end,
# MindSpore sends itself a SIGTERM for every data worker that has ended.
ECHO = 1.0


class Interruption:
    """While active, the first SIGTERM or SIGINT is kept in `number`; the second, or one that comes before `can_save`
    is set, ends the process at once with the status 128 + number.

    A Python signal handler would run only when the graph of a step has come back, and MindSpore (2.8) turns a SIGINT
    within a graph into SIGTERM. So the signals are blocked, here and in all threads made from now on, and a thread waits
    for them. One that reaches an older thread, such as NumPy's OpenBLAS has unless OPENBLAS_NUM_THREADS is 1, comes
    through Python's wake-up pipe.
    """
    _active = None
    _hooked = False

    def __enter__(self):
        self.number, self.told, self.can_save, self.lock = 0, 0.0, False, threading.Lock()
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
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
        signal.set_wakeup_fd(self.wakeup)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        os.write(self.sink, b'\0')  # ends its thread
        os.close(self.sink)

    @property
    def name(self):
        return signal.Signals(self.number).name

    def _watch_blocked(self):
        while Interruption._active is self:
            found = signal.sigtimedwait(SIGNALS, 0.2)
            if found:
                self._received(found.si_signo)

    def _watch_pipe(self):
        while (received := os.read(self.source, 1)) not in (b'', b'\0'):
            if received[0] in SIGNALS:
                self._received(received[0])
        os.close(self.source)

    def _received(self, number):
        with self.lock:
            if self.number and time.monotonic() < self.told + ECHO:
                return
            if self.number or not self.can_save:
                why = 'again' if self.number else 'before the first step'
                print(f'{signal.Signals(number).name} {why}: stopped at once', file=sys.stderr, flush=True)
                os._exit(128 + number)
            self.number, self.told = number, time.monotonic()
            print(f'{self.name}: stops after this step and saves; a second signal stops at once', file=sys.stderr,
                  flush=True)


def _leave_to_the_parent():
    """In a forked data worker: Ctrl-C reaches the whole process group and is the parent's business; SIGTERM, by which
    MindSpore ends its workers, must end them."""
    if Interruption._active:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, Interruption._active.mask)
        Interruption._active = None
