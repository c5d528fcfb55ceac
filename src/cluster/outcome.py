"""How one start of all ranks has ended, and whose fault it was."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from src.cluster.logs import end
from src.errors import ElsewhereError

SIGNALS = {number.value: number.name for number in signal.Signals}
# The scheduler's reports of a rank whose heartbeat stopped: before it has the others end themselves by SIGTERM, and of the
# first one before it fails itself (meta_server_node.cc).
LOST = re.compile(rb'The node: (\d+) is timed out')
LOST_FIRST = re.compile(rb'worker (\d+) is the first one timed out')
ELSEWHERE = ElsewhereError.exit_status
# Ends that other processes bring about; a rank says by the latter two that it was asked to end, or lost a data worker.
OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGTERM}


class Outcome(NamedTuple):
    """How a start of all ranks of this server has ended."""

    status: int  # of the launcher
    code: int = 0  # status of the process that failed first, negative: the signal that ended it; 0: none failed by itself
    cause: str = ''  # that process and what it ended with, in words; '' if all went well
    line: str = ''  # its last line
    step: int | None = None  # the one that was being done, counted from 1; None if none had begun
    saved: bool = False  # whether a checkpoint was written
    progress: float = 0.0  # seconds from its first step to its last
    signalled: bool = False  # the launcher was asked to end
    outside: bool = False  # the cause came from outside (OUTSIDE, SIGSTOP) and says nothing about the step


def title(name: str) -> str:
    """'rank 3', or the name of a process that is no rank."""
    return f'rank {name}' if name.isdecimal() else name


def exit_status(code: int) -> int:
    """The launcher's status for a process that ended with `code`: the same, 128 + the signal that ended it, or 1 for a rank
    that stopped answering. A rank's own 128 + N, as of a data worker that was killed, is passed on: batch systems read it
    as that signal."""
    return 128 - code if code < 0 else code & 255 or 1


def in_words(code: int) -> str:
    """A status or signal in words."""
    text = f'status {code}' if code > 0 else f'signal {SIGNALS.get(-code, -code)}'
    return text + ' (out of memory, or killed by hand)' * (code == -signal.SIGKILL)


def reason(code: int, stopped: bool, silence: str) -> str:
    """Why a rank is blamed, in words: its status, or why it stopped answering; see `Outcome.code`."""
    if code:
        return f'failed first: {in_words(code)}'
    return 'stopped answering: ' + ('it is stopped' if stopped else silence or 'the scheduler heard no more of it')


def culprit(failures: Sequence[tuple[str, int]], stopped: Sequence[str], scheduler_log: BinaryIO | None) -> tuple[str, int]:
    """(name, status) of the cause of the `failures` [(name, status)], which are in the order of their ends. The status is 0
    for a rank that did not fail itself, but stopped answering, so that others failed; it may be one of another server.

    Args:
        stopped: ranks that SIGSTOP or a debugger has stopped.
        scheduler_log: its log, if there is one.
    """
    failed = dict(failures)
    if stopped and failures[0][0] not in stopped:
        return min(stopped), 0
    text = end(scheduler_log) if scheduler_log else b''
    lost = LOST_FIRST.search(text) or LOST.search(text)
    if lost:
        return lost[1].decode(), failed.get(lost[1].decode(), 0)
    own = [failure for failure in failures if failure[0] != 'scheduler']
    return next((failure for failure in own if failure[1] != ELSEWHERE), own[0] if own else failures[0])
