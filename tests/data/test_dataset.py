"""Which record is where, labels, and the batches themselves."""

import io
import os
import pickle
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import eval as evaluation_entry
from src.data import dataset, imagenet, tfrecord
from src.data.convert import convert
from src.data.crc import crc32c, length_crc, mask
from src.data.preprocess import augment
from src.data.records import open_records
from src.data.tfrecord import find_shards, index_shards, write_shards
from src.errors import InputError
from src.evaluation import evaluation
from src.weights import checkpoint
from src.weights.convert import OURS

SETTINGS = {'offset': 1, 'image_size': 75, 'batch_size': 4}


@pytest.fixture(scope='module')
def records(data):
    return open_records(str(data), 'train')


def order(**kwargs):
    settings = {'count': 23, 'seed': 1, 'batch_size': 2, 'rank': 0, 'world': 1, 'start': 0, 'stop': 22, **kwargs}
    return [(int(e), int(r)) for e, r in dataset.TrainingOrder(**settings)]


def test_an_epoch_has_each_record_once_and_another_order():
    whole = order()
    assert [e for e, _ in whole] == [0] * 22 + [1] * 22
    epochs = [[r for e, r in whole if e == epoch] for epoch in (0, 1)]
    assert all(len(set(epoch)) == 22 for epoch in epochs) and epochs[0] != epochs[1]
    assert order(seed=2) != whole and order() == whole


def test_ranks_share_what_one_would_take():
    """N ranks x batch B see in a step the records of one rank x batch N * B, and no record twice."""
    one = order(batch_size=6, stop=6)
    ranks = [order(batch_size=2, rank=rank, world=3, stop=6) for rank in range(3)]
    for step in range(6):
        assert one[6 * step : 6 * step + 6] == sum((rank[2 * step : 2 * step + 2] for rank in ranks), [])


def test_any_step_can_be_reached_directly():
    assert order(start=15) == order()[30:]


@pytest.mark.parametrize('world', [1, 2, 3, 7])
@pytest.mark.parametrize('count, batch_size', [(23, 4), (24, 4), (1, 4), (50, 1)])
def test_evaluation_has_every_record_once(count, batch_size, world):
    ranks = [[int(r) for (r,) in dataset.EvaluationOrder(count, batch_size, rank, world)] for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1 and len(ranks[0]) % batch_size == 0
    assert sorted(r for rank in ranks for r in rank if r >= 0) == list(range(count))


def batches(records, num_workers=1, **kwargs):
    data = dataset.training_dataset(
        records, seed=3, keep_prob=0.8, start=kwargs.pop('start', 0), stop=4, num_workers=num_workers, **SETTINGS, **kwargs
    )
    assert data.get_dataset_size() == 4 - kwargs.get('start', 0) or kwargs == {}
    return [list(batch) for batch in data.create_tuple_iterator(num_epochs=1, output_numpy=True)]


def test_batches(records):
    found = batches(records)
    assert len(found) == 4
    image, draws, mask, label = found[0]
    assert (image.shape, image.dtype) == ((4, 3, 75, 75), np.uint8)
    assert (draws.shape, draws.dtype) == ((4, 2), np.float32)
    assert (mask.shape, mask.dtype) == ((4, 1536), np.uint8) and abs(mask.mean() - 0.8) < 0.03
    assert label.dtype == np.int32 and label.min() >= 0 and label.max() < 10
    expected = [records.label[r] - 1 for _, r in order(count=len(records), seed=3, batch_size=4, stop=4)]
    assert np.concatenate([batch[3] for batch in found]).tolist() == expected
    assert not np.array_equal(found[0][0], found[1][0])


def test_batches_do_not_depend_on_workers_or_start(records):
    reference = batches(records)
    for found, offset in ((batches(records, num_workers=2), 0), (batches(records, start=2), 2)):
        assert len(found) == 4 - offset
        for ours, theirs in zip(found, reference[offset:]):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs))


