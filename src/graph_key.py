"""What a compiled graph depends on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore._c_expression import MSContext

from src import environment

ROOT = Path(__file__).resolve().parents[1]
# MindSpore's variables that change a graph. Others (MS_SCHED_PORT, MS_NODE_ID, ...) differ from start to start.
VARIABLES = ('MS_DEV_', 'MS_ENABLE_', 'MS_ASCEND_', 'MS_INTERNAL_')
# Set by MindSpore in a cell that it compiles, `current_phase` with a time and an address in it.
COMPILED = ('current_phase', '__compile_cell_hook__', '__parse_method__', 'sequence_modified')


def sources() -> str:
    """Hash of the code of this project."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob('*.py'), *ROOT.glob('src/**/*.py')]):
        digest.update(f'{path.relative_to(ROOT)}\n{len(path.read_bytes())}\n'.encode() + path.read_bytes())
    return digest.hexdigest()


def versions(device_target: str) -> list:
    """Versions of all that takes part in a compilation, and MindSpore's variables."""
    found = [ms.__version__, ms.__file__, np.__version__, sys.version, platform.machine()]
    if device_target == 'Ascend':
        found += [environment.look().version, MSContext.get_instance().get_ascend_soc_version()]
    return found + sorted(item for item in os.environ.items() if item[0].startswith(VARIABLES))


def structure(cell: nn.Cell) -> list:
    """What `cell` is made of, as plain values: its cells with their attributes, its constants, its parameters without their
    values. So constants count that no option shows, such as the table of learning rates or a recorded preprocessing."""
    # The text of the constructor's arguments has addresses in it; a cell that was compiled has the attributes of COMPILED.
    own = {*vars(nn.Cell()), '_cell_init_args', *COMPILED}
    found = []
    for name, part in cell.cells_and_names():
        attributes = {key: _plain(value) for key, value in vars(part).items() if key not in own}
        flags = {key: value for key, value in part.get_flags().items() if isinstance(value, (bool, int))}
        found.append([name, type(part).__module__, type(part).__qualname__, part.training, flags, attributes])
    parameters = [[p.name, str(p.shape), str(p.dtype), p.requires_grad] for p in cell.get_parameters()]
    return [found, parameters]


def _plain(value):
    """`value` in what JSON can hold, or the name of its type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (Tensor, np.ndarray)) and not isinstance(value, ms.Parameter):
        array = value.asnumpy() if isinstance(value, Tensor) else value
        return [str(array.shape), str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, ops.Primitive):
        return [value.name, _plain(value.attrs)]
    if isinstance(value, ms.Type):
        return str(value)
    return type(value).__qualname__


def of(*parts: object) -> str:
    """Hash of `parts`, which JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
