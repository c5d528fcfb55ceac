"""TFRecord framing, Example parsing, shard sets, and the demo data set."""

import io
import os
import pickle
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data import demo_images
from src.data.crc import crc32c, mask
from src.data.tfrecord import _field, find_shards, index_shards, write_shards
from src.errors import InputError


def framed(data):
    return b''.join(p + struct.pack('<I', mask(crc32c(p))) for p in (struct.pack('<Q', len(data)), data))


def feature(key, kind, values, swap=False):
    parts = [_field(1, key), _field(2, _field(kind, values))]
    return _field(1, b''.join(parts[::-1] if swap else parts))


def label_of(values, **kw):
    return feature(b'image/class/label', 3, values, **kw)


PICTURE = bytes(range(256)) * 3
IMAGE, SEVEN = feature(b'image/encoded', 1, _field(1, PICTURE)), label_of(_field(1, b'\x07'))
OTHERS = b''.join(
    feature(key, kind, _field(1, value))
    for key, kind, value in [
        (b'image/format', 1, b'JPEG'),
        (b'image/height', 3, b'\xf4\x03'),
        (b'image/bbox/xmin', 2, bytes(8)),
        (b'k' * 13, 1, b'x'),
    ]
)
GOOD = framed(_field(1, IMAGE + SEVEN))
MINUS_3 = b'\xfd' + b'\xff' * 8 + b'\x01'


def indexed(tmp_path, content):
    path = tmp_path / 'train-00000-of-00001'
    path.write_bytes(content)
    return index_shards([str(path)])


def message(call, *args, **kw):
    with pytest.raises(InputError) as caught:
        call(*args, **kw)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def bitwise_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_crc32c():
    known = {
        b'': 0,
        b'a': 0xC1D04330,
        b'123456789': 0xE3069283,
        bytes(32): 0x8A9136AA,
        b'\xff' * 32: 0x62A8AB43,
        bytes(range(32)): 0x46DD794E,
    }
    assert {data: crc32c(data) for data in known} == known
    data = np.random.default_rng(0).bytes(60000)
    sizes = [*range(40), 255, 256, 257, 5000, *range(22732, 22742), 40029, 60000]  # 5,685 words: 22,736
    assert all(crc32c(data[:n]) == bitwise_crc(data[:n]) for n in sizes)


@pytest.mark.parametrize('num_shards', [1, 3])
def test_round_trip(tmp_path, num_shards):
    rng = np.random.default_rng(1)
    examples = [
        (rng.bytes(n), label, f'{n}.jpg')
        for n, label in [(1, 0), (100, 1), (127, -1), (128, 1000), (20000, -(2**63)), (300, 2**63 - 1), (16384, 5)]
    ]
    paths = write_shards(str(tmp_path / 'new'), 'train', iter(examples), num_shards)
    assert paths == find_shards(tmp_path / 'new', 'train') and len(os.listdir(tmp_path / 'new')) == num_shards
    index = index_shards(paths)
    order = [e for n in range(num_shards) for e in examples[n::num_shards]]
    assert len(index) == 7 and index.label.tolist() == [e[1] for e in order]
    assert [index.read(i) for i in range(7)] == [e[0] for e in order]
    assert index.shard.dtype == 'i4' and index.offset.dtype == index.length.dtype == index.label.dtype == 'i8'
    last = sum(1 for s in index.shard if s == num_shards - 1) - 1
    assert index.where(6) == index.where(-1) == f'{paths[-1]}, record {last}'
    assert pickle.loads(pickle.dumps(index)).read(3) == index.read(3)
    for path in paths:  # every checksum of the file, against the plain definition
        data, pos = open(path, 'rb').read(), 0
        while pos < len(data):
            (size,) = struct.unpack_from('<Q', data, pos)
            for start, n in ((pos, 8), (pos + 12, size)):
                (stored,) = struct.unpack_from('<I', data, start + n)
                assert stored == mask(bitwise_crc(data[start : start + n]))
            pos += size + 16


def test_read_from_another_process(tmp_path):
    index = indexed(tmp_path, GOOD)
    index.read(0)
    pid = os.fork()
    if not pid:
        os._exit(index.read(0) != PICTURE)
    assert os.waitpid(pid, 0)[1] == 0


