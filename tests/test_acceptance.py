"""The check of a new machine (tests/npu): rehearsed on the CPU, and what it says when something is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.evaluation import evaluation
from tests.npu import reference, small_training
from tests.npu.test_device import CHANGE_BOUND, Device

ROOT = Path(__file__).resolve().parents[1]


def check(tmp_path, *arguments, program=('bash', ROOT / 'scripts/run_acceptance.sh')):
    """(exit status, standard output, results) of the check on the CPU."""
    output = tmp_path / 'with spaces'
    done = subprocess.run(
        [*program, *arguments, '--device_target', 'CPU', '--output', output],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env={**os.environ, 'PYTHON': sys.executable},
    )
    return done.returncode, done.stdout + done.stderr, json.loads((output / 'acceptance.json').read_text())


@pytest.mark.slow
@pytest.mark.compiles
def test_rehearsal(tmp_path):
    status, shown, results = check(tmp_path, '2')
    assert status == 0 and 'passed: ' in shown, shown[-3000:]
    assert {result['result'] for result in results} == {'passed', 'skipped'}
    skipped = {result['name'] for result in results if result['result'] == 'skipped'}
    assert skipped - {'atc'} == {'sinks', 'overflow_inside_a_sink', 'speed[128]', 'export[AIR]'}
    figures = {result['name']: result['figures'] for result in results}
    assert figures['resume']['loss'] == figures['shorter_last_sink']['loss'] == 0
    assert figures['compiled_graph_and_sigterm']['seconds'] < figures['compilation']['seconds']
    assert figures['speed[64]']['images_per_second'] > 1 and figures['all_ranks_stop']['step']


@pytest.mark.compiles
def test_failed_check_ends_it(tmp_path):
    """Another figure for one logit: what was expected and found, and a remedy; nothing comes after it."""
    damaged = {name: reference.stored(name).copy() for name in reference.NETWORKS}
    damaged['small'][2, 3] += 0.1
    np.savez(tmp_path / 'damaged.npz', **damaged)
    code = (
        f'import sys, pytest; from tests.npu import reference; reference.STORED = {str(tmp_path / "damaged.npz")!r}; '
        f'sys.exit(pytest.main(["-xv", {str(ROOT / "tests/npu/test_device.py")!r}, *sys.argv[1:]]))'
    )
    status, shown, results = check(tmp_path, program=(sys.executable, '-c', code))
    assert status == 1 and results[-1]['name'] == 'forward' and 'augmentation' not in shown
    assert 'difference from the float32 logits' in results[-1]['found'] and '0.0001' in results[-1]['found']
    assert 'remedy: MindSpore and CANN must belong together' in shown and 'NOT passed: 2 ok, 0 skipped, 1 failed' in shown


@pytest.mark.slow
def test_evaluation_that_changes_the_training_is_found(tmp_path, monkeypatch):
    """An evaluation that leaves the averages in the weights makes the check fail."""
    from tests.npu import test_device as checks

    def leaving(network, train_step):
        for average, value in zip(train_step.averages, train_step.values):
            value.assign_value(average)
        take(network, train_step)

    take, device = evaluation.take_weights, Device('CPU', 0, tmp_path)
    monkeypatch.setattr(evaluation, 'take_weights', leaving)
    for check_of in (checks.test_records, checks.test_overflow, checks.test_steps_without_sinks):
        check_of(device, lambda **figures: None)
    with pytest.raises(AssertionError, match='losses at steps'):
        checks.test_evaluation_between_sinks(device, lambda **figures: None)


def test_branch_is_tried_first():
    """An NPU refuses the branch on overflow: the check passes without it and names the option; what follows does without."""
    device, tried = Device.__new__(Device), []
    device.drop_overflow_update = 'branch'

    def refused():
        tried.append(device.drop_overflow_update)
        if device.drop_overflow_update == 'branch':
            raise RuntimeError('\nGE does not support control flow\n- C++ call stack')
        return 'fine'

    first, second = device.either(refused), device.either(refused)
    assert tried == ['branch', 'select', 'select'] and first['text'] == 'fine, drop_overflow_update select'
    assert first['warning'].endswith('with a branch on overflow: GE does not support control flow') and not second['warning']


def test_change_difference():
    """A step of twenty that was lost, or all of them, is seen; rounding in float16 is not."""
    change = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    before, after, rounded, lost = ({'weight': np.float32(part) * change} for part in (0, 1, 1 + 2**-11, 0.85))
    assert small_training.change_difference(before, after, rounded) < 1e-3
    assert small_training.change_difference(before, after, lost) > CHANGE_BOUND['float16']


def test_stored_logits_are_those_of_this_file():
    """Images differ enough, and the first class leads far enough, for a wrong network to be told from rounding."""
    for name, options in reference.NETWORKS.items():
        logits = reference.stored(name)
        largest = np.abs(logits).max()
        first, second = np.sort(logits, 1)[:, :-3:-1].T
        assert logits.shape == (4, options['num_classes'])
        assert np.abs(logits - logits[[1, 2, 3, 0]]).max() > 0.2 * largest and (first - second).min() > 0.05 * largest
