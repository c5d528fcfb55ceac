"""After each step: lines, records, checkpoints, evaluations, and when a training run ends (no graph is compiled)."""

import re
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from mindspore import Tensor, nn

from src.data.pipeline import BadRecords
from src.data.records import open_records
from src.errors import TrainingError
from src.evaluation.evaluation import Result
from src.training import metrics
from src.training import monitor as module
from src.training.metrics import Metrics
from src.training.plan import Plan
from src.weights import checkpoint
from tests.training.steps import Evaluation, Training, names

FULL = OSError(28, 'No space left on device')


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands unless it is moved."""
    now = [0.0]
    monkeypatch.setattr(module, 'time', SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0]))

    def move(seconds):
        now[0] += seconds

    return move


@pytest.mark.parametrize('sink, lines, saved', [(1, [20, 40, 60, 80, 100], [60, 90, 100]), (50, [50, 100], [50, 100])])
def test_schedule(sink, lines, saved, tmp_path):
    """Lines and checkpoints at the first end of a sink after they are due, and after the last step."""
    training = Training(tmp_path, options=['--save_checkpoint_steps', '30'])
    training.step(100 // sink, steps=sink)
    assert [int(line.split()[1]) for line in training.logged()] == lines
    assert names(tmp_path) == [f'inceptionv4-{step // 10}_{step}.ckpt' for step in saved]


def test_line_and_record(tmp_path, clock):
    """The original's line; the mean is over all steps since the last line; what compiles does not count."""
    training = Training(tmp_path, options=['--display_every', '5', '--lr', '0.1'], metrics=Metrics(tmp_path / 'm'))
    for loss in range(10):
        clock(0.25 if loss else 60)  # of waiting
        training.step(loss=loss, norm=3.0, overflows=1, seconds=lambda: clock(0.75))
    assert training.lines[0].startswith('time to the first step, compilation included: 60.8 s')
    total = 9 + 1e-5 / 2 * float((training.cell.weight.asnumpy() ** 2).sum())
    assert training.logged()[1] == f'step: 10 epoch: 1.0 FPS: 8.0 loss: 9.000 total_loss: {total:.3f} lr:0.10000'
    first, second = [one for one in metrics.read(tmp_path / 'm') if one['kind'] == 'step']
    assert (second['step'], second['mean_loss'], second['gradient_norm'], second['overflows']) == (10, 7.0, 3.0, 1)
    assert (second['data_wait'], second['images_per_second'], second['image_size']) == (0.25, 8.0, 75)
    assert second['lr'] == 0.1 and set(first) == set(second)


def test_diverged(tmp_path):
    """The message names the step, the loss scale and the newest checkpoint; nothing is saved after it, by nobody."""
    training = Training(tmp_path, options=['--save_checkpoint_steps', '5'])
    training.step(14)
    with pytest.raises(TrainingError) as ended:
        training.step(loss=float('nan'))
    newest = f'{tmp_path}/inceptionv4-1_10.ckpt'
    assert str(ended.value).startswith(f'loss is nan at step 15, loss scale 1024; newest good checkpoint: {newest}; try ')
    assert len(names(tmp_path)) == 2 and training.state.changing.locked()
    training = Training(tmp_path / 'b')
    training.step(19)
    training.step(norm=float('inf'), overflows=1, overflow_run=1)
    assert '1 of these steps skipped because gradients overflowed, 1 in all; loss scale 1024' in training.lines
    with pytest.raises(TrainingError, match='gradients overflowed in 50 consecutive steps at step 21'):
        training.step(overflows=50, overflow_run=50)
    with pytest.raises(TrainingError, match='gradients are not finite at step 1'):
        Training(tmp_path / 'c').step(norm=float('nan'), overflows=1)


def test_bad_records(tmp_path):
    """Workers are an epoch ahead with them, so an epoch is judged when it is trained; then all is saved."""
    bad = BadRecords(80, epochs=10)
    training = Training(tmp_path, bad=bad)
    for epoch in (0, 1, 1):
        bad.add(epoch, 'first.jpg: away')
    training.step(10)
    assert 'first of all: first.jpg: away' in training.logged('epoch 1: 1 records')[0] and not training.ended
    training.step()
    assert training.ended and names(tmp_path)[-1] == 'inceptionv4-1_11.ckpt'
    assert re.match('2 of the 80 records that this rank takes in epoch 2 .*after step 11', str(training.state.error()))


