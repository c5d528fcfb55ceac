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

from src import processes, sysvipc
from src.cluster.jobs import Job
from src.cluster.logs import Screen, end, keep_old, last_lines
from src.errors import InputError
from src.processes import ECHO

SIGNALS = {number.value: number.name for number in signal.Signals}
FAILURE_GRACE = 10  # seconds from the first failure until the other ranks are killed
RUNNING = 5  # looks, 0.2 s apart, that must find a stopped rank running before it counts as resumed
SYMPTOM = 2  # seconds after a failure of the scheduler in which a rank that fails is taken for its cause
# msrun's report of a worker that failed, which comes after it has killed the others (process_entity/_api.py in MindSpore
# 2.8).
MSRUN_FAILURE = re.compile(rb'Worker process (\d+) exit with exception\. Error code: (-?\d+)')
# The scheduler's report of the rank whose heartbeat stopped first, before it fails itself (meta_server_node.cc).
LOST = re.compile(rb'worker (\d+) is the first one timed out')


def say(text: str):
    """Print a line of the launcher to stderr."""
    print(f'launch: {text}', file=sys.stderr, flush=True)


def _msrun_workers(msrun):
    """{pid: rank} of the living workers of the process `msrun`."""
    found = {}
    for pid in processes.children(msrun):
        with contextlib.suppress(OSError), open(f'/proc/{pid}/environ', 'rb') as file:
            env = dict(entry.partition(b'=')[::2] for entry in file.read().split(b'\0'))
            if env.get(b'MS_ROLE') == b'MS_WORKER':
                found[pid] = env.get(b'RANK_ID', b'?').decode()
    return found


def _title(name):
    return f'rank {name}' if name.isdecimal() else name


