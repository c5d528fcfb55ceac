"""Run by test_fuzz.py: python tests/fuzz.py KIND SEED COUNT [FIRST] in an empty directory.

Damages a sound file in COUNT ways, which depend on SEED and the number of the case alone, and gives each to the reader;
the first cases of some kinds are files made by hand.
The file `case` holds the number of the case under way, so that it is known when this process is killed: by a signal of
its own if a case takes more than 20 s. Every line on stdout is a fault. For one case: ... KIND SEED 1 FIRST.
"""

import json
import os
import random
import signal
import struct
import sys
import traceback
from pathlib import Path

import numpy as np
import yaml

from src.cluster import rank_table
from src.data.records import open_records
from src.data.tfrecord import framed, write_shard
from src.errors import InputError
from src.options import DEFAULT_PATH, load_settings
from tests.cluster.launching import table, template_2

SECONDS, MEMORY, MESSAGE = 20, 64 << 20, 500


# Kinds: the name of the file, the names of its sound variants, what reads it, and files (bytes) made by hand.


def _checkpoint_of(dims, kind, content):
    """A checkpoint of one tensor, whose content (bytes) need not be what its shape and type ask for."""
    from mindspore.train.checkpoint_pb2 import Checkpoint

    message = Checkpoint()
    value = message.value.add(tag='a')
    value.tensor.dims.extend(dims)
    value.tensor.tensor_type, value.tensor.tensor_content = kind, content
    return message.SerializeToString()


