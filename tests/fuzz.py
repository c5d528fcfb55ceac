"""Run by test_fuzz.py: python tests/fuzz.py KIND SEED COUNT [FIRST] in an empty directory.

Damages a sound file in COUNT ways, which depend on SEED and the number of the case alone, and gives each to the reader.
The file `case` holds the number of the case under way, so that it is known when this process is killed: by a signal of
its own if a case takes more than 20 s. Every line on stdout is a fault. For one case: ... KIND SEED 1 FIRST.
"""

import os
import random
import signal
import struct
import sys
import traceback
from pathlib import Path

import numpy as np

from src.data.records import open_records
from src.data.tfrecord import framed, write_shard
from src.errors import InputError

SECONDS, MEMORY, MESSAGE = 20, 64 << 20, 500
LONG = (b'9' * 400, b'[' * 3000, b'{"a":' * 3000, b'k' * 10000, b'\xff\xfe\x00', b'\xed\xa0\x80', b'-1', b'null', b'\n')
LENGTHS = (struct.pack('<I', 2**32 - 1), struct.pack('<Q', 100 << 30), struct.pack('<Q', 2**64 - 1), b'\xff' * 9 + b'\x01')


# Kinds: the name of the file, the names of its sound variants, and what reads it.


def _checkpoint():
    import mindspore as ms

    from src.weights import checkpoint

    values = {
        'conv.weight': np.arange(60, dtype=np.float32).reshape(3, 5, 2, 2),
        'half': np.ones(4, np.float16),
        'global_step': np.int32([7]),
        'scalar': np.float32(2),
    }
    checkpoint.write('own.ckpt', values, {'step': 7, 'epoch': 1, 'config': {'num_classes': 10, 'block_counts': [1, 1, 1]}})
    # Other programs write no checksum, behind which damage would be hidden.
    ms.save_checkpoint(
        [{'name': name, 'data': ms.Tensor(value)} for name, value in values.items()],
        'other.ckpt',
        append_dict={'learning_rate': 0.5, 'done': True, 'step': 3, 'config': '{"num_classes": 10}'},
    )
    return 'given.ckpt', ['own.ckpt', 'other.ckpt'], lambda: checkpoint.load('given.ckpt')


def _safetensors():
    from src.weights.torch_file import read_safetensors, write_safetensors

    write_safetensors('one.safetensors', {'a.weight': np.ones((4, 3), np.float32), 'b': np.ones(9, np.float32)})
    write_safetensors('two.safetensors', {'c': np.ones((2, 2, 2), np.float32)})
    return 'given.safetensors', ['one.safetensors', 'two.safetensors'], lambda: read_safetensors('given.safetensors')


def _tensorflow():
    """The table of a TensorFlow checkpoint; its data stay what they are."""
    from src.weights import tf_file
    from tests.weights import tensorflow

    tensorflow.write('one', {'a': np.ones((2, 3), np.float32), 'b/c': np.ones(4, np.float32)})
    tensorflow.write('two', {f'layer/{i}/weights': np.ones((1, 1, i, 2), np.float32) for i in range(1, 30)})
    os.link('two.data-00000-of-00001', 'given.data-00000-of-00001')
    return 'given.index', ['two.index', 'one.index'], lambda: tf_file.read('given')


def _shard():
    write_shard('one', [(b'\xff\xd8' + bytes(range(k, 250)), k, f'image {k}.JPEG') for k in range(1, 5)])
    write_shard('two', [(b'\x89PNG' + bytes(50), 1000, '')])

    def read():
        records = open_records('records', 'train')
        for i in range(len(records)):
            assert len(records.read(i)) == records.size(i) and records.name(i) and -(2**63) <= records.label[i] < 2**63

    return 'records/train-00000-of-00001', ['one', 'two'], read


KINDS = {'checkpoint': _checkpoint, 'safetensors': _safetensors, 'tensorflow': _tensorflow, 'shard': _shard}


def _damaged(chance, data, other):
    """A part is replaced by something, which may be nothing, of another length or from the file `other`."""
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        start = chance.randrange(len(data) + 1)
        stop = min(len(data), start + chance.choice([0, 1, 4, 8, chance.randrange(1, 64), len(data)]))
        part, place = data[start:stop], chance.randrange(len(other) + 1)
        flipped = bytes([data[start] ^ 1 << chance.randrange(8)]) + part[1:] if part else b''
        new = [b'', flipped, flipped, part * chance.choice([2, 20]), other[place:], chance.randbytes(len(part) or 4)]
        data = data[:start] + chance.choice([*new, chance.choice(LONG), chance.choice(LENGTHS)]) + data[stop:]
    return data


def _damaged_inside(chance, data):
    """A shard with damage inside its records, and checksums that fit."""
    out = b''
    while data:
        (size,) = struct.unpack_from('<Q', data)
        record, data = data[12 : 12 + size], data[16 + size :]
        out += framed(_damaged(chance, record, record) if chance.random() < 0.4 else record)
    return out


def _memory(name):
    return int(Path('/proc/self/status').read_text().split(f'{name}:')[1].split()[0]) << 10


def case(read, size):
    """AssertionError if the reader takes much memory, or does not end in one clear line."""
    Path('/proc/self/clear_refs').write_text('5')  # the highest memory counts from here
    before = _memory('VmRSS')
    try:
        read()
    except InputError as error:
        message = str(error)
        assert '\n' not in message and 10 < len(message) < MESSAGE, f'not one clear line: {message[:MESSAGE]!r}'
    grown = _memory('VmHWM') - before
    assert grown <= 2 * size + MEMORY, f'memory grew by {grown >> 20} MiB for a file of {size} bytes'


def main(kind, seed, count, first=0):
    sys.setrecursionlimit(10000)  # as importing MindSpore does
    file, sources, read = KINDS[kind]()
    sources = [Path(name).read_bytes() for name in sources]
    Path(file).parent.mkdir(exist_ok=True)
    for data in sources:  # undamaged ones are read, which also loads what is loaded at first use
        Path(file).write_bytes(data)
        read()
    for number in range(first, first + count):
        chance = random.Random(f'{kind} {seed} {number}')
        data, other = chance.sample(sources, 2)
        inside = kind == 'shard' and chance.random() < 0.5
        data = _damaged_inside(chance, data) if inside else _damaged(chance, data, other)
        Path(file).unlink()  # MindSpore and mmap must not see a file that changes
        Path(file).write_bytes(data)
        Path('case').write_text(str(number))
        signal.alarm(SECONDS)  # nobody handles it: it ends the process also where C++ hangs
        try:
            case(read, len(data))
        except BaseException as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            print(f'{kind} {seed} case {number}: {error!r:.600} at {at.filename}:{at.lineno}', flush=True)
        signal.alarm(0)


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:]))
