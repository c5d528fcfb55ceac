"""N ranks on the CPU compute what one does: the real launcher, collectives, pipeline, training step and evaluation."""

import functools
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
    """What tests/ranks.py finds with so many ranks on 60 training and 30 validation images; run once each."""
    folder = tmp_path_factory.mktemp('with spaces in it')
    ms.set_seed(1)
    source = checkpoint.save(folder, InceptionV4(10, block_counts=(1, 1, 1), image_size=75), step=1, epoch=0, config={})

    @functools.cache
    def found(world):
        out = folder / f'{world} ranks'
        command = [str(ROOT / 'tests/ranks.py'), str(data), str(source), str(out)]
        launcher = ['-m', 'src.cluster.launch', str(world)] if world > 1 else []
        command += ['--device_target', 'CPU', *(['--rank_size', '1'] if world == 1 else [])]
        done = subprocess.run(
            [sys.executable, *launcher, *command],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(Path(f'{out}.json').read_text())

    return found


def test_two_ranks_train_like_one(results):
    """2 ranks x batch 4 and 1 rank x batch 8, batch norm in inference mode, three steps, gradients clipped: the same norm,
    that of the mean; the weights within 1e-5, and the momentum, which is the rate times the gradients so far, within 1e-3 of
    its norm over the whole network."""
    norms = results(1)['norms']
    assert len(norms) == STEPS and min(norms) > CLIP and results(2)['norms'] == pytest.approx(norms, rel=1e-4)
    one, two = (dict(np.load(results(world)['weights'])) for world in (1, 2))
    assert one.keys() == two.keys()
    moments = [name for name in one if name.startswith('moment.')]
    difference, norm = (
        np.sqrt(sum(np.square(v).sum(dtype=np.float64) for v in values))
        for values in ([two[name] - one[name] for name in moments], [one[name] for name in moments])
    )
    weights = [name for name in one if not name.startswith(('moment.', 'mean_square.')) and one[name].ndim]
    worst = max(np.abs(two[name] - one[name]).max() for name in weights)
    print(f'\n2 ranks and 1: weights {worst:.1e} (bound 1e-05), momentum {difference / norm:.1e} (bound 1e-03)')
    assert moments and worst < 1e-5 and difference < 1e-3 * norm


def test_two_ranks_restore_and_evaluate_like_one(results):
    """All hold the same weights after restoring, and the evaluation does not depend on their number."""
    one, two = results(1), results(2)
    assert two['equal'] and two['gathered'] == [[0, 0.5], [1, 0.5]]
    assert two['evaluation'] == pytest.approx(one['evaluation'], rel=1e-5) and one['evaluation'][3] == 30
    # What a report is made of, image by image.
    one, two = one['outcomes'], two['outcomes']
    assert len(one['label']) == 30 and set(one['label']) == set(range(10))
    for name, column in one.items():
        assert two[name] == (column if name in ('label', 'predicted', 'place') else pytest.approx(column, rel=1e-5))


@pytest.mark.compiles
def test_scripts_with_two_ranks(data, tmp_path):
    """The distributed script trains and evaluates, in a training run and later all ranks what rank 0 has saved; only rank 0
    writes the log and checkpoints."""
    table, script = tmp_path / 'rank table.json', ROOT / 'scripts/run_distribute_train.sh'
    table.write_text(launching.table(1, 2))

    def run(*options):
        command = ['bash', script, table, '--data_dir', data, *options]
        environment = {**os.environ, 'PYTHON': sys.executable}
        done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    short = ['--max_train_steps', '2', '--display_every', '1', '--optimizer', 'momentum']  # which compiles faster
    out = run(*SMALL, *short, '--mode', 'train_and_evaluate')
    assert 'rank 0 of 2' in out and re.search(r'^step: 2 epoch: 0.3 .*loss: ', out, re.M)
    (evaluated,) = re.findall(r'^ +2 +0\.3 +([\d.]+) +([\d.]+) +([\d.]+)', out, re.M)
    assert out.count('\nreport: ') + out.count('no report on the evaluation') == 1
    written = {str(path.relative_to(tmp_path / 'results/2p')) for path in (tmp_path / 'results').rglob('*.*')}
    own = {'config.yaml', 'inception_v4.log', 'inceptionv4-0_2.ckpt', 'inceptionv4-best.ckpt', 'metrics.jsonl'}
    assert {f'0/ckpt/{name}' for name in own} | {f'{name}/train.log' for name in ('0', '1', 'scheduler')} <= written
    assert not [name for name in written if name.startswith('1/') and name != '1/train.log']
    out = run('--mode', 'evaluate', '--batch_size', '4')
    assert re.findall(r'^ +2 +0\.0 +([\d.]+) +([\d.]+) +([\d.]+)', out, re.M) == [evaluated]
