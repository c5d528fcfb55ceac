"""Compiled graphs: MindSpore's compile cache, made safe, and what is said while a graph compiles."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindspore import Tensor, nn
from mindspore.common import api

from src import files, graph_key
from src.errors import InputError
from src.options import RESULT, Settings

if TYPE_CHECKING:
    from src.runtime import Run

LIMIT = 256_000_000  # bytes of all graphs in a cache; one of the whole network's training has 5 MB, without any weights
# MindSpore's own name for a graph in its cache, `{}` its number: rank_0/graph_cache/compile_cache_{}.mindir. No other path
# that a file names is written to.
NAME = re.compile(r'(?:[\w-]+/)*[\w-]*compile_cache_\{\}\.mindir')
ROOM = 32 << 20  # bytes to be free where MindSpore writes a graph: on a full disk it keeps the beginning of one as a whole


class Graphs:
    """The graphs that this process compiles, and the cache in `directory` (None: no cache).

    MindSpore's cache finds a graph by the order of compilation in the process, and its own check looks at script files
    only: with other options or another image size it returns the old graph. So it is given a directory of this process, in
    which there is at most the one graph that is wanted. The cache itself is one file for each graph, named by a hash of
    all that the graph depends on.

    Args:
        made_from: what all graphs of this process depend on.
        say: takes a line for the log.

    Any number of processes may use `directory` at once: a file appears by renaming and holds its own checksum.
    """

    def __init__(self, directory: Path | None = None, made_from: object = None, say: Callable[[str], None] = print):
        self.directory, self.made_from, self.say = directory, made_from, say
        self.seen = weakref.WeakKeyDictionary()  # of a cell, its inputs so far

    @contextlib.contextmanager
    def compiling(self, cell: nn.Cell, inputs: Sequence[Tensor], name: str, extra: object = None) -> Iterator[None]:
        """Within this `cell` is called with `inputs`, which compiles it at the first time: says so, and uses the cache.

        Args:
            name: of the graph, for the log.
            extra: what the graph depends on beside cell and inputs.
        """
        shapes = tuple((tuple(x.shape), str(x.dtype)) for x in inputs)
        seen = self.seen.setdefault(cell, set())
        if (shapes, extra) in seen:
            yield
            return
        seen.add((shapes, extra))
        start = time.monotonic()
        path = (
            self.directory
            and self.directory / f'{graph_key.of(self.made_from, graph_key.structure(cell), shapes, name, extra)}.graph'
        )
        found = path and self._read(path)
        what = f'loading the {name} from the compile cache' if found else f'compiling the {name}'
        self.say(what)
        with contextlib.ExitStack() as stack:
            window = None
            try:
                window = path and stack.enter_context(_Window(found))
            except OSError as error:
                self.say(f'warning: {tempfile.tempdir}: {error.strerror}; the {name} is compiled without the compile cache')
            yield
        kept = window is not None and window.made is not None and self._write(path, *window.made)
        came = window is not None and window.hit
        self.say(
            f'{name} {"from the compile cache" if came else "compiled"} and run once in {time.monotonic() - start:.1f} s'
            + (', kept in the compile cache' if kept else '')
        )

    def _read(self, path):
        """(name for MindSpore, graph) of the file `path`; None if there is none or it is damaged, which removes it."""
        try:
            digest, _, rest = path.read_bytes().partition(b'\n')
            name, _, graph = rest.partition(b'\n')
            name = name.decode(errors='replace')
            if hashlib.sha256(rest).hexdigest().encode() != digest or not NAME.fullmatch(name):
                self.say(f'warning: {path} is damaged and is removed; the graph is compiled anew')
                path.unlink(missing_ok=True)
                return None
            os.utime(path)  # the oldest by use go first
        except OSError:
            return None
        return name, graph

    def _write(self, path, name, graph):
        """Put a graph into the cache; whether that could be done."""
        rest = name.encode() + b'\n' + graph
        try:
            with files.replacing(path) as temporary:
                temporary.write_bytes(hashlib.sha256(rest).hexdigest().encode() + b'\n' + rest)
            trim(path.parent)
        except OSError as error:
            self.say(f'warning: {path} cannot be written ({error.strerror}): the graph is not kept')
            return False
        return True


OFF = Graphs(say=lambda line: None)


def open_cache(settings: Settings, run: Run) -> Graphs:
    """The `Graphs` of this process; `run.log` gets its lines.

    InputError if the directory `compile_cache` cannot be used, see `_problem`; if that of `auto` cannot, a line of the log.
    """
    option, say = settings.compile_cache, run.log
    if option == 'off' or option == 'auto' and run.device_target != 'CPU':
        return Graphs(say=say)
    base = os.environ.get('XDG_CACHE_HOME', '')
    base = base if os.path.isabs(base) else '~/.cache'
    place = os.path.expanduser(f'{base}/inceptionv4-mindspore' if option == 'auto' else option)
    directory = Path(place).absolute()
    problem = 'this user has no home directory; set HOME' if place.startswith('~') else _problem(directory)
    if problem:
        problem = f'compile_cache {place}: {problem}'
        if option != 'auto':
            raise InputError(f'{problem}; use another directory or off')
        say(f'warning: {problem}; graphs are compiled at every start')
        return Graphs(say=say)
    # Other options have no part in a graph, or show in the structure of the cell.
    result = settings.group(*RESULT), settings.jit_level
    ranks = run.rank, run.world, run.device_target, run.amp_level
    return Graphs(directory, [result, ranks, graph_key.sources(), graph_key.versions(run.device_target)], say)


def _problem(directory):
    """Why no graphs can be kept in `directory`, which is made if it is missing; None if they can."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        status = directory.stat()
    except OSError as error:
        return f'cannot be written ({error.strerror})'
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        return f'a graph is a program, and others may write there (owner {status.st_uid}, mode {status.st_mode & 0o777:o})'
    return None


