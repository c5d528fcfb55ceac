"""Runs the processes of a launch to their end: none is left behind, and the first that fails is named (Linux)."""

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
from src.cluster.screen import Screen, end, last_lines
from src.errors import InputError

SIGNALS = {number.value: number.name for number in signal.Signals}
FAILURE_GRACE = 10  # seconds from the first failure until the other ranks are killed
ECHO = 2  # seconds after a signal in which another is its echo: batch systems signal a process and then its group
RUNNING = 5  # looks, 0.2 s apart, at which a rank that was stopped has to run to count as going on
SYMPTOM = 2  # seconds in which a rank may fail after the scheduler and be the cause
OLD_LOGS = 5  # kept of each rank
# How msrun reports a worker that failed, just after it has killed the others (process_entity/_api.py, MindSpore 2.8).
MSRUN_FAILURE = re.compile(rb'Worker process (\d+) exit with exception\. Error code: (-?\d+)')
# How the scheduler names the rank whose heartbeat it missed first, before it fails itself (meta_server_node.cc).
LOST = re.compile(rb'worker (\d+) is the first one timed out')


def say(text):
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


def _keep(path):
    """Number the old logs one higher: `path` becomes path.1, what was OLD_LOGS goes."""
    for old in range(OLD_LOGS, 0, -1):
        newer = f'{path}.{old - 1}' if old > 1 else path
        if os.path.exists(newer):
            os.replace(newer, f'{path}.{old}')


class Supervisor:
    """Runs the jobs of `launch.plan` to their end."""

    def __init__(self, jobs, directory, grace):
        """directory: where each job's <name>/train.log goes; grace: seconds for the ranks after a signal."""
        self.jobs, self.directory, self.grace = jobs, directory, grace
        self.signals, self.signalled, self.ended = [], 0, queue.SimpleQueue()
        self.processes, self.logs, self.screen = {}, {}, None
        self.failures, self.stopped = [], {}  # (name, status) in order; {rank: times that it was seen running since}
        self.workers, self.scans = {}, 50  # msrun's {pid: rank}; it starts them all within a moment of the first
        self.libc = ctypes.CDLL(None)

    def run(self):
        """Exit status: 0; the failed rank's own, or 128 + its signal; 128 + the signal this process got."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._signalled)
        self.libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans below become ours
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
            _keep(path)
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
        ranks, asked = set(self.processes) - {'scheduler'}, set()
        told, deadline, blamed_at = False, float('inf'), float('inf')
        while ranks and len(self.signals) < 2 and time.monotonic() < deadline:
            if self.signals and not told:
                told, deadline = True, min(deadline, time.monotonic() + self.grace)
                name = signal.Signals(self.signals[0]).name
                say(
                    f'{name} passed on; ranks have {self.grace:g} s to save and exit, a second signal, {ECHO} s from now or '
                    'later, kills them'
                )
                asked = {-signal.SIGTERM, 128 + signal.SIGTERM}  # as good an end as status 0 from here on
                # Not SIGINT, which MindSpore takes in its own way within a step.
                self._tell(signal.SIGTERM)
            self._look_for_stopped()
            self._show()
            name, status = self._next_end()
            ranks.discard(name)
            if name and name not in self.processes:  # a worker of msrun, which has killed the others
                ranks = set()  # and would wait more than a minute for its scheduler
            if status and status not in asked and time.monotonic() < blamed_at:
                if not self.failures:
                    deadline = min(deadline, time.monotonic() + min(FAILURE_GRACE, self.grace))
                self.failures.append((name, status))
                # The scheduler fails where a rank is lost: that rank may be about to end.
                blamed_at = time.monotonic() + (SYMPTOM if name == 'scheduler' and len(self.failures) == 1 else 0)
            if not told and time.monotonic() >= blamed_at:
                told = True
                self._tell(signal.SIGTERM)
        if ranks:
            say(f'killed: {", ".join(sorted(ranks))} did not end in time')
        return self._status()

    def _status(self):
        """Name the rank to blame, if one is, and give the launcher's exit status."""
        name, status = self._culprit() if self.failures else (None, 0)
        if name:
            self._report(name, status)
        if self.signals:
            return 128 + self.signals[0]
        if name:
            return 128 - status if status < 0 else status if 0 < status <= 125 else 1
        if 'scheduler' in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes['scheduler'].wait(10)  # about a second; its status no longer matters
        return 0

    def _look_for_stopped(self):
        """Keep the ranks that SIGSTOP (or a debugger) holds in `stopped`, and say so at once: the others will wait for
        them, and be the first to fail."""
        pids = {process.pid: name for name, process in self.processes.items()}
        for pid, rank in (pids | self.workers).items():
            letter = (processes.state(pid) or 'Z')[0]
            if letter in 'Tt' and rank not in self.stopped:
                self.stopped[rank] = 0
                say(
                    f'{_title(rank)} is stopped (by SIGSTOP or a debugger) and the others wait for it; kill -CONT {pid} '
                    'lets it go on'
                )
            elif letter in 'RSD' and rank in self.stopped:  # or it is being killed
                self.stopped[rank] += 1
                if self.stopped[rank] == RUNNING:
                    del self.stopped[rank]
                    say(f'{_title(rank)} goes on')

    def _culprit(self):
        """(name, status) of what failed first. The status is 0 for a rank that did not fail but stopped answering, at
        which others failed."""
        failed = dict(self.failures)
        if self.stopped and self.failures[0][0] not in self.stopped:
            return min(self.stopped), 0
        lost = LOST.search(end(self.logs['scheduler'])) if 'scheduler' in self.logs else None
        if lost and (rank := lost[1].decode()) in self.processes:
            return rank, failed.get(rank, 0)
        return next((failure for failure in self.failures if failure[0] != 'scheduler'), self.failures[0])

    def _next_end(self):
        """(name, status) of the next process to end, also of a worker that msrun says has failed; (None, 0) after
        0.2 seconds without."""
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
        """Send a signal to the ranks, not to their data workers, whose end would be a failure to them."""
        for name, process in self.processes.items():
            if name == 'msrun':  # has no such service: reach past it
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
