"""Data sets as other programs write them: taken where that can be, else refused with what is in them."""

import gzip
import zlib

import pytest

from src.data.records import open_records
from src.data.tfrecord import encode_field, framed
from tests.data.samples import cli, content, fails, jpeg, message


def shard(path, *examples):
    """A directory with a TFRecord shard of Examples, each {name: bytes or int}."""
    records = b''
    for example in examples:
        features = b''
        for name, value in example.items():
            values = encode_field(1 if isinstance(value, bytes) else 3, encode_field(1, value))
            features += encode_field(1, encode_field(1, name.encode()) + encode_field(2, values))
        records += framed(encode_field(1, features))
    path.mkdir(exist_ok=True)
    (path / 'train-00000-of-00001').write_bytes(records)
    return path


@pytest.mark.parametrize(
    'image, label, others',
    [
        ('image', 'label', {'height': 48, 'name': b'a.jpg'}),
        ('image_raw', 'label', {'width': 7}),
        ('image/encoded', 'image/class/label', {'image': b'thumbnail', 'label': 7}),  # TF-slim's names count before others
    ],
)
def test_common_names_of_features(image, label, others, tmp_path):
    images = [jpeg(n) for n in range(3)]
    shard(tmp_path, *({**others, image: encoded, label: n} for n, encoded in enumerate(images)))
    assert content(open_records(tmp_path, 'train')) == sorted(zip(images, range(3)))


@pytest.mark.parametrize(
    'features, parts',
    [
        ({'picture': b'x', 'label': 3}, ['no features of type bytes named', 'only: picture (bytes), label (int64)']),
        ({'image': b'x', 'label': b'cat'}, ['only: image (bytes), label (bytes)', 'the number of the class']),
        ({'image': b'x', 'data': b'y', 'label': 1}, ['2 features of type bytes', 'image (bytes), data (bytes)']),
    ],
)
def test_other_features_are_listed(features, parts, tmp_path):
    text = message(open_records, shard(tmp_path, features), 'train')
    assert all(part in text for part in [*parts, 'train-00000-of-00001: ']), text


@pytest.mark.parametrize('kind', ['gzip', 'zlib', 'Parquet', 'Arrow'])
def test_other_kinds_of_files_are_named(kind, tmp_path):
    path = shard(tmp_path, {'image/encoded': jpeg(), 'image/class/label': 1}) / 'train-00000-of-00001'
    made = {'gzip': gzip.compress, 'zlib': zlib.compress, 'Parquet': b'PAR1'.__add__, 'Arrow': b'ARROW1'.__add__}[kind]
    path.write_bytes(made(path.read_bytes()))
    found = message(open_records, tmp_path, 'train')
    assert f'{path}: record 0 at byte 0: no TFRecord file but {kind}, which has to be unpacked or converted' in found
    path.rename(tmp_path / 'flowers.tfrecord')
    fails(cli('check', tmp_path), 'no train-?????-of-????? (tfrecord), ', 'only flowers.tfrecord; give ')
