"""The batches themselves."""

import multiprocessing
import os
from unittest.mock import Mock

import numpy as np
import pytest

from src.data import pipeline
from src.data.convert import convert
from src.data.pipeline import LoadEvaluation, LoadTraining
from src.data.records import open_records
from src.data.tfrecord import write_shards
from src.runtime import Run
from tests.data.samples import TURNED, folder, jpeg, settings
from tests.data.test_order import order


def batches(records, steps=range(4), run=None, offset=1, **options):
    data = pipeline.training_dataset(records, offset, settings(seed=3, **options), steps, run or Run())
    assert data.get_dataset_size() == len(steps)
    return [list(batch) for batch in data.create_tuple_iterator(num_epochs=1, output_numpy=True)]


def test_batches_depend_on_nothing_but_seed_and_step(data):
    """Not on the workers, the start or the number of ranks."""
    records = open_records(str(data), 'train')
    whole = batches(records)
    image, draws, mask, label = whole[0]
    assert (image.shape, image.dtype) == ((4, 3, 75, 75), np.uint8)
    assert (draws.shape, draws.dtype) == ((4, 2), np.float32)
    assert (mask.shape, mask.dtype) == ((4, 1536), np.float32) and set(np.unique(mask)) == {0, 1.25}
    expected = [records.label[r] - 1 for _, r in order(count=len(records), seed=3, batch_size=4, stop=4)]
    assert label.dtype == np.int32 and np.concatenate([batch[3] for batch in whole]).tolist() == expected
    ranks = [batches(records, run=Run(rank=rank, world=2), batch_size=2) for rank in range(2)]
    together = [[np.concatenate(pair) for pair in zip(*batch)] for batch in zip(*ranks)]
    for found, skipped in ((batches(records, num_workers=2), 0), (batches(records, range(2, 4)), 2), (together, 0)):
        assert len(found) == 4 - skipped
        for ours, theirs in zip(found, whole[skipped:]):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs))


def test_evaluation_batches(data):
    records = open_records(str(data), 'validation')
    batches = pipeline.evaluation_dataset(records, 1, settings(), Run())
    found = list(batches.create_tuple_iterator(num_epochs=1, output_numpy=True))
    labels = np.concatenate([label for _, label in found])
    assert len(found) == 8 and labels[:30].tolist() == (records.label - 1).tolist() and (labels[30:] == -1).all()
    assert not found[-1][0][2:].any()


@pytest.mark.parametrize('option, cores, ranks, expected', [(0, 192, 8, 24), (0, 192, 1, 32), (0, 2, 4, 1), (48, 24, 8, 24)])
def test_decoding_processes(option, cores, ranks, expected, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cores)))
    assert pipeline.workers(option, ranks) == expected


def test_full_shared_memory(data, monkeypatch, capsys):
    """A training run goes on, slower, with a line."""
    monkeypatch.setattr(multiprocessing, 'Lock', Mock(side_effect=OSError(28, 'No space left on device')))
    assert len(batches(open_records(data, 'train'), num_workers=2)) == 4
    assert 'warning: /dev/shm: No space left on device; ' in capsys.readouterr().out


def test_folders_are_upright_and_shards_as_stored(tmp_path):
    """An image that lies on its side: its folder gives what the shards made of it give."""
    folder(tmp_path / 'folder/train', cat=1)
    turned = jpeg(size=(120, 90), form='PNG', exif=TURNED)
    (tmp_path / 'folder/train/cat/0.jpg').write_bytes(turned)
    convert(str(tmp_path / 'folder'), str(tmp_path / 'made'), 'tfrecord', 1)
    (tmp_path / 'tf').mkdir()
    write_shards(tmp_path / 'tf', 'train', [(turned, 1, '')], 1)
    records = [open_records(tmp_path / name, 'train') for name in ('folder', 'made', 'tf')]
    for load, number in (
        (lambda one: LoadTraining(one, 0, settings()), (0, 0)),
        (lambda one: LoadEvaluation(one, 0, 75), (0,)),
    ):
        upright, made, stored = (load(one).sample(*number)[0].astype(int) for one in records)
        assert np.abs(upright - made).mean() < 5 < 20 < np.abs(upright - stored).mean()
    assert np.abs(np.rot90(stored, -1, (1, 2)) - upright).mean() < 1
