import pytest

from src.errors import InputError
from src.training import memory

WEIGHTS = 42_700_000


@pytest.mark.parametrize('batch_size, image_size, measured', [(2, 299, 4.41), (16, 299, 6.89), (32, 75, 3.44)])
def test_estimate_is_near_what_was_measured(batch_size, image_size, measured):
    assert memory.training_bytes(WEIGHTS, batch_size, image_size) == pytest.approx(measured * 1e9, rel=0.1)


def test_too_large_a_batch_is_refused_with_one_that_fits():
    memory.check(WEIGHTS, 64, 299, 1, 16e9)
    with pytest.raises(
        InputError,
        match=r'batch_size 128 at image_size 299 needs about 27.0 GB for 1 rank\(s\) on this '
        r'machine, 16.0 GB are free; --batch_size 66 fits',
    ):
        memory.check(WEIGHTS, 128, 299, 1, 16e9)
    memory.check(WEIGHTS, 66, 299, 1, 16e9)
    with pytest.raises(InputError, match=r'for 8 rank\(s\).* a smaller --image_size or --block_counts is needed'):
        memory.check(WEIGHTS, 8, 299, 8, 16e9)


def test_free_memory_of_this_machine():
    assert 0.1e9 < memory.free_bytes() < 1e14
