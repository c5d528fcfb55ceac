"""One program at a time in a directory."""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from src.errors import InputError

NAME = '.lock'


def hold(directory, wait=0, say=print, name=NAME):
    """Make this process the only one that holds the existing `directory`; gives a file that must be kept open meanwhile.

    Any end of the process gives the directory free, its closing the file, too. A holder that may be ending just now, as
    where a batch system starts a job again, is waited for, `wait` seconds with a line to `say`. InputError naming pid and
    host of the holder. None, with a line to `say`, on a file system without locks.

    A POSIX record lock: it dies with its process and works over NFS by its lock daemon. flock's would live on in forked
    data workers, which may outlive the process. It is also lost when this process closes any other descriptor of the file;
    so nothing else may open it. The file stays: once removed, two could each hold one of that name.
    """
    path, end, told = Path(directory, name), time.monotonic() + wait, False
    try:
        file = open(path, 'a+', encoding='utf-8')
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror}); choose another directory') from None
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                say(f'warning: {directory} cannot be locked ({error.strerror}): a second program in it would not be noticed')
                return None
        file.seek(0)
        holder = file.read(200).strip() or 'another process'
        if time.monotonic() >= end:
            raise InputError(
                f'{directory} is in use by {holder}; wait for its end or choose another directory (if its host '
                f'is gone for good, remove {path})'
            )
        if not told:
            told = True
            say(f'{directory} is in use by {holder}: waiting {wait:g} s for its end')
        time.sleep(0.2)
    file.truncate(0)
    file.write(f'pid {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    return file
