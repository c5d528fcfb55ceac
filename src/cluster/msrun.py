"""The workers of MindSpore's launcher msrun, which neither passes signals on nor says at once which one has failed."""

from __future__ import annotations

import contextlib
import re
from typing import BinaryIO

from src import processes
from src.cluster.logs import end

# Its report of a worker that failed, which comes after it has killed the others (process_entity/_api.py in MindSpore 2.8).
FAILURE = re.compile(rb'Worker process (\d+) exit with exception\. Error code: (-?\d+)')


def workers(msrun: int) -> dict[int, str]:
    """{pid: rank} of the living workers of the process `msrun`."""
    found = {}
    for pid in processes.children(msrun):
        with contextlib.suppress(OSError), open(f'/proc/{pid}/environ', 'rb') as file:
            env = dict(entry.partition(b'=')[::2] for entry in file.read().split(b'\0'))
            if env.get(b'MS_ROLE') == b'MS_WORKER':
                found[pid] = env.get(b'RANK_ID', b'?').decode()
    return found


def failure(log: BinaryIO) -> tuple[int, int] | None:
    """(pid, status) of the worker that msrun reports as failed in its `log`."""
    found = FAILURE.search(end(log))
    return (int(found[1]), int(found[2])) if found else None
