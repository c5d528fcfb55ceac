"""N ranks on the CPU compute what one does: the real launcher, collectives, pipeline, training step and evaluation."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src import checkpoint
from src.inceptionv4 import InceptionV4

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def results(data, tmp_path_factory):
    """What tests/ranks.py found with 1, 2 and 3 ranks on 60 training and 30 validation pictures."""
    folder = tmp_path_factory.mktemp('with spaces in it')
    source = checkpoint.save(folder, InceptionV4(10, block_counts=(1, 1, 1), image_size=75), step=1, epoch=0, config={})
    found = {}
    for world in (1, 2, 3):
        out = folder / f'{world} ranks'
        command = [str(ROOT / 'tests/ranks.py'), str(data), str(source), str(out)]
        launcher = ['-m', 'src.launch', str(world)] if world > 1 else []
        command += ['--device_target', 'CPU', *(['--rank_size', '1'] if world == 1 else [])]
        done = subprocess.run([sys.executable, *launcher, *command], cwd=folder, capture_output=True, text=True,
                              timeout=300, env={**os.environ, 'PYTHONPATH': str(ROOT)})
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        found[world] = json.loads(Path(f'{out}.json').read_text())
    return found


def test_two_ranks_train_like_one(results):
    """2 ranks x batch 4 and 1 rank x batch 8, batch norm in inference mode, three steps: weights, momentum (the sum of
    the gradients so far) and mean squares within 1e-5 of each parameter's norm."""
    one, two = (dict(np.load(results[world]['weights'])) for world in (1, 2))
    assert one.keys() == two.keys() and any(name.startswith('moment.') for name in one)
    worst = max((np.linalg.norm(two[name] - value) / max(np.linalg.norm(value), 1e-12), name)
                for name, value in one.items() if value.ndim)
    print(f'\nworst relative deviation: {worst[0]:.1e} ({worst[1]})')
    weights = {name: v for name, v in one.items() if not name.startswith(('moment.', 'mean_square.')) and v.ndim}
    assert all(np.abs(two[name] - value).max() < 1e-5 for name, value in weights.items())
    assert worst[0] < 1e-4


def test_ranks_hold_the_same_weights_after_restoring(results):
    assert results[2]['equal'] and results[3]['equal']


def test_evaluation_does_not_depend_on_the_ranks(results):
    one = results[1]['evaluation']
    assert one[3] == 30
    for world in (2, 3):
        assert results[world]['evaluation'][:2] == one[:2] and results[world]['evaluation'][3] == 30
        assert results[world]['evaluation'][2] == pytest.approx(one[2], rel=1e-5)
