"""Says what a program waits for."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

EVERY = 30  # seconds between two lines in a log


@contextlib.contextmanager
def waiting(say: Callable[[str], None], what: str) -> Iterator[None]:
    """While the block runs, show on a terminal for how long, or call `say` with a line every `EVERY` seconds.

    Args:
        what: what is waited for, the beginning of the line.

    The time moves by a thread. MindSpore holds Python's lock for up to 4 s at a time while it compiles, so it may stand
    still for so long.
    """
    done, start, terminal = threading.Event(), time.monotonic(), sys.stderr.isatty()

    def show():
        if terminal:
            with tqdm(desc=what, bar_format='{desc}: {elapsed}', leave=False, dynamic_ncols=True) as line:
                while not done.wait(1):
                    line.refresh()
        else:
            while not done.wait(EVERY):
                say(f'{what}: {time.monotonic() - start:.0f} s so far')

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
