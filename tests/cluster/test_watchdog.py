"""How long a rank may go without a heartbeat."""

import pytest

from src import heartbeat
from src.cluster.watchdog import LONGER, STALL, Watchdog
from src.heartbeat import Heartbeat


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def two():
    """(clock, watchdog of two ranks, their heartbeats)"""
    clock = Clock()
    watchdog = Watchdog(2, clock=clock)
    yield clock, watchdog, [Heartbeat({heartbeat.FILE: watchdog.path, 'RANK_ID': str(rank)}) for rank in (0, 1)]


def hangs_after(seconds, clock, watchdog):
    start = clock.now
    for clock.now in (start + seconds - 1, start + seconds + 1):
        assert bool(watchdog.look(['0', '1'])) == (clock.now > start + seconds), clock.now - start
    return True


@pytest.mark.parametrize('doing, times', [('steps', 1), ('saving', LONGER), ('compiling', LONGER), (None, LONGER)])
def test_limits(doing, times, two):
    """At least ten minutes, and more for what takes longer than a step, on this rank or on one that the others wait for;
    None: it has had no heartbeat yet. Nothing is watched before the first one of any rank."""
    clock, watchdog, (first, second) = two
    clock.now = 1e6
    assert watchdog.look(['0', '1']) is None and watchdog.step == 0 and not watchdog.saved
    if doing:
        first(doing, 1)
    second('steps', 1)
    watchdog.look(['0', '1'])
    assert hangs_after(times * STALL, clock, watchdog)


def test_three_times_the_slowest_so_far(two):
    clock, watchdog, ranks = two
    for clock.now, step in ((0, 1), (500, 2), (510, 3)):
        for rank in ranks:
            rank('steps', step)
        watchdog.look(['0', '1'])
    assert hangs_after(1500, clock, watchdog)


def test_which_rank_lags_and_who_is_no_longer_watched(two):
    clock, watchdog, ranks = two
    for rank, step in ((0, 5), (1, 4)):
        ranks[rank]('steps', step)
    watchdog.look(['0', '1'])
    clock.now = 2 * STALL
    assert watchdog.look(['0', '1']) == '1' and watchdog.look(['0']) == '0' and watchdog.look([]) is None
    assert watchdog.silence('1') == 'no heartbeat for 1200 s after step 4'
    ranks[1]('steps', 5, saved=1)
    assert watchdog.look(['0', '1']) is None and watchdog.saved and watchdog.step == 6


@pytest.mark.parametrize('timeout, hangs', [(0, False), (5, True)])
def test_given_timeout(timeout, hangs):
    clock = Clock()
    watchdog = Watchdog(1, timeout, clock)
    Heartbeat({heartbeat.FILE: watchdog.path})('steps', 1)
    Heartbeat({})('steps', 1)  # nobody watches that one
    watchdog.look(['0'])
    clock.now = 6.0
    assert bool(watchdog.look(['0'])) == hangs
