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
from src.heartbeat import FILE, end_with_parent

FAILURE_GRACE = 10  # seconds from the first failure until the other ranks are killed
SYMPTOM = 2  # seconds after a failure of the scheduler in which a rank that fails is taken for its cause
ECHO = 2.0  # seconds in which another signal counts as the same: a batch system signals a process and then its whole group
# The scheduler reports a rank whose MindSpore heartbeat stopped before it has the others end (meta_server_node.cc).
LOST = re.compile(rb'worker (\d+) is the first one timed out|The node: (\d+) is timed out')
# MindSpore's last threads write this at the end of every distributed process, whatever the log level is.
LAST_WORDS = re.compile(rb'\[INFO\] DISTRIBUTED\(')


class Signals(list):
    """The numbers of the signals that have told this process to end since its construction; their echoes are left out."""

    def __init__(self):
        self.last, numbers = -ECHO, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        for number in numbers[: 2 if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else 3]:  # nohup
            signal.signal(number, self._received)

    def _received(self, number, _):
        if time.monotonic() > self.last + ECHO:
            self.append(number)
            self.last = time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Wait for a signal, `seconds` at most; returns whether one has come."""
        end = time.monotonic() + seconds
        while not self and time.monotonic() < end:
            time.sleep(0.1)
        return bool(self)


class Supervisor:
    """Runs processes, whose output goes to <directory>/<name>/train.log.

    Args:
        jobs: {name: (command, environment variables, cores that it may use)}; a rank's name is its number.
        grace: seconds that the ranks have to save and exit after a signal.
        watchdog: sees the heartbeats of the ranks.
        signals: those that this process gets.
    """

    def __init__(self, jobs: dict[str, tuple], directory: str, grace: float, watchdog: Watchdog, signals: Signals):
        self.jobs, self.directory, self.grace, self.watchdog, self.signals = jobs, directory, grace, watchdog, signals
        # Not a SimpleQueue: CPython's waits forever if a signal's handler outlasts the timeout (3.11).
        self.processes, self.ended, self.shown = {}, queue.Queue(), 0
        self.failures, self.hanging = [], None  # [(name, status)] in the order of their ends; (rank, 0, what happened)

    def supervise(self) -> tuple[int, str, bool]:
        """Start the jobs and wait until all ranks have ended. Returns the launcher's exit status, the process that failed
        first and how, in words ('' if none did), and whether a checkpoint was written. InputError if a job cannot start."""
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphaned descendants become our children
        with reading(self.directory):
            for name, job in self.jobs.items():
                self._start(name, *job)
        try:
            self._watch()
            return self._outcome()
        finally:
            kill_descendants()
            self._show(final=True)

    def _start(self, name, command, environment, cores):
        path, end_with_this = self._log(name), end_with_parent(signal.SIGKILL)
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
                preexec_fn=lambda: (end_with_this(), os.sched_setaffinity(0, cores)),
            )
        # A thread waits for each process: they report in the order in which the processes end.
        threading.Thread(target=lambda: self.ended.put((name, process.wait())), daemon=True).start()

    def _log(self, name):
        return Path(self.directory, name, 'train.log')

    def _watch(self):
        """Wait until all ranks have ended. After a signal, a failure or a hang they get SIGTERM, later SIGKILL."""
        ranks, ending = set(self.processes) - {'scheduler'}, False
        deadline = certain = float('inf')  # of the ranks that got SIGTERM; of which failure was the first
        while ranks and len(self.signals) < 2 and time.monotonic() < deadline:
            self._show()
            with contextlib.suppress(queue.Empty):
                name, status = self.ended.get(timeout=0.2)
                ranks.discard(name)
                if status and not ending:
                    self.failures.append((name, status))
                    # The scheduler fails when a rank is lost, which may end a moment later; by ElsewhereError a rank says
                    # that another one has ended the training run.
                    symptom = self.grace if status == ElsewhereError.exit_status else SYMPTOM if name == 'scheduler' else 0
                    certain = min(certain, time.monotonic() + symptom)
            if ending:
                continue
            if self.signals:
                name = signal.Signals(self.signals[0]).name
                log(f'{name} passed on; ranks have {self.grace:g} s to save; a second signal (after {ECHO:g} s) kills them')
            elif time.monotonic() < certain and (self.failures or not self._hangs(ranks)):
                continue
            ending, deadline = True, time.monotonic() + (self.grace if self.signals else min(self.grace, FAILURE_GRACE))
            for name in ranks:  # to the rank alone: it takes the end of a data worker for a failure
                self.processes[name].terminate()  # never SIGINT: MindSpore handles that one itself within a step
        if ranks:
            log(f'rank {", ".join(sorted(ranks))} did not end in time: killed')

    def _hangs(self, ranks):
        if laggard := self.watchdog.look(ranks):
            found = {one.pid: one.info['status'] for one in psutil.process_iter(['status'])}
            states = {name: found.get(self.processes[name].pid) for name in sorted(ranks)}
            name = next((name for name in states if states[name] == psutil.STATUS_STOPPED), laggard)  # all wait for that one
            self.hanging = name, 0, f'hangs ({states[name]}): {self.watchdog.silence(name)}'
            dump_stacks([self.processes[name].pid for name in ranks])
        return self.hanging

    def _first_failure(self):
        """(name, status, what happened) of the process that failed first; the status is 0 if it did not end by itself."""
        if 'scheduler' in self.processes and (lost := LOST.search(self._log('scheduler').read_bytes())):
            name = (lost[1] or lost[2]).decode()
            if name not in dict(self.failures):
                return name, 0, 'stopped answering the scheduler'
        ranks = [failure for failure in self.failures if failure[0] != 'scheduler'] or self.failures
        name, code = next((failure for failure in ranks if failure[1] != ElsewhereError.exit_status), ranks[0])
        how = f'status {code}' if code > 0 else f'signal {signal.Signals(-code).name}'
        return name, code, f'failed first: {how}' + ' (out of memory, or killed by hand)' * (code == -signal.SIGKILL)

    def _outcome(self):
        self.watchdog.look()  # the last heartbeats
        status, cause = 0, ''
        if self.failures or self.hanging:
            name, code, what = self.hanging or self._first_failure()
            cause = f'{"rank " * name.isdecimal()}{name} {what}'
            if name in self.processes:
                status = 128 - code if code < 0 else code or 1
                lines = [line for line in self._log(name).read_bytes().splitlines() if not LAST_WORDS.match(line)]
                log(f'{cause}; the last lines of {self._log(name)}:\n' + b'\n'.join(lines[-20:]).decode(errors='replace'))
            else:
                status = ElsewhereError.exit_status
                log(f'{cause}; it is on another server')
        elif 'scheduler' in self.processes:  # it ends about a second after the last rank, which may be on another server
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes['scheduler'].wait(self.grace)
        return 128 + self.signals[0] if self.signals else status, cause, self.watchdog.saved

    def _show(self, final=False):
        """Show on the screen what the first rank has written since the last time: whole lines, at the end all."""
        with open(self._log(next(name for name in self.jobs if name != 'scheduler')), 'rb') as file:
            file.seek(self.shown)
            data = file.read()
        data = data if final else data[: data.rfind(b'\n') + 1]
        self.shown += len(data)
        try:
            sys.stdout.buffer.write(b''.join(line for line in data.splitlines(True) if not LAST_WORDS.match(line)))
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
