"""TFRecord framing and Example parsing."""

import os
import pickle
import struct

import numpy as np
import pytest

from src.data import tfrecord
from src.data.crc import masked_crc
from src.data.protobuf import encode_field
from src.data.shards import find_shards
from src.data.tfrecord import index_shards, write_shards
from src.errors import InputError
from tests.data.samples import jpeg, message
from tests.data.test_crc import bitwise_crc, mask


def framed(data):
    return b''.join(p + struct.pack('<I', masked_crc(p)) for p in (struct.pack('<Q', len(data)), data))


def feature(key, kind, values, swap=False):
    parts = [encode_field(1, key), encode_field(2, encode_field(kind, values))]
    return encode_field(1, b''.join(parts[::-1] if swap else parts))


def label_of(values, **kw):
    return feature(b'image/class/label', 3, values, **kw)


PIXELS = bytes(range(256)) * 3


IMAGE, SEVEN = feature(b'image/encoded', 1, encode_field(1, PIXELS)), label_of(encode_field(1, b'\x07'))


OTHERS = b''.join(
    feature(key, kind, encode_field(1, value))
    for key, kind, value in [
        (b'image/format', 1, b'JPEG'),
        (b'image/height', 3, b'\xf4\x03'),
        (b'image/bbox/xmin', 2, bytes(8)),
        (b'k' * 13, 1, b'x'),
    ]
)


GOOD = framed(encode_field(1, IMAGE + SEVEN))


MINUS_3 = b'\xfd' + b'\xff' * 8 + b'\x01'


def indexed(tmp_path, content):
    path = tmp_path / 'train-00000-of-00001'
    path.write_bytes(content)
    return index_shards([str(path)])


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
        os._exit(index.read(0) != PIXELS)
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
        (encode_field(1, OTHERS + IMAGE + OTHERS + SEVEN + OTHERS), 7),
        (encode_field(1, SEVEN + OTHERS + IMAGE), 7),
        (encode_field(1, IMAGE) + encode_field(1, SEVEN), 7),  # protobuf merges a message that comes in pieces
        (
            encode_field(
                1,
                label_of(encode_field(1, b'\x07'), swap=True)
                + feature(b'image/encoded', 1, encode_field(1, PIXELS), swap=True),
            ),
            7,
        ),
        (encode_field(1, IMAGE + label_of(b'\x08\x07')), 7),  # not packed
        (encode_field(1, IMAGE + label_of(encode_field(1, MINUS_3))), -3),
        (encode_field(1, IMAGE + label_of(b'\x08' + MINUS_3)), -3),
        (encode_field(1, IMAGE + label_of(encode_field(1, b'') + encode_field(1, b'\xe8\x07'))), 1000),
        (encode_field(1, IMAGE + label_of(encode_field(1, b'\x01')) + SEVEN), 7),  # the last of equal keys counts
        (
            encode_field(9, 5)
            + b'\x51'
            + bytes(8)  # unknown fields of every wire type
            + encode_field(1, b'\x3d' + bytes(4) + IMAGE + encode_field(300, b'??') + SEVEN),
            7,
        ),
    ],
)
def test_variants_of_examples(tmp_path, example, label):
    index = indexed(tmp_path, framed(example) + GOOD)
    assert index.label.tolist() == [label, 7] and index.read(0) == index.read(1) == PIXELS


def test_empty_image_is_a_record(tmp_path):
    index = indexed(tmp_path, framed(encode_field(1, SEVEN + feature(b'image/encoded', 1, encode_field(1, b'')))) + GOOD)
    assert index.read(0) == b'' and index.read(1) == PIXELS and index.label.tolist() == [7, 7]


@pytest.mark.parametrize(
    'example, problem',
    [
        (b'', 'no feature image/encoded'),
        (encode_field(1, SEVEN), 'no feature image/encoded'),
        (encode_field(1, IMAGE + OTHERS), 'no feature image/class/label'),
        (encode_field(1, IMAGE + feature(b'image/class/label', 1, encode_field(1, b'7'))), 'label holds bytes values'),
        (encode_field(1, IMAGE + feature(b'image/class/label', 2, encode_field(1, bytes(4)))), 'label holds float values'),
        (encode_field(1, SEVEN + feature(b'image/encoded', 3, encode_field(1, b'7'))), 'encoded holds int64 values instead'),
        (
            encode_field(1, IMAGE + encode_field(1, encode_field(1, b'image/class/label'))),
            'label holds no values instead of int64',
        ),
        (encode_field(1, IMAGE + label_of(b'')), 'image/class/label is empty'),
        (encode_field(1, SEVEN + feature(b'image/encoded', 1, b'')), 'image/encoded is empty'),
        (encode_field(1, IMAGE + label_of(encode_field(1, b'\x07\x08'))), 'label holds several values'),
        (encode_field(1, IMAGE + label_of(b'\x08\x07' * 2)), 'label holds several values'),
        (encode_field(1, SEVEN + feature(b'image/encoded', 1, encode_field(1, b'a') * 2)), 'encoded holds several values'),
        (encode_field(1, IMAGE + label_of(encode_field(1, b'\xff' * 11))), 'broken varint'),
        (encode_field(1, IMAGE + label_of(encode_field(1, b'\x80'))), 'broken varint'),
        (b'\x0a\xff\xff\xff\xff\x7f' + IMAGE + SEVEN, 'a field runs past its end'),
        (encode_field(1, IMAGE + SEVEN)[:-1], 'a field runs past its end'),
        (encode_field(1, IMAGE + SEVEN) + b'\x0a', 'copy or make the shard again'),  # ends after a tag
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
        (lambda b: b'\xff\xd8\xff\xe0 an image is no shard', 0, 'no TFRecord file'),
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
        data = bytearray(encode_field(1, OTHERS + SEVEN + feature(b'image/encoded', 1, encode_field(1, b'0123'))))
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


def test_write_shards_leaves_nothing_half_done(tmp_path):
    for shards in (0, 2):
        assert f' train shard{"s" * (shards != 1)} for 1 image; give 1 to 1' in message(
            write_shards, str(tmp_path), 'train', [(b'a', 1, 'a')], shards
        )
    with pytest.raises(AttributeError):
        write_shards(str(tmp_path), 'train', [(b'a', 1, 'a'), (b'a', 1, None)], 2)
    assert not os.listdir(tmp_path)


def test_images_have_the_names_of_their_files(tmp_path):
    """As a report shows them; without one, the name tells the place. Also when the shard is gone."""
    names = ['a.jpg', 'деревья é.png', 'b' * 300, 'a.jpg']
    examples = [(jpeg([k]), k, f'folder/{name}') for k, name in enumerate(names)]
    index = pickle.loads(pickle.dumps(index_shards(write_shards(tmp_path, 'train', examples, 2))))
    assert [index.name(i) for i in range(4)] == [names[i] for i in (0, 2, 1, 3)]
    assert indexed(tmp_path, GOOD + GOOD).name(1) == 'train-00000-of-00001_000001.jpg'
    os.unlink(index.paths[1])
    tfrecord._starts.cache_clear()
    assert index.name(2) == 'train-00001-of-00002_000000.jpg'
