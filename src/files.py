"""Files that are written whole or not at all, and names of files in JSON."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from src import processes


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path to write to. The file there becomes `path` if the block ends without an exception, else it is removed.

    The path is in a directory `.<name>.<process id>.<random>` beside `path`, which only this user may enter. So nobody
    else can take the name, and a library may write further files beside it. In `with replacing(a), replacing(b)` the file
    `b` gets its name first. OSError if it cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe must not be replaced
        raise OSError(errno.EINVAL, 'not a regular file', str(path))
    directory = tempfile.mkdtemp(prefix=f'.{path.name[:40]}.{os.getpid()}.', dir=path.parent)
    try:
        temporary = Path(directory, path.name)
        yield temporary
        move(temporary, path)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def remove_abandoned(directory: str | Path, pattern: str = '.*') -> None:
    """Remove what killed processes left in `directory`: of the names that fit `pattern` those that end, as in `replacing`,
    in .<process id>.<random>, if there is no such process. One with our own number is of an earlier process that had it:
    call this before this process writes anything there."""
    for path in Path(directory).glob(pattern):
        named = re.fullmatch(r'.+\.(\d+)\.\w+', path.name)
        if named and (int(named[1]) == os.getpid() or not processes.lives(int(named[1]))):
            shutil.rmtree(path, ignore_errors=True)


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


def as_json(value: object, indent: int | None = None) -> str:
    """ASCII JSON of a value that may contain file names. In one that is not UTF-8 Python keeps a byte as half a surrogate
    pair, which other programs reject in JSON; here it becomes the text `\\udcff`."""

    def escaped(match):
        lone = '\ud800' <= match[0] <= '\udfff'
        return '\\' * lone + json.dumps(match[0])[1:-1]

    return re.sub('[^\0-\x7f]', escaped, json.dumps(value, ensure_ascii=False, indent=indent))
