"""A rank's sign of life: its last step and what it is doing, in memory that its launcher reads; needs no MindSpore.

The launcher of several ranks (`src.cluster.launch`) names a file in memory in the variable FILE. Each rank has SIZE bytes of
it, at its number, and writes them anew after every step or sink: one system call, a few microseconds, never a disk.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

FILE = 'BEAT_FILE'
SIZE = 64  # bytes of a rank
STEPS, COMPILING, SAVING, EVALUATING = 'steps', 'compiling', 'saving', 'evaluating'


class State(NamedTuple):
    """What a rank has written last."""

    count: int  # of its beats
    step: int  # steps done
    saved: int  # checkpoints that this process has written
    doing: str  # one of the words above


class Beat:
    """Writes the beats of this rank; does nothing where no launcher wants them. `environ`: the environment variables."""

    def __init__(self, environ: Mapping[str, str] = os.environ):
        self.file, self.state, self.lock = None, State(0, 0, 0, COMPILING), threading.Lock()
        if FILE in environ:
            self.place = SIZE * int(environ.get('RANK_ID', 0))
            with contextlib.suppress(OSError):  # of another user or container: then there is nobody to watch
                self.file = os.open(environ[FILE], os.O_WRONLY | os.O_CLOEXEC)

    def __call__(self, doing: str | None = None, step: int | None = None, saved: int = 0) -> None:
        """Beat. What is not given stays; `saved`: checkpoints written since the last beat."""
        if self.file is None:
            return
        with self.lock:  # checkpoints may be written by a thread
            old = self.state
            self.state = State(
                old.count + 1, old.step if step is None else step, old.saved + saved, old.doing if doing is None else doing
            )
            os.pwrite(self.file, ' '.join(map(str, self.state)).ljust(SIZE).encode(), self.place)

    @contextlib.contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """A context in which this rank does something that may take longer than a step."""
        before = self.state.doing
        self(doing)
        try:
            yield
        finally:
            self(before)


def parse(record: bytes) -> State | None:
    """The `State` in a rank's SIZE bytes; None if there is none yet."""
    try:
        count, step, saved, doing = record.decode('ascii').strip('\0 ').split()
        return State(int(count), int(step), int(saved), doing)
    except ValueError:
        return None


def answer() -> None:
    """Let SIGUSR1 write the stacks of all Python threads to stderr, which is this rank's log, if a launcher watches this
    process. It works while C++ code holds Python's lock, and in forked data workers."""
    if FILE in os.environ:
        faulthandler.register(signal.SIGUSR1, all_threads=True)
