"""Files from strangers: each is read or ends in one clear error, in time and in memory, and none runs code.

python -m tests.test_fuzz KIND SEED COUNT [FIRST], in an empty directory, damages a sound file in COUNT ways, which depend on
SEED and the number of the case alone, and gives each to the reader. Every line on stdout is a fault. The file `case` holds
the number of the case under way, for when a fault in C++ ends the process, or a signal of its own after SECONDS.
"""

import os
import random
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.data.records import open_records
from src.data.tfrecord import framed, write_shard
from src.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SECONDS, MEMORY, MESSAGE = 20, 64 << 20, 700  # characters: a reason of 500, path and remedy
ODD = (b'9' * 400, b'[' * 3000, b'{"a":' * 3000, b'k' * 10000, b'\xff\xfe\x00', b'\xed\xa0\x80', b'-1', b'null', b'\n')
ODD += (struct.pack('<I', 2**32 - 1), struct.pack('<Q', 100 << 30), struct.pack('<Q', 2**64 - 1), b'\xff' * 9 + b'\x01')


@pytest.mark.compiles
@pytest.mark.parametrize('seed, count', [(1, 150), pytest.param(2, 3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', ['checkpoint', 'safetensors', 'tensorflow', 'tensorflow_v1', 'state_dict.pth', 'shard'])
def test_damaged_files(kind, seed, count, tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'tests.test_fuzz', kind, str(seed), str(count)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors='replace',
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'GLOG_v': '4'},
    )
    last = int((tmp_path / 'case').read_text())
    assert (done.returncode, done.stdout[-5000:], done.stderr[-1000:], last) == (0, '', '', count - 1)


def test_no_source_can_run_what_a_file_says():
    """No loader that runs code out of a file; the restricted unpickler finds no class but those it lists."""
    unsafe = r'^\s*(import|from) (dill|cloudpickle|joblib|marshal|shelve)\b|pickle\.loads?\(|'
    unsafe += r'yaml\.(unsafe_|full_)load\(|yaml\.load\((?!file, yaml\.BaseLoader)|'
    unsafe += r'allow_pickle=True|torch\.load\(|(?<![\w.])(eval|exec)\('
    sources = [*ROOT.glob('*.py'), *ROOT.glob('src/**/*.py'), *ROOT.glob('scripts/**/*.py')]
    found = {str(path): re.findall(unsafe, path.read_text(), re.M) for path in sources}
    assert len(sources) > 20 and not {path: hits for path, hits in found.items() if hits}


def sound_files(kind):
    """The name of the file, those of two sound variants, and what reads it."""
    values = {'conv': np.arange(60, dtype=np.float32).reshape(3, 5, 2, 2), 'half': np.ones(4, np.float16)}
    if kind == 'checkpoint':
        import mindspore as ms

        from src.weights import checkpoint

        checkpoint.write('own.ckpt', values, {'step': 7, 'epoch': 1, 'config': {'num_classes': 10}})
        # Other programs write no checksum, behind which damage would be hidden.
        tensors = [{'name': name, 'data': ms.Tensor(value)} for name, value in values.items()]
        ms.save_checkpoint(tensors, 'other.ckpt', append_dict={'learning_rate': 0.5, 'done': True, 'config': '{"a": 10}'})
        return 'given.ckpt', ['own.ckpt', 'other.ckpt'], lambda: checkpoint.load('given.ckpt')
    if kind == 'safetensors':
        from src.weights.torch_file import read_safetensors, write_safetensors

        write_safetensors('one', values)
        write_safetensors('two', {'c': np.ones((2, 2, 2), np.float32)})
        return 'given.safetensors', ['one', 'two'], lambda: read_safetensors('given.safetensors')
    if kind == 'tensorflow':  # the table of a checkpoint; its data, which are ones in both, stay what they are
        from src.weights import tf_file
        from tests.weights import tensorflow

        tensorflow.write('given', {f'layer/{i}/weights': np.ones((1, 1, i, 2), np.float32) for i in range(1, 30)})
        tensorflow.write('two', {'a': np.ones((2, 3), np.float32), 'b/c': np.ones(4, np.float32)})
        return 'given.index', ['given.index', 'two.index'], lambda: tf_file.read('given')
    if kind in ('tensorflow_v1', 'state_dict.pth'):  # what TensorFlow and PyTorch wrote
        from src.weights.read import read_tensors
        from tests.reference import DATA

        return 'given', [DATA / kind, DATA / kind], lambda: read_tensors('given')

    def read():
        records = open_records('records', 'train')
        for i in range(len(records)):
            assert len(records.read(i)) == records.size(i) and records.name(i) and -(2**63) <= records.label[i] < 2**63

    Path('records').mkdir()
    write_shard('one', [(b'\xff\xd8' + bytes(range(k, 250)), k, f'image {k}.JPEG') for k in range(1, 5)])
    write_shard('two', [(b'\x89PNG' + bytes(50), 1000, '')])
    return 'records/train-00000-of-00001', ['one', 'two'], read


def damaged(chance, data, other):
    """A part is replaced by something, which may be nothing, of another length or from the file `other`."""
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        start = chance.randrange(len(data) + 1)
        stop = min(len(data), start + chance.choice([0, 1, 4, 8, chance.randrange(1, 64), len(data)]))
        part, place = data[start:stop], chance.randrange(len(other) + 1)
        flipped = bytes([data[start] ^ 1 << chance.randrange(8)]) + part[1:] if part else b''
        new = [b'', flipped, flipped, part * chance.choice([2, 20]), other[place:], chance.randbytes(len(part) or 4)]
        data = data[:start] + chance.choice([*new, chance.choice(ODD), chance.choice(ODD)]) + data[stop:]
    return data


def memory(name):
    return int(Path('/proc/self/status').read_text().split(f'{name}:')[1].split()[0]) << 10


def check(read, size):
    """AssertionError if the reader takes much memory, or does not end in one clear line."""
    Path('/proc/self/clear_refs').write_text('5')  # the highest memory counts from here
    before = memory('VmRSS')
    try:
        read()
    except InputError as error:
        message = str(error)
        assert '\n' not in message and 10 < len(message) < MESSAGE, f'not one clear line: {message[:MESSAGE]!r}'
    grown = memory('VmHWM') - before
    assert grown <= 2 * size + MEMORY, f'memory grew by {grown >> 20} MiB for a file of {size} bytes'


def main(kind, seed, count, first=0):
    sys.setrecursionlimit(10000)  # as importing MindSpore does
    path, sources, read = sound_files(kind)
    path, sources = Path(path), [Path(name).read_bytes() for name in sources]
    for data in sources:  # undamaged ones are read, which also loads what is loaded at first use
        path.write_bytes(data)
        read()
    for number in range(first, first + count):
        chance = random.Random(f'{kind} {seed} {number}')
        data, other = chance.sample(sources, 2)
        if kind == 'shard' and chance.random() < 0.5:  # damage inside a record, and checksums that fit
            size = int.from_bytes(data[:8], 'little')
            data = framed(damaged(chance, data[12 : 12 + size], other)) + data[16 + size :]
        else:
            data = damaged(chance, data, other)
        path.unlink()  # MindSpore and mmap must not see a file that changes
        path.write_bytes(data)
        Path('case').write_text(str(number))
        signal.alarm(SECONDS)  # nobody handles it: it ends the process also where C++ hangs
        try:
            check(read, len(data))
        except BaseException as error:
            print(f'{kind} {seed} case {number}: {error!r:.600}', flush=True)
        signal.alarm(0)


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:]))
