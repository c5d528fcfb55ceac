"""Labels, numbers and names of classes."""

import numpy as np
import pytest

import eval as evaluation_entry
from src.data import tfrecord
from src.data.classes import (
    check_labels,
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
from src.data.tfrecord import encode_field, framed, read_varint, write_shards
from src.errors import InputError
from src.runtime import Run
from src.weights import checkpoint
from src.weights.read import OURS
from tests.data.samples import folder, shards


@pytest.mark.parametrize(
    'labels, offset, message',
    [
        ([1, 3, 2], 0, r'label 3 of .*train-00000-of-00001, record 1 is outside 0..2 .*--label_offset 1'),
        ([0, 1, 5], 0, r'label 5 of .*record 2 .*labels 0 to 5: set --num_classes'),
        ([0, 1, 2], 1, r'label 0 of .*record 0 is outside 1..3'),
        ([-4, 1, 2], 0, 'label -4'),
    ],
)
def test_wrong_labels(tmp_path, data, labels, offset, message):
    encoded = open_records(str(data), 'train').read(0)
    write_shards(tmp_path, 'train', [(encoded, label, '') for label in labels], 1)
    with pytest.raises(InputError, match=message):
        check_labels(open_records(tmp_path, 'train'), offset, 3)


def evaluated_labels(tmp_path, monkeypatch, names, offset):
    """Labels that eval.py compares with a network's classes, whose training recorded `names` and `offset`."""
    path = tmp_path / 'inceptionv4-1_1.ckpt'
    config = {'num_classes': 3, 'block_counts': [1, 1, 1], 'image_size': 75, 'label_offset': offset}
    config = {name: value for name, value in config.items() if value is not None}
    checkpoint.write(path, {OURS: np.zeros(1, np.float32)}, {'config': config, **({'class_names': names} if names else {})})
    found = []

    def evaluate(evaluation, *_):
        data = evaluation.data.create_tuple_iterator(num_epochs=1, output_numpy=True)
        found.extend(np.concatenate([label for _, label in data]))
        return []

    monkeypatch.setattr(evaluation_entry, 'evaluate_all', evaluate)
    argv = ['--data_dir', str(tmp_path / 'data'), '--num_workers', '1', '--block_counts', '1,1,1', '--image_size', '75']
    run = Run()
    evaluation_entry.evaluate_path(argv, run, path, print)
    return [int(label) for label in found if label >= 0]


@pytest.mark.parametrize(
    'names, offset, val, expected',
    [
        (['background', 'cat', 'dog'], '0', {'cat': 2, 'dog': 1}, [1, 1, 2]),  # the validation images lack a class
        (['background', 'ant', 'cat', 'dog'], '1', {'cat': 2, 'dog': 1}, [1, 1, 2]),  # trained from TFRecords
        (['dog', 'emu', 'cat'], '0', {'cat': 1, 'dog': 1, 'emu': 1}, [2, 0, 1]),  # numbered otherwise
        (None, '0', {'cat': 2, 'dog': 1}, [0, 0, 1]),
    ],
)  # a checkpoint that knows no names
@pytest.mark.parametrize('train', [{}, {'cat': 1, 'dog': 1, 'emu': 1, 'yak': 1}], ids=['', 'train beside'])
def test_folders_are_evaluated_by_the_names_in_the_checkpoint(names, offset, val, train, expected, tmp_path, monkeypatch):
    folder(tmp_path / 'data/val', **val)
    folder(tmp_path / 'data/train', **train)
    assert evaluated_labels(tmp_path, monkeypatch, names, offset) == expected


@pytest.mark.parametrize(
    'recorded, val, expected',
    [
        (['n01440764', 'n02012849', 'n03126707'], {'n03126707': 1}, [2]),  # two classes of the same words
        (['background', *imagenet_names()], {'n01440764': 1, 'n04604644': 1}, [0, 912]),
        (['0', '1', '2'], {'0': 1, '2': 1}, [0, 2]),
    ],
)  # names that are numbers
def test_other_names(recorded, val, expected, tmp_path, monkeypatch):
    folder(tmp_path / 'data/val', **val)
    records = match_names(open_records(tmp_path / 'data', 'validation'), recorded, 'x')
    assert (records.label - (recorded[0] == 'background')).tolist() == expected


@pytest.mark.parametrize(
    'recorded, offset, names, labels, expected',
    [
        (['background', *imagenet_names()], '1', list('0123'), [1, 3], [0, 2]),  # names made of the numbers by a conversion
        (['cat', 'dog', 'emu'], None, ['background', 'cat', 'dog', 'emu'], [1, 2, 3], [0, 1, 2]),  # imported weights
        (['cat', 'dog', 'emu'], None, ['', '1', '2', '3'], [1, 2, 3], [0, 1, 2]),
        (['background', 'cat', 'dog', 'emu'], '1', ['emu', 'dog', 'cat'], [0, 1, 2], [2, 1, 0]),
        (['background', 'cat', 'dog', 'emu'], '1', (), [1, 3], [0, 2]),  # nothing to match by
        (
            ['background', 'cat', 'dog', 'emu'],
            '1',
            ['', 'cat', '', 'emu'],
            [1, 2, 3],
            [0, 1, 2],
        ),  # as far as names are known
        (['background', 'crane', 'dog', 'crane'], '1', ['crane', 'dog', 'crane'], [0, 1, 2], [0, 1, 2]),
    ],
)
def test_shards_are_evaluated_by_the_names_in_it(recorded, offset, names, labels, expected, tmp_path, monkeypatch):
    shards(tmp_path / 'data', 'validation', labels, names)
    assert evaluated_labels(tmp_path, monkeypatch, recorded, offset) == expected


def test_labels_txt_from_1_beside_imported_weights(tmp_path, monkeypatch):
    folder(tmp_path / 'data/val', cat=1, dog=1, emu=1)
    (tmp_path / 'data/labels.txt').write_text('3:cat\n2:dog\n1:emu\n')
    assert evaluated_labels(tmp_path, monkeypatch, ['cat', 'dog', 'emu'], None) == [0, 1, 2]


def counted(path, option='auto', offset='auto'):
    records = open_records(path, 'train')
    offset = label_offset(offset, records)[0]
    return count_classes(option, records, offset)


@pytest.mark.parametrize(
    'labels, names, options, expected',
    [
        ([0, 1, 2], ['cat', 'dog', 'emu'], {}, (3, 'those with names')),
        ([1, 2], ['background', 'cat', 'dog', 'emu'], {}, (3, 'those with names')),
        ([1, 2], ['background', 'cat', 'dog', 'emu'], {'option': 2}, (2, 'num_classes')),
        ([0, 5, 1], (), {}, (6, 'by the largest label 5')),
        ([1, 1000], (), {}, (1000, 'by the largest label 1000')),
    ],
)
def test_classes_are_counted(labels, names, options, expected, tmp_path):
    shards(tmp_path, 'train', labels, names)
    assert counted(tmp_path, **options) == expected


@pytest.mark.parametrize('labels_txt, offset', [(None, 0), ('background\ncat\ndog\n', 0), ('3:background\n1:cat\n2:dog', 1)])
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


def test_classes_without_an_image_are_refused(tmp_path):
    folder(tmp_path / 'train', animals=0, cat=1, dog=1)
    folder(tmp_path / 'train/animals', ants=2, bees=1)
    folder(tmp_path / 'val', cat=1, dog=0)  # which is none of a training's business
    with pytest.raises(
        InputError,
        match=r'class folder .*train/animals holds no image \(1 of 3 class folders do not\); put '
        r'its images directly into it, or remove it \(left out: 2 x folder inside a class folder, the first '
        r'is .*train/animals/ants; 1 x class folder without an image, the first is .*train/animals\)',
    ):
        counted(tmp_path)
    assert len(open_records(tmp_path, 'validation')) == 1


def test_what_is_left_out_is_said(tmp_path, monkeypatch, capsys):
    folder(tmp_path / 'data/val', cat=1, dog=2)
    (tmp_path / 'data/val/cat/inner').mkdir()
    (tmp_path / 'data/val/.hidden').mkdir()
    for name in ('cat/b.tif', 'dog/a.TIF', 'dog/notes.txt', 'dog/.notes', 'dog/c.tif', 'dog/README', 'a.jpg'):
        (tmp_path / 'data/val' / name).write_bytes(b'x')
    assert evaluated_labels(tmp_path, monkeypatch, None, '0') == [0, 1, 1]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('left out: ')]
    val = tmp_path / 'data/val'
    assert sorted(line.removeprefix('left out: ').split('; ')) == [
        f'1 x file .txt, the first is {val}/dog/notes.txt',
        f'1 x file beside the class folders, the first is {val}/a.jpg',
        f'1 x file without an ending, the first is {val}/dog/README',
        f'1 x folder inside a class folder, the first is {val}/cat/inner',
        f'3 x file .tif, the first is {val}/cat/b.tif',
    ]


