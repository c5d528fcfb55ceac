"""The check of a new machine (tests/npu): rehearsed on the CPU, and what it says when something is wrong."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.npu import reference
from tests.processes import ROOT


def check(tmp_path, *command):
    """(exit status, standard output, {name: result}) of the check on the CPU."""
    output, environment = tmp_path / 'with spaces', {**os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT)}
    command = [*command, '--device_target', 'CPU', '--output', output]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = json.loads((output / 'acceptance.json').read_text())
    return done.returncode, done.stdout + done.stderr, {result['name']: result for result in found}


@pytest.mark.slow
@pytest.mark.compiles
def test_rehearsal(tmp_path):
    status, shown, results = check(tmp_path, 'bash', ROOT / 'scripts/run_acceptance.sh', '2')
    assert status == 0 and shown.endswith('passed\n'), shown[-3000:]
    assert {result['result'] for result in results.values()} == {'passed', 'skipped'}
    skipped = {name for name, result in results.items() if result['result'] == 'skipped'}
    assert skipped - {'atc'} == {'sinks', 'overflow_inside_a_sink', 'speed[128]', 'export[AIR]'}
    assert results['resume']['figures']['loss'] == results['shorter_last_sink']['figures']['loss'] == 0


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
    assert results['forward']['remedy'] in shown
