"""Tasks spread over forked processes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import multiprocessing
import os
import signal
import sys
import traceback
from multiprocessing import connection

from src.errors import InputError
from src.heartbeat import end_with_parent

_FORK = multiprocessing.get_context('fork')
_PLACE = 4096  # bytes
_place = None  # of a worker: memory that it shares with its parent


def cores(option: int | None = None) -> int:
    """Number of processes to use: `option`, or as many as the cores this process may use; InputError if below 1."""
    if option is not None and option < 1:
        raise InputError(f'workers is {option}; give 1 or more')
    return option or len(os.sched_getaffinity(0))


def at(where: str) -> None:
    """Note what this worker is about to deal with, to be named should that kill it."""
    if _place is not None:
        _place[:] = os.fsencode(where)[: _PLACE - 1].ljust(_PLACE, b'\0')


class _Worker:
    """A forked process that takes tasks from `pipe` and answers each with (whether it went well, result or error)."""

    def __init__(self, function, shared):
        self.place = mmap.mmap(-1, _PLACE)
        self.pipe, theirs = _FORK.Pipe()
        self.process = _FORK.Process(
            target=_serve, args=(function, shared, theirs, self.place, end_with_parent(signal.SIGKILL)), daemon=True
        )
        self.process.start()
        theirs.close()  # so that the death of the process is the end of the pipe

    def give(self, task):
        """Begin a task. A dead process is noticed when its answer is awaited."""
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send(task)

    def answer(self):
        """The result of the task, for which this waits; the error that it raised; InputError if the process was killed."""
        try:
            good, result = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise InputError(_death(os.fsdecode(self.place[:].rstrip(b'\0')), -self.process.exitcode)) from None
        if good:
            return result
        raise result[0] from (None if isinstance(result[0], InputError) else RuntimeError(result[1]))


def _serve(function, shared, tasks, place, prepare):
    global _place
    _place = place
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    prepare()  # a killed parent leaves no process behind
    while True:
        try:
            answer = True, function(shared, *tasks.recv())
        except Exception as error:
            answer = False, (error, traceback.format_exc())
        tasks.send(answer)


def _death(where, number):
    """The message on a worker that ended by the signal `number`, or with the status -`number`, at `where`."""
    how = f'was killed by {signal.Signals(number).name}' if number > 0 else f'ended with status {-number}'
    memory, remedy = (' (out of memory?)', 'give fewer --workers, or ') if number == signal.SIGKILL else ('', '')
    return f'a worker process {how} at {where or "its start"}{memory}; {remedy}remove or replace that file'


def spread(function, shared, tasks: list[tuple], workers: int):
    """Yield function(shared, *task) for the tasks, in the order in which they end, from up to `workers` processes.

    The processes are forked, so `shared` may be large. At most two tasks for each process are begun whose results the caller
    has not dealt with. One process, too, as a decoder that crashes must not take the caller with it: InputError names what
    it was `at`.
    """
    left = iter(tasks)
    pool = [_Worker(function, shared) for _ in range(min(workers, len(tasks)))]
    try:
        busy = {}
        for worker, task in zip(pool, left):
            worker.give(task)
            busy[worker.pipe] = worker
        while busy:
            for pipe in connection.wait(list(busy)):
                worker = busy.pop(pipe)
                result = worker.answer()
                for task in itertools.islice(left, 1):
                    worker.give(task)
                    busy[pipe] = worker
                yield result
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def interruptible(main):
    """Let Ctrl-C end `main()` and its processes at once, with one line and exit status 130."""

    @functools.wraps(main)
    def run():
        try:
            return main()
        except KeyboardInterrupt:
            print('error: interrupted', file=sys.stderr, flush=True)
            os._exit(130)  # the usual exit would wait for the processes; the kernel ends them with us

    return run
