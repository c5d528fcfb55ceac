"""Files that are written whole or not at all, a lock on a directory, and names of files in CSV."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from src.errors import InputError, reading

# Ends the names of our temporary directories, and of no other program's: only such a name may be removed.
SUFFIX = '.inceptionv4-tmp'
LOCK = '.lock'
# What a spreadsheet runs in a cell of a CSV file; also the full-width signs. Behind any ', so that `from_cell` knows it.
FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to. The file there becomes `path` if the block ends without an exception, else it is removed.

    The path is in a directory beside `path` that only this user may enter. So nobody else can take the name, and a library
    may write further files beside it. What killed processes left beside `path` is removed. OSError if it cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe must not be replaced
        raise OSError(errno.EINVAL, 'not a regular file', str(path))
    remove_abandoned(path.parent)
    try:
        made = tempfile.mkdtemp(prefix=f'.{path.name[:40]}.', dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # not the temporary name
    # Locked as long as this process lives: its number means nothing where containers share a directory. The name by which
    # it may be removed comes after the lock.
    descriptor = os.open(made, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    directory = Path(made + SUFFIX)
    os.rename(made, directory)
    try:
        yield directory / path.name
        move(directory / path.name, path)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned(directory: str | Path) -> None:
    """Remove what killed processes were writing to `directory` by `replacing`."""
    for path in Path(directory).glob(f'.*{SUFFIX}'):
        with contextlib.suppress(OSError):  # a link or a file; locked by its process; or somebody was faster
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)


def move(temporary: str | Path, path: str | Path) -> None:
    """Sync the finished file `temporary` to the disk, so that it survives a power cut, and rename it to `path` on the same
    file system. It gets the permissions of any new file: MindSpore makes its files unreadable to others, whatever the umask
    is. OSError if it cannot be done."""
    # os.umask would change it for a moment, in all threads.
    umask = re.search(r'^Umask:\s*(\d+)', Path('/proc/self/status').read_text(), re.M)[1]
    with open(temporary, 'rb') as file:
        os.fchmod(file.fileno(), 0o666 & ~int(umask, 8))
        os.fsync(file.fileno())
    os.replace(temporary, path)
    descriptor = os.open(Path(path).parent, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system on which directories cannot be synced
        os.fsync(descriptor)
    os.close(descriptor)


def lock_file(path: str | Path, remedy: str, wait: float = 0, log: Callable[[str], None] = print) -> TextIO:
    """Make the directory of the file `path` and lock it for this process by that file. Returns the open file: the lock lasts
    until it is closed, or the process ends in whatever way. On a file system without locks there is only a line to `log`.

    InputError, with the `remedy` that chooses another directory, if another process has the lock after `wait` seconds: it
    may be ending, where a batch system starts a job again.

    It is a POSIX record lock, which ends with its process and works over NFS. A lock of flock would be inherited by forked
    data workers, which may outlive the process. A record lock is lost when its process closes any other descriptor of the
    file, so nothing else may open it. The file is never removed: two processes could then lock two files of this name.
    """
    directory, end = Path(path).parent, None
    with reading(path, remedy):
        directory.mkdir(parents=True, exist_ok=True)
        # Not what a link of this name leads to.
        file = open(path, 'a+', errors='replace', opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666))
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                file.seek(0)
                used = f'{directory} is in use by {file.read(200).strip() or "another process"}'
            except OSError as error:
                log(f'warning: {directory} cannot be locked ({error.strerror}): a second program in it goes unnoticed')
                break
            if end is None and wait:
                log(f'{used}: waiting {wait:g} s for its end')
            end = end or time.monotonic() + wait
            if time.monotonic() >= end:
                raise InputError(
                    f'{used}; wait until it finishes or {remedy} (if that host no longer exists, remove {path})'
                )
            time.sleep(0.2)
        with contextlib.suppress(OSError):  # a full disk: the lock is good without the name of its owner
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f'pid {os.getpid()} on {socket.gethostname()}\n'.encode())
    return file


def printable(text: str) -> str:
    """`text`, in which bytes of a file name that are not UTF-8 look as on the screen: `\\udce9`."""
    return text.encode(errors='backslashreplace').decode()


def as_cell(text: str) -> str:
    """`text` for a cell of a CSV file: with a ' in front, which makes it text, where a spreadsheet would run it."""
    return f"'{text}" if FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text that `as_cell` made this of; any other cell as it is."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
