"""How long a rank may go without a heartbeat."""

import pytest

from src import heartbeat
from src.cluster.watchdog import LONGER, STALL, Watchdog


def two(timeout=None):
    """(function that sets the clock and looks at two ranks, their watchdog, their heartbeats)"""
    seconds = [0.0]
    watchdog = Watchdog(2, timeout, lambda: seconds[0])

    def at(time):
        seconds[0] = time
        return watchdog.look(['0', '1'])

    environments = [{heartbeat.FILE: watchdog.path, 'RANK_ID': rank} for rank in '01']
    return at, watchdog, [heartbeat.Heartbeat(one) for one in environments]


@pytest.mark.parametrize(
    'timeout, doing, limit',
    [
        (None, 'steps', STALL),
        (None, 'compiling', LONGER * STALL),
        (None, None, LONGER * STALL),
        (5, 'steps', 5),
        (0, '', 1e9),
    ],
)
def test_limits(timeout, doing, limit):
    """At least ten minutes, and more for what takes longer than a step, on this rank or on one that the others wait for;
    None: it has had no heartbeat yet. Nothing is watched before the first one of any rank, nor with a timeout of 0."""
    at, _, (first, second) = two(timeout)
    assert at(0) is at(1e6) is None
    if doing:
        first(doing, 1)
    second('steps', 1)
    assert at(1e6 + 1) is at(1e6 + limit) is None and bool(at(1e6 + limit + 2)) == (timeout != 0)


def test_three_times_the_slowest_so_far():
    at, _, ranks = two()
    for now, step in ((0, 1), (500, 2), (510, 3)):
        for rank in ranks:
            rank('steps', step)
        at(now)
    assert at(510 + 1499) is None and at(510 + 1501)


def test_which_rank_lags_and_who_is_no_longer_watched():
    at, watchdog, ranks = two()
    for rank, step in zip(ranks, (5, 4)):
        rank('steps', step)
    assert at(0) is None
    assert at(2 * STALL) == '1' and watchdog.look(['0']) == '0' and watchdog.look([]) is None
    assert watchdog.silence('1') == 'no heartbeat for 1200 s after step 4'
    ranks[1]('steps', 5, saved=1)
    assert at(2 * STALL) is None and watchdog.saved
