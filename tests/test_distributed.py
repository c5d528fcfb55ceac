"""N ranks on the CPU compute what one does: the real launcher, collectives, pipeline, training step and evaluation."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from src.inceptionv4 import InceptionV4
from src.weights import checkpoint
from tests.cluster import launching
from tests.conftest import SMALL
from tests.ranks import CLIP, STEPS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def results(compiles, data, tmp_path_factory):
    """What tests/ranks.py finds with one and with two ranks on 60 training and 30 validation images: [(dict, weights)]"""
    folder = tmp_path_factory.mktemp('with spaces in it')
    ms.set_seed(1)
    source = checkpoint.save(folder, InceptionV4(10, block_counts=(1, 1, 1), image_size=75), step=1, epoch=0, config={})

    def found(world, *launcher):
        command = [sys.executable, *launcher, ROOT / 'tests/ranks.py', data, source, folder / f'{world}']
        run_in(folder, *command, '--device_target', 'CPU', '--rank_size', world)
        return json.loads((folder / f'{world}.json').read_text()), dict(np.load(folder / f'{world}.npz'))

    return found(1), found(2, '-m', 'src.cluster.launch', '2')


def run_in(folder, *command):
    """stdout of a command in `folder`"""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable}
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_two_ranks_train_like_one(results):
    """2 ranks x batch 4 and 1 rank x batch 8, batch norm in inference mode, three steps, gradients clipped: the same norm,
    that of the mean; the weights within 1e-5, and the momentum, which is the rate times the gradients so far, within 1e-3 of
    its norm over the whole network."""
    (first, one), (second, two) = results
    assert len(first['norms']) == STEPS and min(first['norms']) > CLIP
    assert second['norms'] == pytest.approx(first['norms'], rel=1e-4) and one.keys() == two.keys()
    moments = [name for name in one if name.startswith('moment.')]
    norm = sum(np.square(one[name]).sum(dtype=np.float64) for name in moments)
    difference = sum(np.square(two[name] - one[name]).sum(dtype=np.float64) for name in moments)
    weights = [name for name in one if not name.startswith(('moment.', 'mean_square.')) and one[name].ndim]
    worst = max(np.abs(two[name] - one[name]).max() for name in weights)
    print(f'\n2 ranks and 1: weights {worst:.1e} (bound 1e-05), momentum {(difference / norm) ** 0.5:.1e} (bound 1e-03)')
    assert moments and worst < 1e-5 and difference < 1e-6 * norm


def test_two_ranks_restore_and_evaluate_like_one(results):
    """All hold the same weights after restoring, and the evaluation does not depend on their number."""
    (one, _), (two, _) = results
    assert two['equal'] and two['evaluation'] == pytest.approx(one['evaluation'], rel=1e-5)
    # What a report is made of, image by image.
    one, two = one['outcomes'], two['outcomes']
    assert len(one['label']) == 30 and set(one['label']) == set(range(10))
    for name, column in one.items():
        assert two[name] == (column if name in ('label', 'predicted', 'place') else pytest.approx(column, rel=1e-5))


@pytest.mark.compiles
def test_scripts_with_two_ranks(data, tmp_path):
    """The distributed script trains and evaluates, in a training run and later all ranks what rank 0 has saved; only rank 0
    writes the log and checkpoints."""
    (tmp_path / 'rank table.json').write_text(launching.table(1, 2))
    command = ['bash', ROOT / 'scripts/run_distribute_train.sh', 'rank table.json', '--data_dir', data]
    short = ['--max_train_steps', '2', '--display_every', '1', '--optimizer', 'momentum']  # which compiles faster
    out = run_in(tmp_path, *command, *SMALL, *short, '--mode', 'train_and_evaluate')
    assert 'rank 0 of 2' in out and re.search(r'^step: 2 epoch: 0.3 .*loss: ', out, re.M)
    (evaluated,) = re.findall(r'^ +2 +0\.3 +([\d.]+) +([\d.]+) +([\d.]+)', out, re.M)
    assert out.count('\nreport: ') + out.count('no report on the evaluation') == 1
    written = {str(path.relative_to(tmp_path / 'results/2p')) for path in (tmp_path / 'results').rglob('*.*')}
    own = {'config.yaml', 'inception_v4.log', 'inceptionv4-0_2.ckpt', 'inceptionv4-best.ckpt', 'metrics.jsonl'}
    assert {f'0/ckpt/{name}' for name in own} | {f'{name}/train.log' for name in ('0', '1', 'scheduler')} <= written
    assert not [name for name in written if name.startswith('1/') and name != '1/train.log']
    out = run_in(tmp_path, *command, '--mode', 'evaluate', '--batch_size', '4')
    assert re.findall(r'^ +2 +0\.0 +([\d.]+) +([\d.]+) +([\d.]+)', out, re.M) == [evaluated]
