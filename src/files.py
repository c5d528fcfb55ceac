"""Files that are written whole or not at all, a lock on a directory, and names of files in JSON and CSV."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from src.errors import InputError, reading

# Ends the names of our temporary directories, and of no other program's: only such a name may be removed.
SUFFIX = '.inceptionv4-tmp'
LOCK = '.lock'


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to. The file there becomes `path` if the block ends without an exception, else it is removed.

    The path is in a directory beside `path` that only this user may enter. So nobody else can take the name, and a library
    may write further files beside it. In `with replacing(a), replacing(b)` the file `b` gets its name first. What killed
    processes left beside `path` is removed. OSError if it cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe must not be replaced
        raise OSError(errno.EINVAL, 'not a regular file', str(path))
    remove_abandoned(path.parent)
    try:
        made = tempfile.mkdtemp(prefix=f'.{path.name[:40]}.', dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # not the temporary name
    # The lock ends with this process, which is how `remove_abandoned` knows: process numbers tell nothing where containers
    # share a directory. The name that may be removed comes after the lock.
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
    """Remove what `replacing` made in `directory` in processes that have ended."""
    for path in Path(directory).glob(f'.*{SUFFIX}'):
        with contextlib.suppress(OSError):  # no directory, or a link; locked by a living process; or somebody was faster
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)


def move(temporary: str | Path, path: str | Path) -> None:
    """Sync the finished file `temporary` to the disk, so that it survives a power cut, and rename it to `path`. Both must be
    on the same file system. OSError if it cannot be done.

    It gets the permissions of any new file: MindSpore makes its files unreadable to others, whatever the umask is.
    """
    with open(temporary, 'rb') as file:
        os.fsync(file.fileno())
    # os.umask would change it for a moment, in all threads.
    umask = re.search(r'^Umask:\s*(\d+)', Path('/proc/self/status').read_text(), re.M)[1]
    os.chmod(temporary, 0o666 & ~int(umask, 8))
    os.replace(temporary, path)
    descriptor = os.open(Path(path).parent, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system on which directories cannot be synced
        os.fsync(descriptor)
    os.close(descriptor)


def lock_directory(
    directory: str | Path,
    remedy: str = 'choose another directory',
    wait: float = 0,
    log: Callable[[str], None] = print,
    name: str = LOCK,
) -> TextIO | None:
    """Make `directory` and lock it for this process by its file `name`. Returns the open file: the lock lasts until it is
    closed, or the process ends in whatever way. None, with a line to `log`, on a file system without locks.

    InputError, with the `remedy` that chooses another directory, if another process has the lock after `wait` seconds (it
    may be ending, where a batch system starts a job again), or if the file cannot be written or is not a lock.

    It is a POSIX record lock, which ends with its process and works over NFS. A lock of flock would be inherited by forked
    data workers, which may outlive the process. A record lock is lost when its process closes any other descriptor of the
    file, so nothing else may open it. The file is never removed: two processes could then lock two files of this name.
    """
    path, end, waiting = Path(directory, name), time.monotonic() + wait, False
    with reading(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not what a link of this name leads to.
        file = open(path, 'a+', errors='replace', opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666))
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    log(f'warning: {directory} cannot be locked ({error.strerror}): a second program in it goes unnoticed')
                    return None
            owner = _owner(file) or 'another process'
            if time.monotonic() >= end:
                raise InputError(
                    f'{directory} is in use by {owner}; wait until it finishes or {remedy} (if that host no longer exists, '
                    f'remove {path})'
                )
            if not waiting:
                log(f'{directory} is in use by {owner}: waiting {wait:g} s for its end')
            waiting = True
            time.sleep(0.2)
        if (found := _owner(file)) and not re.match(r'pid \d+ on ', found):
            raise ValueError(f'is not a lock ({found!r:.60})')
        with contextlib.suppress(OSError):  # a full disk: the lock is good without the name of its owner
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f'pid {os.getpid()} on {socket.gethostname()}\n'.encode())
    return file


def _owner(file):
    """The beginning of the lock's file; '' also for the zeros that a power cut may leave."""
    file.seek(0)
    return file.read(200).strip('\0 \n')


class Place:
    """The existing directory `path`, to be found again when it was renamed, or when one above it was."""

    def __init__(self, path: str | Path):
        self.path, self.descriptor = Path(path), None
        with contextlib.suppress(OSError):
            self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self.descriptor)

    def find(self) -> Path:
        """Where it is now; the path that it had where that is not known."""
        for path in (self.path, Path(f'/proc/self/fd/{self.descriptor}').resolve()):
            with contextlib.suppress(OSError, TypeError):  # TypeError: no descriptor
                if os.path.samestat(os.fstat(self.descriptor), os.stat(path)):
                    self.path = path
                    break
        return self.path

    def replaced(self) -> bool:
        """Whether it was removed, and another one has its name now."""
        return self.descriptor is not None and not os.fstat(self.descriptor).st_nlink and self.path.exists()


def printable(text: str) -> str:
    """`text`, in which bytes of a file name that are not UTF-8 look as on the screen: `\\udce9`."""
    return text.encode(errors='backslashreplace').decode()


def as_json(value: object, indent: int | None = None) -> str:
    """ASCII JSON of a value that may contain file names. In one that is not UTF-8 Python keeps a byte as half a surrogate
    pair, which other programs reject in JSON; here it becomes the text `\\udcff`."""

    def escaped(match):
        lone = '\ud800' <= match[0] <= '\udfff'
        return '\\' * lone + json.dumps(match[0])[1:-1]

    return re.sub('[^\0-\x7f]', escaped, json.dumps(value, ensure_ascii=False, indent=indent))


# What a spreadsheet takes for a formula, and runs, in a cell of a CSV file; also the full-width signs. Behind any ', so that
# `from_cell` finds out what `as_cell` was given.
FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")


def as_cell(text: str) -> str:
    """`text` for a cell of a CSV file: with a ' in front, which makes it text, where a spreadsheet would run it."""
    return f"'{text}" if FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text that `as_cell` made this of; any other cell as it is."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
