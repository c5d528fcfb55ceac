"""The logs of the ranks: the first one on the screen, the last lines of any, and those of earlier runs."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
from typing import BinaryIO, TextIO

# MindSpore's last threads write this at the end of every distributed process, whatever the log level is.
LAST_WORDS = re.compile(rb'\[INFO\] DISTRIBUTED\(')
MINDSPORE = re.compile(rb'\[(INFO|WARNING|ERROR|CRITICAL)\] [A-Z_]+\(')
TRACEBACK = b'Traceback (most recent call last):'
OLD_LOGS = 5  # kept of each rank
PIECE = 4096  # bytes that a pipe takes at once if it takes any
PATIENCE = 5  # seconds at the end for somebody to read the rest


def say(text: str):
    """Print a line of the launcher to stderr."""
    with contextlib.suppress(OSError):
        put(sys.stderr, f'launch: {text}\n'.encode(errors='backslashreplace'), 1)


def put(stream: TextIO, data: bytes, patience: float = 0) -> bytes:
    """Write to a standard stream as long as somebody takes it; gives what was not written. A full pipe that nobody reads, or
    a terminal that Ctrl-S holds, must not stop the launcher, which would then supervise nothing. OSError as of `write`.

    Args:
        patience: seconds to wait for room, before each piece.
    """
    while data and _has_room(stream, patience):
        stream.buffer.write(data[:PIECE])
        stream.flush()
        data = data[PIECE:]
    return data


def _has_room(stream, patience):
    try:
        return bool(select.select([], [stream.fileno()], [], patience)[1])
    except (OSError, ValueError):  # no file: captured by a program that uses this one
        return True


class Screen:
    """Shows the growing log file `log` line by line; with None it shows nothing."""

    def __init__(self, log: BinaryIO | None):
        self.log, self.position, self.tail, self.hidden, self.waiting, self.patience = log, 0, b'', False, b'', 0

    def show(self, others_failed: bool = False, final: bool = False):
        """Show what is new in the file.

        Args:
            others_failed: another rank has failed. MindSpore's messages and everything from a traceback on are then not
                shown, since they would hide the cause; they stay in the file.
            final: show the last line even if it has no line end, and wait some seconds for somebody to take it all.
        """
        self.patience = PATIENCE if final else 0
        self._write([], others_failed)
        while self.log and not self.waiting and (data := os.pread(self.log.fileno(), 1 << 20, self.position)):
            self.position += len(data)
            *lines, self.tail = _lines(self.tail + data)
            self._write(lines, others_failed)
        if final:
            self._write([self.tail], others_failed)
            self.tail = b''

    def _write(self, lines, others_failed):
        noise = MINDSPORE if others_failed else LAST_WORDS
        if os.environ.get('GLOG_v') in ('0', '1'):  # the user asked for MindSpore's messages
            noise = re.compile(rb'\Z.')  # matches nothing
        shown = []
        for line in lines:
            self.hidden |= others_failed and line.startswith(TRACEBACK)
            if not self.hidden and not noise.match(line):
                shown.append(line)
        try:
            self.waiting = put(sys.stdout, self.waiting + b''.join(shown), self.patience)
            self.patience = 0 if self.waiting else self.patience
        except OSError:  # the reader of the pipe has ended; the training goes on without a screen
            self.waiting = b''
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lines(data):
    """The complete lines with their ends (a carriage return is one), and last the incomplete line or b''."""
    lines = data.splitlines(keepends=True)
    return lines if lines and not lines[-1].endswith((b'\n', b'\r')) else [*lines, b'']


def last_lines(log: BinaryIO, count: int) -> list[str]:
    """The last `count` lines of an open file, as far as they are in its last 64 KB."""
    return [line.decode(errors='replace') for line in end(log).splitlines() if not LAST_WORDS.match(line)][-count:]


def end(log: BinaryIO) -> bytes:
    """The last 64 KB of an open file."""
    return os.pread(log.fileno(), 1 << 16, max(0, os.fstat(log.fileno()).st_size - (1 << 16)))


def keep_old(path: str):
    """Keep the last OLD_LOGS logs: `path` becomes path.1, path.1 becomes path.2, and so on; the oldest is overwritten."""
    for old in range(OLD_LOGS, 0, -1):
        newer = f'{path}.{old - 1}' if old > 1 else path
        if os.path.exists(newer):
            os.replace(newer, f'{path}.{old}')
