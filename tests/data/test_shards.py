"""Complete and incomplete sets of shards."""

import pytest

from src.data.shards import find_shards
from tests.data.samples import message


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
