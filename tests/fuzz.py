"""Run by test_fuzz.py: python tests/fuzz.py KIND SEED COUNT [FIRST] in an empty directory.

Damages a sound file in COUNT ways, which depend on SEED and the number of the case alone, and gives each to the reader;
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

from src.cluster import rank_table
from src.data.records import open_records
from src.data.tfrecord import framed, write_shard
from src.errors import InputError
from src.option_kinds import DEFAULT_PATH
from src.options import load_settings
from tests.cluster.launching import table, template_2

SECONDS, MEMORY, MESSAGE = 20, 64 << 20, 500


# Kinds: the name of the file, the names of its sound variants, and what reads it.


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


def _configs():
    Path('one.yaml').write_text(DEFAULT_PATH.read_text())
    Path('two.yaml').write_text('lr: 0.1\nblock_counts: [1, 1, 1]\nuse_nesterov: true\ndata_dir: /a b/c\nT_max: 9\n')
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


# Damage: a part of the file is replaced by something, which may be nothing, of another length or from another file.

TEXTS = (b'-1', b'1e999', b'nan', b'null', b'\n', b'\x1b[2J', b'&a [*a]', b'!!python/object/apply:os.abort []', b'"', b': ')
LONG = (b'9' * 400, b'[' * 3000, b'{"a":' * 3000, b'- ' * 2000, b'k' * 10000, b'\xff\xfe\x00', b'\xed\xa0\x80')
LENGTHS = (struct.pack('<I', 2**32 - 1), struct.pack('<Q', 100 << 30), struct.pack('<Q', 2**64 - 1), b'\xff' * 9 + b'\x01')
HOSTILE = (*TEXTS, *LONG, *LENGTHS, b'\x80\x80\x80\x80\x90\x03')


def _damaged(chance, data, other):
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        start = chance.randrange(len(data) + 1)
        stop = min(len(data), start + chance.choice([0, 1, 4, 8, chance.randrange(1, 64), len(data)]))
        part, place = data[start:stop], chance.randrange(len(other) + 1)
        flipped = bytes([data[start] ^ 1 << chance.randrange(8)]) + part[1:] if part else b''
        new = [b'', flipped, flipped, part * chance.choice([2, 20]), other[place:], chance.randbytes(len(part) or 4)]
        data = data[:start] + chance.choice([*new, chance.choice(HOSTILE), chance.choice(HOSTILE)]) + data[stop:]
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


def _memory(name):
    return int(Path('/proc/self/status').read_text().split(f'{name}:')[1].split()[0]) << 10


def case(read, size):
    """Fault (str) of the reader, or None."""
    Path('/proc/self/clear_refs').write_text('5')  # the highest memory counts from here
    resident, virtual = _memory('VmRSS'), _memory('VmPeak')
    try:
        read()
    except InputError as error:
        message = str(error)
        assert '\n' not in message and 10 < len(message) < MESSAGE, f'not one clear line: {message[:MESSAGE]!r}'
    for name, before, most in (('VmHWM', resident, MEMORY), ('VmPeak', virtual, 1 << 30)):  # threads reserve some
        grown = _memory(name) - before
        assert grown <= 2 * size + most, f'{name} grew by {grown >> 20} MiB for a file of {size} bytes'


def main(kind, seed, count, first=0):
    sys.setrecursionlimit(10000)  # as importing MindSpore does
    file, sources, read = KINDS[kind]()
    sources = [Path(name).read_bytes() for name in sources]
    Path(file).parent.mkdir(exist_ok=True)
    faults = 0
    for data in sources:  # undamaged ones are read, which also loads what is loaded at first use
        Path(file).write_bytes(data)
        read()
    for number in range(first, first + count):
        chance = random.Random(f'{kind} {seed} {number}')
        data, other = chance.sample(sources, 2)
        data = (_damaged_shard if kind == 'shard' else _damaged)(chance, data, other)
        Path(file).unlink()  # MindSpore and mmap must not see a file that changes
        Path(file).write_bytes(data)
        Path('case').write_text(str(number))
        signal.alarm(SECONDS)  # nobody handles it: it ends the process also where C++ hangs
        try:
            case(read, len(data))
        except BaseException as error:
            faults += 1
            at = traceback.extract_tb(error.__traceback__)[-1]
            print(f'{kind} {seed} case {number}: {error!r:.600} at {at.filename}:{at.lineno}', flush=True)
        signal.alarm(0)
    sys.exit(1 if faults else 0)


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:]))
