"""Data sets as other programs write them: taken where that can be, else refused with what is in them."""

import gzip
import struct

import pytest

from src.data.records import open_records
from src.data.tfrecord import encode_field, framed
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


@pytest.mark.parametrize('image, label', [('image', 'label'), ('image_raw', 'label'), ('image__encoded', 'label')])
def test_common_names_of_features(image, label, tmp_path):
    others = {'height': 48, 'name': b'a.jpg', 'score': 0.5}
    images = [jpeg(n) for n in range(3)]
    shard(tmp_path, *(example(**others, **{image: encoded, label: n}) for n, encoded in enumerate(images)))
    assert content(open_records(tmp_path, 'train')) == sorted(zip(images, range(3)))


def test_the_names_of_tf_slim_count_before_others(tmp_path):
    shard(tmp_path, example(image__encoded=jpeg(1), image=b'thumbnail', label=7, image__class__label=2))
    assert content(open_records(tmp_path, 'train')) == [(jpeg(1), 2)]


@pytest.mark.parametrize(
    'features, parts',
    [
        ({'picture': b'x', 'label': 3}, ['no features of type bytes named', 'only: picture (bytes), label (int64)']),
        ({'image': b'x', 'label': b'cat'}, ['only: image (bytes), label (bytes)', 'the number of the class']),
        ({'image': b'x', 'data': b'y', 'label': 1}, ['2 features of type bytes', 'image (bytes), data (bytes)']),
        (
            {'image_raw': bytes(3072), 'label': 1},
            ['the 3072 bytes of image_raw are no image file', 'JPEG or PNG files into it, not pixels'],
        ),
    ],
)
def test_other_features_are_listed(features, parts, tmp_path):
    text = message(open_records, shard(tmp_path, example(**features) * 2), 'train')
    assert all(part in text for part in [*parts, 'train-00000-of-00001: ']) and 'copy' not in text, text


def test_commands_say_what_is_wrong(tmp_path):
    sound = b''.join(example(image__encoded=jpeg(n), image__class__label=n) for n in range(3))
    shard(tmp_path / 'a', gzip.compress(sound))
    run = cli('convert', '--src', tmp_path / 'a', '--dst', tmp_path / 'b', '--format', 'mindrecord', '--shards', 1)
    fails(run, 'train-00000-of-00001: damaged or no TFRecord file')
    shard(tmp_path / 'c', sound, name='flowers.tfrecord')
    fails(cli('check', tmp_path / 'c'), 'if flowers.tfrecord is a TFRecord file rename or link it')