def test_augmented_on_the_host(records):
    """Pictures as the network takes them; the rest is the same."""
    for ours, theirs in zip(batches(records, augment_on_host=True), batches(records)):
        assert (ours[0].shape, ours[0].dtype) == ((4, 3, 75, 75), np.float32) and np.abs(ours[0]).max() <= 1
        assert np.array_equal(ours[0], np.stack([augment(*sample) for sample in zip(theirs[0], theirs[1])]))
        assert all(np.array_equal(a, b) for a, b in zip(ours[1:], theirs[1:]))


def test_ranks_get_parts_of_the_same_batch(records):
    whole = batches(records)[0]
    parts = [
        list(
            next(
                dataset.training_dataset(
                    records,
                    offset=1,
                    image_size=75,
                    batch_size=2,
                    seed=3,
                    keep_prob=0.8,
                    start=0,
                    stop=1,
                    rank=rank,
                    world=2,
                ).create_tuple_iterator(num_epochs=1, output_numpy=True)
            )
        )
        for rank in range(2)
    ]
    for i in range(4):
        assert np.array_equal(np.concatenate([part[i] for part in parts]), whole[i])


def test_evaluation_batches(data):
    records = open_records(str(data), 'validation')
    found = list(dataset.evaluation_dataset(records, **SETTINGS).create_tuple_iterator(num_epochs=1, output_numpy=True))
    labels = np.concatenate([label for _, label in found])
    assert len(found) == 8 and labels[:30].tolist() == (records.label - 1).tolist() and (labels[30:] == -1).all()
    assert not found[-1][0][2:].any()


def test_records_survive_a_pickle(records):
    again = pickle.loads(pickle.dumps(records))
    assert again.read(3) == records.read(3)


@pytest.mark.parametrize('labels, option, offset', [([1, 2, 3], 'auto', 1), ([0, 1, 2], 'auto', 0), ([1, 2], '0', 0)])
def test_label_offset(tmp_path, data, labels, option, offset):
    picture = open_records(str(data), 'train').read(0)
    write_shards(tmp_path, 'train', [(picture, label, f'{label}.jpg') for label in labels], 1)
    records = index_shards(find_shards(tmp_path, 'train'))
    assert dataset.label_offset(option, records) == offset
    dataset.check_labels(records, offset, 3)


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
    picture = open_records(str(data), 'train').read(0)
    write_shards(tmp_path, 'train', [(picture, label, '') for label in labels], 1)
    with pytest.raises(InputError, match=message):
        dataset.check_labels(index_shards(find_shards(tmp_path, 'train')), offset, 3)


@pytest.mark.parametrize(
    'option, cores, of_server, ranks, expected',
    [
        (0, 192, 192, 8, 24),
        (0, 24, 192, 8, 24),
        (0, 192, None, 8, 24),  # shared; by --bind_core; without the launcher
        (0, 20, 192, 8, 20),
        (0, 24, 192, 2, 24),  # msrun divides by all devices, also those without a rank
        (0, 192, None, 1, 32),
        (0, 2, 2, 4, 1),
        (48, 192, 192, 8, 48),
        (48, 24, 192, 8, 24),
    ],
)
def test_decoding_processes(option, cores, of_server, ranks, expected, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cores)))
    monkeypatch.delenv('LOCAL_CORES', raising=False)
    if of_server:
        monkeypatch.setenv('LOCAL_CORES', str(of_server))
    assert dataset.workers(option, ranks) == expected


# Classes by their names

JPEG = io.BytesIO()
Image.new('RGB', (80, 80)).save(JPEG, 'JPEG')


def folder(path, **classes):
    """Class folders below `path` with so many images each."""
    for name, count in classes.items():
        (path / name).mkdir(parents=True)
        for k in range(count):
            (path / name / f'{k}.jpg').write_bytes(JPEG.getvalue())


def shards(path, split, labels, names=()):
    path.mkdir(parents=True, exist_ok=True)
    write_shards(path, split, [(JPEG.getvalue(), label, '') for label in labels], 1)
    if names:
        (path / 'labels.txt').write_text(''.join(f'{label}:{name}\n' for label, name in enumerate(names) if name))