def _checkpoints():
    import mindspore as ms

    from src.weights import checkpoint

    values = {
        'conv.weight': np.arange(60, dtype=np.float32).reshape(3, 5, 2, 2),
        'bn.gamma': np.ones(3, np.float32),
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
    # 100 GB in 1 KB, and contents beside the shape: MindSpore copies all of the content into the memory of the shape.
    crafted = [
        _checkpoint_of(dims, kind, bytes(1000))
        for dims in (
            [25 << 30],
            [1 << 15, 1 << 15, 25],
            [1 << 30],
            [1 << 62],
            [1 << 32, 1 << 32],
            [2],
            [0],
            [],
            [-1],
            [-250],
            [0, 250],
            [-25, -10],
        )
        for kind in ('Float32', 'str', 'Int8', 'Complex', '')
    ]
    return 'given.ckpt', ['own.ckpt', 'other.ckpt'], lambda: checkpoint.load('given.ckpt'), crafted


def _safetensors():
    from src.weights.torch_file import read_safetensors, write_safetensors

    write_safetensors('one.safetensors', {'a.weight': np.ones((4, 3), np.float32), 'b': np.ones(9, np.float32)})
    write_safetensors('two.safetensors', {'c': np.ones((2, 2, 2), np.float32)})
    return (
        'given.safetensors',
        ['one.safetensors', 'two.safetensors'],
        lambda: read_safetensors('given.safetensors'),
        [
            struct.pack('<Q', len(header)) + header + bytes(1000)
            for header in (
                json.dumps({'a': {'dtype': kind, 'shape': shape, 'data_offsets': offsets}}).encode()
                for kind in ('F32', 'I8', 'X')
                for shape in ([25 << 30], [1 << 62, 4], [250], [-250], [], [0])
                for offsets in ([0, 1000], [0, 100 << 30], [1000, 0], [-4, 0], [0, 0])
            )
        ],
    )


def _tensorflow():
    """The table of a TensorFlow checkpoint; its data stay what they are."""
    from src.weights import tf_file
    from tests.weights import tensorflow

    tensorflow.write('one', {'a': np.ones((2, 3), np.float32), 'b/c': np.ones(4, np.float32)})
    tensorflow.write('two', {f'layer/{i}/weights': np.ones((1, 1, i, 2), np.float32) for i in range(1, 30)})
    os.link('two.data-00000-of-00001', 'given.data-00000-of-00001')
    return 'given.index', ['two.index', 'one.index'], lambda: tf_file.read('given')


def _configs():
    Path('one.yaml').write_text(DEFAULT_PATH.read_text())
    Path('two.yaml').write_text(
        yaml.safe_dump(
            {
                'lr': 0.1,
                'block_counts': [1, 1, 1],
                'use_nesterov': True,
                'data_dir': '/a b/c',
                'freeze': ['conv2d_1a_3x3'],
                'T_max': 9,
            }
        )
    )
    return 'given.yaml', ['one.yaml', 'two.yaml'], lambda: load_settings(['--config_path', 'given.yaml'])


def _rank_tables():
    for name, make in (('new', table), ('old', template_2)):
        Path(f'{name}.json').write_text(make(2, 2))

    def read():
        rank_table.read('given.json')

    return 'given.json', ['new.json', 'old.json'], read


def _shards():
    write_shard('one', [(b'\xff\xd8' + bytes(range(k, 250)), k, f'image {k}.JPEG') for k in range(1, 5)])
    write_shard('two', [(b'\x89PNG' + bytes(50), 1000, '')])

    def read():
        records = open_records('records', 'train')
        for i in range(len(records)):
            assert len(records.read(i)) == records.size(i) and records.where(i) and -(2**63) <= records.label[i] < 2**63

    return 'records/train-00000-of-00001', ['one', 'two'], read


KINDS = {
    'checkpoint': _checkpoints,
    'safetensors': _safetensors,
    'tensorflow': _tensorflow,
    'config': _configs,
    'rank_table': _rank_tables,
    'shard': _shards,
}


# Damage.

HOSTILE = [
    b'9' * 400,
    b'-1',
    b'1e999',
    b'nan',
    b'[' * 3000,
    b'{"a":' * 3000,
    b'- ' * 2000,
    b'? ' * 2000,
    b'k' * 10000,
    b'k' * 5000 + b': 1\n',
    b'\xff\xfe\x00',
    b'\xed\xa0\x80',
    b'\x00',
    b'\n',
    b'\r',
    b'\x1b[2J',
    b'&a [*a]',
    b'null',
    b'!!python/object/apply:os.abort []',
    b'\\ud800',
    b'"',
    b"'",
    b'#',
    b': ',
    b'%',
    b'\xef\xbb\xbf',
    b'{}',
    b'[]',
]
LENGTHS = [
    struct.pack('<I', 0xFFFFFFFF),
    struct.pack('<Q', 100 << 30),
    struct.pack('<Q', 2**64 - 1),
    struct.pack('<I', 2**31),
    b'\xff' * 9 + b'\x01',
    b'\x80' * 12,
    b'\x80\x80\x80\x80\x90\x03',
]


def _part(chance, data, most=64):
    start = chance.randrange(len(data) + 1)
    return start, min(len(data), start + chance.randrange(1, most))


def _flip(chance, data, other):
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _cut(chance, data, other):
    return data[: chance.choice([0, 1, len(data) - 1, chance.randrange(len(data) + 1)])]


def _remove(chance, data, other):
    start, stop = _part(chance, data)
    return data[:start] + data[stop:]


def _insert(chance, data, other):
    start = chance.randrange(len(data) + 1)
    return data[:start] + chance.choice([chance.randbytes(chance.randrange(1, 64)), *HOSTILE]) + data[start:]


def _repeat(chance, data, other):
    start, stop = _part(chance, data, len(data) + 2)
    return data[:stop] + data[start:stop] * chance.choice([1, 1, 3, 20]) + data[stop:]


def _length(chance, data, other):
    start, value = chance.randrange(len(data) + 1), chance.choice(LENGTHS)
    return data[:start] + value + data[start + chance.choice([0, 1, len(value)]) :]


def _number(chance, data, other):
    """Another number in a text, or in what looks like one."""
    places = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    if not places:
        return _insert(chance, data, other)
    start = chance.choice(places)
    return data[:start] + chance.choice(HOSTILE[:6] + [b'0', b'-0.5', b'1e308', str(2**63).encode()]) + data[start + 1 :]


def _splice(chance, data, other):
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


DAMAGE = [_flip, _flip, _cut, _remove, _insert, _insert, _repeat, _length, _length, _number, _splice]


def _damaged(chance, data, other):
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        data = chance.choice(DAMAGE)(chance, data, other)
    return data


def _damaged_shard(chance, data, other):
    """In every second case the damage is inside the records, with checksums that fit."""
    if chance.random() < 0.5:
        return _damaged(chance, data, other)
    records, out = [], b''
    while data:
        (size,) = struct.unpack_from('<Q', data)
        records, data = [*records, data[12 : 12 + size]], data[16 + size :]
    for record in records:
        record = _damaged(chance, record, chance.choice(records)) if chance.random() < 0.4 else record
        out += framed(record)
    return out


# What is asked of the reader.


def check_message(message):
    assert '\n' not in message and 10 < len(message) < MESSAGE, f'not one clear line: {message[:MESSAGE]!r}'


def _memory(name):
    return int(Path('/proc/self/status').read_text().split(f'{name}:')[1].split()[0]) << 10


def case(read, size):
    """Fault (str) of the reader, or None."""
    Path('/proc/self/clear_refs').write_text('5')  # the highest memory counts from here
    resident, virtual = _memory('VmRSS'), _memory('VmPeak')
    try:
        read()
    except InputError as error:
        check_message(str(error))
    for name, before, most in (('VmHWM', resident, MEMORY), ('VmPeak', virtual, 1 << 30)):  # threads reserve some
        grown = _memory(name) - before
        assert grown <= 2 * size + most, f'{name} grew by {grown >> 20} MiB for a file of {size} bytes'


def main(kind, seed, count, first=0):
    sys.setrecursionlimit(10000)  # as importing MindSpore does
    file, sources, read, *crafted = KINDS[kind]()
    crafted = crafted[0] if crafted else []
    sources = [Path(name).read_bytes() for name in sources]
    Path(file).parent.mkdir(exist_ok=True)
    faults = 0
    for data in sources:  # undamaged ones are read, which also loads what is loaded at first use
        Path(file).write_bytes(data)
        read()
    for number in range(first, first + count):
        chance = random.Random(f'{kind} {seed} {number}')
        data, other = chance.sample(sources, 2)
        data = (
            crafted[number]
            if number < len(crafted)
            else (_damaged_shard if kind == 'shard' else _damaged)(chance, data, other)
        )
        Path(file).unlink()  # MindSpore and mmap must not see a file that changes
        Path(file).write_bytes(data)
        Path('case').write_text(str(number))
        signal.alarm(SECONDS)  # nobody handles it: it ends the process also where C++ hangs
        try:
            case(read, len(data))
        except BaseException as error:
            faults += 1
            at = traceback.extract_tb(error.__traceback__)[-1]
            print(
                f'{kind} {seed} case {number}: {type(error).__name__} at {os.path.basename(at.filename)}:{at.lineno}: '
                f'{error!s:.600}',
                flush=True,
            )
        signal.alarm(0)
    sys.exit(1 if faults else 0)


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:]))
