"""Processes that tests start: programs with their output in a file, and processes by number."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


class Program:
    """A Python command in a session of its own in `folder`; `text` is what it has printed, to the file `output`. `options`
    are of Popen. As a context it ends with the block, and so do all its processes."""

    def __init__(self, folder, *command, environ=(), output='', **options):
        self.output = Path(folder, output or f'output.{time.monotonic_ns()}')
        environ = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable, **dict(environ)}
        with open(self.output, 'wb') as file:
            options = {'stdout': file, 'stderr': file, **options}
            command = [sys.executable, *map(str, command)]
            self.process = subprocess.Popen(command, cwd=folder, env=environ, start_new_session=True, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()  # a launcher ends its ranks
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(90)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def text(self):
        return self.output.read_text(errors='replace')

    def found(self, pattern):
        """All matches of `pattern` in the lines so far."""
        return re.findall(pattern, self.text, re.M)

    def reach(self, condition, seconds=300):
        """Wait for a line, or until `condition()` is true; it must come before the end of the program."""
        reached = condition if callable(condition) else lambda: self.found(condition)
        assert wait(lambda: reached() or self.process.poll() is not None, seconds), self.text[-3000:]
        assert reached(), self.text[-3000:]

    def end(self, status):
        """Wait for the end, with this exit status, without a traceback, and with no process of the session left."""
        assert self.process.wait(300) == status and 'Traceback' not in self.text, self.text[-3000:]
        assert wait(lambda: not session(self.process.pid), 30), session(self.process.pid)


def wait(condition, seconds=300):
    """The first value of `condition()` that is true; False if there is none in that time."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def session(number):
    """Living processes of a session."""
    found = []
    for pid in filter(lives, psutil.pids()):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            found += [pid] * (os.getsid(pid) == number)
    return found


def lives(pid):
    """Whether there is such a process; a zombie does not count."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def children(pid):
    """Numbers of its living children."""
    try:
        return [child.pid for child in psutil.Process(pid).children() if lives(child.pid)]
    except psutil.NoSuchProcess:
        return []
