"""TensorFlow's checkpoints for the tests: TF-slim's names for ours, and V2 files with one table and one shard."""

import struct

import numpy as np

from src.data.tfrecord import encode_field, encode_varint, masked_crc
from src.weights.names import tf_slim_name
from src.weights.tf_file import MAGIC


def to_tf_slim(parameters):
    """Our parameters by TF-slim's names, kernels HWIO, dense layers IO; gammas of one, which it does not have, left out."""
    return {
        tf_slim_name(name): value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        for name, value in parameters.items()
        if not (name.endswith('.bn.gamma') and (value == 1).all())
    }


def write(prefix, tensors):
    """Write {name: value} as float32 to the checkpoint `prefix`."""
    data, entries = bytearray(), {b'': encode_field(1, 1)}
    for name in sorted(tensors, key=str.encode):
        value = np.asarray(tensors[name], '<f4')
        content, shape = value.tobytes(), b''.join(encode_field(2, encode_field(1, size)) for size in value.shape)
        crc = b'\x35' + struct.pack('<I', masked_crc(content))
        entries[name.encode()] = (
            encode_field(1, 1) + encode_field(2, shape) + encode_field(4, len(data)) + encode_field(5, len(content)) + crc
        )
        data += content
    blocks, handles = b'', []
    for _ in range(3):  # the entries, nothing, the index
        block = b''.join(
            b'\0' + encode_varint(len(key)) + encode_varint(len(value)) + key + value for key, value in entries.items()
        )
        block += struct.pack('<IIB', 0, 1, 0)  # one restart, at 0; not compressed
        handles.append(encode_varint(len(blocks)) + encode_varint(len(block) - 1))
        blocks += block + struct.pack('<I', masked_crc(block))
        entries = {b'z': handles[0]} if len(handles) == 2 else {}
    footer = handles[1] + handles[2]
    with open(f'{prefix}.index', 'wb') as index, open(f'{prefix}.data-00000-of-00001', 'wb') as shard:
        index.write(blocks + footer + bytes(40 - len(footer)) + MAGIC)
        shard.write(data)
