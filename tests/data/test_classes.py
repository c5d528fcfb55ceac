"""Labels, numbers and names of classes."""

import numpy as np
import pytest

from src.data import tfrecord
from src.data.classes import (
    balanced,
    count_classes,
    imagenet_classes,
    imagenet_names,
    label_offset,
    load_names,
    match_names,
    names_as_text,
)
from src.data.convert import convert
from src.data.records import open_records
from src.evaluation.evaluation import open_validation
from src.options import load_settings
from tests.data.samples import folder, message, shards


def evaluated_labels(data, names, recorded, log=print):
    """The class numbers of a network with three classes, whose training recorded `names` and an offset, for images."""
    settings = load_settings(['--data_dir', str(data), '--num_classes', '3'])
    records, offset = open_validation(settings, log, names, recorded, 'weights.ckpt')
    return (records.label - offset).tolist()


def test_folders_are_evaluated_by_the_names_in_the_checkpoint(tmp_path):
    folder(tmp_path / 'val', cat=2, dog=1)  # which lacks a class
    for train in ({}, {'cat': 1, 'dog': 1, 'emu': 1}):
        folder(tmp_path / 'train', **train)
        assert evaluated_labels(tmp_path, ['background', 'cat', 'dog'], '0') == [1, 1, 2]
        assert evaluated_labels(tmp_path, ['background', 'ant', 'cat', 'dog'], '1') == [1, 1, 2]  # trained from TFRecords
        assert evaluated_labels(tmp_path, None, '0') == [0, 0, 1]


def test_folders_called_by_word_net_ids(tmp_path):
    """Two of ImageNet's classes are called crane."""
    folder(tmp_path / 'val', n01440764=1, n03126707=1, n04604644=1)
    records = match_names(open_records(tmp_path, 'validation'), ['background', *imagenet_names()], 'x')
    assert (records.label - 1).tolist() == [0, 517, 912]


CAT_DOG_EMU = ['cat', 'dog', 'emu']


@pytest.mark.parametrize(
    'recorded, offset, names, labels, expected',
    [
        (CAT_DOG_EMU, None, ['background', *CAT_DOG_EMU], [1, 2, 3], [0, 1, 2]),  # imported weights
        (['background', *CAT_DOG_EMU], '1', ['emu', 'dog', 'cat'], [0, 1, 2], [2, 1, 0]),
        (['crane', 'dog', 'crane'], '0', ['crane', 'dog', 'crane'], [0, 1, 2], [0, 1, 2]),  # a name that stands twice
        (list('cde'), '0', ['aaa', 'bbb'], [0, 1], 'class aaa of {}, record 0 is not one class among the 3 of weights'),
        (CAT_DOG_EMU, '0', ['dog', 'cat'], [0, 1, 2], 'class 2 of {}, record 2 is not one class among the 3 of'),
        (['crane', 'crane', 'dog'], '0', ['dog', 'crane', 'crane'], [0, 1, 2], 'class crane of {}, record 2 is not one'),
    ],
)
def test_shards_are_evaluated_by_the_names_in_the_checkpoint(recorded, offset, names, labels, expected, tmp_path):
    shards(tmp_path, 'validation', labels, names)
    if isinstance(expected, list):
        assert evaluated_labels(tmp_path, recorded, offset) == expected
    else:
        shard = tmp_path / 'validation-00000-of-00001'
        assert message(evaluated_labels, tmp_path, recorded, offset).startswith(expected.format(shard))


def counted(path, option='auto'):
    records = open_records(path, 'train')
    return count_classes(option, records, label_offset('auto', records)[0])


@pytest.mark.parametrize(
    'labels, names, option, expected',
    [
        ([1, 2], ['background', *CAT_DOG_EMU], 'auto', (3, 'those with names')),
        ([1, 2], ['background', *CAT_DOG_EMU], 2, (2, 'num_classes')),
        ([1, 1000], (), 'auto', (1000, 'by the largest label 1000')),
        ([0, 1, 7], CAT_DOG_EMU, 'auto', 'record 2 is outside 0..2 (num_classes 3, label_offset 0); the records'),
        ([0, 1, 2], CAT_DOG_EMU, 1000, 'num_classes 1000, but the records name 3 classes (label_offset 0); use auto'),
        ([1, 1], ['background', 'cat'], 'auto', 'all 2 training images are of one class'),
        ([-4, 2**40], (), 'auto', 'record 0 is outside 0..1000'),
    ],
)
def test_number_of_classes(labels, names, option, expected, tmp_path):
    shards(tmp_path, 'train', labels, names)
    if isinstance(expected, tuple):
        assert counted(tmp_path, option) == expected
    else:
        assert expected in message(counted, tmp_path, option)


