"""TensorFlow's checkpoints, read and written by our own code: no other library than TensorFlow does it, and
nobody should have to install that for a file. Both formats are read, the newer one is written.

Both keep a table of sorted keys in the layout of LevelDB (https://github.com/google/leveldb/blob/main/doc/table_format.md)
with protocol buffers as values. V1, a single file, has the tensors themselves in it (saved_tensor_slice.proto); V2
(tensor_bundle.proto) has their places in `<prefix>.data-?????-of-?????` in the table `<prefix>.index`.
"""

import math
import mmap
import os
import re
import struct

import numpy as np

from src.data.protobuf import encode_field, encode_varint, read_values, read_varint
from src.data.tfrecord import masked_crc
from src.errors import InputError
from src.files import replacing

MAGIC = bytes.fromhex('57fb808b247547db')
DTYPES = {1: '<f4', 2: '<f8', 3: '<i4', 9: '<i8', 19: '<f2'}  # DataType of types.proto
BLOCK_BYTES = 4096


def _part(data, at, size):
    if at + size > len(data):
        raise ValueError('it ends too early')
    return data[at : at + size]


def _shape(message):
    """(int, ...) of a TensorShapeProto."""
    return tuple(dict(read_values(dim)).get(1, 0) for number, dim in read_values(message) if number == 2)


def _block(table, at, size):
    """Yield (key, value) of a block; keys are shortened by what they share with the one before."""
    body = _part(table, at, size + 5)
    if masked_crc(body[: size + 1]) != struct.unpack('<I', body[size + 1 :])[0]:
        raise ValueError('a checksum does not fit')
    if body[size]:
        raise ValueError('it is compressed, which TensorFlow does not do')
    end = size - 4 - 4 * struct.unpack('<I', _part(body, size - 4, 4))[0]
    key, at = b'', 0
    while at < end:
        shared, at = read_varint(body, at, end)
        rest, at = read_varint(body, at, end)
        length, at = read_varint(body, at, end)
        key = key[:shared] + bytes(_part(body, at, rest))
        yield key, _part(body, at + rest, length)
        at += rest + length


def _table(table):
    footer, at = table[-48:], 0
    for _ in range(2):  # of the two handles the second is the index
        start, at = read_varint(footer, at, 48)
        size, at = read_varint(footer, at, 48)
    for _, handle in _block(table, start, size):
        start, at = read_varint(handle, 0, len(handle))
        yield from _block(table, start, read_varint(handle, at, len(handle))[0])


def _map(path):
    with open(path, 'rb') as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _array(data, dtype, shape):
    if math.prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise ValueError(f'a tensor of the shape {shape} has {len(data)} bytes')
    return np.frombuffer(data, dtype).reshape(shape)


def _read_v1(table):
    shapes, result = {}, {}
    for key, value in _table(table):
        for number, content in read_values(value):
            fields = list(read_values(content))
            if not key and number == 1:  # what is in the file
                for tensor in (list(read_values(value)) for number, value in fields if number == 1):
                    name = str(dict(tensor)[1], 'utf-8')
                    if sum(number == 4 for number, _ in tensor) > 1:
                        raise ValueError(f'{name} is saved in parts (a partitioned variable)')
                    shapes[name] = _shape(dict(tensor).get(2, b'')), dict(tensor).get(3)
            elif key and number == 2:
                slice_ = dict(fields)
                name = str(slice_[1], 'utf-8')
                shape, dtype = shapes[name]
                values = dict(read_values(slice_[3]))
                if dtype == 1:
                    result[name] = _array(values.get(5, b''), '<f4', shape)
                elif dtype in (3, 9):  # int_val, int64_val: packed varints
                    packed, numbers, at = values.get(7 if dtype == 3 else 10, b''), [], 0
                    while at < len(packed):
                        found, at = read_varint(packed, at, len(packed))
                        numbers.append(found)
                    result[name] = _array(np.array(numbers, np.uint64).tobytes(), '<i8', shape)
    return {name: result.get(name) for name in shapes}


