"""Which record is where."""

import pytest

from src.data.order import TrainingOrder, evaluation_order
from tests.data.samples import settings


def order(start=0, stop=22, count=23, rank=0, world=1, **options):
    steps = range(start, stop)
    return [(int(e), int(r)) for e, r in TrainingOrder(count, settings(**{'batch_size': 2, **options}), steps, rank, world)]


def test_an_epoch_has_each_record_once_and_another_order():
    whole = order()
    assert [e for e, _ in whole] == [0] * 22 + [1] * 22
    epochs = [[r for e, r in whole if e == epoch] for epoch in (0, 1)]
    assert all(len(set(epoch)) == 22 for epoch in epochs) and epochs[0] != epochs[1]
    assert order(seed=2) != whole and order() == whole
    assert order(start=15) == whole[30:]  # any step can be reached directly
    # N ranks x batch B see in a step the records of one rank x batch N * B, and no record twice.
    one, ranks = order(batch_size=6, stop=6), [order(rank=rank, world=3, stop=6) for rank in range(3)]
    for step in range(6):
        assert one[6 * step : 6 * step + 6] == sum((rank[2 * step : 2 * step + 2] for rank in ranks), [])


@pytest.mark.parametrize('count, batch_size, world', [(23, 4, 3), (24, 4, 2), (1, 4, 7), (50, 1, 1)])
def test_evaluation_has_every_record_once(count, batch_size, world):
    ranks = [evaluation_order(count, batch_size, rank, world).tolist() for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1 and len(ranks[0]) % batch_size == 0
    assert sorted(r for rank in ranks for r in rank if r >= 0) == list(range(count))