@pytest.mark.parametrize('labels_txt, offset', [(None, 0), ('3:background\n1:cat\n2:dog', 1)])
def test_a_class_folder_called_background(labels_txt, offset, tmp_path):
    """It is a class as any other, also in the shards made of it."""
    folder(tmp_path / 'data/train', background=2, cat=1, dog=1)
    if labels_txt:
        (tmp_path / 'data/labels.txt').write_text(labels_txt)
    convert(str(tmp_path / 'data'), str(tmp_path / 'made'), 'tfrecord', 1)
    for path in ('data', 'made'):
        records = open_records(tmp_path / path, 'train')
        assert label_offset('auto', records)[0] == offset and counted(tmp_path / path)[0] == 3
        assert 'background' in records.class_names[offset:] and np.bincount(records.label - offset).max() == 2


def test_what_is_not_read(tmp_path):
    """A class without an image is refused by a training, what else is left out is a line."""
    folder(tmp_path / 'train', animals=0, cat=1, dog=1)
    folder(tmp_path / 'train/animals', ants=2)
    folder(tmp_path / 'val', cat=1, dog=0)  # which is none of a training's business
    text = message(counted, tmp_path)
    assert text.startswith(f'class folder {tmp_path}/train/animals holds no image; ') and '1 x folder inside a class' in text
    for name in ('cat/b.tif', 'cat/a.TIF', 'dog/.notes', 'dog/README', 'a.jpg'):
        (tmp_path / 'val' / name).write_bytes(b'x')
    lines = []
    assert evaluated_labels(tmp_path, None, '0', lines.append) == [1]
    left_out = {part.partition(', the first is')[0] for part in lines[0].removeprefix('left out: ').split('; ')}
    kinds = 'file beside the class folders', 'file without an ending', 'class folder without an image'
    assert left_out == {*(f'1 x {kind}' for kind in kinds), '2 x file .tif'}


@pytest.mark.parametrize('first', [0, 1])
def test_imagenet_is_known_by_its_word_net_ids(first, tmp_path, monkeypatch):
    """A part of ImageNet's records has all its classes, although not the largest label."""
    ids = list(imagenet_classes())
    assert len(ids) == 1000 and ids == sorted(ids) and (ids[0], imagenet_names()[0]) == ('n01440764', 'tench, Tinca tinca')
    noted = dict(enumerate([5, 700, 3]))
    monkeypatch.setattr(tfrecord, 'text_of', lambda path, byte, name: ids[noted[starts.index(byte)]])
    for labels, names in (([5, 700, 3], ['background'] * first + imagenet_names()), ([0, 1, 2], None)):
        shards(tmp_path, 'train', [label + first for label in labels])
        starts = [record.byte for record in tfrecord.walk(str(tmp_path / 'train-00000-of-00001'))]
        assert open_records(tmp_path, 'train').class_names == names


def test_written_names_are_read(tmp_path):
    path, names = tmp_path / 'labels.txt', ['', 'cat', '', 'a: b', ' two\r\nlines', '"quoted"']
    path.write_text(names_as_text(names))
    assert load_names(path) == (names, True)
    path.write_text('cat \n\n" dog"\nNew  York')
    assert load_names(path) == (['cat', ' dog', 'New  York'], False)
    path.write_text('1000000:cat')  # which is part of the name: a list of names is as long as the largest number
    assert load_names(path) == (['1000000:cat'], False)


def test_balanced_weights():
    """Each class has the same part in the loss; one without images has none, and does not become infinite."""
    labels = np.repeat([0, 1, 3], [6, 3, 1])
    weights = balanced(labels, 4)
    assert weights.dtype == np.float32 and np.allclose(weights * np.bincount(labels, minlength=4), [2.5, 2.5, 0, 2.5])