def test_shard_changed_after_indexing(tmp_path):
    index = indexed(tmp_path, GOOD * 2)
    os.truncate(index.paths[0], len(GOOD) + 100)
    assert '00001, record 1: ' in message(index.read, 1) and 'instead of 768' in message(index.read, 1)
    os.remove(index.paths[0])
    assert '00001, record 0: No such file' in message(index.read, 0)


@pytest.mark.parametrize(
    'example, label',
    [
        (_field(1, OTHERS + IMAGE + OTHERS + SEVEN + OTHERS), 7),
        (_field(1, SEVEN + OTHERS + IMAGE), 7),
        (_field(1, IMAGE) + _field(1, SEVEN), 7),  # protobuf merges a message that comes in pieces
        (
            _field(1, label_of(_field(1, b'\x07'), swap=True) + feature(b'image/encoded', 1, _field(1, PICTURE), swap=True)),
            7,
        ),
        (_field(1, IMAGE + label_of(b'\x08\x07')), 7),  # not packed
        (_field(1, IMAGE + label_of(_field(1, MINUS_3))), -3),
        (_field(1, IMAGE + label_of(b'\x08' + MINUS_3)), -3),
        (_field(1, IMAGE + label_of(_field(1, b'') + _field(1, b'\xe8\x07'))), 1000),
        (_field(1, IMAGE + label_of(_field(1, b'\x01')) + SEVEN), 7),  # the last of equal keys counts
        (
            _field(9, 5)
            + b'\x51'
            + bytes(8)  # unknown fields of every wire type
            + _field(1, b'\x3d' + bytes(4) + IMAGE + _field(300, b'??') + SEVEN),
            7,
        ),
    ],
)
def test_variants_of_examples(tmp_path, example, label):
    index = indexed(tmp_path, framed(example) + GOOD)
    assert index.label.tolist() == [label, 7] and index.read(0) == index.read(1) == PICTURE


def test_empty_picture_is_a_record(tmp_path):
    index = indexed(tmp_path, framed(_field(1, SEVEN + feature(b'image/encoded', 1, _field(1, b'')))) + GOOD)
    assert index.read(0) == b'' and index.read(1) == PICTURE and index.label.tolist() == [7, 7]


@pytest.mark.parametrize(
    'example, problem',
    [
        (b'', 'no feature image/encoded'),
        (_field(1, SEVEN), 'no feature image/encoded'),
        (_field(1, IMAGE + OTHERS), 'no feature image/class/label'),
        (_field(1, IMAGE + feature(b'image/class/label', 1, _field(1, b'7'))), 'label holds bytes values'),
        (_field(1, IMAGE + feature(b'image/class/label', 2, _field(1, bytes(4)))), 'label holds float values'),
        (_field(1, SEVEN + feature(b'image/encoded', 3, _field(1, b'7'))), 'encoded holds int64 values instead'),
        (_field(1, IMAGE + _field(1, _field(1, b'image/class/label'))), 'label holds no values instead of int64'),
        (_field(1, IMAGE + label_of(b'')), 'image/class/label is empty'),
        (_field(1, SEVEN + feature(b'image/encoded', 1, b'')), 'image/encoded is empty'),
        (_field(1, IMAGE + label_of(_field(1, b'\x07\x08'))), 'label holds several values'),
        (_field(1, IMAGE + label_of(b'\x08\x07' * 2)), 'label holds several values'),
        (_field(1, SEVEN + feature(b'image/encoded', 1, _field(1, b'a') * 2)), 'encoded holds several values'),
        (_field(1, IMAGE + label_of(_field(1, b'\xff' * 11))), 'broken varint'),
        (_field(1, IMAGE + label_of(_field(1, b'\x80'))), 'broken varint'),
        (b'\x0a\xff\xff\xff\xff\x7f' + IMAGE + SEVEN, 'a field runs past its end'),
        (_field(1, IMAGE + SEVEN)[:-1], 'a field runs past its end'),
        (_field(1, IMAGE + SEVEN) + b'\x0a', 'copy or make the shard again'),  # ends after a tag
        (b'\x0b' + IMAGE, 'wire type 3'),
    ],
)
def test_bad_examples(tmp_path, example, problem):
    text = message(indexed, tmp_path, GOOD + framed(example))
    assert f"{tmp_path}/train-00000-of-00001', record 1 at byte {len(GOOD)}: " in text and problem in text


