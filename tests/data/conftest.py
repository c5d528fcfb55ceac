"""Data sets that several files of tests here read."""

import pytest

from src.data.convert import convert
from tests.data.samples import ODD, write_folder


@pytest.fixture(scope='session')
def sets(tmp_path_factory):
    """Same images in all layouts: folder to TFRecord to MindRecord to TFRecord; folder to MindRecord"""
    top = tmp_path_factory.mktemp('sets')
    folder = write_folder(top / 'folder', 'train', ['cat', 'dog', 'emu'], 7)
    write_folder(folder, 'val', ['cat', 'emu'], 3, seed=1)
    for src, dst, layout, shards in [
        ('folder', 'tf', 'tfrecord', 3),
        ('tf', 'mr', 'mindrecord', 2),
        ('mr', 'tf2', 'tfrecord', 1),
        ('folder', 'mr0', 'mindrecord', 4),
    ]:
        convert(str(top / src), str(top / dst), layout, shards, workers=1)
    return top


@pytest.fixture
def odd(tmp_path):
    path = write_folder(tmp_path / 'odd', 'train', ['a', 'b'], 2)
    for kind, encoded in ODD.items():
        (path / 'train' / 'b' / f'{kind}.jpg').write_bytes(encoded)
    (path / 'train' / 'b' / 'empty.jpg').write_bytes(b'')
    return path
