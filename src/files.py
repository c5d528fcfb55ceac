"""Files that are written whole or not at all, and names of files in JSON and CSV."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

HOST = os.uname().nodename[:32]
# Ends the names of our temporary directories, and of no other program's: only such a name may be removed.
SUFFIX = '.inceptionv4-tmp'
DAY = 86400  # seconds after which a temporary directory of another host is abandoned


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path to write to. The file there becomes `path` if the block ends without an exception, else it is removed.

    The path is in a `temporary_directory` beside `path`. So nobody else can take the name, and a library may write further
    files beside it. In `with replacing(a), replacing(b)` the file `b` gets its name first. What killed processes left
    beside `path` is removed. OSError if it cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe must not be replaced
        raise OSError(errno.EINVAL, 'not a regular file', str(path))
    remove_abandoned(path.parent)
    with temporary_directory(temporary_name(path)) as directory:
        temporary = directory / path.name
        yield temporary
        move(temporary, path)


def temporary_name(path: Path) -> Path:
    """A name for a `temporary_directory` beside `path`, different at each call."""
    return path.with_name(f'.{path.name[:40]}.{secrets.token_hex(4)}.{HOST}{SUFFIX}')


@contextlib.contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """Make the directory `path`, a `temporary_name`, which only this user may enter; remove it at the end of the block.

    In between it is locked, by which `remove_abandoned` knows that its process lives: the system ends a lock with its
    process, and process numbers tell nothing where containers share a directory. OSError if it cannot be made.
    """
    while True:
        try:
            path.mkdir(mode=0o700)
        except OSError as error:  # names the directory, not the temporary name
            raise OSError(error.errno, error.strerror, str(path.parent)) from None
        with contextlib.suppress(FileNotFoundError):  # taken for abandoned before it was locked: once more
            held = os.open(path, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(held, fcntl.LOCK_EX)
            if path.exists():
                break
            os.close(held)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def remove_abandoned(directory: str | Path) -> None:
    """Remove each `temporary_directory` in `directory` whose process has ended. Of a process of another host that cannot be
    seen; its directories are removed when nothing was put into them for a day."""
    for path in Path(directory).glob(f'.*{SUFFIX}'):
        if not re.fullmatch(rf'\..+\.[0-9a-f]{{8}}\..+{SUFFIX}', path.name):
            continue
        with contextlib.suppress(OSError):  # no directory, or a link; locked by a living process; or somebody was faster
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.name.endswith(f'.{HOST}{SUFFIX}') or time.time() - os.fstat(held).st_mtime > DAY:
                    shutil.rmtree(path)
            finally:
                os.close(held)


def move(temporary: str | Path, path: str | Path) -> None:
    """Sync the finished file `temporary` to the disk, so that it survives a power cut, and rename it to `path`. Both must be
    on the same file system. OSError if it cannot be done.

    It gets the permissions of any new file: MindSpore makes its files unreadable to others, whatever the umask is.
    """
    temporary, path = Path(temporary), Path(path)
    with open(temporary, 'rb') as file:
        os.fsync(file.fileno())
    with tempfile.TemporaryDirectory(dir=temporary.parent) as directory:
        probe = Path(directory, 'probe')
        probe.touch()  # to learn the umask: os.umask would change it for a moment, in all threads
        temporary.chmod(probe.stat().st_mode & 0o777)
    os.replace(temporary, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system on which directories cannot be synced
            raise
    finally:
        os.close(descriptor)


class Place:
    """The existing directory `path`, to be found again when it was renamed, or when one above it was."""

    def __init__(self, path: str | Path):
        self.path, self.descriptor = Path(path), None
        with contextlib.suppress(OSError):
            self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self.descriptor)

    def find(self) -> Path:
        """Where it is now; the path that it had where that is not known."""
        if self.descriptor is not None:
            for path in (self.path, Path(f'/proc/self/fd/{self.descriptor}').resolve()):
                with contextlib.suppress(OSError):
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
