"""Processes of this machine as /proc shows them (Linux)."""

import contextlib
import os
import signal
import time


def state(pid):
    """(state, parent's pid) of a process or thread: one letter of R, S, D, T (stopped), t (by a debugger), Z, ...; Z only if
    all of its threads have ended. None if there is none of that number."""
    try:
        with open(f'/proc/{pid}/stat', 'rb') as file:
            fields = file.read().rpartition(b')')[2].split()
    except OSError:
        return None
    letter, threads = fields[0].decode(), int(fields[17])
    return 'S' if letter == 'Z' and threads > 1 else letter, int(fields[1])


def lives(pid):
    """Whether there is a process or thread of that number; one that is dead, but not yet waited for, does not live."""
    found = state(pid)
    return found is not None and found[0] not in 'ZX'


def _all():
    """{pid: (state, parent's pid)} of this machine's processes."""
    return {int(pid): found for pid in filter(str.isdigit, os.listdir('/proc')) if (found := state(pid))}


def kill_descendants():
    """SIGKILL everything below this process until nothing is left, orphans too if it is their subreaper; gives the pids."""
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


def states(parent):
    """{pid: letter of its state} of the children of a process."""
    return {pid: letter for pid, (letter, above) in _all().items() if above == parent}


def children(parent):
    """Pids of the living children of a process."""
    return [pid for pid, letter in states(parent).items() if letter != 'Z']
