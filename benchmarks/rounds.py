"""Timing of several candidates side by side: in turns, so that other load on the machine slows all of them alike, and each
with all cores of this process."""

import contextlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

from src.errors import InputError

TICK = os.sysconf('SC_CLK_TCK')
SHORTEST = 0.2  # CPU seconds that tell who does the work
IDLE = 0.1  # of the busiest thread's CPU seconds: a thread with less was not one of those that share the work


def cores():
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def environment():
    """Environment variables of a candidate's process, in which it uses as many threads as it would by itself. `import
    mindspore` (2.8) puts OMP_NUM_THREADS=1 into what child processes inherit, where `os.environ` does not show it; PyTorch
    would obey."""
    return dict(os.environ)


class Threads:
    """What the threads of the process `pid` and of its children did while it was timed: a context for each timed call.

    Attributes:
        used: CPU seconds of all threads over wall-clock seconds.
    """

    def __init__(self, pid=None):
        self.pid, self.seconds, self.wall = pid or os.getpid(), Counter(), 0.0

    @contextlib.contextmanager
    def timed(self):
        """Count what the threads do within the block."""
        before, start = self._read(), time.perf_counter()
        yield
        self.wall += time.perf_counter() - start
        self.seconds.update({thread: value - before.get(thread, 0) for thread, value in self._read().items()})

    def _read(self):
        """{thread: CPU seconds so far}"""
        found, children = {}, [child.pid for child in psutil.Process(self.pid).children()]
        for path in (path for pid in (self.pid, *children) for path in Path(f'/proc/{pid}/task').glob('*/stat')):
            with contextlib.suppress(OSError):  # it has ended
                fields = path.read_text().rpartition(')')[2].split()
                found[path] = (int(fields[11]) + int(fields[12])) / TICK
        return found

    @property
    def used(self):
        return sum(self.seconds.values()) / self.wall

    def require(self, name, wanted=None):
        """InputError if the process had fewer cores than this one, or fewer threads than `wanted` (as many as cores) have
        worked: its figure would not be comparable with the others'. Nothing where the work was too short to tell."""
        allowed, wanted = len(os.sched_getaffinity(self.pid)), wanted or cores()
        busy = sum(value > IDLE * max(self.seconds.values()) for value in self.seconds.values())
        if min(allowed, busy) < wanted and sum(self.seconds.values()) > SHORTEST:
            raise InputError(
                f'{name} had {min(allowed, busy)} of {wanted} cores: {busy} threads did its work, on {allowed} cores; '
                'look at OMP_NUM_THREADS and its affinity'
            )


def turns(names, rounds, warm_up=0, seed=0, pause=0.0):
    """(name, whether it counts) of every turn: all of `names` once in each round, in a new random order every round, after
    `warm_up` rounds that do not count. Before each turn `pause` seconds, for the threads of another process to end."""
    rng = np.random.default_rng(seed)
    for number in range(warm_up + rounds):
        for name in rng.permutation(list(names)):
            time.sleep(pause)
            yield str(name), number >= warm_up


def interleaved(calls, rounds, warm_up=2, seed=0, pause=0.0, threads=None):
    """{name: [seconds of each call]} of `calls` {name: function without arguments}, in `turns`; `threads` {name: `Threads`}
    of the processes that work in them."""
    seconds = {name: [] for name in calls}
    for name, counts in turns(calls, rounds, warm_up, seed, pause):
        with threads[name].timed() if threads and counts else contextlib.nullcontext():
            start = time.perf_counter()
            calls[name]()
            end = time.perf_counter()
        if counts:
            seconds[name].append(end - start)
    return seconds


def spread(values, digits=2):
    """`median (lowest to highest)`"""
    return f'{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})'


def machine(*packages):
    """One line: processor, cores, Python and the versions of `packages`."""
    cpu = [line.partition(':')[2].strip() for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line]
    versions = ', '.join(f'{package} {importlib.metadata.version(package)}' for package in packages)
    return f'{cpu[0] if cpu else platform.machine()}, {cores()} cores, Python {platform.python_version()}, {versions}'
