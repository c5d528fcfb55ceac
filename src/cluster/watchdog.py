"""Notices a training run that hangs: no heartbeat of a rank (`src.heartbeat`) for too long (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection
from typing import NamedTuple

import psutil

from src.heartbeat import COMPILING, SIZE, STEPS

STALL = 600  # seconds without a heartbeat
LONGER = 6  # times as long for what is not a step: compilation and evaluation have taken minutes


class State(NamedTuple):
    """What a rank has written last: number of its heartbeats, steps done, checkpoints saved, what it does."""

    count: int = 0
    step: int = -1
    saved: int = 0
    doing: str = COMPILING


class Watchdog:
    """Watches the heartbeats of `size` ranks, those of other servers included.

    `timeout`: seconds without one that mean a hang, LONGER times as many where a rank does no steps; 0: never. `path` is the
    file for `heartbeat.FILE`: it is in memory, has no name, and ends with this process.
    """

    def __init__(self, size: int, timeout: float = STALL):
        self.timeout = timeout
        self.file = open(os.memfd_create('heartbeats'), 'rb', buffering=0)  # closed with this object
        self.path = f'/proc/{os.getpid()}/fd/{self.file.fileno()}'
        self.states, self.since = {str(rank): State() for rank in range(size)}, {}
        self.saved = False  # whether a checkpoint has been written

    def look(self, ranks: Collection[str] = ()) -> str | None:
        """Read new heartbeats. Returns the rank that lags behind if one of the living `ranks` hangs, else None. Nothing is
        watched before the first heartbeat of any: a program need not have them."""
        now = time.monotonic()
        self.file.seek(0)
        for rank, old in self.states.items():
            if (fields := self.file.read(SIZE).decode().strip('\0').split()) and int(fields[0]) != old.count:
                self.states[rank] = new = State(*map(int, fields[:3]), fields[3])
                self.since[rank], self.saved = now, self.saved or new.saved > 0
        if self.timeout == 0 or not any(state.count for state in self.states.values()):
            return None
        for rank in ranks:
            self.since.setdefault(rank, now)
        # A rank may wait for another one that does something long, or that is not as far as its first heartbeat.
        times = 1 if all(self.states[rank].doing == STEPS for rank in ranks) else LONGER
        if all(now - self.since[rank] <= times * self.timeout for rank in ranks):
            return None
        return min(ranks, key=lambda rank: (self.states[rank].step, self.since[rank]))

    def silence(self, rank: str) -> str:
        """For how long a rank has had no heartbeat, in words."""
        if not (state := self.states[rank]).count:
            return 'no heartbeat yet'
        doing = '' if state.doing == STEPS else f'{state.doing} '
        return f'no heartbeat for {time.monotonic() - self.since[rank]:.0f} s {doing}after step {state.step}'


def dump_stacks(ranks: Collection[int]) -> None:
    """Have the stacks of all Python threads of the processes `ranks` and of their data workers written into the ranks' logs,
    those of the ranks last; takes 2 s. SIGUSR1 ends a process without `heartbeat.dump_stacks_on_request`."""
    with contextlib.suppress(psutil.NoSuchProcess):  # one has just ended
        processes = [psutil.Process(pid) for pid in ranks]
        for group in ([child for rank in processes for child in rank.children()], processes):
            for process in group:
                process.send_signal(signal.SIGUSR1)
            time.sleep(1)
