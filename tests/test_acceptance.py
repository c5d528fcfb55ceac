"""The acceptance check: rehearsed whole on the CPU, and what it says when something is wrong."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.acceptance import __main__ as acceptance
from src.acceptance import device, programs, reference, steps, training
from src.acceptance.report import Failed, Skipped, line, run, within
from src.cluster import rank_table
from src.errors import InputError
from src.evaluation import evaluation

ROOT = Path(__file__).resolve().parents[1]
OF_ONE_DEVICE = [
    'environment',
    'device',
    'two ranks',
    'all-reduce',
    'construction',
    'forward',
    'augmentation',
    'records',
    'overflow',
    'steps without sinks',
    'sinks of 10',
    'overflow inside a sink',
    'evaluation between sinks',
    'state in a checkpoint',
    'shorter last sink',
    'resumption',
    'weights for export',
    'compilation',
    'compiled graph, SIGTERM',
    'Ctrl-C',
    'speed, batch 8',
]
OF_RANKS = [
    'ranks',
    'stop agreed on',
    "rank 0's values",
    'weights of all ranks',
    'network evaluated',
    'stop',
    'resumption of all ranks',
]
EXPORTS = ['export MINDIR', 'export ONNX', 'export AIR', 'atc']


def rehearse(tmp_path, *arguments):
    """(exit status, standard output, acceptance.json) of the script on the CPU."""
    output = tmp_path / 'with spaces'
    done = subprocess.run(
        ['bash', str(ROOT / 'scripts/run_acceptance.sh'), *arguments, '--device_target', 'CPU', '--output', str(output)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env={**os.environ, 'PYTHON': sys.executable},
    )
    written = output / 'acceptance.json'
    assert written.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return done.returncode, done.stdout, json.loads(written.read_text())


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize('ranks', [[], ['2']])
def test_rehearsal(ranks, tmp_path):
    status, shown, written = rehearse(tmp_path, *ranks)
    assert status == 0 and written['passed'], shown
    results = {result['name']: result for result in written['checks']}
    assert list(results) == [*OF_ONE_DEVICE, *(OF_RANKS if ranks else ['ranks']), *EXPORTS]
    skipped = {name for name, result in results.items() if result['result'] == 'skipped'}
    assert skipped - {'atc'} == {'sinks of 10', 'overflow inside a sink', 'export AIR'} | (set() if ranks else {'ranks'})
    for name in results:  # one line while it runs, one in the table
        assert len(re.findall(rf'^{re.escape(name)} +(ok|skipped) +[\d.]+ s  ', shown, re.MULTILINE)) == 2
    assert results['overflow']['figures']['skipped'] >= 3
    assert results['resumption']['figures']['loss'] == results['shorter last sink']['figures']['loss'] == 0
    speed = results['speed, batch 8']['figures']
    assert 0 <= speed['data_wait'] <= 1 < speed['images_per_second'] and speed['milliseconds'] > 1
    assert len(speed['worker_threads']) >= speed['workers'] or speed['workers'] == 1
    assert 0 < results['compiled graph, SIGTERM']['figures']['seconds'] < results['compilation']['figures']['seconds']
    assert results['device']['figures']['mindspore'] and results['environment']['figures']['cores']


@pytest.mark.compiles
def test_failed_check_ends_it(tmp_path):
    """Another figure for one logit: status 1, what was expected and found, and a remedy; nothing comes after it."""
    figures = {name: reference.stored(name).copy() for name in reference.NETWORKS}
    figures['small'][2, 3] += 0.1
    np.savez(tmp_path / 'damaged.npz', **figures)
    status, shown, written = rehearse(tmp_path, '2', '--figures', str(tmp_path / 'damaged.npz'))
    assert status == 1 and not written['passed']
    last = written['checks'][-1]
    assert (last['name'], last['result']) == ('forward', 'FAILED')
    assert float(last['found']) == pytest.approx(0.1 / np.abs(figures['small']).max(), rel=0.01)
    assert re.search(
        r'^forward +FAILED +[\d.]+ s\n  expected: difference .* at most 0\.0001\n  found: 0\.0.*\n'
        r'  remedy: MindSpore and CANN must belong together',
        shown,
        re.MULTILINE,
    )
    assert 'augmentation' not in shown and 'NOT passed: 5 ok, 0 skipped, 1 failed' in shown


@pytest.mark.slow
def test_evaluation_that_changes_the_training_is_found(tmp_path, monkeypatch):
    """An evaluation that leaves the averages in the weights makes the check fail."""

    def leaving(network, train_step):
        for average, value in zip(train_step.averages, train_step.values):
            value.assign_value(average)
        take(network, train_step)

    take = evaluation.take_weights
    monkeypatch.setattr(evaluation, 'take_weights', leaving)
    one = device.Device(argparse.Namespace(device_target='CPU', device_id=0, output=tmp_path, figures=None, jit_level=''))
    results = []
    names = ['device', 'records', 'overflow', 'steps without sinks', 'evaluation between sinks']
    passed = [run(*check, results.append) for check in device.checks(one) if check[0] in names]
    assert passed == [True] * 4 + [False] and 'losses at steps' in results[-1]['expected']


def test_branch_is_tried_first(tmp_path, monkeypatch):
    """An NPU refuses the branch on overflow: the check passes without it and names the option; what follows does without."""
    one, tried = steps.Steps.__new__(steps.Steps), []
    one.drop_overflow_update = 'branch'

    def refused():
        tried.append(one.drop_overflow_update)
        if one.drop_overflow_update == 'branch':
            raise RuntimeError('\nGE does not support control flow\n- C++ call stack')
        return {'text': 'fine'}

    one.overflow = one.sinks = refused
    results = []
    assert run('overflow', lambda: one.either('overflow'), '', results.append)
    assert run('sinks', lambda: one.either('sinks'), '', results.append)
    assert tried == ['branch', 'select', 'select']
    figures = [result['figures'] for result in results[1::2]]
    assert [found['text'] for found in figures] == ['fine, drop_overflow_update select'] * 2
    message = 'train with --drop_overflow_update select; with a branch on overflow: GE does not support control flow'
    assert [found.get('warning') for found in figures] == [message, None]
    one.overflow = one.either  # fails without it, too
    assert not run('overflow', lambda: one.either('overflow'), '', results.append)


@pytest.mark.parametrize('chip, named', [('ascend910', False), ('ascend910b', True)])
def test_remedy_is_one_that_the_chip_has(chip, named, monkeypatch):
    """The first Ascend 910 has no other jit_level than O2."""
    monkeypatch.setattr(device.runtime, 'chip', lambda: chip)
    args = argparse.Namespace(device_target='Ascend', device_id=0, output='.', figures=None)
    remedies = [remedy for _, _, remedy in device.checks(device.Device(args))]
    assert any('--jit_level O0' in remedy for remedy in remedies) == named


def test_process_that_dies(tmp_path, monkeypatch):
    """The check that had begun has failed, with the end of the log."""
    program = tmp_path / 'python'
    program.write_text(
        '#!/bin/bash\necho \'{"name": "overflow", "remedy": "look here"}\' >&"${!#}"\necho out of memory\nexit 7\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(program))
    results = []
    assert not programs.on_device([], tmp_path / 'log', results.append)
    assert results[-1] == {
        'name': 'overflow',
        'remedy': 'look here',
        'result': 'FAILED',
        'seconds': 0.0,
        'expected': 'a result',
        'found': 'the process ended with status 7: out of memory',
    }


def test_results():
    """The results of checks that fail, are skipped, or raise an error."""

    def check(error):
        def raising():
            raise error

        results = []
        assert run('name', raising, 'general', results.append) == isinstance(error, Skipped)
        assert results[0] == {'name': 'name', 'remedy': 'general'}
        return results[1]

    assert line(check(Failed('1', 2))).split('\n')[1:] == ['  expected: 1', '  found: 2', '  remedy: general']
    assert line(check(Failed('1', 2, 'special'))).endswith('remedy: special')
    assert check(RuntimeError('----\n- Ascend Error:\n----\nEI0006'))['found'] == 'RuntimeError: - Ascend Error: EI0006'
    assert check(Skipped('no sinks'))['figures']['text'] == 'no sinks'
    with pytest.raises(Failed):
        within(float('nan'), 1, 'what is not a number')


def test_change_difference():
    """A step of twenty that was lost, or all of them, is seen; rounding in float16 is not."""
    rng = np.random.default_rng(1)
    change = rng.standard_normal(1000).astype(np.float32)
    states = [{'weight': np.float32(part) * change, 'count': np.int32(3)} for part in (0, 1, 1 + 2**-11, 0.85)]
    before, after, rounded, lost = states
    assert training.change_difference(before, after, rounded) < 1e-3
    assert training.change_difference(before, after, lost) > steps.CHANGE_BOUND['float16']
    assert training.change_difference(before, after, before) == pytest.approx(1)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['65', '--device_target', 'Ascend'], 'must be 2 to 64'),
        (['1', '--device_target', 'CPU'], 'must be 2 to 64'),
        (['nowhere.json'], 'nowhere.json'),
        (['--figures', 'none.npz'], 'no such file'),
        (['--device_id', '-1'], 'device_id -1'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        acceptance.parse(arguments)


def test_one_server_only(tmp_path):
    table = {
        'version': '1.0',
        'server_count': '2',
        'status': 'completed',
        'server_list': [
            {
                'server_id': f'10.0.0.{i}',
                'device': [{'device_id': '0', 'device_ip': f'192.168.1.{i}', 'rank_id': str(i - 1)}],
            }
            for i in (1, 2)
        ],
    }
    path = tmp_path / 'table.json'
    path.write_text(json.dumps(table))
    assert len(rank_table.read(path).servers) == 2
    with pytest.raises(InputError, match='more than one server'):
        acceptance.parse([str(path)])


def test_stored_logits_are_those_of_this_file():
    """Images differ enough, and the first class leads far enough, for a wrong network to be told from rounding."""
    for name, options in reference.NETWORKS.items():
        logits = reference.stored(name)
        assert logits.shape == (4, options['num_classes']) and logits.dtype == np.float32
        largest = np.abs(logits).max()
        first, second = np.sort(logits, 1)[:, :-3:-1].T
        assert np.abs(logits - logits[[1, 2, 3, 0]]).max() > 0.2 * largest and (first - second).min() > 0.05 * largest


def test_named_files_exist():
    """A hint on the screen or in a comment names a file of this project by its path."""
    named = {}
    for path in [*ROOT.glob('*.py'), *(ROOT / 'src').rglob('*.py')]:
        for found in re.findall(
            r'\b(?:src|tests|docs|scripts|benchmarks|recipes)/[\w/.-]+\.(?:py|md|sh|yaml)\b', path.read_text()
        ):
            named.setdefault(found, []).append(str(path.relative_to(ROOT)))
    assert len(named) > 15
    assert {name: places for name, places in named.items() if not (ROOT / name).exists()} == {}
