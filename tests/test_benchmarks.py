"""Candidates of a benchmark run in turns, in changing order, each in a process of its own where memory is measured."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.rounds import interleaved, turns


def test_turns_change_their_order():
    found = list(turns('abc', rounds=20, warm_up=2))
    rounds = [found[i : i + 3] for i in range(0, len(found), 3)]
    assert all({name for name, _ in round_} == set('abc') for round_ in rounds)
    assert [counts for round_ in rounds for _, counts in round_] == [False] * 6 + [True] * 60
    after = Counter(second for (first, _), (second, _) in zip(found, found[1:]) if first == 'a')
    assert after['b'] and after['c']  # nobody always follows the same one


def test_warm_up_is_not_counted():
    calls = Counter()
    seconds = interleaved({name: lambda name=name: calls.update([name]) for name in 'ab'}, rounds=3, warm_up=2)
    assert calls == {'a': 5, 'b': 5} and [len(values) for values in seconds.values()] == [3, 3]


@pytest.mark.slow
@pytest.mark.compiles
def test_training_step_compares_variants():
    options = ['--variants', '--rounds', '1', '--batch_size', '2', '--image_size', '75', '--block_counts', '1,1,1']
    result = subprocess.run(
        [sys.executable, '-m', 'benchmarks.training_step', *options],
        cwd=Path(__file__).parents[1],
        env={**os.environ, 'GLOG_v': '3'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    rows = re.findall(
        r'^(\S.*?)  +([\d.]+) \([\d.]+ to [\d.]+\) +([\d.]+) +([\d.]+) +([\d.]+)$', result.stdout, re.MULTILINE
    )
    assert [name for name, *_ in rows][:2] == ['optimizer alone', 'norm'] and len(rows) == 6
    assert all(float(value) > 0 for _, *values in rows for value in values)
