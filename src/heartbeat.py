"""Signs of life between a launcher and its ranks, in memory that both see, and children that end with their parent."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
from collections.abc import Callable, Mapping

FILE = 'HEARTBEAT_FILE'  # variable by which the launcher of several ranks names a file in memory
SIZE = 64  # bytes of a rank in it, at its number: "count step saved doing"
# Seconds in which a signal again is the same request: a batch system signals a process, then its whole process group.
ECHO = 2.0
STEPS, COMPILING, SAVING, EVALUATING = 'steps', 'compiling', 'saving', 'evaluating'


class Heartbeat:
    """Writes what this rank does, which takes microseconds and no disk; nothing where no launcher watches."""

    def __init__(self, environ: Mapping[str, str] = os.environ):
        self.file, self.count, self.step, self.saved, self.doing = None, 0, 0, 0, COMPILING
        if FILE in environ:
            self.place = SIZE * int(environ.get('RANK_ID', 0))
            self.file = os.open(environ[FILE], os.O_WRONLY | os.O_CLOEXEC)

    def __call__(self, doing: str | None = None, step: int | None = None, saved: int = 0) -> None:
        """Write a heartbeat. `doing` and `step` (steps done) stay where None; `saved`: checkpoints since the last one."""
        self.count, self.saved = self.count + 1, self.saved + saved
        self.step, self.doing = self.step if step is None else step, doing or self.doing
        if self.file is not None:
            record = f'{self.count} {self.step} {self.saved} {self.doing}'
            os.pwrite(self.file, record.ljust(SIZE).encode(), self.place)


def dump_stacks_on_request() -> None:
    """Let SIGUSR1 write the stacks of all Python threads to stderr, which is this rank's log, if a launcher watches this
    process. It works while C++ code holds Python's lock, and in forked data workers."""
    if FILE in os.environ:
        faulthandler.register(signal.SIGUSR1, all_threads=True)


def end_with_parent(number: int) -> Callable[[], object]:
    """For a new child to call first: it gets the signal `number` when this process ends, however that may be (Linux)."""
    prctl = ctypes.CDLL(None).prctl  # loaded before the fork
    return lambda: prctl(1, number, 0, 0, 0)  # PR_SET_PDEATHSIG
