"""Programs of this project that another one starts, and its table of results."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

from src.heartbeat import end_with_parent

ROOT = Path(__file__).resolve().parents[1]


def run(program: str, *arguments: object, good: tuple[int, ...] = (0,)) -> int:
    """Run an entry point (`train.py`) or a module (`src.data.check`) and return its exit status, one of `good`. With any
    other status this process ends, too, with the same. The output goes to the screen.

    SIGINT and SIGTERM go on to the program, which may have something to save. (`subprocess.run` would kill it.) If this
    process is killed, the program gets SIGTERM.
    """
    start = [program] if program.endswith('.py') else ['-m', program]
    words = [str(argument) for argument in arguments]
    print(f'\n$ {shlex.join(["python", *start, *words])}', flush=True)
    start = [str(ROOT / program)] if program.endswith('.py') else [str(ROOT / 'scripts/module.py'), program]
    child = subprocess.Popen([sys.executable, *start, *words], preexec_fn=end_with_parent(signal.SIGTERM))
    # After Ctrl-C the program gets the signal twice; trainings take the second one as the same request.
    numbers = signal.SIGINT, signal.SIGTERM
    earlier = [signal.signal(number, lambda number, _: child.send_signal(number)) for number in numbers]
    try:
        status = child.wait()
    finally:
        for number, handler in zip(numbers, earlier):
            signal.signal(number, handler)
    status = status if status >= 0 else 128 - status
    if status not in good:
        sys.exit(status)
    return status


def print_table(rows: list[tuple[str, object]]) -> None:
    """Print (name, value) in two columns, below an empty line, and what to do with the pages among them."""
    print()
    for name, value in rows:
        print(f'{name:<13} {value}')
    print('\nopen the pages (.html) in a browser; each is one file, which can be copied to another machine')
