"""Labels, numbers and names of classes."""

import numpy as np
import pytest

from src.data import tfrecord
from src.data.classes import (
    Offsets,
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
from src.errors import InputError
from src.evaluation.evaluation import open_validation
from src.options import load_settings
from tests.data.samples import folder, message, shards


def evaluated_labels(data, names, offset, log=print):
    """The class numbers of a network with three classes, whose training recorded `names` and `offset`, for the images."""
    settings = load_settings(['--data_dir', str(data), '--num_classes', '3'])
    records, offsets = open_validation(settings, log, names, offset, 'weights.ckpt')
    return (records.label - offsets.possible[0]).tolist()


@pytest.mark.parametrize(
    'names, offset, val, expected',
    [
        (['background', 'cat', 'dog'], '0', {'cat': 2, 'dog': 1}, [1, 1, 2]),  # the validation images lack a class
        (['background', 'ant', 'cat', 'dog'], '1', {'cat': 2, 'dog': 1}, [1, 1, 2]),  # trained from TFRecords
        (['dog', 'emu', 'cat'], '0', {'cat': 1, 'dog': 1, 'emu': 1}, [2, 0, 1]),  # numbered otherwise
        (None, '0', {'cat': 2, 'dog': 1}, [0, 0, 1]),  # a checkpoint that knows no names
    ],
)
def test_folders_are_evaluated_by_the_names_in_the_checkpoint(names, offset, val, expected, tmp_path):
    folder(tmp_path / 'val', **val)
    assert evaluated_labels(tmp_path, names, offset) == expected
    folder(tmp_path / 'train', cat=1, dog=1, emu=1, yak=1)
    assert evaluated_labels(tmp_path, names, offset) == expected


@pytest.mark.parametrize(
    'recorded, val, expected',
    [
        (['n01440764', 'n02012849', 'n03126707'], {'n03126707': 1}, [2]),  # two classes of the same words
        (['background', *imagenet_names()], {'n01440764': 1, 'n04604644': 1}, [0, 912]),
    ],
)
def test_other_names(recorded, val, expected, tmp_path):
    folder(tmp_path / 'val', **val)
    records = match_names(open_records(tmp_path, 'validation'), recorded, 'x')
    assert (records.label - (recorded[0] == 'background')).tolist() == expected


@pytest.mark.parametrize(
    'recorded, offset, names, labels, expected',
    [
        (['cat', 'dog', 'emu'], None, ['background', 'cat', 'dog', 'emu'], [1, 2, 3], [0, 1, 2]),  # imported weights
        (['background', 'cat', 'dog', 'emu'], '1', ['emu', 'dog', 'cat'], [0, 1, 2], [2, 1, 0]),
        (['crane', 'dog', 'crane'], '0', ['crane', 'dog', 'crane'], [0, 1, 2], [0, 1, 2]),  # a name that stands twice
    ],
)
def test_shards_are_evaluated_by_the_names_in_it(recorded, offset, names, labels, expected, tmp_path):
    shards(tmp_path, 'validation', labels, names)
    assert evaluated_labels(tmp_path, recorded, offset) == expected


@pytest.mark.parametrize(
    'recorded, names, expected',
    [
        (list('cde'), ['aaa', 'bbb'], 'class aaa of .*record 0 is not one class among the 3 of weights.ckpt .c, d, e '),
        (['cat', 'dog', 'emu'], ['dog', 'cat'], 'class 2 of .*record 2 is not one class among the 3 of'),
        (['crane', 'crane', 'dog'], ['dog', 'crane', 'crane'], 'class crane of .* is not one class among'),
    ],
)
def test_unknown_names_are_refused(recorded, names, expected, tmp_path):
    shards(tmp_path, 'validation', [0, 1, 2], names)
    with pytest.raises(InputError, match=expected):
        evaluated_labels(tmp_path, recorded, '0')


def test_offsets_are_settled_by_the_images():
    both = Offsets([0, 1])
    assert both.settled([9, 1], 12)[0] == 0 and both.settled([1, 9], 12)[0] == 1
    assert 'use --label_offset 0 if they count from 0, 1 if' in message(both.settled, [3, 2], 12)
    recorded = Offsets([1, 0], 1)
    assert recorded.settled([1, 9], 12)[0] == 0 and recorded.settled([1, 5], 99)[0] == recorded.settled([3, 2], 12)[0] == 1
    assert '--drop_background' in message(Offsets([0, -1]).settled, [0, 0], 12)


def counted(path, option='auto'):
    records = open_records(path, 'train')
    return count_classes(option, records, label_offset('auto', records)[0])


@pytest.mark.parametrize(
    'labels, names, option, expected',
    [
        ([1, 2], ['background', 'cat', 'dog', 'emu'], 'auto', (3, 'those with names')),
        ([1, 2], ['background', 'cat', 'dog', 'emu'], 2, (2, 'num_classes')),
        ([1, 1000], (), 'auto', (1000, 'by the largest label 1000')),
        ([0, 1, 2], ['cat', 'dog', 'emu'], 2, r'label 2 of .*record 2 is outside 0..1 \(num_classes 2'),
        ([0, 1, 2], ['cat', 'dog', 'emu'], 1000, 'num_classes 1000, but the records name 3 classes .*; use auto'),
        ([0, 1, 7], ['cat', 'dog', 'emu'], 'auto', 'label 7 of .*record 2 .*have labels 0 to 7: .*, or name all classes in'),
        ([-4, 1, 2], (), 'auto', r'label -4 of .*record 0 is outside 0..2 '),
        ([1, 1], ['background', 'cat'], 'auto', 'all 2 training images are of one class'),
        ([0, 2**40], (), 'auto', r'label 1099511627776 of .*record 1 is outside 0..1000'),
    ],
)
def test_number_of_classes(labels, names, option, expected, tmp_path):
    shards(tmp_path, 'train', labels, names)
    if isinstance(expected, tuple):
        assert counted(tmp_path, option) == expected
        return
    with pytest.raises(InputError, match=expected):
        counted(tmp_path, option)


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
    folder(tmp_path / 'train/animals', ants=2, bees=1)
    folder(tmp_path / 'val', cat=1, dog=0)  # which is none of a training's business
    found = message(counted, tmp_path)
    assert f'class folder {tmp_path}/train/animals holds no image; put its images directly into it, or' in found
    assert f'remove it (left out: 2 x folder inside a class folder, the first is {tmp_path}/train/animals/ants; 1 x' in found
    for name in ('cat/b.tif', 'cat/a.TIF', 'dog/notes.txt', 'dog/.notes', 'dog/README', 'a.jpg'):
        (tmp_path / 'val' / name).write_bytes(b'x')
    lines = []
    assert evaluated_labels(tmp_path, None, '0', lines.append) == [1]
    left_out = [part.partition(', the first is')[0] for part in lines[0].removeprefix('left out: ').split('; ')]
    kinds = 'file .txt', 'file beside the class folders', 'file without an ending', 'class folder without an image'
    assert sorted(left_out) == sorted([*(f'1 x {kind}' for kind in kinds), '2 x file .tif'])


@pytest.mark.parametrize('first', [0, 1])
def test_imagenet_is_known_by_its_word_net_ids(first, tmp_path, monkeypatch):
    """A part of ImageNet's records has all its classes, although not the largest label."""
    ids = list(imagenet_classes())
    assert len(ids) == 1000 and ids == sorted(ids) and (ids[0], imagenet_names()[0]) == ('n01440764', 'tench, Tinca tinca')
    for labels, noted, names in (([5, 700, 3], [5, 700, 3], True), ([0, 1, 2], [5, 700, 3], False)):
        synset = iter([ids[number] for number in noted])
        monkeypatch.setattr(tfrecord, 'text_of', lambda path, byte, name, synset=synset: next(synset))
        shards(tmp_path, 'train', [label + first for label in labels])
        records = open_records(tmp_path, 'train')
        assert records.class_names == (['background'] * first + imagenet_names() if names else None)
    assert count_classes('auto', records, first) == (3, f'by the largest label {2 + first}')


def test_written_names_are_read(tmp_path):
    path, names = tmp_path / 'labels.txt', ['', 'cat', '', 'a: b', ' two\r\nlines', '"quoted"']
    path.write_text(names_as_text(names))
    assert load_names(path) == (names, True)
    path.write_text('1000000:cat')  # which is part of the name: a list of names is as long as the largest number
    assert load_names(path) == (['1000000:cat'], False)
