"""Timing of several candidates side by side: in turns, so that other load on the machine slows all of them alike."""

import importlib.metadata
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np


def turns(names, rounds, warm_up=0, seed=0, pause=0.0):
    """(name, whether it counts) of every turn: all of `names` once in each round, in a new random order every round, after
    `warm_up` rounds that do not count. Before each turn `pause` seconds, for the threads of another process to end."""
    rng = np.random.default_rng(seed)
    for number in range(warm_up + rounds):
        for name in rng.permutation(list(names)):
            time.sleep(pause)
            yield str(name), number >= warm_up


def interleaved(calls, rounds, warm_up=2, seed=0, pause=0.0):
    """{name: [seconds of each call]} of `calls` {name: function without arguments}, in `turns`."""
    seconds = {name: [] for name in calls}
    for name, counts in turns(calls, rounds, warm_up, seed, pause):
        start = time.perf_counter()
        calls[name]()
        if counts:
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values, digits=2):
    """`median (lowest to highest)`"""
    return f'{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})'


def machine(*packages):
    """One line: processor, cores, Python and the versions of `packages`."""
    cpu = [line.partition(':')[2].strip() for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line]
    versions = ', '.join(f'{package} {importlib.metadata.version(package)}' for package in packages)
    cores = len(os.sched_getaffinity(0))
    return f'{cpu[0] if cpu else platform.machine()}, {cores} cores, Python {platform.python_version()}, {versions}'
