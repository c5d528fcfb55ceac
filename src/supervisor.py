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

from src import sysvipc
from src.errors import InputError

SIGNALS = {number.value: number.name for number in signal.Signals}
FAILURE_GRACE = 10  # seconds from the first failure until the other ranks are killed
ECHO = 2  # seconds after a signal in which another is its echo: batch systems signal a process and then its group
OLD_LOGS = 5  # kept of each rank
# How msrun reports a worker that failed, just after it has killed the others (process_entity/_api.py, MindSpore 2.8).
MSRUN_FAILURE = re.compile(rb"Worker process (\d+) exit with exception\. Error code: (-?\d+)")


def say(text):
    print(f"launch: {text}", file=sys.stderr, flush=True)


def _processes():
    """{pid: (parent's pid, has ended and is only not yet waited for)} of this machine."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            # The first thread may be a zombie before the others have ended.
            found[int(pid)] = int(fields[1]), fields[0] == b"Z" and int(fields[17]) < 2
        except OSError:
            pass  # it has ended in the meantime
    return found


def _kill_all():
    """SIGKILL everything below this process until nothing is left, orphans too, as it is their subreaper, and remove what
    killed data workers leave."""
    killed = set()
    for _ in range(100):
        processes, below, size = _processes(), {os.getpid()}, 0
        while len(below) > size:  # a generation each time
            size = len(below)
            below |= {pid for pid, (parent, _) in processes.items() if parent in below}
        alive = [pid for pid in below - {os.getpid()} if not processes[pid][1]]
        if not alive:
            break
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(alive)
        time.sleep(0.05)
    sysvipc.remove_orphans(killed)


def _msrun_workers(msrun):
    """{pid: rank} of the living workers of the process `msrun`."""
    found = {}
    for pid, (parent, _) in _processes().items():
        if parent == msrun:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
                env = dict(entry.partition(b"=")[::2] for entry in file.read().split(b"\0"))
                if env.get(b"MS_ROLE") == b"MS_WORKER":
                    found[pid] = env.get(b"RANK_ID", b"?").decode()
    return found


def _keep(path):
    """Number the old logs one higher: `path` becomes path.1, what was OLD_LOGS goes."""
    for old in range(OLD_LOGS, 0, -1):
        newer = f"{path}.{old - 1}" if old > 1 else path
        if os.path.exists(newer):
            os.replace(newer, f"{path}.{old}")


def _end(log):
    """The last 64 KB of an open file."""
    return os.pread(log.fileno(), 1 << 16, max(0, os.fstat(log.fileno()).st_size - (1 << 16)))


class Supervisor:
    """Runs the jobs of `launch.plan` to their end."""

    def __init__(self, jobs, directory, grace):
        """directory: where each job's <name>/train.log goes; grace: seconds for the ranks after a signal."""
        self.jobs, self.directory, self.grace = jobs, directory, grace
        self.signals, self.signalled, self.ended = [], 0, queue.SimpleQueue()
        self.processes, self.logs, self.shown = {}, {}, 0
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
                raise InputError(f"cannot start: {error}")
            return self._watch()
        finally:
            _kill_all()
            self._echo()

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
            path = os.path.join(self.directory, name, "train.log")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _keep(path)
            self.logs[name] = log = open(path, "a+b")
            self.processes[name] = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                                    start_new_session=True, preexec_fn=die_with_launcher)
        # A thread waits for each process: they report in the order in which the processes end.
        for name, process in self.processes.items():
            threading.Thread(target=lambda name=name, process=process: self.ended.put((name, process.wait())),
                             daemon=True).start()

    def _watch(self):
        ranks, asked = set(self.processes) - {"scheduler"}, set()
        failed, told, deadline = None, False, float("inf")
        while ranks and len(self.signals) < 2 and time.monotonic() < deadline:
            if self.signals and not told:
                told, deadline = True, min(deadline, time.monotonic() + self.grace)
                name = signal.Signals(self.signals[0]).name
                say(f"{name} passed on; ranks have {self.grace:g} s to save and exit, a second signal, {ECHO} s from now or later, "
                    "kills them")
                asked = {-signal.SIGTERM, 128 + signal.SIGTERM}  # as good an end as status 0 from here on
                # Not SIGINT, which MindSpore takes in its own way within a step.
                self._tell(signal.SIGTERM)
            self._echo()
            name, status = self._next_end()
            ranks.discard(name)
            if name and name not in self.processes:  # a worker of msrun, which has killed the others
                ranks = set()  # and would wait more than a minute for its scheduler
            if status and status not in asked and not failed:
                failed = name, status
                deadline = min(deadline, time.monotonic() + min(FAILURE_GRACE, self.grace))
                if not told:
                    told = True
                    self._tell(signal.SIGTERM)
        if ranks:
            say(f"killed: {', '.join(sorted(ranks))} did not end in time")
        if failed:
            self._report(*failed)
        if self.signals:
            return 128 + self.signals[0]
        if failed:
            return 128 - failed[1] if failed[1] < 0 else failed[1] if failed[1] <= 125 else 1
        if "scheduler" in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes["scheduler"].wait(10)  # about a second; its status no longer matters
        return 0

    def _next_end(self):
        """(name, status) of the next process to end, also of a worker that msrun says has failed; (None, 0) after
        0.2 seconds without."""
        if "msrun" in self.processes:
            if self.scans:
                self.workers |= _msrun_workers(self.processes["msrun"].pid)
                self.scans -= bool(self.workers)
            found = MSRUN_FAILURE.search(_end(self.logs["msrun"]))
            if found and int(found[1]) in self.workers:
                return self.workers.pop(int(found[1])), int(found[2])
        try:
            return self.ended.get(timeout=0.2)
        except queue.Empty:
            return None, 0

    def _tell(self, number):
        """Send a signal to the ranks, not to their data workers, whose end would be a failure to them."""
        for name, process in self.processes.items():
            if name == "msrun":  # has no such service: reach past it
                for pid in _msrun_workers(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            elif name != "scheduler":
                process.send_signal(number)

    def _echo(self):
        """Show what the first rank has written since the last time."""
        log = self.logs.get(next((name for name, _, _ in self.jobs if name != "scheduler"), None))
        while log and (data := os.pread(log.fileno(), 1 << 20, self.shown)):
            self.shown += len(data)
            try:
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
            except OSError:  # the reader of a pipe has gone: the training goes on
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _report(self, name, status):
        self._echo()
        path = os.path.join(self.directory, name, "train.log")
        if name not in self.processes:
            path = os.path.join(self.directory, "msrun", f"worker_{name}.log")
        with open(path, "rb") as log:
            end = _end(log).decode(errors="replace")
        cause = f"status {status}" if status > 0 else f"signal {SIGNALS.get(-status, -status)}"
        hint = " (out of memory, or killed by hand)" if status == -signal.SIGKILL else ""
        what = name if name == "msrun" else f"rank {name}"
        say(f"{what} failed first: {cause}{hint}; the last lines of {path}:\n" + "\n".join(end.splitlines()[-20:]))
