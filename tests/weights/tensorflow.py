"""TensorFlow's checkpoints for the tests: TF-slim's names for ours, and V2 files with one table and one shard."""

import struct

import numpy as np

from src.data.tfrecord import masked_crc
from src.weights.names import tf_slim_name
from src.weights.tf_file import MAGIC


def to_tf_slim(parameters):
    """Our parameters by TF-slim's names, kernels HWIO, dense layers IO; gammas of one, which it does not have, left out."""
    return {
        tf_slim_name(name): value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        for name, value in parameters.items()
        if not (name.endswith('.bn.gamma') and (value == 1).all())
    }


def _varint(value):
    return (bytes([value & 127 | 128]) + _varint(value >> 7)) if value > 127 else bytes([value])


def _field(number, value):
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def write(prefix, tensors):
    """Write {name: value} as float32 to the checkpoint `prefix`."""
    data, entries = bytearray(), {b'': _field(1, 1)}
    for name in sorted(tensors, key=str.encode):
        value = np.asarray(tensors[name], '<f4')
        content, shape = value.tobytes(), b''.join(_field(2, _field(1, size)) for size in value.shape)
        crc = b'\x35' + struct.pack('<I', masked_crc(content))
        entries[name.encode()] = _field(1, 1) + _field(2, shape) + _field(4, len(data)) + _field(5, len(content)) + crc
        data += content
    blocks, handles = b'', []
    for _ in range(3):  # the entries, nothing, the index
        block = b''.join(b'\0' + _varint(len(key)) + _varint(len(value)) + key + value for key, value in entries.items())
        block += struct.pack('<IIB', 0, 1, 0)  # one restart, at 0; not compressed
        handles.append(_varint(len(blocks)) + _varint(len(block) - 1))
        blocks += block + struct.pack('<I', masked_crc(block))
        entries = {b'z': handles[0]} if len(handles) == 2 else {}
    footer = handles[1] + handles[2]
    with open(f'{prefix}.index', 'wb') as index, open(f'{prefix}.data-00000-of-00001', 'wb') as shard:
        index.write(blocks + footer + bytes(40 - len(footer)) + MAGIC)
        shard.write(data)
