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
from mindspore import Parameter, Tensor, nn, ops
from mindspore._c_expression import MSContext

from src import environment

ROOT = Path(__file__).resolve().parents[1]
# MindSpore's variables that change a graph. Others (MS_SCHED_PORT, MS_NODE_ID, ...) differ from start to start.
VARIABLES = ('MS_DEV_', 'MS_ENABLE_', 'MS_ASCEND_', 'MS_INTERNAL_')
# Set by MindSpore in a cell that it compiles, `current_phase` with a time and an address in it.
COMPILED = ('current_phase', '__compile_cell_hook__', '__parse_method__', 'sequence_modified')


def sources() -> str:
    """Hash of the code of this project."""
    paths = sorted([*ROOT.glob('*.py'), *ROOT.glob('src/**/*.py')])
    return digest([[str(path.relative_to(ROOT)), path.read_bytes().decode()] for path in paths])


def versions(device_target: str) -> list:
    """Versions of all that takes part in a compilation, and MindSpore's variables."""
    found = [ms.__version__, ms.__file__, np.__version__, sys.version, platform.machine()]
    if device_target == 'Ascend':
        found += [environment.look().version, MSContext.get_instance().get_ascend_soc_version()]
    return found + sorted(item for item in os.environ.items() if item[0].startswith(VARIABLES))


def structure(cell: nn.Cell) -> list:
    """What `cell` is made of: its cells with their attributes, its constants, its parameters without their values. So
    constants count that no option shows, such as the table of learning rates or a recorded preprocessing."""
    # The text of the constructor's arguments has addresses in it; a cell that was compiled has the attributes of COMPILED.
    own, found = {*vars(nn.Cell()), '_cell_init_args', *COMPILED}, []
    for name, part in cell.cells_and_names():
        values = {key: value for key, value in vars(part).items() if key not in own}
        # Keys of any kind, which JSON does not take.
        attributes = {key: [*value.items()] if isinstance(value, dict) else value for key, value in values.items()}
        flags = {key: value for key, value in part.get_flags().items() if isinstance(value, (bool, int))}
        found.append([name, type(part).__module__, type(part).__qualname__, part.training, flags, attributes])
    return [found, [[p.name, str(p.shape), str(p.dtype), p.requires_grad] for p in cell.get_parameters()]]


def digest(*values: object) -> str:
    """Hash of `values`."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value):
    """A value that JSON cannot hold in what it can, or the name of its type."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and not isinstance(value, Parameter):
        array = value.asnumpy() if isinstance(value, Tensor) else value
        return [str(array.shape), str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, ops.Primitive):
        return [value.name, value.attrs]
    return str(value) if isinstance(value, ms.Type) else type(value).__qualname__
