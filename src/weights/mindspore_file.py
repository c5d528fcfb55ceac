"""MindSpore's checkpoint files, read by our own code: MindSpore's `load_checkpoint` copies the content of a tensor into
memory of the tensor's shape without comparing their sizes, so that a damaged file can write over other memory.

A file is a protocol buffer of values (field 1): a name (1) and a tensor (2) of dimensions (1), type (2), content (3).
"""

import math
import mmap
from pathlib import Path

import numpy as np

from src.data.protobuf import read_values

DTYPES = {
    'Bool': '?',
    'Int8': 'i1',
    'Int16': '<i2',
    'Int32': '<i4',
    'Int64': '<i8',
    'UInt8': 'u1',
    'UInt16': '<u2',
    'UInt32': '<u4',
    'UInt64': '<u8',
    'Float16': '<f2',
    'Float32': '<f4',
    'Float64': '<f8',
}
CRC = b'crc_num'  # of MindSpore's own, then 10 bytes


def read(path):
    """{name: ndarray or str} of the file `path`, views of one copy of the file.

    OSError if it cannot be read; ValueError, TypeError or IndexError if it is damaged or no such file.
    """
    pieces = {}
    for name, tensor in _pieces(memoryview(Path(path).read_bytes())):
        # A large tensor comes in several pieces, each with the shape of the whole.
        pieces.setdefault(name, []).append(tensor)
    if not pieces:
        raise ValueError('it holds no tensor')
    return {name: _value(name, tensors) for name, tensors in pieces.items()}


def read_some(path, names):
    """As `read`, but only the str and scalars of `names` that the file has; of the rest it looks at the names only."""
    with open(path, 'rb') as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return {name: _value(name, [tensor]) for name, tensor in _pieces(data) if name in names}


def _pieces(data):
    """Yield (name, tensor) of a file's content."""
    for number, value in read_values(data[:-17] if data[-17:-10] == CRC else data):
        value = dict(read_values(value)) if number == 1 else {}
        if 1 not in value or 2 not in value:
            raise ValueError('it holds more than names and tensors')
        yield str(value[1], 'utf-8'), value[2]


def _value(name, tensors):
    shape = tuple(value for number, value in read_values(tensors[0]) if number == 1)
    parts = [dict(read_values(tensor)) for tensor in tensors]
    kind = str(parts[0].get(2, b''), 'utf-8')
    content = parts[0].get(3, b'') if len(parts) == 1 else b''.join(part.get(3, b'') for part in parts)
    if kind == 'str':
        return str(content, 'utf-32-le').rstrip('\0')
    if kind not in DTYPES:
        raise ValueError(f'{name:.60} is of the type {kind:.20}')
    shape = () if shape == (0,) else shape
    if math.prod(shape) * np.dtype(DTYPES[kind]).itemsize != len(content):
        raise ValueError(f'{name:.60} of the shape {shape} has {len(content)} bytes')
    return np.frombuffer(content, DTYPES[kind]).reshape(shape)