@pytest.mark.parametrize(
    'change, record, problem',
    [
        (lambda b: b[:-1], 2, 'truncated'),
        (lambda b: b[:-5], 2, 'truncated'),
        (lambda b: b[: 2 * len(GOOD) + 11], 2, 'truncated: 11 bytes left'),
        (lambda b: b + b'\0', 3, 'truncated: 1 bytes left'),
        *[
            (
                (lambda b, k=k: b[: len(GOOD) + k] + bytes([b[len(GOOD) + k] ^ 16]) + b[len(GOOD) + k + 1 :]),
                1,
                'wrong checksum of the record length',
            )
            for k in range(12)
        ],
        (lambda b: b'\xff\xd8\xff\xe0 a picture is no shard', 0, 'no TFRecord file'),
        (lambda b: b[1:], 0, 'no TFRecord file'),
        (lambda b: b'', 0, 'no bytes'),
        (lambda b: framed(bytes(9))[:12] + bytes(5), 0, 'truncated: 9 bytes of data and 4'),
    ],
)
def test_damaged_framing(tmp_path, change, record, problem):
    text = message(indexed, tmp_path, change(GOOD * 3))
    byte = record * len(GOOD)
    assert f"train-00000-of-00001', record {record} at byte {byte}: " in text and problem in text


def test_random_damage_never_escapes(tmp_path):
    rng = np.random.default_rng(2)
    for _ in range(400):  # the framing is right, the Example is not
        data = bytearray(_field(1, OTHERS + SEVEN + feature(b'image/encoded', 1, _field(1, b'0123'))))
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        try:
            index = indexed(tmp_path, framed(bytes(data)))
            assert 0 <= index.length[0] <= len(data) and index.read(0) in bytes(data)
        except InputError as error:
            assert 'record 0 at byte 0' in str(error)


def test_unreadable_shard(tmp_path):
    assert 'No such file' in message(index_shards, [str(tmp_path / 'train-00000-of-00001')])
    assert 'Is a directory' in message(index_shards, [str(tmp_path)])


@pytest.mark.parametrize(
    'names, split, parts',
    [
        ([], 'train', ['is empty; give the directory']),
        (['train-00000-of-00001'], 'validation', ['no file validation-?????-of-?????', 'only train-0']),
        (list('abcdef'), 'train', ['only a, b, c, d and 2 more; give the directory']),
        (['flowers_train_00000-of-00001.tfrecord'], 'train', ['only flowers_train_00000-of-00001.tfrecord']),
        (['train-00000-of-00003', 'train-00002-of-00003'], 'train', ['lacks shard train-00001-of-00003;']),
        (['train-00002-of-00003'], 'train', ['lacks shard train-00000-of-00003 and 1 more']),
        (['train-00000-of-00001', 'train-00000-of-00002'], 'train', ['mixes', 'of-00001 and of-00002']),
        (['train-00000-of-00001', 'train-00001-of-00001'], 'train', ['shard number 00001 in a set of 1']),
        (['train-00000-of-00002', 'train-00001-of-00002:empty'], 'train', ["train-00001-of-00002' has no bytes"]),
    ],
)
def test_shard_sets(tmp_path, names, split, parts):
    for name in names:
        (tmp_path / name.removesuffix(':empty')).write_bytes(b'' if name.endswith(':empty') else b'x')
    text = message(find_shards, str(tmp_path), split)
    assert str(tmp_path) in text and all(part in text for part in parts), text