@pytest.mark.parametrize(
    'labels, names, options, message',
    [
        ([0, 1, 2], ['cat', 'dog', 'emu'], {'option': 2}, r'label 2 of .*record 2 is outside 0..1 \(num_classes 2'),
        (
            [0, 1, 2],
            ['cat', 'dog', 'emu'],
            {'option': 1000},
            'num_classes 1000, but the records name 3 classes .*leave num_cl',
        ),
        ([0, 1, 7], ['cat', 'dog', 'emu'], {}, r'label 7 of .*record 2 is outside .*; labels.txt names no class 7: add it'),
        ([1, 1], ['background', 'cat'], {}, 'all 2 training images are of one class'),
        ([0, 2**40], (), {}, 'record 1 has the label 1099511627776, which would make 1099511627777 classes of 2 images'),
    ],
)
def test_numbers_of_classes_that_do_not_fit(labels, names, options, message, tmp_path):
    shards(tmp_path, 'train', labels, names)
    with pytest.raises(InputError, match=message):
        counted(tmp_path, **options)


@pytest.mark.parametrize('first', [0, 1])
def test_imagenet_is_known_by_its_word_net_ids(first, tmp_path, monkeypatch):
    """A part of ImageNet's records has all its classes, although not the largest label."""
    ids = list(imagenet_classes())
    assert len(ids) == 1000 and ids == sorted(ids) and (ids[0], imagenet_names()[0]) == ('n01440764', 'tench, Tinca tinca')
    features = tfrecord._record
    for labels, noted, names in (([5, 700, 3], [5, 700, 3], True), ([0, 1, 2], [5, 700, 3], False)):
        synset = iter([ids[number] for number in noted])
        monkeypatch.setattr(tfrecord, '_record', lambda *example, ids=synset: with_synset(features(*example), next(ids)))
        shards(tmp_path, 'train', [label + first for label in labels])
        records = open_records(tmp_path, 'train')
        assert records.class_names == (['background'] * first + imagenet_names() if names else None)
    assert count_classes('auto', records, first) == (3, f'by the largest label {2 + first}')