def trim(directory: Path, limit: int | None = None) -> None:
    """Remove the graphs that were used longest ago until `limit` bytes (`LIMIT`) are left. A graph in use is not needed any
    more: it was read as a whole."""
    entries = []
    for path in directory.glob('[0-9a-f]' * 64 + '.graph'):  # other programs' files may have this ending
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            status = path.stat()
            entries.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= (LIMIT if limit is None else limit):
            break
        path.unlink(missing_ok=True)
        total -= size


class _Window:
    """A context in which MindSpore's cache is on, with at most one graph `found` (name, bytes) in it.

    `made` is then the (name, bytes) of the graph that was compiled, None if there was not exactly one; `hit` is true if the
    graph found was taken. In a name `{}` stands for the graph's number, which MindSpore counts up in each process. A number
    that is not the one MindSpore has in mind costs a compilation and is right the next time.
    """

    number = 0
    directory = None  # MindSpore asks for it once in a process

    def __init__(self, found):
        self.found, self.made, self.hit = found, None, False

    def __enter__(self):
        if shutil.disk_usage(tempfile.gettempdir()).free < ROOM:
            raise OSError(errno.ENOSPC, f'no room for a graph ({ROOM >> 20} MB)')
        if _Window.directory is None:
            _Window.made_directory = tempfile.TemporaryDirectory(prefix='inceptionv4-graph-')
            _Window.directory = Path(_Window.made_directory.name)
        self.placed = None
        if self.found:
            self.placed = _Window.directory / self.found[0].format(_Window.number)
            self.placed.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.placed.write_bytes(self.found[1])
            self.before = self.placed.stat()
        ours = {
            'MS_COMPILER_CACHE_ENABLE': '1',
            'MS_COMPILER_CACHE_PATH': str(_Window.directory),
            # No check of script files. After a graph that is not there it would find no other.
            'MS_DEV_FORCE_USE_COMPILE_CACHE': '1',
        }
        # It would still parse the script that was started and all that it imports, and fail where there is none (python -c).
        self.script, api.entry_script_path = api.entry_script_path, __file__.replace('graphs.py', '__init__.py')
        self.variables = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        return self

    def __exit__(self, kind, error, trace):
        api.entry_script_path = self.script
        for name, value in self.variables.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        if kind is None:
            self._look()
        for path in _Window.directory.iterdir():
            shutil.rmtree(path, ignore_errors=True)

    def _look(self):
        there = list(_Window.directory.glob('**/*compile_cache_*.mindir'))
        if not there:
            return
        _Window.number = 1 + max(int(re.search(r'_(\d+)\.mindir$', path.name)[1]) for path in there)
        if there == [self.placed]:
            now = self.placed.stat()
            self.hit = (now.st_ino, now.st_mtime_ns, now.st_size) == (
                self.before.st_ino,
                self.before.st_mtime_ns,
                self.before.st_size,
            )
        if len(there) == 1 and not self.hit:
            name = re.sub(r'_\d+\.mindir$', '_{}.mindir', str(there[0].relative_to(_Window.directory)))
            self.made = name, there[0].read_bytes()
