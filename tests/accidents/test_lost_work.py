"""Work that was lost without a word: which checkpoint is the newest and which the best, full disks, directories that move.

All trainings here have ten steps, so that they share a graph: the compile cache has it after the first.
"""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest

import eval as evaluation
import train
from src.data import demo_images
from src.weights import checkpoint
from tests.conftest import SMALL

SHORT = ['--device_target', 'CPU', '--display_every', '1', '--lr', '0.001', '--max_train_steps', '10']
EVALUATED = ['--mode', 'train_and_evaluate', '--epochs_between_evals', '1']  # of 5 steps an epoch
OLDER, LAST = 'inceptionv4-1_5.ckpt', 'inceptionv4-2_10.ckpt'
pytestmark = pytest.mark.compiles


@pytest.fixture(scope='module')
def records(tmp_path_factory):
    return demo_images.make(tmp_path_factory.mktemp('records'), train_per_class=2, validation_per_class=1)


@pytest.fixture(scope='module')
def trained(records, tmp_path_factory):
    """The log directory of a training of 10 steps, with checkpoints of steps 5 and 10 and the best."""
    directory = tmp_path_factory.mktemp('trained') / 'log'
    train.main(['--data_dir', str(records), *SMALL, *SHORT, *EVALUATED, '--log_dir', str(directory)])
    return directory


@pytest.fixture
def log(trained, tmp_path, monkeypatch):
    """A copy of it."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / 'log'))


@pytest.fixture
def run(records, capsys):
    """What a program prints; it must end with `status`."""

    def run(main, *options, status=0, data=records):
        with pytest.raises(SystemExit, match=str(status)) if status else contextlib.nullcontext():
            main([*map(str, ['--data_dir', data, *SMALL, *SHORT, *options])])
        return ''.join(capsys.readouterr())

    return run


def best(log):
    """What the best checkpoint records."""
    return checkpoint.load(log / checkpoint.BEST)[1]


def test_copied_without_file_times(run, log):
    """The training resumes from the step that is recorded, in whatever order the files were copied, and its evaluation lists
    them so. A link to a checkpoint that is not there (a disk that is not mounted) is skipped, or named."""
    os.utime(log / LAST, (1, 1))
    (log / 'inceptionv4-9_99.ckpt').symlink_to('/nowhere/inceptionv4-9_99.ckpt')
    text = run(train.main, '--log_dir', log, '--resume', 'auto', *EVALUATED)
    assert re.search('warning: skipped: .*9_99.ckpt', text) and f'{log / LAST}: resuming from step 10' in text
    assert f'warning: {log / OLDER} was written after {log / LAST}, but has fewer steps; the steps count' in text
    (log / LAST).rename(log / 'inceptionv4-0_3.ckpt')  # what is recorded counts, not the name
    assert re.search('warning: skipped: .*9_99.ckpt', run(evaluation.main, '--ckpt_path', log))
    assert [one['step'] for one in json.loads((log / 'evaluation.json').read_text())] == [5, 10]
    for path in log.glob('*.ckpt'):
        path.unlink()
        path.symlink_to(f'/nowhere/{path.name}')
    for main, *more in ((train.main, '--log_dir', log, '--resume', 'auto'), (evaluation.main, '--ckpt_path', log)):
        assert run(main, *more, status=2).splitlines()[-1].startswith('error: ')


def test_going_back_and_resuming(run, log):
    """Who goes back to an older checkpoint does not find the later ones in the way: they stay, under other names."""
    text = run(train.main, '--log_dir', log, '--resume', log / OLDER, '--save_checkpoint_steps', '3')
    assert f'{LAST} has more steps than' in text
    (log / LAST).unlink()  # as if it had been killed before
    assert sorted(path.name[12:] for path in log.glob('*_*.ckpt*')) == ['1_5.ckpt', '1_6.ckpt', '1_9.ckpt', '2_10.ckpt.1']
    assert 'resuming from step 9' in run(train.main, '--log_dir', log, '--resume', 'auto')


def test_no_side_product_ends_a_training(run, log):
    """The best mark, the curves, the report and the metrics cannot be written, nor config.yaml: each costs a line, and the
    best is marked as soon as there is room."""
    for path in log.glob('*.ckpt'):
        path.unlink()
    for name in ('config.yaml', 'metrics.jsonl', 'training.png'):
        (log / name).unlink()
        (log / name).mkdir()
    shutil.rmtree(log / 'report', ignore_errors=True)
    (log / 'report').write_text('in the way')
    refused = [OSError(28, 'No space left on device'), mock.DEFAULT]
    with mock.patch.object(checkpoint, 'mark_best', wraps=checkpoint.mark_best, side_effect=refused):
        text = run(train.main, '--log_dir', log, *EVALUATED)
    assert f'{OLDER} is the best so far: [Errno 28] No space left on device' in text
    for what in ('metrics.jsonl', 'config.yaml', 'curves', 'report on the evaluation'):
        assert f'no {what}: ' in text
    assert best(log)['evaluation']['top1'] >= 0


def test_overwritten_twice_before_the_first_checkpoint(run, log):
    """Both attempts end before they have a checkpoint: log and metrics of the real training are still there."""
    before = {name: (log / name).read_text() for name in ('inception_v4.log', 'metrics.jsonl')}
    for _ in range(2):
        run(train.main, '--log_dir', log, '--overwrite', 'true', '--freeze', 'nothing*', status=2)
    for name, text in before.items():
        assert text in [path.read_text() for path in log.glob(f'{name}*')]
    assert (log / OLDER).exists() and (log / LAST).exists()


def test_renamed_directory(run, tmp_path, monkeypatch):
    """Everything follows it, with a line in the log."""
    log, moved, write = tmp_path / 'log', tmp_path / 'moved', checkpoint.write

    def rename_after(path, *rest):
        write(path, *rest)
        if log.exists():
            log.rename(moved)

    monkeypatch.setattr(checkpoint, 'write', rename_after)
    text = run(train.main, '--log_dir', log, *EVALUATED)
    files = {OLDER, LAST, checkpoint.BEST, 'inception_v4.log', 'metrics.jsonl', 'training.png', 'report'}
    assert not log.exists() and files <= {path.name for path in moved.iterdir()}
    assert f'{log} was renamed; resume with --log_dir {moved} --resume auto' in text