def test_wait_for_data(tmp_path, clock):
    """One line at the end of an epoch that waited much."""
    training = Training(tmp_path, Plan(8, 1, 25, 100))
    for _ in range(50):
        clock(0.5)
        training.step(seconds=lambda: clock(1))
    _, second = [line for line in training.lines if 'waits for data' in line]
    assert re.match(r'33% of the time waits for data; remedies: .*, faster storage for --data_dir', second)


def test_best_outlives_the_newest(tmp_path, data):
    """As it was before its evaluation; a tie is broken by the loss, of two equals the first stays."""
    found = [(10.0, 1.5), (60.0, 1.5), (50.0, 1.0), (60.0, 1.4), (60.0, 1.4), *[(30.0, 1.5)] * 5]
    results = (Result(top1, 90.0, loss, 30) for top1, loss in found)
    evaluated = Evaluation(open_records(data, 'validation'), results)
    of_others = {'step': 1, 'evaluation': {'top1': 99.0, 'loss': 0.0, 'records': 'others'}}
    checkpoint.write(tmp_path / checkpoint.BEST, {}, of_others)
    training = Training(tmp_path, options=['--epochs_between_evals', '1'], evaluation=evaluated)
    for step in range(1, 100):
        training.cell.weight.set_data(Tensor(np.full((2, 2), step, np.float32)))
        training.step()
    best, info = checkpoint.load(tmp_path / checkpoint.BEST)
    assert info['step'] == 40 and (best['weight'] == 40).all()
    assert (info['evaluation']['top1'], info['evaluation']['loss']) == (60, 1.4)
    assert names(tmp_path) == [f'inceptionv4-{epoch}_{epoch}0.ckpt' for epoch in (7, 8, 9)]
    assert evaluated.at == [*range(10, 100, 10)]
    # The best by other validation records is not compared with, and stays.
    assert len(training.logged('warning: inceptionv4-best.ckpt is the best by other validation records')) == 1
    assert checkpoint.load(f'{tmp_path / checkpoint.BEST}.1')[1]['evaluation'] == of_others['evaluation']


def test_disk_full(tmp_path):
    """The checkpoint before stays, and it is tried again some steps later; it ends a training run that has no later step."""
    training = Training(tmp_path, options=['--save_checkpoint_steps', '20'], cell=nn.Dense(512, 512))
    training.step(20)
    with mock.patch.object(checkpoint, 'write', side_effect=FULL):
        training.step(20)
    (line,) = training.logged('warning: checkpoint of step 40 not saved: No space left on device; it needs 1.1 MB in ')
    assert line.endswith('training continues and tries again after step 42')
    training.step(2)
    assert names(tmp_path) == ['inceptionv4-2_20.ckpt', 'inceptionv4-4_42.ckpt']
    with (
        mock.patch.object(checkpoint, 'write', side_effect=FULL),
        pytest.raises(TrainingError, match='step 100 not saved: '),
    ):
        training.step(58)


def test_only_checkpoints_of_this_training_are_removed(tmp_path):
    """Those that it and the ones that it resumes wrote, by their steps, and those that it replaces."""
    for step, training_id in ((60, '1'), (70, 'f'), (50, 'f')):
        checkpoint.save(tmp_path, nn.Dense(2, 2), step=step, epoch=0, config={}, training=training_id)
    (tmp_path / 'old').touch()
    more = {'info': {'training': 'f'}, 'replaced': [tmp_path / 'old']}
    training = Training(tmp_path, options=['--keep_checkpoint_max', '2'], **more)
    training.step(9)
    assert len(list(tmp_path.iterdir())) == 4
    for kept in (['0_60', '0_70', '1_10'], ['0_60', '1_10', '2_20'], ['0_60', '2_20', '3_30']):
        training.step(1 if kept[-1] == '1_10' else 10)
        assert {p.name for p in tmp_path.iterdir()} == {f'inceptionv4-{one}.ckpt' for one in kept}
