"""MindRecord shards of our own and of others, and damaged ones."""

import os
import shutil

import numpy as np
import pytest

from src.data.check import check
from src.data.records import open_records
from tests.data.samples import content, jpeg, message


def test_mindspore_reads_our_shards(sets):
    from mindspore.dataset import MindDataset

    files = sorted(str(p) for p in (sets / 'mr').glob('train*.mindrecord'))
    rows = MindDataset(files, ['data', 'label'], shuffle=False).create_tuple_iterator(output_numpy=True)
    assert sorted((data.tobytes(), int(label)) for data, label in rows) == content(open_records(sets / 'tf', 'train'))


def mindspore_writes(path, schema, rows, shards=1, index=()):
    from mindspore.mindrecord import FileWriter

    path.parent.mkdir(exist_ok=True)
    writer = FileWriter(str(path), shards)
    writer.set_page_size(1 << 15)
    writer.add_schema(schema, 'x')
    if index:
        writer.add_index(list(index))
    writer.write_raw_data(rows)
    writer.commit()


@pytest.mark.parametrize(
    'image, label, kind, extra, where',
    [
        ('data', 'class', 'int32', {'note': {'type': 'string'}, 'z': {'type': 'float64'}}, 'Train_x.mindrecord'),
        ('image', 'label', 'int64', {'v': {'type': 'float32', 'shape': [-1]}, 'k': {'type': 'int32'}}, 'train.mindrecord'),
    ],
)
def test_other_mindrecords(tmp_path, image, label, kind, extra, where):
    schema = {image: {'type': 'bytes'}, label: {'type': kind}, **extra}
    values = {'note': 'n' * 300, 'z': 0.5, 'v': np.ones(3, np.float32), 'k': -70000}
    labels = [0, 128, 65536, 2**31 - 1, -1, -40000] + [7] * 30
    rows = [{image: jpeg(n), label: value, **{name: values[name] for name in extra}} for n, value in enumerate(labels)]
    mindspore_writes(tmp_path / where, schema, rows, 3, [name for name in extra if name in ('note', 'k')])
    records = open_records(tmp_path, 'train')
    assert content(records) == sorted((jpeg(n), value) for n, value in enumerate(labels)) and records.class_names is None
    next((tmp_path / where).parent.glob('*.mindrecord1')).unlink()
    assert 'lacks shard' in message(open_records, tmp_path, 'train')


@pytest.fixture
def shard(sets, tmp_path):
    return shutil.copytree(sets / 'mr0', tmp_path / 'mr') / 'train-00001-of-00004.mindrecord'


@pytest.mark.parametrize(
    'damage, problem',
    [
        (lambda p: os.truncate(p, 1 << 20), 'record 0: truncated'),
        (lambda p: p.write_bytes(b'x' * 5000), 'has no MindRecord header'),
        (
            lambda p: p.with_name(p.name + '.db').unlink(),
            'its index file train-00001-of-00004.mindrecord.db cannot be read: ',
        ),
        (lambda p: p.with_name(p.name + '.db').write_bytes(b'x' * 5000), 'file is not a database'),
    ],
)
def test_damaged_mindrecord(shard, damage, problem):
    damage(shard)
    text = message(open_records, shard.parent, 'train')
    assert problem in text and 'train-00001-of-00004.mindrecord' in text, text
    found, labels = check(shard.parent, 1)
    assert found and sum(labels['train'].values()) >= 15  # the other shards were read