class Supervisor:
    """Runs jobs until all have ended.

    Args:
        jobs: see `make_jobs`.
        directory: gets each job's <name>/train.log.
        grace: seconds that the ranks have to save and exit after a signal.
    """

    def __init__(self, jobs: list[Job], directory: str, grace: float):
        self.jobs, self.directory, self.grace = jobs, directory, grace
        self.signals, self.signalled, self.ended = [], 0, queue.SimpleQueue()
        self.processes, self.logs, self.screen = {}, {}, None
        self.failures = []  # (name, status) in the order in which they ended
        self.stopped = {}  # {rank: number of looks since then that found it running}
        # {pid: rank} of msrun's workers, and how often to look for them once there is one: it starts all at nearly one time.
        self.workers, self.scans = {}, 50
        self.libc = ctypes.CDLL(None)

    def run(self) -> int:
        """Start the jobs and wait for them. Gives the launcher's exit status: 0, that of the rank that failed first (128 +
        its signal if one ended it), or 128 + the signal that this process got. InputError if a job cannot be started."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._signalled)
        self.libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphaned descendants become our children
        try:
            try:
                self._start()
            except OSError as error:
                raise InputError(f'cannot start: {error}') from None
            return self._watch()
        finally:
            sysvipc.remove_orphans(processes.kill_descendants())
            self._show(final=True)

    def _signalled(self, number, _):
        if not self.signals or time.monotonic() > self.signalled + ECHO:
            self.signals.append(number)
            self.signalled = time.monotonic()

    def _start(self):
        launcher = os.getpid()

        def die_with_launcher():
            self.libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
            if os.getppid() != launcher:
                os._exit(1)

        for name, argv, env in self.jobs:
            path = os.path.join(self.directory, name, 'train.log')
            os.makedirs(os.path.dirname(path), exist_ok=True)
            keep_old(path)
            self.logs[name] = log = open(path, 'a+b')
            self.processes[name] = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_launcher,
            )
        # A thread waits for each process: they report in the order in which the processes end.
        for name, process in self.processes.items():
            threading.Thread(
                target=lambda name=name, process=process: self.ended.put((name, process.wait())), daemon=True
            ).start()

    def _watch(self):
        """Wait until all ranks have ended, and give the exit status. It returns earlier, and the rest is then killed, at
        `deadline` or a second signal."""
        ranks = set(self.processes) - {'scheduler'}
        told, deadline = False, float('inf')  # whether the ranks were asked to end, and when they are killed
        asked = set()  # the statuses of a rank that ended because it was asked
        blamed_at = float('inf')  # when the first failure is certain; later ones are its consequences
        while ranks and len(self.signals) < 2 and time.monotonic() < deadline:
            if self.signals and not told:
                told, deadline = True, min(deadline, time.monotonic() + self.grace)
                name = signal.Signals(self.signals[0]).name
                say(
                    f'{name} passed on; ranks have {self.grace:g} s to save and exit, a second signal, {ECHO:g} s from now '
                    'or later, kills them'
                )
                asked = {-signal.SIGTERM, 128 + signal.SIGTERM}  # no failure from here on
                # Never SIGINT: MindSpore handles that one itself within a step.
                self._tell(signal.SIGTERM)
            self._look_for_stopped()
            self._show()
            name, status = self._next_end()
            ranks.discard(name)
            if name and name not in self.processes:  # a worker of msrun has failed
                # msrun has killed the other workers, and would wait for its scheduler for more than a minute.
                ranks = set()
            if status and status not in asked and time.monotonic() < blamed_at:
                if not self.failures:
                    deadline = min(deadline, time.monotonic() + min(FAILURE_GRACE, self.grace))
                self.failures.append((name, status))
                # The scheduler fails when a rank is lost; that rank may end a moment later and is then the one to name.
                blamed_at = time.monotonic() + (SYMPTOM if name == 'scheduler' and len(self.failures) == 1 else 0)
            if not told and time.monotonic() >= blamed_at:
                told = True
                self._tell(signal.SIGTERM)
        if ranks:
            say(f'killed: {", ".join(sorted(ranks))} did not end in time')
        return self._status()

    def _status(self):
        """Report the rank that failed first, if one did, and give the launcher's exit status."""
        name, status = self._culprit() if self.failures else (None, 0)
        if name:
            self._report(name, status)
        if self.signals:
            return 128 + self.signals[0]
        if name:
            return 128 - status if status < 0 else status if 0 < status <= 125 else 1
        if 'scheduler' in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes['scheduler'].wait(10)  # takes about a second; its status does not matter
        return 0

    def _look_for_stopped(self):
        """Keep `stopped`: the ranks that SIGSTOP or a debugger has stopped. This is said at once, because the other ranks
        wait for a stopped one and fail before it."""
        pids = {process.pid: name for name, process in self.processes.items()}
        for pid, rank in (pids | self.workers).items():
            letter = (processes.state(pid) or 'Z')[0]
            if letter in 'Tt' and rank not in self.stopped:
                self.stopped[rank] = 0
                say(
                    f'{_title(rank)} is stopped (by SIGSTOP or a debugger) and the others wait for it; kill -CONT {pid} '
                    'lets it go on'
                )
            elif letter in 'RSD' and rank in self.stopped:  # other letters: it is ending
                self.stopped[rank] += 1
                if self.stopped[rank] == RUNNING:
                    del self.stopped[rank]
                    say(f'{_title(rank)} goes on')

    def _culprit(self):
        """(name, status) of the cause of the failures. The status is 0 for a rank that did not fail itself, but stopped
        answering, so that others failed."""
        failed = dict(self.failures)
        if self.stopped and self.failures[0][0] not in self.stopped:
            return min(self.stopped), 0
        lost = LOST.search(end(self.logs['scheduler'])) if 'scheduler' in self.logs else None
        if lost and (rank := lost[1].decode()) in self.processes:
            return rank, failed.get(rank, 0)
        return next((failure for failure in self.failures if failure[0] != 'scheduler'), self.failures[0])

    def _next_end(self):
        """(name, status) of the next process that ends, or of a worker that msrun reports as failed; (None, 0) if there is
        none for 0.2 seconds."""
        if 'msrun' in self.processes:
            if self.scans:
                self.workers |= _msrun_workers(self.processes['msrun'].pid)
                self.scans -= bool(self.workers)
            found = MSRUN_FAILURE.search(end(self.logs['msrun']))
            if found and int(found[1]) in self.workers:
                return self.workers.pop(int(found[1])), int(found[2])
        try:
            return self.ended.get(timeout=0.2)
        except queue.Empty:
            return None, 0

    def _tell(self, number):
        """Send a signal to the ranks only: a rank takes the end of one of its data workers for a failure."""
        for name, process in self.processes.items():
            if name == 'msrun':  # does not pass signals on to its workers
                for pid in _msrun_workers(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            elif name != 'scheduler':
                process.send_signal(number)

    def _show(self, final=False):
        """Show what the first rank has written since the last time."""
        name = next(name for name, _, _ in self.jobs if name != 'scheduler')
        if self.screen is None and name in self.logs:
            self.screen = Screen(self.logs[name])
        if self.screen:
            elsewhere = self.failures and self.failures[0][0] != name and not self.signals
            self.screen.show(bool(elsewhere or self.stopped), final)

    def _report(self, name, status):
        self._show()
        path = os.path.join(self.directory, name, 'train.log')
        if name not in self.processes:
            path = os.path.join(self.directory, 'msrun', f'worker_{name}.log')
        with open(path, 'rb') as log:
            lines = last_lines(log, 20)
        cause = f'status {status}' if status > 0 else f'signal {SIGNALS.get(-status, -status)}'
        cause = 'failed first: ' + cause + ' (out of memory, or killed by hand)' * (status == -signal.SIGKILL)
        if not status:
            why = 'it is stopped' if name in self.stopped else 'the scheduler heard no more of it'
            cause = f'stopped answering: {why}'
        say(f'{_title(name)} {cause}; the last lines of {path}:\n' + '\n'.join(lines))
