"""Compiled graphs: what is logged while one compiles, and MindSpore's compile cache, made safe.

MindSpore's cache finds a graph by the order of compilation in the process, and its own check looks at script files only:
with another learning rate or image size it returns the old graph. So it gets a directory of this process, in which there is
at most the one graph that is wanted. Our cache is one file for each graph, named by a hash of all that the graph depends on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common import api

from src import files
from src.errors import only_warned

KEPT = 50  # graphs in a cache; one of the whole network's training has 5 MB, without any weights
ROOM = 32 << 20  # bytes to be free where MindSpore writes a graph: on a full disk it keeps the beginning of one as a whole
# Set by MindSpore in a cell that it compiles, `current_phase` with a time and an address in it.
COMPILED = ('current_phase', '__compile_cell_hook__', '__parse_method__', 'sequence_modified')


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
        start, path, graph = time.monotonic(), None, None
        if self.directory and shutil.disk_usage(_directory().name).free > ROOM:
            path = self.directory / f'{digest(self.made_from, structure(cell), shapes, name, extra)}.mindir'
            with contextlib.suppress(OSError):
                os.utime(path)  # those used longest ago go first
                graph = path.read_bytes()
        self.log(f'loading the {name} from the compile cache' if graph else f'compiling the {name}')
        with _mindspore_cache(graph) if path else contextlib.nullcontext([]) as found:
            yield
        cached = found == [graph]
        if len(found) == 1 and not cached:
            self._write(path, *found)
        how = 'from the compile cache' if cached else 'compiled'
        self.log(f'{name} {how} and run once in {time.monotonic() - start:.1f} s')

    def _write(self, path, graph):
        """Put a graph into the cache."""
        with only_warned(self.log, 'entry in the compile cache'):
            with files.replacing(path) as temporary:
                temporary.write_bytes(graph)
            entries = self.directory.glob('[0-9a-f]' * 64 + '.*')  # other programs' files may be here
            for oldest in sorted(entries, key=os.path.getmtime)[:-KEPT]:
                oldest.unlink()


OFF = Graphs(log=lambda line: None)


def open_cache(option: str, on_cpu: bool, made_from: object, log: Callable[[str], None]) -> Graphs:
    """The `Graphs` of this process; a line to `log` if the directory that `option`, compile_cache, means cannot be used."""
    if option == 'off' or option == 'auto' and not on_cpu:
        return Graphs(log=log)
    auto = f'{os.environ.get("XDG_CACHE_HOME") or "~/.cache"}/inceptionv4-mindspore'
    with only_warned(log, 'compile cache'):
        directory = Path(auto if option == 'auto' else option).expanduser().absolute()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise PermissionError(f'{directory}: a graph is a program, and others may write there')
        with tempfile.TemporaryFile(dir=directory), tempfile.TemporaryFile():
            return Graphs(directory, made_from, log)
    return Graphs(log=log)


@functools.lru_cache(None)
def _directory():
    """The directory of MindSpore's cache in this process, which MindSpore asks for only once; removed at its end."""
    return tempfile.TemporaryDirectory(prefix='inceptionv4-graphs-')


@contextlib.contextmanager
def _mindspore_cache(graph):
    """A block in which MindSpore's cache is on, with at most this `graph` in it. The list that it yields gets what is in it
    afterwards. A number that is not the one MindSpore has in mind costs a compilation and is right the next time."""
    directory, found = Path(_directory().name), []
    # No check of script files: after a graph that is not there MindSpore would find no other.
    ours = {'MS_COMPILER_CACHE_ENABLE': '1', 'MS_DEV_FORCE_USE_COMPILE_CACHE': '1', 'MS_COMPILER_CACHE_PATH': str(directory)}
    # It would still parse the script that was started and all that it imports, and fail where there is none (python -c).
    script = api.entry_script_path
    try:
        if graph:
            rank, role = os.environ.get('RANK_ID', 0), os.environ.get('MS_ROLE', '')  # as MindSpore names it
            path = directory / f'rank_{rank}/graph_cache/{role}compile_cache_{Graphs.number}.mindir'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(graph)
        os.environ.update(ours)
        api.entry_script_path = __file__.replace('graphs.py', '__init__.py')
        yield found
        for path in directory.glob('**/*compile_cache_*.mindir'):
            found.append(path.read_bytes())
            Graphs.number = max(Graphs.number, int(re.search(r'\d+$', path.stem)[0]) + 1)
    finally:
        api.entry_script_path = script
        for name in ours:  # `runtime.start` removes those of the user
            os.environ.pop(name, None)
        for path in directory.iterdir():
            shutil.rmtree(path, ignore_errors=True)


def structure(cell: nn.Cell) -> list:
    """What `cell` is made of: its cells with their attributes, its constants, its parameters without their values. So
    constants count that no option shows, such as the table of learning rates or a recorded preprocessing."""
    # The text of the constructor's arguments has addresses in it; a cell that was compiled has the attributes of COMPILED.
    own, found = {*vars(nn.Cell()), '_cell_init_args', *COMPILED}, []
    for name, inner in cell.cells_and_names():
        values = {key: value for key, value in vars(inner).items() if key not in own}
        # Keys of any kind, which JSON does not take.
        attributes = {key: [*value.items()] if isinstance(value, dict) else value for key, value in values.items()}
        flags = {key: value for key, value in inner.get_flags().items() if isinstance(value, (bool, int))}
        found.append([name, type(inner).__module__, type(inner).__qualname__, inner.training, flags, attributes])
    return [found, [[p.name, str(p.shape), str(p.dtype), p.requires_grad] for p in cell.get_parameters()]]


def digest(*values: object) -> str:
    """Hash of `values`: of tensors their content, of primitives name and attributes, of other objects the type."""

    def plain(value):
        if isinstance(value, (Tensor, np.ndarray, np.generic)) and not isinstance(value, Parameter):
            array = value.asnumpy() if isinstance(value, Tensor) else value
            return [str(array.shape), str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()]
        if isinstance(value, ops.Primitive):
            return [value.name, value.attrs]
        return str(value) if isinstance(value, ms.Type) else type(value).__qualname__

    return hashlib.sha256(json.dumps(values, sort_keys=True, default=plain).encode()).hexdigest()
