"""TensorFlow's checkpoints, read by our own code: only TensorFlow does it, and nobody should have to install it.

Both formats keep a table of sorted keys in LevelDB's layout (https://github.com/google/leveldb/blob/main/doc/table_format.md)
with protocol buffers as values. V1, a single file, has the tensors themselves in it (saved_tensor_slice.proto); V2
(tensor_bundle.proto) has their places in `<prefix>.data-?????-of-?????` in the table `<prefix>.index`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from src.data.tfrecord import fields, masked_crc, read_varint
from src.errors import reading

MAGIC = bytes.fromhex('57fb808b247547db')
DTYPES = {1: '<f4', 2: '<f8', 3: '<i4', 9: '<i8', 19: '<f2'}  # DataType of types.proto
REMEDY = 'not a TensorFlow checkpoint, or a damaged one; copy it again, all files of the checkpoint must lie together'


def _shape(message):
    """(int, ...) of a TensorShapeProto."""
    return tuple(dict(fields(dim)).get(1, 0) for number, dim in fields(message) if number == 2)


def _varints(data, at, count):
    """([int], position after them) of the `count` varints at data[at]."""
    numbers = []
    for _ in range(count):
        number, at = read_varint(data, at, len(data))
        numbers.append(number)
    return numbers, at


def _block(table, start, size):
    """Yield (key, value) of a block; keys are shortened by what they share with the one before."""
    body, checksum = table[start : start + size + 1], table[start + size + 1 : start + size + 5]
    if len(body) <= size or masked_crc(body) != int.from_bytes(checksum, 'little') or body[size]:
        raise ValueError('checksum mismatch, or compressed, which TensorFlow does not do')
    key, at = b'', 0
    while at < size - 4 - 4 * int.from_bytes(body[size - 4 : size], 'little'):
        (shared, rest, length), at = _varints(body, at, 3)
        key = key[:shared] + bytes(body[at : at + rest])
        yield key, body[at + rest : (at := at + rest + length)]


def _table(path):
    """Yield (key, value) of the table in the file `path`."""
    table = memoryview(np.memmap(path, np.uint8, 'r'))
    if table[-8:] != MAGIC:
        raise ValueError('it is no table')
    (_, _, start, size), _ = _varints(table[-48:], 0, 4)  # of the two handles the second is the index
    for _, handle in _block(table, start, size):
        yield from _block(table, *_varints(handle, 0, 2)[0])


def _read_v1(path):
    (_, header), *slices = _table(path)
    tensors = [dict(fields(tensor)) for number, tensor in fields(dict(fields(header))[1]) if number == 1]
    shapes = {str(tensor[1], 'utf-8'): _shape(tensor.get(2, b'')) for tensor in tensors}
    result = dict.fromkeys(shapes)
    for _, value in slices:
        tensor = dict(fields(dict(fields(value))[2]))
        if floats := dict(fields(tensor[3])).get(5):
            name = str(tensor[1], 'utf-8')
            result[name] = np.frombuffer(floats, '<f4').reshape(shapes[name])
    return result


def _read_v2(prefix):
    result, shards, number_of_shards = {}, {}, 1
    for key, value in _table(f'{prefix}.index'):
        about = dict(fields(value))
        if not key:  # the header
            number_of_shards = about.get(1, 1)
        elif about.get(1) not in DTYPES:
            result[key.decode()] = None
        else:
            shard = f'{prefix}.data-{about.get(3, 0):05d}-of-{number_of_shards:05d}'
            shards[shard] = shards.get(shard) or memoryview(np.memmap(shard, np.uint8, 'r'))
            data = shards[shard][(start := about.get(4, 0)) : start + about.get(5, 0)]
            if masked_crc(data) != int.from_bytes(about[6], 'little'):
                raise ValueError(f'checksum mismatch of {key.decode()}')
            result[key.decode()] = np.frombuffer(data, DTYPES[about[1]]).reshape(_shape(about.get(2, b'')))
    return result


def prefix_of(path: str | Path) -> str | None:
    """What TensorFlow calls the checkpoint of which `path` is the prefix or one of the V2 files, else None."""
    prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', str(path))
    return prefix if os.path.isfile(f'{prefix}.index') else None


def read(path: str | Path) -> dict[str, np.ndarray | None]:
    """{name: view of the mapped file} of the checkpoint `path`: the file of V1; of V2 the prefix or one of its files. None
    for what is no number, and for what is no float32 in V1. InputError if it cannot be read; V2 has checksums of all."""
    prefix = prefix_of(path)
    with reading(path, REMEDY, also=(TypeError, OverflowError, AttributeError)):
        return _read_v2(prefix) if prefix else _read_v1(path)