def _read_v2(prefix, table):
    result, shards, number_of_shards = {}, {}, 1
    for key, value in _table(table):
        fields = dict(read_values(value))
        if not key:  # the header
            number_of_shards = fields.get(1, 1)
            if fields.get(2):
                raise ValueError('it is big-endian')
            continue
        name, shard = key.decode(), fields.get(3, 0)
        if 7 in fields:
            raise ValueError(f'{name} is saved in parts (a partitioned variable)')
        dtype = DTYPES.get(fields.get(1))
        if not dtype:
            result[name] = None
            continue
        if shard not in shards:
            shards[shard] = _map(f'{prefix}.data-{shard:05d}-of-{number_of_shards:05d}')
        data = _part(shards[shard], fields.get(4, 0), fields.get(5, 0))
        if masked_crc(data) != fields.get(6):
            raise ValueError(f'the checksum of {name} does not fit')
        result[name] = _array(data, dtype, _shape(fields.get(2, b'')))
    return result


def prefix_of(path):
    """What TensorFlow calls the checkpoint of which `path` is the prefix or one of the V2 files, else None."""
    path = str(path)
    prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', path)
    return prefix if os.path.isfile(f'{prefix}.index') else None


def read(path):
    """All tensors of the checkpoint `path`: the file of V1; of V2 the prefix or one of its files.

    Returns:
        dict[str, ndarray | None]: views of the mapped file; None for what is no number.

    Raises:
        InputError: the file cannot be read; of V2 all checksums are compared.
    """
    prefix = prefix_of(path)
    try:
        if prefix is None:
            return _read_v1(_map(path))
        table = _map(f'{prefix}.index')
        if table[-8:] != MAGIC:
            raise ValueError(f'{prefix}.index is no table')
        return _read_v2(prefix, table)
    except OSError as error:
        raise InputError(
            f'{error.filename or path}: cannot be read ({error.strerror}); all files of the checkpoint must lie together'
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError) as error:
        raise InputError(
            f'{path}: not a TensorFlow checkpoint, or a damaged one ({error!s:.150}); use another one or copy it again'
        ) from None


def write(prefix, tensors):
    """Write float32 ndarrays ({name: value}) as the V2 checkpoint `prefix`, the index last. OSError if it cannot."""
    entries, offset = {b'': encode_field(1, 1) + encode_field(3, encode_field(1, 1))}, 0  # one shard; written by version 1
    with replacing(f'{prefix}.index') as index_path, replacing(f'{prefix}.data-00000-of-00001') as data_path:
        with open(data_path, 'wb') as data:
            for name in sorted(tensors, key=str.encode):
                value = np.asarray(tensors[name], '<f4')
                shape = b''.join(encode_field(2, encode_field(1, size)) for size in value.shape)
                entries[name.encode()] = (
                    encode_field(1, 1)
                    + encode_field(2, shape)
                    + encode_field(4, offset)
                    + encode_field(5, value.nbytes)
                    + b'\x35'
                    + struct.pack('<I', masked_crc(value.tobytes()))
                )
                offset += data.write(value.tobytes())
        with open(index_path, 'wb') as table:

            def add(block):
                start, block = table.tell(), block + struct.pack('<IIB', 0, 1, 0)  # one restart, at 0; not compressed
                table.write(block + struct.pack('<I', masked_crc(block)))
                return encode_varint(start) + encode_varint(len(block) - 1)

            index = block = b''
            for i, (key, value) in enumerate(entries.items(), 1):
                block += b'\0' + encode_varint(len(key)) + encode_varint(len(value)) + key + value
                if len(block) > BLOCK_BYTES or i == len(entries):
                    handle, block = add(block), b''
                    index += b'\0' + encode_varint(len(key)) + encode_varint(len(handle)) + key + handle
            handles = add(b'') + add(index)
            table.write(handles + bytes(40 - len(handles)) + MAGIC)