def test_folders_are_upright_and_shards_as_stored(tmp_path):
    """A photo that lies on its side: the same network input from its folder as from the shards made of it."""
    exif, photo = Image.Exif(), io.BytesIO()
    exif[0x112] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).resize((120, 90)).save(
        photo, 'PNG', exif=exif
    )
    folder(tmp_path / 'folder/train', cat=1)
    (tmp_path / 'folder/train/cat/0.jpg').write_bytes(photo.getvalue())
    convert(str(tmp_path / 'folder'), str(tmp_path / 'made'), 'tfrecord', 1)
    (tmp_path / 'tf').mkdir()
    write_shards(tmp_path / 'tf', 'train', [(photo.getvalue(), 1, '')], 1)
    found = {}
    for name in ('folder', 'made', 'tf'):
        records = open_records(tmp_path / name, 'train')
        found[name] = (
            dataset.LoadTraining(records, 0, 75, 1, 1.0, 0.1).sample(0, 0)[0].astype(int),
            dataset.LoadEvaluation(records, 0, 75).sample(0)[0].astype(int),
        )
    for folder_image, made, stored in zip(*found.values()):
        assert np.abs(folder_image - made).mean() < 5 < 20 < np.abs(folder_image - stored).mean()
    assert np.abs(np.rot90(found['tf'][1], -1, (1, 2)) - found['folder'][1]).mean() < 1


def evaluated_labels(tmp_path, monkeypatch, names, offset):
    """Labels that eval.py compares with a network's classes, whose training recorded `names` and `offset`."""
    path = tmp_path / 'inceptionv4-1_1.ckpt'
    config = {'num_classes': 3, 'block_counts': [1, 1, 1], 'image_size': 75, 'label_offset': offset}
    config = {name: value for name, value in config.items() if value is not None}
    checkpoint.write(path, {OURS: np.zeros(1, np.float32)}, {'config': config, **({'class_names': names} if names else {})})
    found = []

    def evaluate(paths, step, data, *_):
        found.extend(np.concatenate([label for _, label in data.create_tuple_iterator(num_epochs=1, output_numpy=True)]))
        return []

    monkeypatch.setattr(evaluation, 'evaluate_checkpoints', evaluate)
    argv = ['--data_dir', str(tmp_path / 'data'), '--num_workers', '1', '--block_counts', '1,1,1', '--image_size', '75']
    run = SimpleNamespace(rank=0, world=1, ranks_here=1, amp_level='O0')
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
        (['background', *imagenet.names()], {'n01440764': 1, 'n04604644': 1}, [0, 912]),
        (['0', '1', '2'], {'0': 1, '2': 1}, [0, 2]),
    ],
)  # names that are numbers
def test_other_names(recorded, val, expected, tmp_path, monkeypatch):
    folder(tmp_path / 'data/val', **val)
    records = dataset.match_names(open_records(tmp_path / 'data', 'validation'), recorded, 'x')
    assert (records.label - (recorded[0] == 'background')).tolist() == expected


