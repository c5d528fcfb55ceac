"""Tasks spread over processes."""

import time
from pathlib import Path

import pytest

from src.data.pool import spread


def write(directory, number):
    (directory / str(number)).write_text('')
    return number


@pytest.mark.parametrize('workers', [1, 2])
def test_tasks_do_not_run_ahead_of_their_results(tmp_path, workers):
    """So a conversion that is killed has to repeat only a few shards."""
    results = spread(write, tmp_path, [(number,) for number in range(40)], workers)
    found = [next(results)]
    time.sleep(0.3)
    assert len(list(Path(tmp_path).iterdir())) <= 2 * workers
    assert sorted(found + list(results)) == list(range(40))
