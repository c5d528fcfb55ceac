"""Damaged images and shards: what training replaces and counts, and what stops it with one line."""

import gc
import re

import numpy as np
import pytest

import train
from src.data import pipeline, records, tfrecord
from src.data.order import TrainingOrder
from src.data.pipeline import BadRecords, LoadEvaluation, LoadTraining, training_dataset
from src.data.records import Records, open_records
from src.errors import input_error
from src.runtime import Run
from tests.conftest import SMALL
from tests.data.samples import settings

CUT, NO_BYTES, NO_IMAGE = 3, 7, 11  # records of `damaged`
DAMAGED = {CUT, NO_BYTES, NO_IMAGE}
EPOCH, BATCH = 12, 4


@pytest.fixture(scope='module', autouse=True)
def no_garbage_for_the_workers():
    """A data worker is forked from this process, which hundreds of tests have filled. If Python collects garbage in it, the
    iterators of earlier data sets are torn down in the wrong process: MindSpore 2.8 then crashes now and then."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope='module')
def images(data):
    good = open_records(str(data), 'train')
    return [(good.read(i), 1 + i % 10, f'{i}.jpg') for i in range(EPOCH)]


@pytest.fixture(scope='module')
def damaged(images, tmp_path_factory):
    """Directory of 12 training records in one shard, three of them bad."""
    directory, examples = tmp_path_factory.mktemp('damaged'), list(images)
    for record, encoded in ((CUT, examples[CUT][0][:-200]), (NO_BYTES, b''), (NO_IMAGE, b'<html>not found</html>')):
        examples[record] = encoded, *examples[record][1:]
    tfrecord.write_shards(str(directory), 'train', examples, 1)
    return directory


def batches(directory, bad, num_workers=1, steps=range(6)):
    options = settings(seed=5, num_workers=num_workers)
    data = training_dataset(open_records(str(directory), 'train'), 1, options, steps, Run(), bad)
    rows = list(data.create_tuple_iterator(num_epochs=1, output_numpy=True))
    return [np.concatenate(column) for column in zip(*rows)]


def test_bad_records_are_replaced_and_counted(damaged, images, tmp_path):
    bad = BadRecords(EPOCH, 2)
    found = batches(damaged, bad)
    assert bad.counts.tolist() == [3, 3]
    tfrecord.write_shards(str(tmp_path), 'train', images, 1)
    sound = batches(tmp_path, BadRecords(EPOCH, 2))
    replaced = np.array([int(record) in DAMAGED for _, record in TrainingOrder(EPOCH, settings(seed=5), range(6))])
    assert replaced.sum() == 6
    first = next(int(record) for _, record in TrainingOrder(EPOCH, settings(seed=5), range(6)) if int(record) in DAMAGED)
    assert bad.first.startswith(f'{damaged}/train-00000-of-00001, record {first}: ')
    for ours, theirs in zip(found, sound):  # image, draws, mask, label
        assert np.array_equal(ours[~replaced], theirs[~replaced])
    for image, label in zip(found[0][replaced], found[3][replaced]):
        assert image.std() > 5 and 0 <= label < 10
    # All is as repeatable as without damage: with other workers, and from the middle on.
    for again, skipped in (
        (batches(damaged, BadRecords(EPOCH, 2), num_workers=2), 0),
        (batches(damaged, BadRecords(EPOCH, 2), steps=range(4, 6)), 4 * BATCH),
    ):
        assert all(np.array_equal(ours[skipped:], theirs) for ours, theirs in zip(found, again))


def test_too_many_stop_the_training(damaged):
    """Not the workers, which run ahead of the training; what they have counted is judged beside the steps."""
    allowed, refused = BadRecords(4000, 2), BadRecords(EPOCH, 2)
    for bad in (allowed, refused):
        batches(damaged, bad, 2)
    assert allowed.problem([0]) == allowed.problem([1]) == ''
    assert re.fullmatch(
        r'3 of the 12 records that this rank takes in epoch 2 cannot be read or decoded, more than '
        r'0.1%; the first was .*train-00000-of-00001, record \d+: .*; '
        r'python -m src.data.check DIR lists them all',
        refused.problem([1]),
    )


def fails(*arguments):
    """The error with which the pipeline ends, and what the worker itself told."""
    bad = BadRecords(EPOCH, 2)
    with pytest.raises(RuntimeError) as ended:
        batches(*arguments, bad=bad)
    return str(input_error(ended.value)), bad.failure


def test_nothing_sound_to_take_instead(tmp_path):
    tfrecord.write_shards(str(tmp_path), 'train', [(b'', 1, '')] * 4, 1)
    for text in fails(tmp_path):
        assert re.fullmatch(
            '100 records drawn in a row cannot be read or decoded, the last of them .*train-00000-of-00001, '
            r'record \d: not an image.*; python -m src.data.check DIR lists them all',
            text,
        )


original = Records.place


def away(monkeypatch, numbers, always=False):
    """Reading of the `numbers` of records fails: once each, or always. Returns the numbers that were read."""
    reads, left = [], set(numbers)

    def place(self, i):
        reads.append(i)
        if i in left:
            left.difference_update(() if always else (i,))
            raise OSError(5, 'Input/output error')
        return original(self, i)

    monkeypatch.setattr(Records, 'place', place)
    return reads


@pytest.fixture
def pauses(monkeypatch):
    waited = []
    monkeypatch.setattr(records.time, 'sleep', lambda seconds: seconds and waited.append(seconds))
    return waited


def test_reading_is_tried_again(images, tmp_path, pauses, monkeypatch):
    """An image that is away for a moment changes nothing, in training and in evaluation."""
    tfrecord.write_shards(str(tmp_path), 'train', images, 1)
    found, bad = open_records(str(tmp_path), 'train'), BadRecords(EPOCH, 2)
    for load, arguments in ((LoadTraining(found, 1, settings(seed=5), bad), (0, 3)), (LoadEvaluation(found, 1, 75), (3,))):
        expected = load.sample(*arguments)
        reads = away(monkeypatch, [3])
        assert all(map(np.array_equal, load.sample(*arguments), expected)) and reads == [3, 3]
    assert pauses == [0.2, 0.2] and bad.counts[0] == 0


def test_record_that_stays_away_is_a_bad_one(images, tmp_path, pauses, monkeypatch):
    """After some seconds; the next such one costs less, until waiting has helped again."""
    tfrecord.write_shards(str(tmp_path), 'train', images, 1)
    bad = BadRecords(EPOCH, 2)
    load = LoadTraining(open_records(str(tmp_path), 'train'), 1, settings(seed=5), bad)
    away(monkeypatch, [3, 4], always=True)
    load.sample(0, 3)
    assert pauses == [0.2, 0.5, 1, 2, 4] and bad.counts[0] == 1
    load.sample(0, 4)
    assert pauses[5:] == [0.2] and bad.first.endswith('record 3: Input/output error; check that it can be read')
    away(monkeypatch, [5])
    load.sample(0, 5)
    away(monkeypatch, [6], always=True)
    load.sample(0, 6)
    assert pauses[6:] == [0.2, 0.2, 0.5, 1, 2, 4] and bad.counts[0] == 3


def test_worker_without_memory(images, tmp_path, monkeypatch):
    """MindSpore would kill the whole training process, had the error this name."""
    tfrecord.write_shards(str(tmp_path), 'train', images, 1)
    monkeypatch.setattr(pipeline.preprocess, 'training_image', lambda *_: (_ for _ in ()).throw(MemoryError()))
    bad = BadRecords(EPOCH, 2)
    with pytest.raises(RuntimeError) as ended:
        batches(tmp_path, bad, 2)
    assert str(input_error(ended.value)) == bad.failure == 'a data worker ran out of memory; lower --num_workers'
    assert 'MemoryError' not in str(ended.value)


@pytest.mark.compiles
def test_count_is_logged(damaged, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, 'ALLOWED', 0.25)
    train.main(['--data_dir', str(damaged), *SMALL, '--max_epochs', '1'])
    assert re.search(r'^epoch 1: 3 records .*train-00000-of-00001, record \d+: ', capsys.readouterr().out, re.MULTILINE)
