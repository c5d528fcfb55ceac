"""N ranks on the CPU compute what one does: the real launcher, collectives, pipeline, training step and evaluation."""

import json
import re
import shutil
import signal

import mindspore as ms
import numpy as np
import pytest

import eval as evaluation
import train
from src.inceptionv4 import InceptionV4
from src.weights import checkpoint
from tests import ranks
from tests.cluster.launching import table
from tests.conftest import SMALL
from tests.processes import ROOT, Program


@pytest.fixture(scope='module')
def results(compiles, data, tmp_path_factory):
    """What tests/ranks.py finds with one and with two ranks on 60 training and 30 validation images: [(dict, weights)]"""
    folder = tmp_path_factory.mktemp('with spaces in it')
    ms.set_seed(1)
    source = checkpoint.save(folder, InceptionV4(10, block_counts=(1, 1, 1), image_size=75), step=1, epoch=0, config={})
    ranks.main(data, source, folder / '1', 1)
    other = shutil.copytree(data, folder / '2.records')
    first, second = sorted(other.glob('train-*'))[:2]
    first.rename(other / 'first')
    second.rename(first)
    (other / 'first').rename(second)
    options = [data, source, folder / '2', '--device_target', 'CPU']
    Program(folder, '-m', 'src.cluster.launch', '2', ROOT / 'tests/ranks.py', *options).end(0)
    return [(json.loads((folder / f'{n}.json').read_text()), dict(np.load(folder / f'{n}.npz'))) for n in (1, 2)]


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
        exact = name in ('label', 'predicted', 'place')
        np.testing.assert_allclose(two[name], column, rtol=0 if exact else 1e-4, err_msg=name)


def test_ranks_with_other_records(results):
    """Named before the first step: as many records in another order."""
    differs = (
        'the training records differs: rank 0 has 60 with .*, rank 1 has 60 with .*; use the same records and options .*'
    )
    assert re.fullmatch(differs, results[1][0]['refused'])


def figures(out):
    """(top-1, top-5, loss) of the first evaluation, after step 3"""
    return [*map(float, re.search(r'^ +3 +1\.0 +([\d.]+) +([\d.]+) +([\d.]+)', out, re.M).groups())]


def test_scripts_with_two_ranks(compiles, data, tmp_path, capfd):
    """Only rank 0 writes log and checkpoints. After Ctrl-C all ranks end after the same step, and one device continues from
    as many images; it evaluates what two did during the training run."""
    (tmp_path / 'rank table.json').write_text(table(1, 2))
    script = [
        '-c',
        'import os, sys; os.execvp("bash", sys.argv)',
        ROOT / 'scripts/run_distribute_train.sh',
        'rank table.json',
    ]
    options = '--batch_size 8 --display_every 1 --epochs_between_evals 1 --optimizer momentum'.split()  # compiles faster
    options = ['--data_dir', str(data), *SMALL, *options]
    two = Program(tmp_path, *script, *options, '--max_train_steps', '500', '--mode', 'train_and_evaluate')
    two.reach(r'^step: 4 ')
    two.process.send_signal(signal.SIGINT)
    two.end(130)
    logs = [(tmp_path / f'results/2p/{rank}/train.log').read_text() for rank in (0, 1)]
    (step,), (other,) = (re.findall(r'^SIGTERM: stopped after step (\d+) of ', log, re.M) for log in logs)
    assert step == other and re.search(r'^step: 3 epoch: 1.0 .*loss: ', two.text, re.M)
    written = {str(path.relative_to(tmp_path / 'results/2p')) for path in (tmp_path / 'results').rglob('*.*')}
    own = {'config.yaml', 'inception_v4.log', 'inceptionv4-1_3.ckpt', 'inceptionv4-best.ckpt', 'metrics.jsonl'}
    assert {f'0/ckpt/{name}' for name in own} | {f'{name}/train.log' for name in ('0', '1', 'scheduler')} <= written
    assert not [name for name in written if name.startswith('1/') and name != '1/train.log']

    there = tmp_path / 'results/2p/0/ckpt'
    where = ['--ckpt_path', there / 'inceptionv4-1_3.ckpt', '--data_dir', data, '--device_target', 'CPU']
    evaluation.main([*map(str, where), '--batch_size', '4'])
    assert figures(capfd.readouterr().out) == pytest.approx(figures(two.text), rel=1e-5)
    last = ['--resume', str(there / f'inceptionv4-{int(step) // 3}_{step}.ckpt'), '--resume_override', 'true']
    train.main([*options, *last, '--batch_size', '16', '--max_train_steps', step, '--log_dir', str(tmp_path / 'one')])
    assert f'this run: step {step} of {step} on 1 device' in capfd.readouterr().out
