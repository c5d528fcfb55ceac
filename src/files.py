"""Files that are written whole or not at all, and names of files in JSON."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """Give a path to write to; the file there becomes `path` if the block ends without an exception, else it is removed.

    The path lies beside `path`, in a directory `.<name>.<process id>.<random>` that nobody else may enter. So its name
    cannot be taken by somebody else, and libraries that want a path, or write files of their own beside it, can write
    there. In `with replacing(a), replacing(b)` the file `b` gets its name first. OSError if it cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe would be replaced, too
        raise OSError(errno.EINVAL, 'not a regular file', str(path))
    directory = tempfile.mkdtemp(prefix=f'.{path.name[:40]}.{os.getpid()}.', dir=path.parent)
    try:
        temporary = Path(directory, path.name)
        yield temporary
        move(temporary, path)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def move(temporary, path):
    """Let the finished file `temporary` last through a power cut, and then make it `path`, on the same file system.

    Its permissions become those of any new file: MindSpore leaves its files unreadable to others, whatever the umask is.
    """
    temporary, path = Path(temporary), Path(path)
    with open(temporary, 'rb') as file:
        os.fsync(file.fileno())
    with tempfile.TemporaryDirectory(dir=temporary.parent) as directory:
        probe = Path(directory, 'probe')
        probe.touch()  # os.umask tells the umask only by changing it, for all threads
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


def as_json(value, indent=None):
    """JSON text, ASCII, of what may hold names of files that are not UTF-8. Python keeps their bytes as half a surrogate
    pair, which other programs reject; here they become the text `\\udcff`."""

    def escaped(match):
        lone = '\ud800' <= match[0] <= '\udfff'
        return '\\' * lone + json.dumps(match[0])[1:-1]

    return re.sub('[^\0-\x7f]', escaped, json.dumps(value, ensure_ascii=False, indent=indent))
