"""Runs the processes of a launch until all have ended; none is left, and the first that failed is named (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from src.cluster.watchdog import Watchdog, dump_stacks
from src.errors import ElsewhereError, reading
from src.heartbeat import ECHO, FILE, end_with_parent

FAILURE_GRACE = 10  # seconds from the first failure until the other ranks are killed
SYMPTOM = 2  # seconds after a failure of the scheduler in which a rank that fails is taken for its cause
# The scheduler reports a rank whose MindSpore heartbeat stopped before it has the others end (meta_server_node.cc).
LOST = re.compile(rb'worker (\d+) is the first one timed out|The node: (\d+) is timed out')
# MindSpore's last threads write this at the end of every distributed process, whatever the log level is.
LAST_WORDS = re.compile(rb'^\[INFO\] DISTRIBUTED\(.*\n?', re.M)


class Signals(list):
    """The numbers of the signals to end that this process got since its construction, without their echoes."""

    def __init__(self):
        self.last = -ECHO
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._received)

    def _received(self, number, _):
        if time.monotonic() > self.last + ECHO:
            self.append(number)
            self.last = time.monotonic()


class Supervisor:
    """Runs `jobs`, {name: (command, environment variables)}, whose output goes to <directory>/<name>/train.log; a rank's
    name is its number. `grace`: seconds for ranks to save and exit after a signal."""

    def __init__(self, jobs: dict[str, tuple], directory: str, grace: float, watchdog: Watchdog, signals: Signals):
        self.jobs, self.grace, self.watchdog, self.signals = jobs, grace, watchdog, signals
        self.logs, self.shown = {name: Path(directory, name, 'train.log') for name in jobs}, 0
        self.ranks, self.processes = set(jobs) - {'scheduler'}, {}  # ranks that have not ended
        self.failures, self.hang = [], None  # [(name, status)] in the order of their ends; (rank, what happened)
        # Not a SimpleQueue: CPython's waits forever if a signal's handler outlasts the timeout (3.11).
        self.ended = queue.Queue()

    def supervise(self) -> tuple[int, str, bool]:
        """Start the jobs and wait until all ranks have ended. Returns the launcher's exit status, the process that failed
        first and how, in words ('' if none did), and whether a checkpoint was written. InputError if a job cannot start."""
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphaned descendants become our children
        for name, job in self.jobs.items():
            with reading(self.logs[name]):
                self._start(name, *job)
        try:
            self._watch()
            self._end_ranks()
            status, cause = self._first_failure() if self.hang or self.failures else (0, '')
            self.watchdog.look()  # the last heartbeats
            if not cause and 'scheduler' in self.jobs:  # it ends a second after the last rank, which may be elsewhere
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.processes['scheduler'].wait(self.grace)
            return 128 + self.signals[0] if self.signals else status, cause, self.watchdog.saved
        finally:
            kill_descendants()
            self._show()

    def _start(self, name, command, environment):
        path = self.logs[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, f'{path}.1')
        with open(path, 'ab') as output:
            self.processes[name] = process = subprocess.Popen(
                command,
                env=environment | {FILE: self.watchdog.path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=end_with_parent(signal.SIGKILL),
            )
        # A thread waits for each process: they report in the order in which the processes end.
        threading.Thread(target=lambda: self.ended.put((name, process.wait())), daemon=True).start()

    def _next_end(self):
        """(name, status) of a process that has ended, or None after 0.2 s."""
        self._show()
        with contextlib.suppress(queue.Empty):
            name, status = self.ended.get(timeout=0.2)
            self.ranks.discard(name)
            return name, status

    def _watch(self):
        """Wait until all ranks have ended, a signal has come, a rank hangs, or it is clear which process failed first."""
        certain = float('inf')
        while self.ranks and not self.signals and not self.hang and time.monotonic() < certain:
            if (ended := self._next_end()) and ended[1]:
                self.failures.append(ended)
                # The scheduler fails when a rank is lost, which may end a moment later; by ElsewhereError a rank says that
                # another one has ended the training run.
                wait = self.grace if ended[1] == ElsewhereError.exit_status else SYMPTOM * (ended[0] == 'scheduler')
                certain = min(certain, time.monotonic() + wait)
            if not self.failures and (laggard := self.watchdog.look(self.ranks)):
                self.hang = laggard, f'hangs: {self.watchdog.silence(laggard)}'
                dump_stacks([self.processes[name].pid for name in self.ranks])

    def _end_ranks(self):
        """SIGTERM for the ranks that are left, later SIGKILL: after the grace or a second signal."""
        if self.signals and self.ranks:
            name = signal.Signals(self.signals[0]).name
            log(f'{name} passed on; ranks have {self.grace:g} s to save; a second signal (after {ECHO:g} s) kills them')
        for name in self.ranks:  # to the rank alone: it takes the end of a data worker for a failure
            self.processes[name].terminate()  # never SIGINT: MindSpore handles that one itself within a step
        end = time.monotonic() + (self.grace if self.signals else min(self.grace, FAILURE_GRACE))
        while self.ranks and len(self.signals) < 2 and time.monotonic() < end:
            self._next_end()
        if self.ranks:
            log(f'rank {", ".join(sorted(self.ranks))} did not end in time: killed')

    def _first_failure(self):
        """(status, cause in words) of the process that hangs or failed first, which is logged with its last lines."""
        lost = 'scheduler' in self.jobs and LOST.search(self.logs['scheduler'].read_bytes())
        failed, code = dict(self.failures), 1
        if self.hang:
            name, what = self.hang
        elif lost and (name := (lost[1] or lost[2]).decode()) not in failed:
            what = 'stopped answering the scheduler'
        else:
            ranks = [name for name in failed if name != 'scheduler'] or [*failed]
            name = next((name for name in ranks if failed[name] != ElsewhereError.exit_status), ranks[0])
            code = failed[name] if failed[name] > 0 else 128 - failed[name]
            what = 'failed first: ' + (f'signal {signal.Signals(code - 128).name}' if failed[name] < 0 else f'status {code}')
            what += ' (out of memory, or killed by hand)' * (failed[name] == -signal.SIGKILL)
        cause = f'{"rank " * name.isdecimal()}{name} {what}'
        if name not in self.jobs:
            log(f'{cause}; it is on another server')
            return ElsewhereError.exit_status, cause
        lines = LAST_WORDS.sub(b'', self.logs[name].read_bytes()).decode(errors='replace').splitlines()
        log('\n'.join([f'{cause}; the last lines of {self.logs[name]}:', *lines[-20:]]))
        return code, cause

    def _show(self):
        """Show on the screen what the first rank has written since the last time."""
        with open(self.logs[next(name for name in self.jobs if name != 'scheduler')], 'rb') as file:
            file.seek(self.shown)
            data = file.read()
            self.shown = file.tell()
        try:
            sys.stdout.buffer.write(LAST_WORDS.sub(b'', data))
            sys.stdout.flush()
        except OSError:  # the reader of the pipe has ended; training continues without a screen
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def log(text: str) -> None:
    """Print a line of the launcher to stderr."""
    with contextlib.suppress(OSError):
        print(f'launch: {text}', file=sys.stderr, flush=True)


def kill_descendants() -> None:
    """SIGKILL all descendants of this process until none is left, orphans included, whose subreaper it is."""
    end = time.monotonic() + 10  # a driver can keep a process from ending
    while (descendants := psutil.Process().children(recursive=True)) and time.monotonic() < end:
        for one in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(descendants, timeout=1)
