"""Starts the project's programs for the checks; needs no MindSpore."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1800  # seconds: a compilation takes minutes, while ranks that wait for each other never end
ENDS = 30  # seconds for a process to be gone after its last step
# A small network, a checkpoint and a log line after few steps.
SMALL = (
    '--num_classes 10 --block_counts 1,1,1 --image_size 75 --batch_size 4 --num_workers 1 --display_every 1 '
    '--iterations_per_loop 4 --save_checkpoint_steps 4 --keep_checkpoint_max 3 --lr 0.002 --lr_schedule constant'
).split()


@contextlib.contextmanager
def program(argv: Sequence, log: Path) -> Iterator[subprocess.Popen]:
    """Run `python argv` in the directory of `log`, which takes its output. When the block ends, all its processes end."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    with open(log, 'wb') as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, argv)],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={'GLOG_v': '3', **os.environ, 'PYTHONPATH': path},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # the launcher ends its ranks
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(90)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def text_of(log: Path) -> str:
    """What a program has printed so far."""
    return log.read_text(errors='replace')


def losses(log: Path) -> dict[int, float]:
    """{step: loss} of the lines of a log."""
    return {int(step): float(loss) for step, loss in re.findall(r'^step: (\d+) .*? loss: (\S+)', text_of(log), re.M)}


def train(argv: Sequence, log: Path, after_step: int = 0, number: int = 0) -> int:
    """Exit status of a training by `python argv`, which gets the signal `number`, if any, after `after_step` steps.

    AssertionError with its children if it is not gone ENDS seconds after its last step.
    """
    end = time.monotonic() + PATIENCE
    with program(argv, log) as process:
        while process.poll() is None and not re.search(r'^(trained|.*stopped after step) ', text_of(log), re.M):
            assert time.monotonic() < end, f'{log}: no end for {PATIENCE} s'
            if number and max(losses(log), default=0) >= after_step:
                process.send_signal(number)
                number = 0
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        children = process.poll() is None and psutil.Process(process.pid).children(recursive=True)
        try:
            return process.wait(ENDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'the process stays {ENDS} s after its last step; children: {children}') from None
