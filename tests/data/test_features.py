"""Files of features: what they hold, by what they are known, and which are not used."""

import os

import numpy as np
import pytest

from src.data import features, preprocess
from src.data.bad_records import BadRecords
from src.data.features import feature_dataset
from src.data.order import epoch_order
from src.data.pipeline import LoadTraining, training_dataset
from src.data.records import open_records
from src.runtime import Run
from tests.data.samples import jpeg, message, settings, write_folder

COPIES, COUNT = 2, 5


def batches(rng=None):
    """As of a `CopiesOrder` with batches of 4: 12 images for 2 x 5."""
    rng = rng or np.random.default_rng(1)
    for n in range(3):
        labels = np.arange(4 * n, 4 * n + 4, dtype=np.int32)
        yield rng.random((4, 1536), np.float32), np.full((4, 2), (40, 48), np.int32), labels


@pytest.fixture
def path(tmp_path):
    features.write(tmp_path / 'features-a.npy', COPIES, COUNT, batches())
    return tmp_path / 'features-a.npy'


def test_file(path):
    rows = features.read(path, COPIES, COUNT)
    assert (
        rows.shape == (2, 5) and isinstance(rows, np.memmap) and rows['label'].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    )
    expected = np.concatenate([found for found, *_ in batches()])[:10].reshape(2, 5, 1536)
    assert np.array_equal(rows['feature'], expected) and os.listdir(path.parent) == ['features-a.npy']
    features.write(path.with_name('features-b.npy'), COPIES, COUNT, batches())
    assert os.listdir(path.parent) == ['features-b.npy']  # of another training, or of this one with other options


@pytest.mark.parametrize('size', [0, 50, 5000, -1])
def test_cut_files_are_not_used(path, size):
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    assert features.read(path, COPIES, COUNT) is None
    path.unlink()
    assert features.read(path, COPIES, COUNT) is None


def test_failed_computation_leaves_nothing(tmp_path):
    def fail():
        yield next(batches())
        raise ValueError

    with pytest.raises(ValueError):
        features.write(tmp_path / 'features-a.npy', COPIES, COUNT, fail())
    assert not os.listdir(tmp_path)
    assert 'the features need 0.1 MB there' in message(features.write, tmp_path / 'none/features-a.npy', 2, 5, batches())


def test_name(monkeypatch):
    """Another one for anything on which features depend."""
    weights, made_from = {'a': np.zeros(3, np.float32), 'b': np.ones(2, np.float32)}, [{'seed': 1}, 'records']
    one = features.name(made_from, weights.items())
    assert features.name([{'seed': 1}, 'records'], list(weights.items())) == one
    others = [
        features.name([{'seed': 2}, 'records'], weights.items()),
        features.name([{'seed': 1}, 'others'], weights.items()),
        features.name(made_from, {**weights, 'b': np.float32([1, 1 + 1e-7])}.items()),
        features.name(made_from, {'a': weights['a'], 'c': weights['b']}.items()),
    ]
    monkeypatch.setattr(preprocess, 'BRIGHTNESS', 0.1)
    assert len({one, *others, features.name(made_from, weights.items())}) == 6


def test_batches_are_those_of_images(tmp_path):
    """Labels and dropout masks of every epoch, also of those after the last copy and around a bad image."""
    write_folder(tmp_path, 'train', ['a', 'b'], 4)
    (tmp_path / 'train/a/a_1.jpg').write_bytes(jpeg(1)[:-200])
    (tmp_path / 'train/b/b_2.jpg').write_bytes(jpeg(2, size=(300, 20)))  # whose crops take several draws
    records, bad = open_records(tmp_path, 'train'), BadRecords(8, 3)
    options = settings(batch_size=3, seed=3)
    copies = features.copies_dataset(features.LoadCopies(records, 0, options, bad), 2).create_tuple_iterator(num_epochs=1)
    mean = [(b[0].asnumpy().mean((2, 3)).repeat(512, 1).astype(np.float32), b[2].asnumpy(), b[3].asnumpy()) for b in copies]
    assert len(mean) == 6 and [bad.count(epoch) for epoch in range(3)] == [1, 1, 0]
    features.write(tmp_path / 'features-a.npy', 2, 8, iter(mean))
    rows = features.read(tmp_path / 'features-a.npy', 2, 8)
    found = feature_dataset(rows, options, range(1, 6)).create_tuple_iterator(num_epochs=1)
    load = LoadTraining(records, 0, options, bad)
    plain = training_dataset(records, 0, options, range(1, 6), Run(), bad).create_tuple_iterator(num_epochs=1)
    for step, (ours, theirs) in enumerate(zip(found, plain), 1):
        ours, theirs = ([column.asnumpy() for column in batch] for batch in (ours, theirs))
        assert [column.dtype for column in ours[1:]] == [column.dtype for column in theirs[1:]]
        sound = [r != 1 for r in _records_of(step)]
        assert np.array_equal(ours[2][sound], theirs[2][sound]) and ours[2].shape == (3, 1536)
        if step < 4:
            assert np.array_equal(ours[0], theirs[0].mean((2, 3)).repeat(512, 1).astype(np.float32))
            assert np.array_equal(ours[3], theirs[3])
        else:  # the third epoch has the images of the first
            again = [load.sample(0, r)[0].mean((1, 2)).repeat(512).astype(np.float32) for r in _records_of(step)]
            assert np.array_equal(ours[0], again)


def _records_of(step):
    return epoch_order(3, step // 2, 8)[step % 2 * 3 :][:3].tolist()
