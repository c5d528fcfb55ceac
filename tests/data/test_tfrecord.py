"""TFRecord shards: sets of them, framing, and Examples of every form, sound and damaged."""

import os
import struct

import google_crc32c
import numpy as np
import pytest

from src.data.records import open_records
from src.data.tfrecord import encode_field, framed, masked_crc, write_shards
from tests.data.samples import message


def feature(key, kind, values):
    return encode_field(1, encode_field(1, key) + encode_field(2, encode_field(kind, values)))


def label_of(values):
    return feature(b'image/class/label', 3, values)


PIXELS = bytes(range(256)) * 3
IMAGE, SEVEN = feature(b'image/encoded', 1, encode_field(1, PIXELS)), label_of(encode_field(1, b'\x07'))
OTHERS = feature(b'image/format', 1, encode_field(1, b'JPEG')) + feature(b'image/bbox/xmin', 2, encode_field(1, bytes(8)))
OTHERS += feature(b'k' * 13, 1, encode_field(1, b'x')) + feature(b'image/height', 3, encode_field(1, b'\xf4\x03'))
GOOD = framed(encode_field(1, IMAGE + SEVEN))


def indexed(tmp_path, content):
    (tmp_path / 'train-00000-of-00001').write_bytes(content)
    return open_records(tmp_path, 'train')


def test_round_trip(tmp_path):
    rng, sizes = np.random.default_rng(1), [(1, 0), (100, 1), (127, -1), (128, 1000), (20000, -(2**63)), (300, 2**63 - 1)]
    examples = [(rng.bytes(n), label, f'folder/é{n}.jpg') for n, label in sizes]
    paths = write_shards(str(tmp_path / 'new'), 'train', iter(examples), 3)
    records = open_records(tmp_path / 'new', 'train')
    assert paths == records.paths and len(os.listdir(tmp_path / 'new')) == 3
    order = [e for n in range(3) for e in examples[n::3]]
    assert [(records.read(i), records.label[i], f'folder/{records.name(i)}') for i in range(6)] == order
    assert records.where(5) == f'{paths[-1]}, record 1'


def test_checksums():
    assert google_crc32c.implementation == 'c'  # in Python it takes a thousand times as long
    crc = 0xE3069283  # of CRC-32C's check string
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert masked_crc(b'123456789') == masked_crc(memoryview(b'0123456789')[1:]) == masked
    size = struct.pack('<Q', 9)
    assert framed(b'123456789') == size + struct.pack('<I', masked_crc(size)) + b'123456789' + struct.pack('<I', masked)


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
        (IMAGE + label_of(encode_field(1, b'\x01')) + label_of(encode_field(1, b'') + encode_field(1, b'\xe8\x07')), 1000),
        (b'\x3d' + bytes(4) + IMAGE + encode_field(300, b'??') + b'\x51' + bytes(8) + SEVEN, 7),  # unknown fields
    ],
)
def test_variants_of_examples(tmp_path, example, label):
    merged = encode_field(1, IMAGE) + encode_field(9, 5) + encode_field(1, SEVEN)  # a message may come in pieces
    records = indexed(tmp_path, framed(encode_field(1, example)) + framed(merged) + GOOD)
    assert records.label.tolist() == [label, 7, 7] and [records.read(i) for i in range(3)] == [PIXELS] * 3


@pytest.mark.parametrize(
    'damaged, problem',
    [
        (
            framed(encode_field(1, IMAGE + label_of(encode_field(1, b'\x07\x08')))),
            '1 values of the image and 2 of the label',
        ),
        (framed(encode_field(1, IMAGE + SEVEN) + b'\x0a'), 'a field runs past its end'),  # ends after a tag
        (GOOD[:-1], 'truncated'),
    ],
)
def test_damage_is_named(tmp_path, damaged, problem):
    text = message(indexed, tmp_path, GOOD + damaged)
    assert f'{tmp_path}/train-00000-of-00001: record 1 at byte {len(GOOD)}: ' in text and problem in text


@pytest.mark.parametrize(
    'names, split, problem',
    [
        (['train-00000-of-00001'], 'validation', 'no validation part (tfrecord) in it'),
        (['train-00000-of-00003', 'train-00002-of-00003'], 'train', 'lacks shard train-00001-of-00003;'),
        (['train-00000-of-00001', 'train-00000-of-00002'], 'train', 'shard train-00000-of-00001 is none of a set of 2;'),
    ],
)
def test_sets_of_shards(tmp_path, names, split, problem):
    for name in names:
        (tmp_path / name).write_bytes(b'x')
    text = message(open_records, tmp_path, split)
    assert str(tmp_path) in text and problem in text, text
