"""Damaged images and shards: what training replaces and counts, and what stops it with one line."""

import gc
import re

import numpy as np
import pytest

from src.data import records, tfrecord
from src.data.order import TrainingOrder
from src.data.pipeline import BadRecords, LoadEvaluation, LoadTraining, training_dataset
from src.data.records import Records, open_records
from src.errors import input_error
from src.runtime import Run
from tests.data.samples import jpeg, settings

DAMAGED = {3: jpeg(3, (90, 80))[:-200], 7: b'', 11: b'<html>not found</html>'}
EPOCH, BATCH = 12, 4


@pytest.fixture(scope='module', autouse=True)
def no_garbage_for_the_workers():
    """A data worker is forked from this process, which hundreds of tests have filled. If Python collects garbage in it, the
    iterators of earlier data sets are torn down in the wrong process: MindSpore 2.8 then crashes now and then."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def sound(tmp_path):
    return shard(tmp_path / 'sound', [jpeg(i, (90, 80)) for i in range(EPOCH)])


def shard(path, images):
    tfrecord.write_shards(str(path), 'train', [(image, 1 + i % 10, '') for i, image in enumerate(images)], 1)
    return path


def batches(directory, bad, num_workers=1, steps=range(6)):
    options = settings(seed=5, num_workers=num_workers)
    data = training_dataset(open_records(str(directory), 'train'), 1, options, steps, Run(), bad)
    rows = list(data.create_tuple_iterator(num_epochs=1, output_numpy=True))
    return [np.concatenate(column) for column in zip(*rows)]


def test_bad_records_are_replaced_and_counted(sound, tmp_path):
    damaged = shard(tmp_path / 'damaged', [DAMAGED.get(i, jpeg(i, (90, 80))) for i in range(EPOCH)])
    bad = BadRecords(EPOCH, 2)
    found, expected = batches(damaged, bad), batches(sound, None)
    order = [int(record) for _, record in TrainingOrder(EPOCH, settings(seed=5), range(6))]
    replaced = np.array([record in DAMAGED for record in order])
    first = next(record for record in order if record in DAMAGED)
    assert bad.counts.tolist() == [3, 3] and replaced.sum() == 6
    for ours, theirs in zip(found, expected):  # image, draws, mask, label
        assert np.array_equal(ours[~replaced], theirs[~replaced])
    for image, label in zip(found[0][replaced], found[3][replaced]):
        assert image.std() > 5 and 0 <= label < 10
    # All is as repeatable as without damage: with other workers, and from the middle on.
    several, allowed = BadRecords(EPOCH, 2), BadRecords(4000, 2)
    for again, skipped in (
        (batches(damaged, several, num_workers=2), 0),
        (batches(damaged, allowed, steps=range(4, 6)), 4 * BATCH),
    ):
        assert all(np.array_equal(ours[skipped:], theirs) for ours, theirs in zip(found, again))
    # Too many stop the training run, not the workers, which run ahead of it.
    assert allowed.problem([1]) == '' and re.fullmatch(
        r'3 of the 12 records that this rank takes in epoch 2 cannot be read or decoded, more than 0.1%; the first was '
        rf'{damaged}/train-00000-of-00001, record {first}: .*; python -m src.data.check DIR lists them all',
        bad.problem([1]),
    )


def test_reading_is_tried_again(sound, monkeypatch):
    """An image that is away for a moment changes nothing, in training and in evaluation. One that stays away is a bad one
    after some seconds."""
    found, bad, pauses, away, place = open_records(sound, 'train'), BadRecords(EPOCH, 2), [], {}, Records.place
    monkeypatch.setattr(records.time, 'sleep', lambda seconds: seconds and pauses.append(seconds))

    def fails_at_times(self, i):
        away[i] = away.get(i, 0) - 1
        if away[i] >= 0:
            raise OSError(5, 'Input/output error')
        return place(self, i)

    monkeypatch.setattr(Records, 'place', fails_at_times)
    train = LoadTraining(found, 1, settings(seed=5), bad)
    for load, arguments in ((train, (0, 3)), (LoadEvaluation(found, 1, 75), (3,))):
        expected = load.sample(*arguments)
        away[3] = 1
        assert all(map(np.array_equal, load.sample(*arguments), expected))
    assert pauses == [0.2, 0.2] and bad.counts[0] == 0
    away[4] = 99
    train.sample(0, 4)
    assert pauses[2:] == [0.2, 0.5, 1, 2, 4] and bad.counts[0] == 1
    assert bad.first.endswith('record 4: Input/output error; check that it can be read')


def test_an_error_that_ends_a_worker(tmp_path):
    """The error with which the pipeline ends is the one that the worker noted."""
    bad = BadRecords(EPOCH, 2)
    with pytest.raises(RuntimeError) as ended:
        batches(shard(tmp_path / 'empty', [b''] * 4), bad, num_workers=2)
    assert str(input_error(ended.value)) == bad.failure and re.fullmatch(
        '100 records drawn in a row cannot be read or decoded, the last of them .*train-00000-of-00001, '
        r'record \d: not an image.*; python -m src.data.check DIR lists them all',
        bad.failure,
    )
