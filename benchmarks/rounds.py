"""Timing of several candidates side by side: in turns, so that other load on the machine slows all of them alike."""

import argparse
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from src.errors import InputError, Parser
from src.workflow import ROOT

WARM_UP, PAUSE = 2, 0.3  # rounds that do not count; seconds in which the threads of another candidate stop looking for work


def cores():
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_seconds(pid):
    """CPU seconds so far of a process and its children."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children()]
    return sum(sum(one.cpu_times()[:2]) for one in processes)


class Candidate:
    """A process that works for each line on stdin, see `serve`."""

    def __init__(self, name, command):
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
        # `import mindspore` (2.8) puts OMP_NUM_THREADS=1 into what child processes inherit; `os.environ` is without it.
        self.process = subprocess.Popen([*map(str, command)], text=True, env=dict(os.environ), cwd=ROOT, **pipes)
        self.name, self.cpu, self.wall = name, 0.0, 0.0  # seconds

    def require_cores(self):
        """InputError if it was started with fewer cores than this process has: its figure would flatter the others."""
        given = Path(f'/proc/{self.process.pid}/environ').read_text(errors='replace')
        threads = [int(n) for n in re.findall(r'(?:^|\0)OMP_NUM_THREADS=(\d+)', given)]
        if (had := min(len(os.sched_getaffinity(self.process.pid)), *threads, cores())) < cores():
            raise InputError(f'{self.name} has {had} of {cores()} cores: unset OMP_NUM_THREADS, or mend its affinity')

    def work(self):
        """Do the work once. Returns how many seconds it took and the numbers that it returned."""
        before, start = cpu_seconds(self.process.pid), time.perf_counter()
        print(file=self.process.stdin, flush=True)
        word, *result = self.process.stdout.readline().split() or ['']
        if word != 'done':
            raise InputError(f'{self.name} ended with an error, see above; requirements-bench.txt lists what it needs')
        seconds = time.perf_counter() - start
        self.wall, self.cpu = self.wall + seconds, self.cpu + cpu_seconds(self.process.pid) - before
        print(file=self.process.stdin, flush=True)  # only now may its children end
        self.process.stdout.readline()
        return seconds, *map(float, result)


def serve(work, finish=lambda: None):
    """In the process of a `Candidate`: call `work` for a line on stdin; the numbers that it returns go to stdout. At the
    next line call `finish`."""
    for _ in sys.stdin:
        print('done', *work(), flush=True)
        sys.stdin.readline()
        finish()
        print('finished', flush=True)


def interleaved(calls, rounds, pause=0.0):
    """{name: [what each call returned]} of `calls` {name: function}: all once in each round, in a new random order every
    round, each after `pause` seconds."""
    rng, results = np.random.default_rng(0), {name: [] for name in calls}
    for _ in range(rounds):
        for name in map(str, rng.permutation(list(calls))):
            time.sleep(pause)
            results[name].append(calls[name]())
    return results


def parser(module, description, rounds):
    """A `Parser` of the options that `compare` needs."""
    made = Parser(prog=f'python -m {module}', description=description.partition(':')[0])
    made.add_argument('--rounds', type=int, default=rounds, help=f'timed works of each candidate (default: {rounds})')
    made.add_argument('--only', default='', help='candidates whose names this regular expression finds')
    made.add_argument('--alone', default='', help=argparse.SUPPRESS)  # the candidate that this process is
    made.add_argument('--place', type=Path, help=argparse.SUPPRESS)  # of its files
    return made


def alone(module, names, place='', *more):
    """{name: command} of candidates that `module` is with the arguments of this program, `more`, and `--alone name`; their
    files are in `place`."""
    more = [*sys.argv[1:], *more, '--place', place, '--alone']
    return {name: [sys.executable, '-m', module, *more, name] for name in names}


def compare(commands, a, images, self_timed=False):
    """Print a table of the candidates `commands` {name: command}, which take turns: images/s (`images` in each), memory,
    and threads at work (CPU over wall-clock seconds). If they are `self_timed`, the first number that a work returns are the
    seconds that count. Returns {name: what its last work returned}."""
    candidates = []
    try:
        candidates.extend(Candidate(name, commands[name]) for name in commands if re.search(a.only, name))
        for one in candidates:
            one.require_cores()
        calls = {one.name: one.work for one in candidates}
        interleaved(calls, WARM_UP, PAUSE)
        for one in candidates:
            one.cpu = one.wall = 0.0
        results = interleaved(calls, a.rounds, PAUSE)
        seconds = {name: [result[1 if self_timed else 0] for result in found] for name, found in results.items()}
        print(f'{"":<42} {"images/s (lowest to highest)":<28} of first  threads  peak GB')
        for one in candidates:
            ratio = statistics.median(base / value for base, value in zip(seconds[candidates[0].name], seconds[one.name]))
            # Not ru_maxrss, in which a process inherits what its parent had.
            peak = int(re.search(r'VmHWM:\s+(\d+)', Path(f'/proc/{one.process.pid}/status').read_text())[1]) * 1024 / 1e9
            speed = spread([images / value for value in seconds[one.name]])
            print(f'{one.name:<42} {speed:<28} {ratio:>8.2f} {one.cpu / one.wall:>8.2f} {peak:>8.2f}')
        return {name: found[-1][1:] for name, found in results.items()}
    finally:
        for one in candidates:
            one.process.kill()


def spread(values, digits=2):
    """`median (lowest to highest)`"""
    return f'{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})'


def machine(*packages):
    """One line: processor, cores, Python and the versions of `packages`."""
    cpu = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
    versions = ', '.join(f'{package} {importlib.metadata.version(package)}' for package in packages)
    return f'{cpu[1] if cpu else platform.machine()}, {cores()} cores, Python {platform.python_version()}, {versions}'
