"""Runs the processes of a launch until all have ended; none is left, and the first that failed is named (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import threading
import time

from src import heartbeat, processes
from src.cluster.agreement import Agreement
from src.cluster.jobs import Job
from src.cluster.logs import Screen, keep_old, last_lines, say
from src.cluster.outcome import ELSEWHERE, OUTSIDE, Outcome, culprit, exit_status, in_words, reason, title
from src.cluster.signals import Signals
from src.cluster.stopped import Stopped
from src.cluster.watchdog import Watchdog
from src.errors import InputError
from src.processes import ECHO

FAILURE_GRACE = 10  # seconds from the first failure until the other ranks are killed
SYMPTOM = 2  # seconds after a failure of the scheduler in which a rank that fails is taken for its cause


class Supervisor:
    """Runs jobs until all have ended.

    Args:
        jobs: see `make_jobs`.
        directory: gets each job's <name>/train.log.
        grace: seconds that the ranks have to save and exit after a signal.
        watchdog: knows when the ranks hang; None for ranks that do not beat.
        signals: those that this process has got.
        others: the launchers of the other servers, if there are any.
    """

    def __init__(
        self,
        jobs: list[Job],
        directory: str,
        grace: float,
        watchdog: Watchdog | None = None,
        signals: Signals | None = None,
        others: Agreement | None = None,
    ):
        self.jobs, self.directory, self.grace, self.watchdog, self.others = jobs, directory, grace, watchdog, others
        self.signals, self.ended = signals or Signals(), queue.SimpleQueue()
        self.processes, self.logs, self.screen = {}, {}, None
        self.failures = []  # (name, status) in the order in which they ended
        self.stopped = Stopped()

    def run(self) -> Outcome:
        """Start the jobs and wait for them. The launcher's exit status is 0, that of the rank that failed first (128 + its
        signal if one ended it), or 128 + the signal that this process got. InputError if a job cannot be started."""
        self.signals.catch()
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphaned descendants become our children
        try:
            try:
                self._start()
            except OSError as error:
                raise InputError(f'cannot start: {error}') from None
            return self._watch()
        finally:
            processes.kill_descendants()
            self._show(final=True)

    def _start(self):
        for name, argv, env in self.jobs:
            path = os.path.join(self.directory, name, 'train.log')
            os.makedirs(os.path.dirname(path), exist_ok=True)
            keep_old(path)
            self.logs[name] = log = open(path, 'a+b')
            self.processes[name] = subprocess.Popen(
                argv,
                env=env | ({heartbeat.FILE: self.watchdog.path} if self.watchdog else {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=processes.ending_with_this(signal.SIGKILL),
            )
        # A thread waits for each process: they report in the order in which the processes end.
        for name, process in self.processes.items():
            threading.Thread(
                target=lambda name=name, process=process: self.ended.put((name, process.wait())), daemon=True
            ).start()

    def _watch(self):
        """Wait until all ranks have ended, and give the `Outcome`. It returns earlier, and the rest is then killed, at
        `deadline` or a second signal."""
        ranks = set(self.processes) - {'scheduler'}
        self.told, self.deadline = False, float('inf')  # whether the ranks were asked to end, and when they are killed
        self.hung, self.silence, self.elsewhere = None, '', False  # rank that all wait for, and why; another server failed
        asked = set()  # the statuses of a rank that ended because it was asked
        blamed_at = float('inf')  # when the first failure is certain; later ones are its consequences
        while ranks and len(self.signals.numbers) < 2 and time.monotonic() < self.deadline:
            if self.signals.numbers and not self.told:
                name = signal.Signals(self.signals.numbers[0]).name
                say(
                    f'{name} passed on; ranks have {self.grace:g} s to save and exit, a second signal, {ECHO:g} s from now '
                    'or later, kills them'
                )
                asked = self._end(self.grace)
            self.stopped.look({process.pid: name for name, process in self.processes.items()})
            self._show()
            name, status = self._next_end()
            ranks.discard(name)
            if status and status not in asked and time.monotonic() < blamed_at:
                self.failures.append((name, status))
                blamed_at = min(blamed_at, time.monotonic() + self._patience(name, status))
            if not self.told and time.monotonic() >= blamed_at:
                self._end(FAILURE_GRACE)
            if not self.told and not self.failures and self._hangs():
                asked = self._end(FAILURE_GRACE)
        if ranks:
            say(f'killed: {", ".join(sorted(ranks))} did not end in time')
        return self._outcome()

    def _patience(self, name, status):
        """Seconds in which another failure may show that this one is its consequence: the scheduler fails when a rank is
        lost, and that rank may end a moment later; a rank says by its status that another one has ended the training."""
        return self.grace if status == ELSEWHERE else SYMPTOM if name == 'scheduler' and not self.failures[:-1] else 0

    def _end(self, seconds):
        """Ask the ranks to end within `seconds`. Gives the statuses that are then no failures."""
        self.told, self.deadline = True, min(self.deadline, time.monotonic() + min(seconds, self.grace))
        if self.others:
            self.others.tell_failure()
        self._tell(signal.SIGTERM)  # never SIGINT: MindSpore handles that one itself within a step
        if self.hung:  # it saves with the others, if it was only stopped
            self._tell(signal.SIGCONT)
        return {-signal.SIGTERM, 128 + signal.SIGTERM}

    def _hangs(self):
        """Whether the training hangs, which is then said, or another server's part of it has failed."""
        pids = {name: p.pid for name, p in self.processes.items() if name.isdecimal() and processes.lives(p.pid)}
        self.elsewhere = bool(self.others and self.others.failed())
        laggard = self.watchdog.look(pids, self.stopped) if self.watchdog and pids else None
        if laggard and not self.elsewhere:
            self.hung = min(self.stopped.keys() & pids.keys(), default=laggard)
            self.silence = self.watchdog.silence(self.hung)
            self.watchdog.report(pids, {name: self._path(name) for name in pids}, self.hung)
        return bool(self.hung or self.elsewhere)

    def _outcome(self):
        """The `Outcome`; what failed first, if anything did, is reported."""
        name, code, line, cause = None, 0, '', ''
        if self.hung:
            name = self.hung
        elif self.elsewhere:  # what failed here, failed later
            code, cause = ELSEWHERE, 'another server has failed'
        elif self.failures:
            name, code = culprit(self.failures, list(self.stopped), self.logs.get('scheduler'))
            if name not in self.processes:
                say(f'{title(name)}, on another server, {reason(0, False, "")}')
                name, code, cause = None, ELSEWHERE, 'another server has failed'
        if name:
            why = reason(code, name in self.stopped, self.silence)
            line = self._report(name, why)
            cause = f'{title(name)}, {in_words(code) if code else why}'
        status = exit_status(code) if cause else 0
        if self.signals.numbers:
            status = 128 + self.signals.numbers[0]
        elif not status and 'scheduler' in self.processes:
            # It ends about a second after the last rank, which may be one of another server; its status does not matter.
            everywhere = not self.watchdog or self.watchdog.size < len(self.processes)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes['scheduler'].wait(10 if everywhere else self.grace)
        outside = code in OUTSIDE or name in self.stopped
        found = Outcome(status, code, cause, line, signalled=bool(self.signals.numbers), outside=outside)
        if self.watchdog:
            self.watchdog.look(())  # the last beats
            found = found._replace(step=self.watchdog.step, saved=self.watchdog.saved, progress=self.watchdog.progress)
        return found

    def _next_end(self):
        """(name, status) of the next process that ends; (None, 0) if there is none for 0.2 seconds."""
        try:
            return self.ended.get(timeout=0.2)
        except queue.Empty:
            return None, 0

    def _tell(self, number):
        """Send a signal to the ranks only: a rank takes the end of one of its data workers for a failure."""
        for name, process in self.processes.items():
            if name != 'scheduler':
                process.send_signal(number)

    def _show(self, final=False):
        """Show what the first rank has written since the last time."""
        name = next(name for name, _, _ in self.jobs if name != 'scheduler')
        if self.screen is None and name in self.logs:
            self.screen = Screen(self.logs[name])
        if self.screen:
            elsewhere = self.failures and self.failures[0][0] != name and not self.signals.numbers
            self.screen.show(bool(elsewhere or self.stopped), final)

    def _path(self, name):
        """The log of a process."""
        return os.path.join(self.directory, name, 'train.log')

    def _report(self, name, why):
        """Say which process was the first to fail. Gives its last line, or '' if that is a stack."""
        self._show()
        with open(self._path(name), 'rb') as log:
            lines = last_lines(log, 20)
        say(f'{title(name)} {why}; the last lines of {self._path(name)}:\n' + '\n'.join(lines))
        return lines[-1] if lines and not self.hung else ''
