"""A lock on a directory, for one program at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from src.errors import InputError

NAME = '.lock'
REMEDY = 'choose another directory'


def hold(
    directory: str | Path, wait: float = 0, say: Callable[[str], None] = print, name: str = NAME, remedy: str = REMEDY
) -> TextIO | None:
    """Lock the existing `directory` for this process. Gives an open file: the lock lasts until it is closed, or the process
    ends in whatever way. On a file system without locks it gives None, with a line to `say`.

    Args:
        wait: seconds to wait for another holder, with a line to `say`; it may be ending, where a batch system starts a job
            again.
        name: of the lock's file in the directory; `remedy`: how the user chooses another one.

    Raises:
        InputError: another process holds the lock; its pid and host are named. Or the file cannot be written, is a link, or
            is not a lock's.

    It is a POSIX record lock, which ends with its process and works over NFS. A lock of flock would be inherited by forked
    data workers, which may outlive the process. A record lock is lost when its process closes any other descriptor of the
    file, so nothing else may open it. The file is never removed: two processes could then lock two files of this name.
    """
    path, end, told = Path(directory, name), time.monotonic() + wait, False
    try:
        file = open(path, 'a+', encoding='utf-8', errors='replace', opener=_open_own)
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror}); remove it or choose another directory') from None
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                say(f'warning: {directory} cannot be locked ({error.strerror}): a second program in it would not be noticed')
                return None
        holder = _content(file) or 'another process'
        if time.monotonic() >= end:
            raise InputError(
                f'{directory} is in use by {holder}; wait for its end or {remedy} (if its host '
                f'is gone for good, remove {path})'
            )
        if not told:
            told = True
            say(f'{directory} is in use by {holder}: waiting {wait:g} s for its end')
        time.sleep(0.2)
    if (found := _content(file)) and not re.match(r'pid \d+ on ', found):
        raise InputError(f'{path}: holds something else ({found!r:.60}); move it, or choose another directory')
    with contextlib.suppress(OSError):  # a full disk: the lock holds without the name of its holder
        os.truncate(file.fileno(), 0)
        os.write(file.fileno(), f'pid {os.getpid()} on {socket.gethostname()}\n'.encode())
    return file


def _open_own(path, flags):
    """Opens the lock's file, but not what a link of its name leads to: it is emptied when it is locked."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EINVAL, 'no regular file, or one with another name too')
    return descriptor


def _content(file):
    """The beginning of the lock's file: its last holder; '' also for the zeros that a power cut may leave."""
    file.seek(0)
    return file.read(200).strip('\0 \n')
