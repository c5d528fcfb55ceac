"""Processes of this machine as /proc shows them (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing.util
import os
import signal
import time
from collections.abc import Callable

# Seconds after a first signal in which another one counts as the same request: a batch system signals a process and then
# its whole process group, and a launcher passes its signal on. The launcher and a training both use it.
ECHO = 2.0
PATIENCE = 2  # seconds for children to end at the exit of their parent


def state(pid: int) -> tuple[str, int] | None:
    """(state, parent's pid) of a process or thread, or None if there is none with this number.

    The state is a letter of proc(5): R, S, D, T (stopped), t (by a debugger), Z, ...; Z only if all threads have ended.
    """
    try:
        with open(f'/proc/{pid}/stat', 'rb') as file:
            fields = file.read().rpartition(b')')[2].split()
    except OSError:
        return None
    letter, threads = fields[0].decode(), int(fields[17])
    return 'S' if letter == 'Z' and threads > 1 else letter, int(fields[1])


def lives(pid: int) -> bool:
    """Whether there is a process or thread with this number; a zombie does not count."""
    found = state(pid)
    return found is not None and found[0] not in 'ZX'


def _all():
    """{pid: (state, parent's pid)} of this machine's processes."""
    return {int(pid): found for pid in filter(str.isdigit, os.listdir('/proc')) if (found := state(pid))}


def kill_descendants() -> set[int]:
    """SIGKILL all descendants of this process until none is left; gives their pids. Orphans are among them if this process
    is their subreaper."""
    killed = set()
    for _ in range(100):
        processes = _all()
        below, size = {os.getpid()}, 0
        while len(below) > size:  # a generation each time
            size = len(below)
            below |= {pid for pid, (_, parent) in processes.items() if parent in below}
        alive = [pid for pid in below - {os.getpid()} if processes[pid][0] != 'Z']
        if not alive:
            break
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(alive)
        time.sleep(0.05)
    return killed


def children(parent: int) -> list[int]:
    """Pids of the living children of a process."""
    return [pid for pid, (letter, above) in _all().items() if above == parent and letter != 'Z']


def ending_with_this(number: int) -> Callable[[], None]:
    """For a new child to call first: it then gets the signal `number` when this process ends, however that may be."""
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def prepare():
        prctl(1, number, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def end_children_at_exit() -> None:
    """At the exit of this process, end the children of `multiprocessing` that its other libraries have left. Its own exit
    would wait for them for ever: CANN's compilers may have SIGTERM blocked."""
    multiprocessing.util.Finalize(None, _end_children, exitpriority=0)  # before it waits


def _end_children():
    found, end = multiprocessing.active_children(), time.monotonic() + PATIENCE
    for child in found:
        child.terminate()
    for child in found:
        child.join(max(0, end - time.monotonic()))
        if child.is_alive():
            child.kill()
