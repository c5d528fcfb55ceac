"""Candidates of a benchmark run in turns, in changing order, each in a process of its own where memory is measured."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.rounds import Threads, cores, environment, interleaved, turns
from src.errors import InputError

ROOT = Path(__file__).parents[1]


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


# Takes as many threads as its argument says, and with each line on stdin a tenth of a CPU second of each.
WORKER = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
data = bytes(1 << 20)
def work(_):
    end = time.thread_time() + 0.1
    while time.thread_time() < end:
        sha256(data)
with ThreadPoolExecutor(int(sys.argv[1])) as pool:
    for _ in sys.stdin:
        list(pool.map(work, range(int(sys.argv[1]))))
        print('done', flush=True)
"""


@pytest.mark.skipif(cores() < 2, reason='needs two cores')
@pytest.mark.parametrize(
    'threads, held_to, problem',
    [(cores(), cores(), None), (1, cores(), '1 threads did its work'), (cores(), 1, 'on 1 cores')],
)
def test_a_candidate_with_fewer_cores_is_refused(threads, held_to, problem):
    command = ['taskset', '-c', ','.join(map(str, sorted(os.sched_getaffinity(0))[:held_to]))]
    command += [sys.executable, '-c', WORKER, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()) as process:

        def call():
            print(file=process.stdin, flush=True)
            process.stdout.readline()

        measured = {'candidate': Threads(process.pid)}
        interleaved({'candidate': call}, rounds=3, warm_up=1, threads=measured)
        process.stdin.close()
        assert 0 < measured['candidate'].used < cores() + 0.5
        if problem:
            with pytest.raises(InputError, match=f'candidate had 1 of .*{problem}'):
                measured['candidate'].require('candidate')
        else:
            measured['candidate'].require('candidate')


@pytest.mark.compiles
def test_candidates_do_not_inherit_mindspores_thread_count():
    child = 'print(open("/proc/self/environ").read().count("OMP_NUM_THREADS=1\\0"))'
    code = f'import subprocess, sys, mindspore\nfrom benchmarks.rounds import environment\nchild = {child!r}\n'
    code += 'for env in (None, environment()): subprocess.run([sys.executable, "-c", child], env=env)'
    clean = {name: value for name, value in os.environ.items() if name != 'OMP_NUM_THREADS'}
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.stdout.split() == ['1', '0'], done.stderr


@pytest.mark.slow
@pytest.mark.compiles
def test_training_step_compares_variants():
    options = ['--variants', '--rounds', '1', '--batch_size', '2', '--image_size', '75', '--block_counts', '1,1,1']
    result = subprocess.run(
        [sys.executable, '-m', 'benchmarks.training_step', *options],
        cwd=ROOT,
        env={**os.environ, 'GLOG_v': '3'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    rows = re.findall(
        r'^(\S.*?)  +([\d.]+) \([\d.]+ to [\d.]+\) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$', result.stdout, re.MULTILINE
    )
    assert [name for name, *_ in rows][:2] == ['optimizer alone', 'norm'] and len(rows) == 6
    assert all(float(value) > 0 for _, *values in rows for value in values)
