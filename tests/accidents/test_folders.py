"""Folders of images as people have them: parts without classes, other names of parts, trash, links, odd class names."""

import os
import shutil
import unicodedata

import pytest

from src.data.check import check
from src.data.convert import convert
from src.data.records import open_records
from src.data.split import open_list, split, write_list
from src.deploy.image_files import find_images
from tests.data.samples import cli, fails, folder, jpeg, message, write_folder


def images(directory, *names):
    for n, name in enumerate(names):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg([n, *name.encode()]))
    return directory


def test_parts_are_no_classes(tmp_path):
    photos = images(tmp_path / 'photos', 'Train/cat.0.jpg', 'test1/1.jpg', 'Valid/2.jpg')
    expected = ('names of splits, not of classes', 'one folder for each class, <class>/*.jpg')
    fails(cli('split', photos, tmp_path / 'list.csv'), *expected)
    assert not (tmp_path / 'list.csv').exists()
    shutil.move(photos, tmp_path / 'train')
    assert all(part in message(open_records, tmp_path, 'train') for part in expected)


def test_a_test_part_is_no_validation_part(tmp_path):
    photos = images(tmp_path, *(f'{name}/{k}.jpg' for name in ('train/cat', 'train/dog') for k in range(3)), 'test/1.jpg')
    assert 'test and train in it are names of splits, not of classes; put the images into one' in message(split, photos)
    assert len(split(photos / 'train', workers=1)[0]) == 6
    images(photos, 'valid/cat/1.jpg', 'valid/dog/1.jpg')
    rows, left_out = split(photos, workers=1)
    assert len(rows) == 8 and not left_out


def test_a_class_may_be_called_like_a_part(tmp_path):
    write_folder(tmp_path, 'photos', ['car', 'train', 'test1'], 4)
    assert {name for _, name, _ in split(tmp_path / 'photos', workers=1)[0]} == {'car', 'train', 'test1'}


@pytest.mark.parametrize('training, validation', [('Train', 'VALID'), ('training', 'dev')])
def test_names_of_parts(training, validation, tmp_path):
    """As Hugging Face's datasets have them, whatever the case; a test part is nobody's business."""
    for part, count in ((training, 3), (validation, 1), ('test', 2)):
        folder(tmp_path / part, cat=count, dog=count)
    assert [len(open_records(tmp_path, part)) for part in ('train', 'validation')] == [6, 2]
    found = {part: f'/{training}/' in path for part, _, path in split(tmp_path, workers=1)[0]}
    assert found == {'train': True, 'validation': False}
    assert check(tmp_path, 1)[1].keys() == {'train', 'validation'}


def test_two_validation_parts_are_refused(tmp_path):
    for part in ('train', 'valid', 'val'):
        folder(tmp_path / part, cat=1, dog=1)
    assert 'has both val and valid' in message(open_records, tmp_path, 'validation')


def test_prediction_takes_the_files_of_a_training(tmp_path, capsys):
    good = ['cat/1.jpg', 'cat/2.PNG', 'dog/1.jpeg']
    aside = ['.Trash-1000/files/3.jpg', 'cat/.thumbnails/1.jpg', 'cat/@eaDir/1.jpg', 'cat/.4.jpg', '__MACOSX/cat/._1.jpg']
    photos = images(tmp_path / 'photos', *good, *aside, 'cat/._1.jpg', '$RECYCLE.BIN/5.jpg', 'dog/notes.txt')
    images(tmp_path / 'elsewhere', '7.jpg')
    (photos / 'emu').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'train').symlink_to(photos)
    predicted = find_images(str(photos))
    records = open_records(tmp_path, 'train')
    trained = sorted(records.where(i) for i in range(len(records)))
    assert [os.path.relpath(path, photos) for path in predicted] == [*good, 'emu/7.jpg']
    assert [os.path.relpath(path, tmp_path / 'train') for path in trained] == [*good, 'emu/7.jpg']
    (line,) = capsys.readouterr().err.splitlines()
    for found in (line, f'left out: {records.left_out}'):
        assert found.startswith('left out: ') and '1 x file .txt, the first is ' in found and '.4.jpg' not in found, found


NAMES = ['New  York', 'cat', 'cat ', ' dog', '"emu"', 'two\nlines', os.fsdecode(b'caf\xe9')]


def names_of(records):
    return {records.class_names[label] for label in records.label}


def test_class_names_are_kept(tmp_path):
    """With their spaces, on every way of a conversion."""
    photos = write_folder(tmp_path, 'photos', NAMES, 6) / 'photos'
    write_list(split(photos, workers=1)[0], tmp_path / 'list.csv')
    convert(str(tmp_path / 'list.csv'), str(tmp_path / 'tf'), 'tfrecord', 1, workers=1)
    convert(str(tmp_path / 'tf'), str(tmp_path / 'mr'), 'mindrecord', 1, workers=1)
    for part, listed in open_list(tmp_path / 'list.csv').items():
        assert names_of(listed) == {*NAMES}
        for made in ('tf', 'mr'):
            records = open_records(tmp_path / made, part)
            assert names_of(records) == {*NAMES} and sorted(records.label - 1) == sorted(listed.label)


def test_unicode_forms_of_a_name_are_one_class(tmp_path):
    composed, apart = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))
    folder(tmp_path / 'data/train', **{composed: 2, 'tea': 2})
    folder(tmp_path / 'data/val', **{apart: 1, 'tea': 1})
    validation = open_records(tmp_path / 'data', 'validation')
    assert validation.class_names == [composed, 'tea'] and validation.label.tolist() == [0, 1] and validation.read(0)
    write_folder(tmp_path, 'photos', [composed, 'tea'], 4)
    write_folder(tmp_path, 'photos', [apart], 4, seed=3)
    rows, _ = split(tmp_path / 'photos', workers=1)
    assert {name for _, name, _ in rows} == {composed, 'tea'} and len(rows) == 12
