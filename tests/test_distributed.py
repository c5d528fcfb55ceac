"""N ranks on the CPU compute what one does: the real launcher, collectives, pipeline, training step and evaluation."""

import json
import os
import re
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest

import eval as evaluation
from src.inceptionv4 import InceptionV4
from src.weights import checkpoint
from tests import ranks
from tests.cluster.launching import table
from tests.conftest import SMALL
from tests.processes import ROOT


@pytest.fixture(scope='module')
def results(compiles, data, tmp_path_factory):
    """What tests/ranks.py finds with one and with two ranks on 60 training and 30 validation images: [(dict, weights)]"""
    folder = tmp_path_factory.mktemp('with spaces in it')
    ms.set_seed(1)
    source = checkpoint.save(folder, InceptionV4(10, block_counts=(1, 1, 1), image_size=75), step=1, epoch=0, config={})
    ranks.main(data, source, folder / '1', 1)
    options = [data, source, folder / '2', '--device_target', 'CPU']
    run_in(folder, sys.executable, '-m', 'src.cluster.launch', '2', ROOT / 'tests/ranks.py', *options)
    return [(json.loads((folder / f'{n}.json').read_text()), dict(np.load(folder / f'{n}.npz'))) for n in (1, 2)]


def run_in(folder, *command):
    """stdout of a command in `folder`"""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable}
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_two_ranks_train_like_one(results):
    """2 ranks x batch 4 and 1 rank x batch 8, batch norm in inference mode, three steps, gradients clipped: the same norm,
    that of the mean; the weights within 1e-5, and the sums of the gradients so far (momentum) within 1e-3 of their norm."""
    (first, one), (second, two) = results
    assert len(first['norms']) == ranks.STEPS and min(first['norms']) > ranks.CLIP
    assert second['norms'] == pytest.approx(first['norms'], rel=1e-4) and one.keys() == two.keys()
    moments = [name for name in one if name.startswith('moment')]
    norm = sum(np.square(one[name]).sum(dtype=np.float64) for name in moments)
    difference = sum(np.square(two[name] - one[name]).sum(dtype=np.float64) for name in moments)
    worst = max(np.abs(two[name] - one[name]).max() for name in one if name not in moments and one[name].ndim)
    assert moments and worst < 1e-5 and difference < 1e-6 * norm


def test_two_ranks_restore_and_evaluate_like_one(results):
    """All hold the same weights after restoring, and the evaluation does not depend on their number."""
    (one, _), (two, _) = results
    assert two['equal'] and two['evaluation'] == pytest.approx(one['evaluation'], rel=1e-5)
    one, two = one['outcomes'], two['outcomes']
    assert len(one['label']) == 30 and set(one['label']) == set(range(10))
    for name, column in one.items():
        assert two[name] == (column if name in ('label', 'predicted', 'place') else pytest.approx(column, rel=1e-5))


@pytest.fixture(scope='module')
def trained(compiles, data, tmp_path_factory):
    """(directory, what was printed) of the distributed script, which has trained two steps and evaluated."""
    folder = tmp_path_factory.mktemp('scripts')
    (folder / 'rank table.json').write_text(table(1, 2))
    short = ['--max_train_steps', '2', '--display_every', '1', '--optimizer', 'momentum']  # which compiles faster
    script = ['bash', ROOT / 'scripts/run_distribute_train.sh', 'rank table.json']
    return folder, run_in(folder, *script, '--data_dir', data, *SMALL, *short, '--mode', 'train_and_evaluate')


def figures(out, epoch):
    """(top-1, top-5, loss) of the one evaluation of step 2"""
    [found] = re.findall(rf'^ +2 +{epoch} +([\d.]+) +([\d.]+) +([\d.]+)', out, re.M)
    return [*map(float, found)]


def test_scripts_with_two_ranks(trained, data, capfd):
    """All ranks evaluate what one does, in a training run as later; only rank 0 writes the log and checkpoints."""
    folder, out = trained
    assert re.search(r'^step: 2 epoch: 0.3 .*loss: ', out, re.M) and out.count('\nreport: ') == 1
    written = {str(path.relative_to(folder / 'results/2p')) for path in (folder / 'results').rglob('*.*')}
    own = {'config.yaml', 'inception_v4.log', 'inceptionv4-0_2.ckpt', 'inceptionv4-best.ckpt', 'metrics.jsonl'}
    assert {f'0/ckpt/{name}' for name in own} | {f'{name}/train.log' for name in ('0', '1', 'scheduler')} <= written
    assert not [name for name in written if name.startswith('1/') and name != '1/train.log']
    where = ['--ckpt_path', folder / 'results/2p/0/ckpt', '--data_dir', data, '--device_target', 'CPU']
    evaluation.main([*map(str, where), '--batch_size', '4'])
    assert figures(capfd.readouterr().out, '0.0') == pytest.approx(figures(out, '0.3'), rel=1e-5)
