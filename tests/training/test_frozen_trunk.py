"""Frozen layers are computed once, and a training run ends when it is done."""

import numpy as np
import pytest

import train
from src.training import metrics
from src.weights import checkpoint
from tests.conftest import SMALL

FROZEN = (
    '--freeze conv2d_*,mixed_3a,mixed_4a,mixed_5*,mixed_6* --bn_decay 1 --dropout_keep_prob 1 --lr 0.002 --seed 5'.split()
)


@pytest.fixture
def run(data, tmp_path, capsys):
    """Train into a directory of `tmp_path`: (what was printed, the records of the evaluations)."""

    def run(name, *options):
        command = ['--data_dir', data, *SMALL, *FROZEN, '--log_dir', tmp_path / name, '--mode', 'train_and_evaluate']
        train.main([*map(str, command), '--epochs_between_evals', '1', '--display_every', '1', *options])
        records = metrics.read(tmp_path / name / metrics.NAME)
        losses = [record['loss'] for record in records if record['kind'] == 'step']
        evaluations = [
            (record['step'], record['top1'], record['loss']) for record in records if record['kind'] == 'evaluation'
        ]
        return capsys.readouterr().out, losses, evaluations

    return run


@pytest.mark.compiles
def test_as_on_images(run, tmp_path):
    """Two epochs of the same draws: the same losses and evaluations but for float16; the third has the images of the first.
    Resumed, it ends in the same checkpoint bit for bit."""
    options = '--max_epochs', '3', '--ema_decay', '0.9', '--trunk_cache'
    _, expected, theirs = run('images', *options, '0')
    out, losses, ours = run('trunk', *options, '1')
    assert 'conv2d_1a_3x3 to mixed_6b, computed for 2 x 60 training images and the validation images' in out
    apart = np.abs(np.subtract(losses, expected))  # float16 rounds, and every step adds to it
    assert apart[:15].max() < 5e-3 and apart[:30].max() < 0.1 < apart[30:].max() and np.ptp(losses) > 0.1
    assert np.allclose(ours[0], theirs[0], rtol=0, atol=5e-3)
    whole, _ = checkpoint.load(tmp_path / 'trunk/inceptionv4-3_45.ckpt')
    assert 'ema.mixed_7a.branch_0.conv2d_0a_1x1.conv.weight' in whole and 'ema.conv2d_1a_3x3.conv.weight' not in whole

    for name in ('3_45', 'best'):
        (tmp_path / f'trunk/inceptionv4-{name}.ckpt').unlink()
    assert 'resuming from step 30' in run('trunk', *options, '1', '--resume', 'auto')[0]
    found, _ = checkpoint.load(tmp_path / 'trunk/inceptionv4-3_45.ckpt')
    assert len(found) > 200 and all(np.array_equal(found[name], value) for name, value in whole.items())


@pytest.mark.compiles
def test_ends_when_evaluations_find_no_gain(run):
    """With everything but the classifier frozen, at a rate that changes no weight. The same command then does nothing."""
    options = '--max_epochs 9 --patience 2 --lr 1e-30 --trunk_cache 0.001 --freeze conv2d_*,mixed_* --resume auto'.split()
    out, losses, evaluations = run('done', *options)
    assert [step for step, *_ in evaluations] == [15, 30, 45] and len(losses) == 45, (evaluations, out)
    assert 'no gain in 2 evaluations: training ends, the best was at step 15' in out
    out, losses, _ = run('done', *options)
    assert 'training is complete: 45 of 45 steps' in out and '--patience' in out and len(losses) == 45