@pytest.mark.parametrize(
    'recorded, offset, names, labels, expected',
    [
        (['background', *imagenet.names()], '1', list('0123'), [1, 3], [0, 2]),  # names made of the numbers by a conversion
        (['cat', 'dog', 'emu'], '0', ['background', 'cat', 'dog', 'emu'], [1, 2, 3], [0, 1, 2]),
        (['cat', 'dog', 'emu'], None, ['background', 'cat', 'dog', 'emu'], [1, 2, 3], [0, 1, 2]),  # imported weights
        (['cat', 'dog', 'emu'], None, ['', '1', '2', '3'], [1, 2, 3], [0, 1, 2]),
        (['background', 'cat', 'dog', 'emu'], None, ['cat', 'dog', 'emu'], [0, 1, 2], [0, 1, 2]),
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


IMAGENET = ['background', *imagenet.names()]


def counted(path, option='auto', offset='auto'):
    records = open_records(path, 'train')
    offset = dataset.label_offset(offset, records)
    return dataset.count_classes(option, records, offset)


@pytest.mark.parametrize(
    'labels, names, options, expected',
    [
        ([0, 1, 2], ['cat', 'dog', 'emu'], {}, (3, 'those with names')),
        ([1, 2], ['background', 'cat', 'dog', 'emu'], {}, (3, 'those with names')),
        ([1, 2], ['background', 'cat', 'dog', 'emu'], {'option': 2}, (2, 'num_classes')),
        ([1, 2, 3], ['background', 'cat', 'dog', 'emu'], {'offset': '0'}, (4, 'those with names')),
        ([0, 5, 1], (), {}, (6, 'by the largest label 5')),
        ([1, 5], (), {}, (5, 'by the largest label 5')),
        ([0, 5, 1], (), {'option': 1000}, (1000, 'num_classes')),
        ([1, 1000], (), {}, (1000, 'by the largest label 1000')),
        ([0, 999], (), {}, (1000, 'by the largest label 999')),
        ([1, 1000], (), {'offset': '0'}, (1001, 'by the largest label 1000')),
        ([1, 2, 3, 700], IMAGENET, {}, (1000, 'those with names')),
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
        assert dataset.label_offset('auto', records) == offset and counted(tmp_path / path)[0] == 3
        assert 'background' in records.class_names[offset:] and np.bincount(records.label - offset).max() == 2


def test_class_folders_are_counted(tmp_path):
    folder(tmp_path / 'train', cat=1, dog=2, emu=1)
    assert counted(tmp_path) == (3, 'those with names')


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
        ([0, 1, 7], ['cat', 'dog', 'emu'], {}, r'label 7 of .*record 2 is outside .*; labels.txt names no class 7: mend it'),
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
    ids = list(imagenet.classes())
    assert len(ids) == 1000 and ids == sorted(ids) and (ids[0], imagenet.names()[0]) == ('n01440764', 'tench, Tinca tinca')
    features = tfrecord._record
    for labels, noted, names in (([5, 700, 3], [5, 700, 3], True), ([0, 1, 2], [5, 700, 3], False)):
        synset = iter([ids[number] for number in noted])
        monkeypatch.setattr(tfrecord, '_record', lambda *example, ids=synset: with_synset(features(*example), next(ids)))
        shards(tmp_path, 'train', [label + first for label in labels])
        records = open_records(tmp_path, 'train')
        assert records.class_names == (['background'] * first + imagenet.names() if names else None)
    assert dataset.count_classes('auto', records, first) == (3, f'by the largest label {2 + first}')


def with_synset(record, synset):
    """A TFRecord (bytes) with another feature."""
    size = int.from_bytes(record[:8], 'little')
    entry = tfrecord._field(1, tfrecord.SYNSET) + tfrecord._field(2, tfrecord._field(1, tfrecord._field(1, synset.encode())))
    example = record[12 : 12 + size]
    _, start = tfrecord._varint(example, 1, size)
    example = tfrecord._field(1, tfrecord._field(1, entry) + example[start:])
    return struct.pack('<QI', len(example), length_crc(len(example))) + example + struct.pack('<I', mask(crc32c(example)))


@pytest.mark.parametrize(
    'recorded, names, message',
    [
        (
            ['cat', 'dog', 'emu'],
            ['aaa', 'bbb', 'zzz'],
            r"class 'aaa' of .*record 0 is unknown to .*inceptionv4-1_1.ckpt, which "
            r'knows cat, dog, emu \(3 classes\); name the classes as its',
        ),
        (
            ['cat', 'dog', 'emu'],
            ['dog', 'cat'],
            'class 2 of .*record 2 has no name, and the other names are numbered otherw',
        ),
        (
            ['crane', 'crane', 'dog'],
            ['dog', 'crane', 'crane'],
            "class 'crane' of .* has a name that stands twice in the names",
        ),
    ],
)
def test_unknown_names_are_refused(recorded, names, message, tmp_path, monkeypatch):
    shards(tmp_path / 'data', 'validation', [0, 1, 2], names)
    with pytest.raises(InputError, match=message):
        evaluated_labels(tmp_path, monkeypatch, recorded, '0')
