"""Timing of several candidates side by side: in turns, so that other load on the machine slows all of them alike, and each
with all cores of this process."""

import contextlib
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

from src.errors import InputError

TICK = os.sysconf('SC_CLK_TCK')
SHORTEST = 0.2  # CPU seconds that show who does the work
IDLE = 0.1  # of the busiest thread's CPU seconds: a thread with less was not one of those that share the work


def cores():
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def environment():
    """Environment variables of a candidate's process, in which it uses as many threads as it would by itself. `import
    mindspore` (2.8) puts OMP_NUM_THREADS=1 into what child processes inherit, where `os.environ` does not show it."""
    return dict(os.environ)


class Threads:
    """What the threads of the process `pid` and of its children did while it was timed: a context for each timed call."""

    def __init__(self, pid=None):
        self.pid, self.seconds, self.rounds = pid or os.getpid(), Counter(), []  # of each thread; of each call

    @contextlib.contextmanager
    def timed(self):
        before, start = self._read(), time.perf_counter()
        yield
        self.rounds.append(time.perf_counter() - start)
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
        """CPU seconds of all threads over wall-clock seconds."""
        return sum(self.seconds.values()) / sum(self.rounds)

    def require(self, name, wanted=None):
        """InputError if fewer threads than `wanted` (as many as cores) have worked, or on fewer cores, so that the figure is
        not comparable. Nothing where the work was too short to tell."""
        allowed, wanted = len(os.sched_getaffinity(self.pid)), wanted or cores()
        busy = sum(value > IDLE * max(self.seconds.values()) for value in self.seconds.values())
        if min(allowed, busy) < wanted and sum(self.seconds.values()) > SHORTEST:
            raise InputError(
                f'{name} had {min(allowed, busy)} of {wanted} cores: {busy} threads did its work, on {allowed} cores; '
                'look at OMP_NUM_THREADS and its affinity'
            )


def interleaved(calls, rounds, warm_up=1, pause=0.0, threads=None):
    """{name: [seconds of each call]} of `calls` {name: function}: all once in each round, in a new random order every round,
    each after `pause` seconds, after `warm_up` rounds that do not count. `threads` {name: `Threads`} watch."""
    rng, seconds = np.random.default_rng(0), {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name in map(str, rng.permutation(list(calls))):
            time.sleep(pause)  # threads of another candidate look for work for a while after their last call
            counts = number >= warm_up
            with threads[name].timed() if threads and counts else contextlib.nullcontext():
                start = time.perf_counter()
                calls[name]()
                end = time.perf_counter()
            seconds[name] += [end - start] * counts
    return seconds


class Candidate:
    """A process of `python -m module *argv --alone name`, see `serve`; `first`: seconds until its first work is done."""

    def __init__(self, module, name, argv):
        command, start = [sys.executable, '-m', module, *argv, '--alone', name], time.perf_counter()
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
        self.name, self.process = name, subprocess.Popen(command, text=True, env=environment(), **pipes)
        self.work()
        self.first = time.perf_counter() - start

    def work(self):
        """Do the work once and wait for its end."""
        print(file=self.process.stdin, flush=True)
        word, _, result = self.process.stdout.readline().partition(' ')
        if word != 'done':
            raise InputError(f'{self.name} ended with an error, see above; requirements-bench.txt lists what it needs')
        self.result = [float(value) for value in result.split()]


def serve(work):
    """In the process of a `Candidate`: call `work` for each line on stdin; the numbers that it returns go to stdout."""
    for _ in sys.stdin:
        print('done', *work(), flush=True)


def compare(module, names, argv, images, rounds):
    """Print a table of images/s (`images` in each work), threads and memory of the candidates `names` of `module`, which
    take turns. Returns {name: numbers that its last work returned}."""
    candidates = []
    try:
        for name in names:
            candidates.append(Candidate(module, name, argv))
        threads = {one.name: Threads(one.process.pid) for one in candidates}
        seconds = interleaved({one.name: one.work for one in candidates}, rounds, 2, 0.3, threads)
        print(f'{"":<32} {"images/s (lowest to highest)":<28} of first  first, s  threads  peak GB')
        for one in candidates:
            threads[one.name].require(one.name)
            ratio = statistics.median(base / value for base, value in zip(seconds[names[0]], seconds[one.name]))
            # Not ru_maxrss, in which a process inherits what its parent had.
            peak = int(re.search(r'VmHWM:\s+(\d+)', Path(f'/proc/{one.process.pid}/status').read_text())[1]) * 1024 / 1e9
            speed = spread([images / value for value in seconds[one.name]])
            print(f'{one.name:<32} {speed:<28} {ratio:>8.2f} {one.first:>9.1f} {threads[one.name].used:>8.2f} {peak:>8.2f}')
        return {one.name: one.result for one in candidates}
    finally:
        for one in candidates:
            one.process.kill()


def spread(values, digits=2):
    """`median (lowest to highest)`"""
    return f'{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})'


def machine(*packages):
    """One line: processor, cores, Python and the versions of `packages`."""
    cpu = [line.partition(':')[2].strip() for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line]
    versions = ', '.join(f'{package} {importlib.metadata.version(package)}' for package in packages)
    return f'{cpu[0] if cpu else platform.machine()}, {cores()} cores, Python {platform.python_version()}, {versions}'
