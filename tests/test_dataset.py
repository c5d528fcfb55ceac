"""Which record is where, labels, and the batches themselves."""
import os
import pickle

import numpy as np
import pytest

from src import dataset
from src.errors import InputError
from src.preprocess import augment
from src.records import open_records
from src.records.tfrecord import find_shards, index_shards, write_shards

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
        assert one[6 * step:6 * step + 6] == sum((rank[2 * step:2 * step + 2] for rank in ranks), [])


def test_any_step_can_be_reached_directly():
    assert order(start=15) == order()[30:]


@pytest.mark.parametrize('world', [1, 2, 3, 7])
@pytest.mark.parametrize('count, batch_size', [(23, 4), (24, 4), (1, 4), (50, 1)])
def test_evaluation_has_every_record_once(count, batch_size, world):
    ranks = [[int(r) for r, in dataset.EvaluationOrder(count, batch_size, rank, world)] for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1 and len(ranks[0]) % batch_size == 0
    assert sorted(r for rank in ranks for r in rank if r >= 0) == list(range(count))


def batches(records, num_workers=1, **kwargs):
    data = dataset.training_dataset(records, seed=3, keep_prob=0.8, start=kwargs.pop('start', 0), stop=4,
                                    num_workers=num_workers, **SETTINGS, **kwargs)
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
    parts = [list(next(dataset.training_dataset(
        records, offset=1, image_size=75, batch_size=2, seed=3, keep_prob=0.8, start=0, stop=1, rank=rank, world=2,
    ).create_tuple_iterator(num_epochs=1, output_numpy=True))) for rank in range(2)]
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


@pytest.mark.parametrize('labels, offset, message', [
    ([1, 3, 2], 0, r'label 3 of .*train-00000-of-00001, record 1 is outside 0..2 .*--label_offset 1'),
    ([0, 1, 5], 0, r'label 5 of .*record 2 .*labels 0 to 5: set --num_classes'),
    ([0, 1, 2], 1, r'label 0 of .*record 0 is outside 1..3'),
    ([-4, 1, 2], 0, 'label -4')])
def test_wrong_labels(tmp_path, data, labels, offset, message):
    picture = open_records(str(data), 'train').read(0)
    write_shards(tmp_path, 'train', [(picture, label, '') for label in labels], 1)
    with pytest.raises(InputError, match=message):
        dataset.check_labels(index_shards(find_shards(tmp_path, 'train')), offset, 3)


@pytest.mark.parametrize('option, cores, of_server, ranks, expected', [
    (0, 192, 192, 8, 24), (0, 24, 192, 8, 24), (0, 192, None, 8, 24),  # shared; by --bind_core; without the launcher
    (0, 20, 192, 8, 20), (0, 24, 192, 2, 24),  # msrun divides by all devices, also those without a rank
    (0, 192, None, 1, 32), (0, 2, 2, 4, 1), (48, 192, 192, 8, 48), (48, 24, 192, 8, 24)])
def test_decoding_processes(option, cores, of_server, ranks, expected, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cores)))
    monkeypatch.delenv('LOCAL_CORES', raising=False)
    if of_server:
        monkeypatch.setenv('LOCAL_CORES', str(of_server))
    assert dataset.workers(option, ranks) == expected
