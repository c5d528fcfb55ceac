"""The check of a new machine (tests/npu): rehearsed on the CPU, and what it says when something is wrong."""

import json
import os
import re
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


def check_device(tmp_path, change, *options):
    """The same of the check of the device, after this change of a module."""
    call = f'pytest.main(["-xv", {str(ROOT / "tests/npu/test_device.py")!r}, *sys.argv[1:]])'
    code = f'import sys, pytest\nfrom tests.npu import reference, small_training\n{change}\nsys.exit({call})'
    return check(tmp_path, sys.executable, '-c', code, *options)


@pytest.mark.slow
@pytest.mark.compiles
def test_rehearsal(tmp_path):
    status, shown, results = check(tmp_path, 'bash', ROOT / 'scripts/run_acceptance.sh', '2')
    assert status == 0 and re.search('^passed after .* --drop_overflow_update branch$', shown, re.M), shown[-3000:]
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
    status, shown, results = check_device(tmp_path, f'reference.STORED = {str(tmp_path / "damaged.npz")!r}')
    assert status == 1 and [*results][-1] == 'forward' and 'augmentation' not in shown
    assert 'difference from the float32 logits' in results['forward']['found'] and '0.0001' in results['forward']['found']
    assert results['forward']['remedy'] in shown


def test_branch_that_is_refused(tmp_path):
    """The check of the device ends with a status of its own."""
    change = 'small_training.make_step = lambda *_: 1 / 0'
    status, _, results = check_device(tmp_path, change, '-k', 'records or overflow')
    assert status == 10 and results['overflow']['result'] == 'failed'


@pytest.mark.parametrize('status, calls, end', [(0, 1, 'branch'), (10, 2, 'select'), (139, 2, 'select'), (1, 1, '')])
def test_branch_is_tried_first(status, calls, end, tmp_path):
    """Then select, for all that follows; the end tells which of them works."""
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\necho "$*"\ncase "$*" in *select*) ;; *test_device.py*) exit {status} ;; esac\n')
    python.chmod(0o755)
    command = f'PYTHON={python} LD_PRELOAD= bash {ROOT}/scripts/run_acceptance.sh'
    done = subprocess.run(command, shell=True, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    called = re.findall(r'/(test_\w+)\.py (.*)', done.stdout)
    assert [name for name, _ in called].count('test_device') == calls and done.returncode == (0 if end else 1)
    assert all(('select' in options) == (end == 'select') for _, options in called[calls + 1 :])
    assert done.stdout.endswith(f', with --drop_overflow_update {end}\n') or not end and called[-1][0] == 'test_device'
