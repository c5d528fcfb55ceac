"""TensorFlow's checkpoints, read by our own code: only TensorFlow does it, and nobody should have to install it.

Both formats keep a table of sorted keys in LevelDB's layout (https://github.com/google/leveldb/blob/main/doc/table_format.md)
with protocol buffers as values. V1, a single file, has the tensors themselves in it (saved_tensor_slice.proto); V2
(tensor_bundle.proto) has their places in `<prefix>.data-?????-of-?????` in the table `<prefix>.index`.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from pathlib import Path

import numpy as np
from google.protobuf.internal.decoder import _DecodeVarint
from google.protobuf.message import DecodeError

from src.data.tfrecord import masked_crc
from src.errors import reading

MAGIC = bytes.fromhex('57fb808b247547db')
DTYPES = {1: '<f4', 2: '<f8', 3: '<i4', 9: '<i8', 19: '<f2'}  # DataType of types.proto
REMEDY = 'not a TensorFlow checkpoint, or a damaged one; copy it again, all files of the checkpoint must lie together'


def _part(data, at, size):
    if at + size > len(data):
        raise ValueError('it ends too early')
    return data[at : at + size]


def _fields(message):
    """Yield (number, value) of a protocol buffer: int, or a slice of `message`."""
    at = 0
    while at < len(message):
        tag, at = _DecodeVarint(message, at)
        value, at = _DecodeVarint(message, at) if tag & 7 in (0, 2) else ({1: 8, 5: 4}[tag & 7], at)
        if tag & 7:
            value, at = _part(message, at, value), at + value
        yield tag >> 3, value


def _shape(message):
    """(int, ...) of a TensorShapeProto."""
    return tuple(dict(_fields(dim)).get(1, 0) for number, dim in _fields(message) if number == 2)


def _varints(data, at, count):
    """([int], position after them) of the `count` varints at data[at]."""
    numbers = []
    for _ in range(count):
        number, at = _DecodeVarint(data, at)
        numbers.append(number)
    return numbers, at


def _block(table, start, size):
    """Yield (key, value) of a block; keys are shortened by what they share with the one before."""
    body = _part(table, start, size + 5)
    if masked_crc(body[: size + 1]) != int.from_bytes(body[size + 1 :], 'little') or body[size]:
        raise ValueError('a checksum does not fit, or it is compressed, which TensorFlow does not do')
    key, at = b'', 0
    while at < size - 4 - 4 * int.from_bytes(body[size - 4 : size], 'little'):
        (shared, rest, length), at = _varints(body, at, 3)
        key = key[:shared] + bytes(_part(body, at, rest))
        yield key, _part(body, at + rest, length)
        at += rest + length


def _table(path):
    """Yield (key, value) of the table in the file `path`."""
    table = _map(path)
    if table[-8:] != MAGIC:
        raise ValueError('it is no table')
    (_, _, start, size), _ = _varints(table[-48:], 0, 4)  # of the two handles the second is the index
    for _, handle in _block(table, start, size):
        yield from _block(table, *_varints(handle, 0, 2)[0])


def _map(path):
    with open(path, 'rb') as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _array(data, dtype, shape):
    if math.prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise ValueError(f'a tensor of the shape {shape} has {len(data)} bytes')
    return np.frombuffer(data, dtype).reshape(shape)


def _read_v1(path):
    shapes, result = {}, {}
    for key, value in _table(path):
        for number, content in _fields(value):
            if not key and number == 1:  # what is in the file
                for tensor in (dict(_fields(value)) for number, value in _fields(content) if number == 1):
                    shapes[str(tensor[1], 'utf-8')] = _shape(tensor.get(2, b'')), tensor.get(3)
            elif key and number == 2:
                tensor = dict(_fields(content))
                shape, dtype = shapes[name := str(tensor[1], 'utf-8')]
                if dtype == 1:
                    result[name] = _array(dict(_fields(tensor[3])).get(5, b''), '<f4', shape)
    return {name: result.get(name) for name in shapes}


def _read_v2(prefix):
    result, shards, number_of_shards = {}, {}, 1
    for key, value in _table(f'{prefix}.index'):
        fields = dict(_fields(value))
        if not key:  # the header
            number_of_shards = fields.get(1, 1)
        elif fields.get(1) not in DTYPES:
            result[key.decode()] = None
        else:
            shard = f'{prefix}.data-{fields.get(3, 0):05d}-of-{number_of_shards:05d}'
            shards[shard] = shards.get(shard) or _map(shard)
            data = _part(shards[shard], fields.get(4, 0), fields.get(5, 0))
            if masked_crc(data) != int.from_bytes(fields[6], 'little'):
                raise ValueError(f'the checksum of {key.decode()} does not fit')
            result[key.decode()] = _array(data, DTYPES[fields[1]], _shape(fields.get(2, b'')))
    return result


def prefix_of(path: str | Path) -> str | None:
    """What TensorFlow calls the checkpoint of which `path` is the prefix or one of the V2 files, else None."""
    prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', str(path))
    return prefix if os.path.isfile(f'{prefix}.index') else None


def read(path: str | Path) -> dict[str, np.ndarray | None]:
    """All tensors of the checkpoint `path`: the file of V1; of V2 the prefix or one of its files.

    Returns:
        Views of the mapped file; None for what is no number, and for what is no float32 in V1.

    Raises:
        InputError: the file cannot be read; of V2 all checksums are compared.
    """
    prefix = prefix_of(path)
    with reading(path, REMEDY, also=(DecodeError, TypeError, OverflowError)):
        return _read_v2(prefix) if prefix else _read_v1(path)
