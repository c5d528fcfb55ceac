"""TFRecord shards: sets of them, framing, and Examples of every form, sound and damaged."""

import os
import struct

import google_crc32c
import numpy as np
import pytest

from src.data.records import open_records
from src.data.tfrecord import encode_field, framed, masked_crc, write_shards
from src.errors import InputError
from tests.data.samples import jpeg, message


def bitwise_crc(data):
    """Masked, by the plain definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_masked_crc():
    assert google_crc32c.implementation == 'c'  # in Python it takes a thousand times as long
    data = np.random.default_rng(0).bytes(5000)
    assert all(masked_crc(data[:n]) == bitwise_crc(data[:n]) for n in (*range(40), 255, 256, 257, 5000))
    assert masked_crc(memoryview(data)[1:]) == bitwise_crc(data[1:])


def feature(key, kind, values, swap=False):
    parts = [encode_field(1, key), encode_field(2, encode_field(kind, values))]
    return encode_field(1, b''.join(parts[::-1] if swap else parts))


def label_of(values, **kw):
    return feature(b'image/class/label', 3, values, **kw)


def image_of(values, **kw):
    return feature(b'image/encoded', 1, values, **kw)


PIXELS = bytes(range(256)) * 3
IMAGE, SEVEN = image_of(encode_field(1, PIXELS)), label_of(encode_field(1, b'\x07'))
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
    (tmp_path / 'train-00000-of-00001').write_bytes(content)
    return open_records(tmp_path, 'train')


@pytest.mark.parametrize('num_shards', [1, 3])
def test_round_trip(tmp_path, num_shards):
    rng = np.random.default_rng(1)
    examples = [
        (rng.bytes(n), label, f'{n}.jpg')
        for n, label in [(1, 0), (100, 1), (127, -1), (128, 1000), (20000, -(2**63)), (300, 2**63 - 1), (16384, 5)]
    ]
    paths = write_shards(str(tmp_path / 'new'), 'train', iter(examples), num_shards)
    records = open_records(tmp_path / 'new', 'train')
    assert paths == records.paths and len(os.listdir(tmp_path / 'new')) == num_shards
    order = [e for n in range(num_shards) for e in examples[n::num_shards]]
    assert [(records.read(i), records.label[i], records.name(i)) for i in range(7)] == order
    last = sum(1 for s in records.source if s == num_shards - 1) - 1
    assert records.where(6) == f'{paths[-1]}, record {last}'
    for path in paths:  # every checksum of the file, against the plain definition
        data, pos = open(path, 'rb').read(), 0
        while pos < len(data):
            (size,) = struct.unpack_from('<Q', data, pos)
            for start, n in ((pos, 8), (pos + 12, size)):
                assert struct.unpack_from('<I', data, start + n)[0] == bitwise_crc(data[start : start + n])
            pos += size + 16


def test_shard_changed_after_indexing(tmp_path):
    records = indexed(tmp_path, GOOD * 2)
    os.truncate(records.paths[0], len(GOOD) + 100)
    assert '00001, record 1: ' in message(records.read, 1) and 'instead of 768' in message(records.read, 1)
    os.remove(records.paths[0])
    assert '00001, record 0: No such file' in message(records.read, 0)
    assert records.name(1) == 'train-00000-of-00001_000001.jpg'


@pytest.mark.parametrize(
    'example, label',
    [
        (OTHERS + IMAGE + OTHERS + SEVEN + OTHERS, 7),
        (IMAGE + label_of(b'\x08\x07'), 7),  # not packed
        (IMAGE + label_of(encode_field(1, MINUS_3)), -3),
        (IMAGE + label_of(b'\x08' + MINUS_3), -3),
        (IMAGE + label_of(encode_field(1, b'') + encode_field(1, b'\xe8\x07')), 1000),
        (IMAGE + label_of(encode_field(1, b'\x01')) + SEVEN, 7),  # the last of equal keys counts
        (b'\x3d' + bytes(4) + IMAGE + encode_field(300, b'??') + b'\x51' + bytes(8) + SEVEN, 7),  # unknown fields
    ],
)
def test_variants_of_examples(tmp_path, example, label):
    merged = encode_field(1, IMAGE) + encode_field(9, 5) + encode_field(1, SEVEN)  # a message may come in pieces
    records = indexed(tmp_path, framed(encode_field(1, example)) + framed(merged) + GOOD)
    assert records.label.tolist() == [label, 7, 7] and [records.read(i) for i in range(3)] == [PIXELS] * 3


def test_empty_image_is_a_record(tmp_path):
    records = indexed(tmp_path, framed(encode_field(1, SEVEN + image_of(encode_field(1, b'')))) + GOOD)
    assert records.read(0) == b'' and records.read(1) == PIXELS and records.label.tolist() == [7, 7]


@pytest.mark.parametrize(
    'example, problem',
    [
        (b'', '0 values of the image and 0 of the label'),
        (encode_field(1, IMAGE + OTHERS), '1 values of the image and 0 of the label'),
        (encode_field(1, IMAGE + feature(b'image/class/label', 1, encode_field(1, b'7'))), '0 of the label'),
        (encode_field(1, IMAGE + label_of(encode_field(1, b'\x07\x08'))), '2 of the label'),
        (encode_field(1, IMAGE + label_of(encode_field(1, b'\xff' * 11))), 'broken varint'),
        (b'\x0a\xff\xff\xff\xff\x7f' + IMAGE + SEVEN, 'a field runs past its end'),
        (encode_field(1, IMAGE + SEVEN)[:-1], 'a field runs past its end'),
        (encode_field(1, IMAGE + SEVEN) + b'\x0a', 'copy or make the shard again'),  # ends after a tag
        (b'\x0b' + IMAGE, 'wire type 3'),
    ],
)
def test_bad_examples(tmp_path, example, problem):
    text = message(indexed, tmp_path, GOOD + framed(example))
    assert f'{tmp_path}/train-00000-of-00001: record 1 at byte {len(GOOD)}: ' in text and problem in text


@pytest.mark.parametrize(
    'change, record, problem',
    [
        (lambda b: b[:-1], 2, 'truncated'),
        (lambda b: b[: 2 * len(GOOD) + 11], 2, 'truncated'),
        (lambda b: b[: len(GOOD)] + b'\x10' + b[len(GOOD) + 1 :], 1, 'wrong checksum of the record length'),
        (lambda b: b[: len(GOOD) + 11] + b'\x10' + b[len(GOOD) + 12 :], 1, 'wrong checksum of the record length'),
    ],
)
def test_damaged_framing(tmp_path, change, record, problem):
    text = message(indexed, tmp_path, change(GOOD * 3))
    assert f'train-00000-of-00001: record {record} at byte {record * len(GOOD)}: ' in text and problem in text


def test_random_damage_never_escapes(tmp_path):
    rng = np.random.default_rng(2)
    for _ in range(200):  # the framing is right, the Example is not
        data = bytearray(encode_field(1, OTHERS + SEVEN + image_of(encode_field(1, b'0123'))))
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        try:
            records = indexed(tmp_path, framed(bytes(data)))
            assert 0 <= records.length[0] <= len(data) and records.read(0) in bytes(data)
        except InputError as error:
            assert 'train-00000-of-00001' in str(error)


def test_images_have_the_names_of_their_files(tmp_path):
    """As a report shows them; without one, the name says the place."""
    names = ['a.jpg', 'деревья é.png', 'b' * 300, 'a.jpg']
    write_shards(tmp_path, 'train', [(jpeg([k]), k, f'folder/{name}') for k, name in enumerate(names)], 2)
    records = open_records(tmp_path, 'train')
    assert [records.name(i) for i in range(4)] == [names[i] for i in (0, 2, 1, 3)]


@pytest.mark.parametrize(
    'names, split, problem',
    [
        ([], 'train', 'only nothing; give the directory'),
        (['train-00000-of-00001'], 'validation', 'no validation part (tfrecord) in it'),
        (list('abcdef'), 'train', 'only a, b, c, d and 2 more; give the directory'),
        (['flowers_train_00000-of-00001.tfrecord'], 'train', 'if flowers_train_00000-of-00001.tfrecord is a TFRecord file'),
        (['train-00000-of-00003', 'train-00002-of-00003'], 'train', 'lacks shard train-00001-of-00003;'),
        (
            ['train-00000-of-00001', 'train-00000-of-00002'],
            'train',
            'shard train-00000-of-00001 is none of a set of 2; keep one set',
        ),
        (['train-00000-of-00001', 'train-00001-of-00001'], 'train', 'train-00001-of-00001 is none of a set of 1'),
        (['train-00000-of-00001:empty'], 'train', 'train-00000-of-00001: damaged or no TFRecord file'),
    ],
)
def test_sets_of_shards(tmp_path, names, split, problem):
    for name in names:
        (tmp_path / name.removesuffix(':empty')).write_bytes(b'' if name.endswith(':empty') else b'x')
    text = message(open_records, tmp_path, split)
    assert str(tmp_path) in text and problem in text, text
