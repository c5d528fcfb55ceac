"""Notices a training run that hangs: no heartbeat of a rank (`src.heartbeat`) for too long (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import psutil

from src.heartbeat import COMPILING, SIZE, STEPS

STALL = 600  # seconds without a heartbeat, at least
SLOWEST = 3  # times the slowest interval so far
LONGER = 6  # times as long for what is not a step: compilation and evaluation have taken minutes


class State(NamedTuple):
    """What a rank has written last."""

    count: int = 0  # of its heartbeats
    step: int = -1  # steps done
    saved: int = 0  # checkpoints that this process has written
    doing: str = COMPILING


class Watchdog:
    """Watches the heartbeats of all ranks of one launch.

    Args:
        size: number of ranks, those of other servers included.
        timeout: seconds without a heartbeat that mean a hang, times LONGER; None: STALL or SLOWEST times the slowest
            interval so far, whichever is longer; 0: never.
        clock: returns seconds.

    `path` is the file for `heartbeat.FILE`. It is in memory, has no name, and ends with this process.
    """

    def __init__(self, size: int, timeout: float | None = None, clock: Callable[[], float] = time.monotonic):
        self.size, self.timeout, self.clock = size, timeout, clock
        self.file = open(os.memfd_create('heartbeats'), 'rb')  # closed with this object
        self.path = f'/proc/{os.getpid()}/fd/{self.file.fileno()}'
        self.states, self.since, self.slowest = {str(rank): State() for rank in range(size)}, {}, {}
        self.saved = False  # whether a checkpoint has been written

    def look(self, ranks: Collection[str] = ()) -> str | None:
        """Read new heartbeats. Returns the rank that lags behind if one of the living `ranks` hangs, else None. Nothing is
        watched before the first heartbeat of any: a program need not have them."""
        records, now = os.pread(self.file.fileno(), self.size * SIZE, 0), self.clock()
        for number in range(len(records) // SIZE):
            fields, rank = records[number * SIZE :][:SIZE].decode().strip('\0').split(), str(number)
            new, old = State(*map(int, fields[:3]), fields[3]) if fields else State(), self.states[rank]
            if new != old:
                if old.count:
                    self.slowest[old.doing] = max(self.slowest.get(old.doing, 0), now - self.since[rank])
                self.states[rank], self.since[rank], self.saved = new, now, self.saved or new.saved > 0
        if self.timeout == 0 or not any(state.count for state in self.states.values()):
            return None
        for rank in ranks:
            self.since.setdefault(rank, now)
        # A rank may wait for another one that does something long, or that is not as far as its first heartbeat.
        limit = max((self._limit(self.states[rank].doing) for rank in ranks), default=0)
        if all(now - self.since[rank] <= limit for rank in ranks):
            return None
        return min(ranks, key=lambda rank: (self.states[rank].step, self.since[rank]))

    def _limit(self, doing):
        times = 1 if doing == STEPS else LONGER
        return times * self.timeout if self.timeout else max(times * STALL, SLOWEST * self.slowest.get(doing, 0))

    def silence(self, rank: str) -> str:
        """For how long a rank has had no heartbeat, in words."""
        state = self.states[rank]
        doing = '' if state.doing == STEPS else f'{state.doing} '
        since = f'for {self.clock() - self.since[rank]:.0f} s {doing}after step {state.step}' if state.count else 'yet'
        return f'no heartbeat {since}'


def dump_stacks(ranks: Collection[int]) -> None:
    """Have the stacks of all Python threads of the processes `ranks` and of their data workers written into the ranks' logs,
    those of the ranks last; takes 2 s. SIGUSR1 ends a process without `heartbeat.dump_stacks_on_request`."""
    with contextlib.suppress(psutil.NoSuchProcess):  # one has just ended
        processes = [psutil.Process(pid) for pid in ranks]
        for group in ([child for rank in processes for child in rank.children()], processes):
            for process in group:
                process.send_signal(signal.SIGUSR1)
            time.sleep(1)
