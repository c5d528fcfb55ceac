"""MindRecord shards of our own and of others, and damaged ones."""

import json
import os
import shutil
import sqlite3
import struct

import numpy as np
import pytest

from src.data.check import check
from src.data.records import open_records, walk
from src.errors import InputError
from tests.data.samples import content, jpeg, message


def test_mindspore_reads_our_shards(sets):
    from mindspore.dataset import MindDataset

    files = sorted(str(p) for p in (sets / 'mr').glob('train*.mindrecord'))
    rows = MindDataset(files, ['data', 'label'], shuffle=False).create_tuple_iterator(output_numpy=True)
    found = sorted((data.tobytes(), int(label)) for data, label in rows)
    assert found == content(open_records(sets / 'tf', 'train'))
    assert os.stat(files[0]).st_mode & 0o44 == os.stat(sets / 'mr' / 'labels.txt').st_mode & 0o44


def mindspore_writes(path, schema, rows, shards=1, index=()):
    from mindspore.mindrecord import FileWriter

    os.makedirs(os.path.dirname(path), exist_ok=True)
    writer = FileWriter(str(path), shards)
    writer.set_header_size(1 << 14)
    writer.set_page_size(1 << 15)
    writer.add_schema(schema, 'x')
    if index:
        writer.add_index(list(index))
    writer.write_raw_data(rows)
    writer.commit()


@pytest.mark.parametrize(
    'image, label, kind, extra, index, where',
    [
        ('data', 'label', 'int64', {}, ['label'], 'train.mindrecord'),
        ('image_bytes', 'labels', 'int32', {'note': {'type': 'string'}}, ['note'], 'train/x.mindrecord'),
        (
            'image_encoded',
            'image_class_label',
            'int32',
            {'a': {'type': 'bytes'}, 'z': {'type': 'float64'}},
            [],
            'train_imagenet.mindrecord',
        ),
        (
            'image',
            'label',
            'int64',
            {'v': {'type': 'float32', 'shape': [-1]}, 'k': {'type': 'int32'}},
            ['k'],
            'train.mindrecord',
        ),
    ],
)
def test_other_mindrecords(tmp_path, image, label, kind, extra, index, where):
    schema = {image: {'type': 'bytes'}, label: {'type': kind}, **extra}
    values = {'note': 'n' * 300, 'a': b'abc', 'z': 0.5, 'v': np.ones(3, np.float32), 'k': -70000}
    labels = [0, 127, 128, 255, 256, 65536, 2**31 - 1, -1, -32, -33, -129, -40000] + [7] * 30
    others = {name: values[name] for name in extra}
    rows = [{image: jpeg(n), label: value, **others} for n, value in enumerate(labels)]
    mindspore_writes(tmp_path / where, schema, rows, 3, index)
    records = open_records(tmp_path, 'train')
    assert content(records) == sorted((jpeg(n), value) for n, value in enumerate(labels))
    assert records.class_names is None
    files = sorted((tmp_path / where).parent.glob('*.mindrecord1'))
    files[0].unlink()
    assert 'lacks shard' in message(open_records, tmp_path, 'train')
    assert 'lacks shard' in check(tmp_path, 1)['findings']['incomplete'][0]['detail']


def test_mindrecord_columns(tmp_path):
    mindspore_writes(
        tmp_path / 'train.mindrecord',
        {'pixels': {'type': 'bytes'}, 'label': {'type': 'int32'}},
        [{'pixels': b'a', 'label': 1}],
    )
    assert 'only: label (int32), pixels (bytes)' in message(open_records, tmp_path, 'train')
    mindspore_writes(
        tmp_path / 'b/train.mindrecord',
        {'image': {'type': 'bytes'}, 'label': {'type': 'string'}},
        [{'image': b'a', 'label': 'cat'}],
    )
    assert 'no columns of type int32 or int64' in message(open_records, tmp_path / 'b', 'train')


@pytest.fixture
def mr(sets, tmp_path):
    return tmp_path, shutil.copytree(sets / 'mr0', tmp_path / 'mr')


@pytest.mark.parametrize(
    'damage, parts',
    [
        (lambda p: os.truncate(p, 1 << 20), ['record 0: truncated']),
        (lambda p: os.truncate(p, 100), ['has no MindRecord header']),
        (lambda p: p.write_bytes(b'x' * 5000), ['has no MindRecord header']),
        (lambda p: p.with_name(p.name + '.db').unlink(), ['lacks its index file train-00001-of-0000']),
        (lambda p: p.with_name(p.name + '.db').write_bytes(b'x' * 5000), ['file is not a database']),
        (lambda p: p.unlink(), ['lacks shard train-00001-of-00004.mindrecord']),
        (lambda p: p.write_bytes(b''), ['has no MindRecord header']),
    ],
)
def test_damaged_mindrecord(mr, damage, parts):
    path = mr[1]
    damage(path / 'train-00001-of-00004.mindrecord')
    text = message(open_records, path, 'train')
    assert all(part in text for part in ['train-00001-of-00004.mindrecord', *parts]), text
    found = check(path, 1)
    assert found['problems'] == sum(map(len, found['findings'].values())) >= 1
    assert found['splits']['train']['records'] >= 15  # the other shards were read


def test_random_damage_of_mindrecord(mr):
    path, rng = mr[1] / 'train-00000-of-00004.mindrecord', np.random.default_rng(0)
    for file, size in ((path, 700), (path.with_name(path.name + '.db'), 16384)):
        good = file.read_bytes()
        for _ in range(150):
            bad = bytearray(good)
            for at in rng.integers(0, size, 8):
                bad[at] = rng.integers(256)
            file.write_bytes(bad)
            try:
                assert all(0 <= length < 5000 for _, length, _ in walk(str(path), 'mindrecord'))
            except InputError as error:
                assert path.name in str(error)
        file.write_bytes(good)


def test_sqlite_with_other_content(mr):
    path = mr[1] / 'train-00000-of-00004.mindrecord'
    for change in (
        'PAGE_ID_BLOB = -1',
        "PAGE_OFFSET_BLOB = 'x'",
        'PAGE_OFFSET_RAW_END = 1 << 60',
        'PAGE_OFFSET_RAW = 3',
        'PAGE_OFFSET_BLOB = PAGE_OFFSET_BLOB_END - 8',
    ):
        copy = shutil.copytree(mr[1], mr[0] / 'copy', dirs_exist_ok=True)
        with sqlite3.connect(copy / (path.name + '.db')) as index:
            index.execute('UPDATE INDEXES SET ' + change)
        index.close()
        text = message(open_records, copy, 'train')
        assert f'{path.name}: record 0: ' in text, text
    header = json.dumps({'header_size': 1, 'page_size': True}).encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header)
    assert 'has no MindRecord header' in message(open_records, mr[1], 'train')