def with_synset(record, synset):
    """A TFRecord (bytes) with another feature."""
    size = int.from_bytes(record[:8], 'little')
    entry = encode_field(1, tfrecord.SYNSET.encode()) + encode_field(2, encode_field(1, encode_field(1, synset.encode())))
    example = record[12 : 12 + size]
    _, start = read_varint(example, 1, size)
    example = encode_field(1, encode_field(1, entry) + example[start:])
    return framed(example)


@pytest.mark.parametrize(
    'recorded, names, message',
    [
        (
            ['cat', 'dog', 'emu'],
            ['aaa', 'bbb', 'zzz'],
            r"class 'aaa' of .*record 0 is not one class among those of .*inceptionv4-1_1.ckpt: cat, dog, emu \(3 classes\)",
        ),
        (['cat', 'dog', 'emu'], ['dog', 'cat'], 'class 2 of .*record 2 is not one class among those of'),
        (['crane', 'crane', 'dog'], ['dog', 'crane', 'crane'], "class 'crane' of .* is not one class among"),
    ],
)
def test_unknown_names_are_refused(recorded, names, message, tmp_path, monkeypatch):
    shards(tmp_path / 'data', 'validation', [0, 1, 2], names)
    with pytest.raises(InputError, match=message):
        evaluated_labels(tmp_path, monkeypatch, recorded, '0')


def test_written_names_are_read(tmp_path):
    path, names = tmp_path / 'labels.txt', ['', 'cat', '', 'a: b', ' two\r\nlines']
    path.write_text(names_as_text(names))
    assert load_names(path) == (names, True)
    path.write_text('1000000:cat')  # which is part of the name: a list of names is as long as the largest number
    assert load_names(path) == (['1000000:cat'], False)
