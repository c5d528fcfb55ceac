"""The check of a new machine (tests/npu): rehearsed on the CPU, and what it says when something is wrong."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from src.evaluation import evaluation
from tests.npu import reference
from tests.npu import test_device as checks
from tests.npu.test_device import Device
from tests.processes import ROOT


def check(tmp_path, *command):
    """(exit status, standard output, {name: result}) of the check on the CPU."""
    output, environment = tmp_path / 'with spaces', {**os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        [*command, '--device_target', 'CPU', '--output', output],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    found = json.loads((output / 'acceptance.json').read_text())
    return done.returncode, done.stdout + done.stderr, {result['name']: result for result in found}


@pytest.mark.slow
@pytest.mark.compiles
def test_rehearsal(tmp_path):
    status, shown, results = check(tmp_path, 'bash', ROOT / 'scripts/run_acceptance.sh', '2')
    assert status == 0 and 'passed: ' in shown, shown[-3000:]
    assert {result['result'] for result in results.values()} == {'passed', 'skipped'}
    skipped = {name for name, result in results.items() if result['result'] == 'skipped'}
    assert skipped - {'atc'} == {'sinks', 'overflow_inside_a_sink', 'speed[128]', 'export[AIR]'}
    figures = {name: result['figures'] for name, result in results.items()}
    assert figures['resume']['loss'] == figures['shorter_last_sink']['loss'] == 0
    assert figures['compiled_graph_and_sigterm']['seconds'] < figures['compilation']['seconds']
    assert figures['speed[64]']['images_per_second'] > 1 and figures['all_ranks_stop']['step']


@pytest.mark.compiles
def test_failed_check_ends_it(tmp_path):
    """Another figure for one logit: what was expected and found, and a remedy; nothing comes after it."""
    damaged = dict(np.load(reference.STORED))
    damaged['small'][2, 3] += 0.1
    np.savez(tmp_path / 'damaged.npz', **damaged)
    code = (
        f'import sys, pytest; from tests.npu import reference; reference.STORED = {str(tmp_path / "damaged.npz")!r}; '
        f'sys.exit(pytest.main(["-xv", {str(ROOT / "tests/npu/test_device.py")!r}, *sys.argv[1:]]))'
    )
    status, shown, results = check(tmp_path, sys.executable, '-c', code)
    assert status == 1 and [*results][-1] == 'forward' and 'augmentation' not in shown
    assert 'difference from the float32 logits' in results['forward']['found'] and '0.0001' in results['forward']['found']
    assert 'remedy: MindSpore and CANN must belong together' in shown and 'NOT passed: 2 ok, 0 skipped, 1 failed' in shown


@pytest.mark.slow
@pytest.mark.compiles
def test_evaluation_that_changes_the_training_is_found(tmp_path, monkeypatch):
    """An evaluation that leaves the averages in the weights makes the check fail."""

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
