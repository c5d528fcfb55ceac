"""How long a rank may go without a heartbeat."""

import time

import pytest

from src import heartbeat
from src.cluster.watchdog import LONGER, STALL, Watchdog


def two(monkeypatch, timeout=STALL):
    """(function that sets the clock and looks at two ranks, their watchdog, their heartbeats)"""
    watchdog = Watchdog(2, timeout)

    def at(seconds):
        monkeypatch.setattr(time, 'monotonic', lambda: seconds)
        return watchdog.look(['0', '1'])

    environments = [{heartbeat.FILE: watchdog.path, 'RANK_ID': rank} for rank in '01']
    return at, watchdog, [heartbeat.Heartbeat(one) for one in environments]


@pytest.mark.parametrize(
    'timeout, doing, limit',
    [
        (STALL, 'steps', STALL),
        (STALL, 'compiling', LONGER * STALL),
        (STALL, None, LONGER * STALL),
        (5, 'steps', 5),
        (0, '', 1e9),
    ],
)
def test_limits(timeout, doing, limit, monkeypatch):
    """Ten minutes, and more for what takes longer than a step, on this rank or on one that the others wait for;
    None: it has had no heartbeat yet. Nothing is watched before the first one of any rank, nor with a timeout of 0."""
    at, _, (first, second) = two(monkeypatch, timeout)
    assert at(0) is at(1e6) is None
    if doing:
        first(doing, 1)
    second('steps', 1)
    assert at(1e6 + 1) is at(1e6 + limit) is None and bool(at(1e6 + limit + 2)) == (timeout != 0)


def test_which_rank_lags_and_who_is_no_longer_watched(monkeypatch):
    at, watchdog, ranks = two(monkeypatch)
    for rank, step in zip(ranks, (5, 4)):
        rank('steps', step)
    assert at(0) is None
    assert at(2 * STALL) == '1' and watchdog.look(['0']) == '0' and watchdog.look([]) is None
    assert watchdog.silence('1') == 'no heartbeat for 1200 s after step 4'
    for rank in ranks:
        rank('steps', 6, saved=1)
    assert at(2 * STALL) is None and watchdog.saved
