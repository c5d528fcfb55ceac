"""Compiled graphs: what is logged while one compiles, and MindSpore's compile cache, made safe.

MindSpore's cache finds a graph by the order of compilation in the process, and its own check looks at script files only:
with another learning rate or image size it returns the old graph. So it is given a directory of this process, in which there
is at most the one graph that is wanted. The cache itself is one file for each graph, named by a hash of all that the graph
depends on.
"""

from __future__ import annotations

import contextlib
import functools
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

KEPT = 50  # graphs in a cache; one of the whole network's training has 5 MB, without any weights
ROOM = 32 << 20  # bytes to be free where MindSpore writes a graph: on a full disk it keeps the beginning of one as a whole


class Graphs:
    """The graphs that this process compiles, and the cache in `directory` (None: no cache), which any number of processes
    may use at once. `made_from`: what all graphs of this process depend on."""

    number = 0  # that MindSpore gives the next graph; it counts them in each process

    def __init__(self, directory: Path | None = None, made_from: object = None, log: Callable[[str], None] = print):
        self.directory, self.made_from, self.log = directory, made_from, log
        self.seen = weakref.WeakKeyDictionary()  # of a cell, its inputs so far

    @contextlib.contextmanager
    def compiling(self, cell: nn.Cell, inputs: Sequence[Tensor], name: str, extra: object = None) -> Iterator[None]:
        """Within this `cell` is called with `inputs`, which compiles it at the first time: logs that, and uses the cache.
        `name`: of the graph, for the log; `extra`: what it depends on beside cell and inputs."""
        shapes = tuple((tuple(x.shape), str(x.dtype)) for x in inputs)
        seen = self.seen.setdefault(cell, set())
        if (shapes, extra) in seen:
            yield
            return
        seen.add((shapes, extra))
        start, key, entry, found = time.monotonic(), None, None, []
        if self.directory:
            key = graph_key.digest(self.made_from, graph_key.structure(cell), shapes, name, extra)
            entry = self._read(key)
        self.log(f'loading the {name} from the compile cache' if entry else f'compiling the {name}')
        with contextlib.ExitStack() as stack:
            if key:
                try:
                    found = stack.enter_context(_mindspore_cache(entry))
                except OSError as error:
                    self.log(f'warning: the {name} is compiled without the compile cache: {error}')
            yield
        hit = entry is not None and found == [entry]
        kept = ', kept in the compile cache' if len(found) == 1 and not hit and self._write(key, *found[0]) else ''
        how = 'from the compile cache' if hit else 'compiled'
        self.log(f'{name} {how} and run once in {time.monotonic() - start:.1f} s{kept}')

    def _read(self, key):
        """(MindSpore's name for it, graph) of the key; None if there is none. In a name `{}` stands for its number."""
        with contextlib.suppress(OSError):
            for path in self.directory.glob(f'{key}.*{{}}.mindir'):
                os.utime(path)  # those used longest ago go first
                return path.name[len(key) + 1 :].replace('+', '/'), path.read_bytes()
        return None

    def _write(self, key, name, graph):
        """Put a graph into the cache; whether that could be done."""
        try:
            with files.replacing(self.directory / f'{key}.{name.replace("/", "+")}') as temporary:
                temporary.write_bytes(graph)
            entries = self.directory.glob('[0-9a-f]' * len(key) + '.*')  # other programs' files may be here
            for oldest in sorted(entries, key=lambda path: path.stat().st_mtime)[:-KEPT]:
                oldest.unlink()
        except OSError as error:
            self.log(f'warning: the graph is not kept in the compile cache: {error}')
            return False
        return True


OFF = Graphs(log=lambda line: None)


def open_cache(settings: Settings, run: Run) -> Graphs:
    """The `Graphs` of this process, which log by `run.log`. InputError if the directory `compile_cache` cannot be used; if
    that of `auto` cannot, a line of the log."""
    option = settings.compile_cache
    if option == 'off' or option == 'auto' and run.device_target != 'CPU':
        return Graphs(log=run.log)
    base = os.environ.get('XDG_CACHE_HOME', '')
    base = base if os.path.isabs(base) else '~/.cache'
    place = os.path.expanduser(f'{base}/inceptionv4-mindspore' if option == 'auto' else option)
    directory = Path(place).absolute()
    try:
        if place.startswith('~'):
            raise FileNotFoundError('this user has no home directory; set HOME')
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            status = directory.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            mode = f'owner {status.st_uid}, mode {status.st_mode & 0o777:o}'
            raise PermissionError(f'a graph is a program, and others may write there ({mode})')
    except OSError as error:
        problem = f'compile_cache {place}: {error.strerror or error}'
        if option != 'auto':
            raise InputError(f'{problem}; use another directory or off') from error
        run.log(f'warning: {problem}; graphs are compiled at every start')
        return Graphs(log=run.log)
    # Other options have no part in a graph, or show in the structure of its cell.
    made_from = [settings.group(*RESULT), settings.jit_level, run.rank, run.world, run.device_target, run.amp_level]
    return Graphs(directory, [made_from, graph_key.sources(), graph_key.versions(run.device_target)], run.log)


@functools.lru_cache(None)
def _directory():
    """The directory of MindSpore's cache in this process, which MindSpore asks for only once; removed at its end."""
    return tempfile.TemporaryDirectory(prefix='inceptionv4-graphs-')


@contextlib.contextmanager
def _mindspore_cache(entry):
    """A block in which MindSpore's cache is on, with at most the graph `entry` (name, graph) in it. The list that it yields
    gets what is in it afterwards. OSError if there is no room.

    A number that is not the one MindSpore has in mind costs a compilation and is right the next time.
    """
    if shutil.disk_usage(tempfile.gettempdir()).free < ROOM:
        raise OSError(f'less than {ROOM >> 20} MB are free in {tempfile.gettempdir()}')
    directory, found = Path(_directory().name), []
    # No check of script files: after a graph that is not there MindSpore would find no other.
    ours = {'MS_COMPILER_CACHE_ENABLE': '1', 'MS_DEV_FORCE_USE_COMPILE_CACHE': '1', 'MS_COMPILER_CACHE_PATH': str(directory)}
    # It would still parse the script that was started and all that it imports, and fail where there is none (python -c).
    before, script = {name: os.environ.get(name) for name in ours}, api.entry_script_path
    try:
        if entry:
            place = directory / entry[0].format(Graphs.number)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(entry[1])
        os.environ.update(ours)
        api.entry_script_path = __file__.replace('graphs.py', '__init__.py')
        yield found
        for path in directory.glob('**/*compile_cache_*.mindir'):
            name, number = re.fullmatch(r'(.*_)(\d+)\.mindir', str(path.relative_to(directory))).groups()
            found.append((f'{name}{{}}.mindir', path.read_bytes()))
            Graphs.number = max(Graphs.number, int(number) + 1)
    finally:
        api.entry_script_path = script
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        for path in directory.iterdir():
            shutil.rmtree(path, ignore_errors=True)
