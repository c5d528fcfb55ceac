"""Tasks spread over forked processes."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import signal
import sys
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from src.errors import InputError
from src.processes import ending_with_this

_call = None


def cores(option: int | None = None) -> int:
    """Number of processes to use: `option`, or as many as the cores this process may use; InputError if below 1."""
    if option is not None and option < 1:
        raise InputError(f'workers is {option}; give 1 or more')
    return option or len(os.sched_getaffinity(0))


def _start(function, shared, prepare):
    global _call
    _call = function, shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    prepare()  # a killed parent leaves no process behind


def _run(task):
    function, shared = _call
    return function(shared, *task)


def spread(function, shared, tasks: list[tuple], workers: int):
    """Yield function(shared, *task) for the tasks, in the order in which they end, from up to `workers` processes.

    The processes are forked, so `shared` may be large. At most two tasks for each process are begun whose results the caller
    has not dealt with. InputError if a process was killed.
    """
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            yield function(shared, *task)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)),
        multiprocessing.get_context('fork'),
        _start,
        (function, shared, ending_with_this(signal.SIGKILL)),
    )
    try:
        left = iter(tasks)
        waiting = {pool.submit(_run, task) for task in itertools.islice(left, 2 * workers)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                waiting |= {pool.submit(_run, task) for task in itertools.islice(left, 1)}
    except BrokenProcessPool:
        raise InputError('a worker process was killed (out of memory?); give fewer --workers') from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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
