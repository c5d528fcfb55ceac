import pytest

from src.errors import InputError
from src.training import memory

WEIGHTS = 42_700_000


@pytest.mark.parametrize(
    'peak, batch_size, image_size, measured',
    [
        (memory.TRAINING, 2, 299, 3.78),
        (memory.TRAINING, 8, 299, 4.88),
        (memory.TRAINING, 16, 299, 6.89),
        (memory.TRAINING, 32, 75, 3.34),
        (memory.FEATURES, 64, 299, 3.39),
        (memory.FEATURES, 32, 75, 0.97),
    ],
)
def test_estimate_is_near_what_was_measured(peak, batch_size, image_size, measured):
    assert peak.bytes(WEIGHTS, batch_size, image_size) == pytest.approx(measured * 1e9, rel=0.1)


def test_too_large_a_batch_is_refused_with_one_that_fits():
    memory.check(memory.TRAINING, WEIGHTS, 60, 299, 1, 16e9)
    with pytest.raises(
        InputError,
        match=r'batch_size 128 at image_size 299 needs about 29.2 GB for 1 rank\(s\) on this '
        r'machine, 16.0 GB are free; --batch_size 61 fits',
    ):
        memory.check(memory.TRAINING, WEIGHTS, 128, 299, 1, 16e9)
    memory.check(memory.TRAINING, WEIGHTS, 61, 299, 1, 16e9)
    with pytest.raises(InputError, match=r'for 8 rank\(s\).* a smaller --image_size or --block_counts is needed'):
        memory.check(memory.TRAINING, WEIGHTS, 8, 299, 8, 16e9)


def test_cached_features_need_less():
    """The network is then only asked for its features."""
    with pytest.raises(InputError, match='batch_size 64 at image_size 299'):
        memory.check(memory.TRAINING, WEIGHTS, 64, 299, 1, 6e9)
    memory.check(memory.FEATURES, WEIGHTS, 64, 299, 1, 6e9)


def test_free_memory_of_this_machine():
    assert 0.1e9 < memory.free_bytes() < 1e14