def test_data_dir(tmp_path):
    assert "data directory is ''" in message(find_shards, '', 'train')
    assert f"'{tmp_path}/no': No such file" in message(find_shards, str(tmp_path / 'no'), 'train')
    (tmp_path / 'file').write_bytes(b'x')
    assert f"'{tmp_path}/file': Not a directory" in message(find_shards, tmp_path / 'file', 'train')
    for n in (1, 0, 2):
        (tmp_path / f'train-{n:05d}-of-00003').write_bytes(b'x')
    assert find_shards(str(tmp_path), 'train') == [f'{tmp_path}/train-{n:05d}-of-00003' for n in range(3)]


def test_write_shards_leaves_nothing_half_done(tmp_path):
    for shards in (0, 2):
        assert f' train shard{"s" * (shards != 1)} for 1 picture; give 1 to 1' in message(
            write_shards, str(tmp_path), 'train', [(b'a', 1, 'a')], shards
        )
    with pytest.raises(AttributeError):
        write_shards(str(tmp_path), 'train', [(b'a', 1, 'a'), (b'a', 1, None)], 2)
    assert not os.listdir(tmp_path)


def tree(directory):
    return {name: (directory / name).read_bytes() for name in os.listdir(directory)}


def test_demo(tmp_path):
    settings = {'train_per_class': 2, 'validation_per_class': 1}
    a, b, c = (tmp_path / name for name in 'abc')
    for where, seed in ((a, 1), (b, 1), (c, 2)):
        assert demo_images.make(str(where), seed, **settings) == str(where)
    assert tree(a) == tree(b)
    assert all(tree(a)[n] != tree(c)[n] for n in tree(a) if n != 'labels.txt')
    assert (a / 'labels.txt').read_text().splitlines()[0] == '1:red striped disc'
    pictures = []
    for split, per_class in (('train', 2), ('validation', 1)):
        index = index_shards(find_shards(str(a), split))
        assert Counter(index.label.tolist()) == dict.fromkeys(range(1, 11), per_class)
        assert index.label.tolist() != sorted(index.label)
        pictures += [index.read(i) for i in range(len(index))]
    sizes = {Image.open(io.BytesIO(p)).size for p in pictures}
    assert len(set(pictures)) == 30 and len(sizes) > 20
    assert 120 <= min(map(min, sizes)) <= max(map(max, sizes)) <= 320
    classes = list(demo_images.CLASSES.values())
    assert len(set(classes)) == 10
    for cue in range(3):
        assert len({c[cue] for c in classes}) == 4  # so it tells at most 4 of 10 classes
        assert len({c[:cue] + c[cue + 1 :] for c in classes}) < 10  # and the other two do not tell all

    before = os.stat(a / 'train-00000-of-00002').st_mtime_ns
    demo_images.make(str(a), 1, **settings)
    assert os.stat(a / 'train-00000-of-00002').st_mtime_ns == before  # complete: kept
    os.remove(a / 'validation-00001-of-00002')
    demo_images.make(str(a), 1, **settings)
    assert tree(a) == tree(b)  # incomplete: made again
    demo_images.make(str(a), 2, num_shards=1, **settings)
    assert sorted(tree(a)) == ['demo.json', 'labels.txt', 'train-00000-of-00001', 'validation-00000-of-00001']


def test_demo_errors(tmp_path):
    for name, value in [('train_per_class', 0), ('validation_per_class', 0), ('num_shards', 0), ('seed', -1)]:
        assert f'{name} is {value}; ' in message(demo_images.make, str(tmp_path), **{name: value})
    (tmp_path / 'train-00000-of-01024').write_bytes(b"somebody's ImageNet")
    assert 'holds train-00000-of-01024, not made by the demo' in message(demo_images.make, str(tmp_path))
    assert os.listdir(tmp_path) == ['train-00000-of-01024']
    run = subprocess.run(
        [sys.executable, '-m', 'src.data.demo_images', str(tmp_path / 'train-00000-of-01024')],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert run.returncode == 2 and run.stderr.startswith('error: ') and run.stderr.count('\n') == 1


def test_light_imports():
    code = "import sys, src.data.demo_images; sys.exit(bool({'mindspore', 'tensorflow'} & set(sys.modules)))"
    root = str(Path(__file__).resolve().parents[2])
    assert subprocess.run([sys.executable, '-c', code], cwd=root).returncode == 0
