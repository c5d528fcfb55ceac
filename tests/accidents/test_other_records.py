"""Data sets as other programs write them: taken where that can be, else named for what they are."""

import gzip
import struct
import zlib

import pytest

from src.data.protobuf import encode_field
from src.data.records import open_records
from src.data.tfrecord import framed
from tests.data.samples import cli, content, fails, jpeg, message

KINDS = {bytes: 1, float: 2, int: 3}


def example(**features):
    """A record of a TFRecord file."""
    entries = b''
    for name, value in features.items():
        stored = struct.pack('<f', value) if isinstance(value, float) else value
        values = encode_field(KINDS[type(value)], encode_field(1, stored))
        entries += encode_field(1, encode_field(1, name.replace('__', '/').encode()) + encode_field(2, values))
    return framed(encode_field(1, entries))


def shard(path, *examples, name='train-00000-of-00001'):
    path.mkdir(exist_ok=True)
    (path / name).write_bytes(b''.join(examples))
    return path


@pytest.mark.parametrize('image, label', [('image', 'label'), ('image_raw', 'labels'), ('image__encoded', 'label')])
def test_common_names_of_features(image, label, tmp_path):
    others = {'height': 48, 'name': b'a.jpg', 'score': 0.5}
    images = [jpeg(n) for n in range(3)]
    shard(tmp_path, *(example(**others, **{image: encoded, label: n}) for n, encoded in enumerate(images)))
    assert content(open_records(tmp_path, 'train')) == sorted(zip(images, range(3)))
    run = cli('check', tmp_path)
    assert 'train: 3 records' in run.stdout and run.returncode == 0, run.stdout


def test_the_names_of_tf_slim_count_before_others(tmp_path):
    shard(tmp_path, example(image__encoded=jpeg(1), image=b'thumbnail', label=7, image__class__label=2))
    assert content(open_records(tmp_path, 'train')) == [(jpeg(1), 2)]


@pytest.mark.parametrize(
    'features, parts',
    [
        ({'image': 0.5, 'label': 3}, ['no features of type bytes named', 'only: image (float), label (int64)']),
        ({'picture': b'x', 'label': 3}, ['only: picture (bytes), label (int64)', 'one image and one label feature']),
        ({'image': b'x', 'label': b'cat'}, ['only: image (bytes), label (bytes)', 'label holds text', 'labels.txt']),
        ({'image': b'x', 'data': b'y', 'label': 1}, ['2 features of type bytes', 'image (bytes), data (bytes)']),
        ({'image_raw': bytes(3072), 'label': 1}, ['the 3072 bytes of image_raw are no image file', 'perhaps pixels']),
    ],
)
def test_other_features_are_listed(features, parts, tmp_path):
    text = message(open_records, shard(tmp_path, example(**features) * 2), 'train')
    assert all(part in text for part in [*parts, 'train-00000-of-00001: ']) and 'copy' not in text, text


SHARD = b''.join(example(image__encoded=jpeg(n), image__class__label=n) for n in range(3))
OTHERS = {
    'gzip': (gzip.compress(SHARD), 'a TFRecord file compressed with gzip: decompress it'),
    'zlib': (zlib.compress(SHARD), 'a TFRecord file compressed with zlib: decompress it'),
    'parquet': (b'PAR1' + bytes(100), 'a Parquet file: write its images'),
    'arrow': (b'ARROW1\0\0' + bytes(100), 'an Arrow file'),
    'arrow stream': (b'\xff\xff\xff\xff\x70' + bytes(100), 'an Arrow stream'),
    'lmdb': (bytes(8) + b'\0\0\x08\0\0\0\0\0\xde\xc0\xef\xbe\1\0\0\0' + bytes(100), 'an LMDB database'),
    'tar': (b'0.jpg'.ljust(257, b'\0') + b'ustar\0' + bytes(249), 'a tar archive'),
    'tar.gz': (gzip.compress(b'0.jpg'.ljust(257, b'\0') + b'ustar\0' + bytes(249)), 'compressed with gzip, a tar archive'),
    'hdf5': (b'\x89HDF\r\n\x1a\n' + bytes(100), 'an HDF5 file'),
}


@pytest.mark.parametrize('kind', OTHERS)
@pytest.mark.parametrize('name', ['train-00000-of-00001', 'train.data', 'train.mindrecord', 'train_lmdb/data.mdb'])
def test_other_files_are_named(kind, name, tmp_path):
    data, said = OTHERS[kind]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(data)
    text = message(open_records, tmp_path, 'train')
    assert f'is {said}' in text and name in text and not any(word in text for word in ('copy', 'rename', 'damage')), text


def test_commands_name_them(tmp_path):
    (tmp_path / 'photos.tar').write_bytes(OTHERS['tar'][0])
    fails(cli('check', tmp_path / 'photos.tar'), 'photos.tar', 'is a tar archive', 'unpack it')
    shard(tmp_path / 'a', gzip.compress(SHARD))
    run = cli('convert', '--src', tmp_path / 'a', '--dst', tmp_path / 'b', '--format', 'mindrecord', '--shards', 1)
    fails(run, 'train-00000-of-00001', 'compressed with gzip')
    run = cli('check', tmp_path / 'a')
    assert run.returncode == 1 and 'compressed with gzip: decompress it' in run.stdout
    shard(tmp_path / 'c', SHARD, name='flowers.tfrecord')
    fails(cli('check', tmp_path / 'c'), 'flowers.tfrecord is a TFRecord file: rename or link it')
