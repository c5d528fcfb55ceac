"""Every layout opens alike; labels of folders; what is no data set."""

import pickle
import shutil

import pytest

from src.data.folder import find_layout
from src.data.records import open_records
from tests.data.samples import content, message, write_folder


@pytest.mark.parametrize('layout, shift', [('tf', 1), ('mr', 1), ('tf2', 1), ('mr0', 0), ('folder', 0)])
def test_layouts(sets, layout, shift):
    assert find_layout(sets / layout)[0] == {'tf': 'tfrecord', 'mr': 'mindrecord'}.get(layout[:2], 'folder')
    for split, count, labels in (('train', 21, {0, 1, 2}), ('validation', 6, {0, 2})):
        records, plain = open_records(sets / layout, split), open_records(sets / 'folder', split, 'folder')
        assert content(records, shift) == content(plain)
        assert len(records) == count and records.label.dtype == 'i8' and set(records.label - shift) == labels
        assert records.class_names == ['background'] * shift + ['cat', 'dog', 'emu'] and records.label_base == shift
        assert str(sets / layout) in records.where(count - 1) and records.name(0).endswith('.jpg')
        assert records.size(2) == len(records.read(2))
        again = pickle.loads(pickle.dumps(records))
        assert content(again) == content(records) and again.fingerprint == records.fingerprint


def test_folder_labels(tmp_path):
    write_folder(tmp_path, 'train', ['b', 'a', 'c'], 1, extension='.JPEG')
    write_folder(tmp_path, 'validation', ['c'], 1)
    (tmp_path / 'train' / '.hidden').mkdir()
    (tmp_path / 'train' / 'a' / '.a.jpg').write_text('no image')

    def labels():
        return tuple(open_records(tmp_path, split).label.tolist() for split in ('train', 'validation'))

    assert labels() == ([0, 1, 2], [2])
    for text, expected in [('1:c\n2:b\n5: a\n', ([5, 2, 1], [1])), ('0:x\n1:c\n2:b\n3:a\n', ([3, 2, 1], [1]))]:
        (tmp_path / 'labels.txt').write_text(text)
        assert labels() == expected
    assert open_records(tmp_path, 'train').class_names == ['x', 'c', 'b', 'a']
    (tmp_path / 'labels.txt').write_text('a\nb\n')
    assert "/c' is not in labels.txt" in message(open_records, tmp_path, 'train')
    (tmp_path / 'labels.txt').unlink()
    write_folder(tmp_path, 'validation', ['d'], 1)
    assert "validation/d' is not in" in message(open_records, tmp_path, 'validation')


def test_what_is_no_data_set(sets, tmp_path):
    for value, problem in [('', "data_dir is ''"), (tmp_path / 'no', 'No such file'), (tmp_path, 'only nothing')]:
        assert problem in message(open_records, value, 'train')
    (tmp_path / 'a.zip').write_bytes(b'x')
    text = message(open_records, tmp_path, 'train')
    expected = 'train-?????-of-????? (tfrecord)', 'train/<class>/*.jpg', 'only a.zip; give the directory above'
    assert all(part in text for part in expected), text
    both = shutil.copytree(sets / 'tf', tmp_path / 'both')
    shutil.copytree(sets / 'folder' / 'val', both / 'val')
    expected = 'both holds a data set as tfrecord (train-00000-of-00003) and as folder (val); keep one of them in it'
    assert expected in message(open_records, both, 'train')
    (tmp_path / 'empty' / 'train' / 'a').mkdir(parents=True)
    assert 'no image in' in message(open_records, tmp_path / 'empty', 'train')
