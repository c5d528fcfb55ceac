"""Notices a training that hangs: no beat of a rank (`src.heartbeat`) for too long. Says where each rank is (Linux)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Container, Iterable, Mapping
from typing import NamedTuple

from src import heartbeat, processes
from src.cluster.logs import end, say
from src.heartbeat import COMPILING, EVALUATING, SAVING, STEPS

STALL = 600  # seconds without a beat, at least
SLOWEST = 3  # times the slowest interval so far
# What takes longer than a step gets so many times as long. Compilation and evaluation have taken minutes, a save seconds.
PATIENCE = {STEPS: 1, SAVING: 3, COMPILING: 6, EVALUATING: 6}
ANSWER = 3  # seconds for the stacks to arrive in the logs
STACK = re.compile(rb'^(?:Current t|T)hread 0x\w+ .*\(most recent call first\):\n((?:  .*\n)+)', re.M)
# Lines of HCCL and CANN's error codes for it, of MindSpore's queue between data and device, and of `training/watch.py`.
TELLING = re.compile(rb'HCCL|\bE[IJ]\d{4}\b|GetNext|[Dd]ata ?[Qq]ueue|data_queue|^no (?:data|step) for ', re.M)


class State(NamedTuple):
    """What a rank has written last."""

    count: int  # of its beats
    step: int  # steps done
    saved: int  # checkpoints that this process has written
    doing: str  # one of the words above


class Watchdog:
    """Watches the beats of the ranks of one launch; closed at the end of a `with` block.

    Args:
        size: number of ranks of the training, those of other servers included.
        timeout: seconds without a beat (see PATIENCE) that make a stall; None: STALL or SLOWEST times the slowest interval
            so far, whichever is longer; 0: never.
        clock: gives seconds.

    `path` is the file for the environment variable `heartbeat.FILE`. It has no name on a disk, and ends with this
    process.
    """

    def __init__(self, size: int, timeout: float | None = None, clock: Callable[[], float] = time.monotonic):
        self.size, self.timeout, self.clock = size, timeout, clock
        self.file = os.memfd_create('beats')
        self.path = f'/proc/{os.getpid()}/fd/{self.file}'
        self.states, self.since, self.slowest, self.first_step_at = {}, {}, {}, None
        self.frozen = {}  # {rank that was stopped before its first beat: since when}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.file)

    def look(self, ranks: Iterable[str], stopped: Container[str] = ()) -> str | None:
        """Take note of new beats. Gives the rank that lags if one of the living `ranks` has stalled, else None. A rank that
        has not beaten yet is watched only where it is among the `stopped`: a program need not beat."""
        records, now = os.pread(self.file, self.size * heartbeat.SIZE, 0), self.clock()
        for rank in range(len(records) // heartbeat.SIZE):
            new, old = _parse(records[rank * heartbeat.SIZE : (rank + 1) * heartbeat.SIZE]), self.states.get(str(rank))
            if new is None or new == old:
                continue
            name = str(rank)
            if old:
                self.slowest[old.doing] = max(self.slowest.get(old.doing, 0), now - self.since[name])
                if new.step > old.step and self.first_step_at is None:
                    self.first_step_at = now
            self.states[name], self.since[name] = new, now
        beaten = [rank for rank in ranks if rank in self.states]
        self.frozen = {rank: self.frozen.get(rank, now) for rank in ranks if rank in stopped and rank not in self.states}
        if self.timeout == 0 or not beaten and not self.frozen:
            return None
        # A rank may wait for another one that does something long, or that is not as far as its first beat.
        limit = max(self._limit(self.states[rank].doing if rank in self.states else COMPILING) for rank in ranks)
        if any(now - since > limit for since in self.frozen.values()):
            return min(self.frozen, key=self.frozen.get)
        return self._laggard(beaten) if any(now - self.since[rank] > limit for rank in beaten) else None

    def _limit(self, doing):
        if self.timeout is not None:
            return PATIENCE.get(doing, 1) * self.timeout
        return max(PATIENCE.get(doing, 1) * STALL, SLOWEST * self.slowest.get(doing, 0))

    def _laggard(self, ranks):
        """Of `ranks` that have beaten the one with the lowest step, among those the one that has been silent for longest."""
        return min(ranks, key=lambda rank: (self.states[rank].step, self.since[rank]))

    @property
    def step(self) -> int | None:
        """The step that the fastest rank is doing, counted from 1; None before the first beat."""
        return max((state.step for state in self.states.values()), default=-1) + 1 or None

    @property
    def saved(self) -> bool:
        """Whether a checkpoint has been written."""
        return any(state.saved for state in self.states.values())

    @property
    def progress(self) -> float:
        """Seconds from the first step done to the last beat."""
        return max(self.since.values()) - self.first_step_at if self.first_step_at is not None else 0.0

    def silence(self, rank: str) -> str:
        """What there is to say about the beats of a rank."""
        if rank not in self.states:
            return 'no beat yet'
        state = self.states[rank]
        doing = f'after step {state.step}' if state.doing == STEPS else f'{state.doing} after step {state.step}'
        return f'no beat for {self.clock() - self.since[rank]:.0f} s {doing}'

    def report(self, ranks: Mapping[str, int], logs: Mapping[str, str], laggard: str) -> None:
        """Have the stacks of all threads of the `ranks` {name: pid}, and of their data workers, written into their `logs`
        {name: path}; say where each rank is, and which one lags."""
        sizes = {rank: _size(logs[rank]) for rank in ranks}
        asked = {rank: _ask(pid) for rank, pid in ranks.items()}
        deadline = time.monotonic() + ANSWER
        stacks = {rank: [] for rank in ranks}
        while time.monotonic() < deadline and not all(stacks[rank] for rank in ranks if asked[rank]):
            time.sleep(0.1)
            stacks = {rank: STACK.findall(_from(logs[rank], sizes[rank])) for rank in ranks}
        for pid in ranks.values():
            for worker in processes.children(pid):
                _ask(worker)
        say(f'the training hangs; rank {laggard} lags: {self.silence(laggard)}')
        for rank, pid in ranks.items():
            letter = (processes.state(pid) or 'Z')[0]
            if stacks[rank]:
                where = f'{_innermost(stacks[rank])}; stacks of all threads in {logs[rank]}'
            elif letter in 'Tt':
                where = 'it is stopped (by SIGSTOP or a debugger) and cannot say where'
            else:
                where = 'it did not say where' if asked[rank] else 'it cannot say where yet'
            say(f'rank {rank}: {self.silence(rank)}, {where}')
            with contextlib.suppress(OSError), open(logs[rank], 'rb') as log:
                telling = [line for line in end(log).splitlines() if TELLING.search(line)][-2:]
                for line in telling:
                    say(f'rank {rank} wrote: {line.decode(errors="replace").strip():.300}')


def _parse(record):
    """The `State` in a rank's bytes; None if there is none yet."""
    try:
        count, step, saved, doing = record.decode('ascii').strip('\0 ').split()
        return State(int(count), int(step), int(saved), doing)
    except ValueError:
        return None


def _ask(pid):
    """Send SIGUSR1 to a process that catches it; it would end another one. Gives whether it can answer."""
    with contextlib.suppress(OSError), open(f'/proc/{pid}/status', 'rb') as file:
        caught = re.search(rb'^SigCgt:\s*(\w+)', file.read(), re.M)
        if caught and int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1:
            os.kill(pid, signal.SIGUSR1)
            return (processes.state(pid) or 'Z')[0] not in 'TtZ'
    return False


def _size(path):
    with contextlib.suppress(OSError):
        return os.path.getsize(path)
    return 0


def _from(path, position):
    with contextlib.suppress(OSError), open(path, 'rb') as log:
        log.seek(position)
        return log.read(1 << 20)
    return b''


def _innermost(stacks):
    """Where the main thread is: it is the one that began in a module."""
    frames = next((s for s in stacks if s.rstrip().endswith(b' in <module>')), stacks[-1])
    return frames.splitlines()[0].strip().decode(errors='replace')
