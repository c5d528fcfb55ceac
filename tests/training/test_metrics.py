"""metrics.jsonl: whole lines, no doubles after a resume; event files (no graph is compiled)."""

import importlib.util
import json
import os

import mindspore  # noqa: F401, before tensorboardX: the other order ends the process
import pytest

from src.errors import TrainingError
from src.training import metrics
from src.training.metrics import Metrics
from src.training.plan import Plan


def run_of(directory, stop, start=0, loss=2.0, config=None):
    """The records of a made run from `start` to `stop` with a line every 5 steps, appended to the file."""
    plan = Plan(batch_size=8, world=1, steps_per_epoch=10, stop=100, start=start)
    record = metrics.begin(directory, plan, config or {'lr': 0.1}, {'training': 'a'})
    for step in range(start + 5, stop + 1, 5):
        record('step', step, loss=loss, images_per_second=None)
    return record


@pytest.mark.parametrize('error, status, cause', [(None, 0, 'done'), (TrainingError('a\nb'), 3, 'a b')])
def test_start_and_cause_of_the_end(tmp_path, error, status, cause):
    run_of(tmp_path, 5).end(7, error)
    start, step, end = metrics.read(tmp_path / metrics.NAME)
    assert start['config'] == {'lr': 0.1} and start['stop'] == 100 and start['training'] == 'a'
    assert step['time'].endswith('+00:00') and (end['step'], end['status'], end['cause']) == (7, status, cause)


def test_resume_leaves_no_doubles(tmp_path):
    """Later steps of the earlier run go; its start and its end stay."""
    record = run_of(tmp_path, 20)
    record('checkpoint', 20, epoch=2.0, file='x', bytes=1, seconds=0.1)
    record('evaluation', 10, top1=50.0)
    record.end(20, TrainingError('loss is nan'))
    assert [metrics.last_evaluation(tmp_path, step) for step in (20, 10, 9)] == [10, 10, 0]
    run_of(tmp_path, 15, start=10, loss=1.0)
    found = metrics.read(tmp_path / metrics.NAME)
    assert [one['kind'] for one in found] == ['start', 'step', 'step', 'evaluation', 'end', 'start', 'step']
    assert [(one['step'], one['loss']) for one in found if one['kind'] == 'step'] == [(5, 2.0), (10, 2.0), (15, 1.0)]


def test_what_cannot_be_written(tmp_path, monkeypatch):
    """A full disk costs records; what is no number becomes null, names any bytes."""
    path = tmp_path / metrics.NAME
    record = Metrics(path)
    record('step', 1, loss=float('nan'), lr=float.fromhex('0x1.99999ap-4'), host='\udcff\u4e2d')  # 0.1 as a float32
    with monkeypatch.context() as full:
        full.setattr(os, 'write', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
        record('step', 2, loss=2.0)
    record('step', 3)
    first, third = map(json.loads, path.read_bytes().decode('ascii').splitlines())
    assert (first['loss'], first['lr'], third['step']) == (None, 0.1, 3)


@pytest.mark.skipif(not importlib.util.find_spec('tensorboardX'), reason='needs tensorboardX (requirements-report.txt)')
def test_event_files(tmp_path):
    run_of(tmp_path, 10, config={'tensorboard': True})('evaluation', 10, top1=50.0)
    reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator', reason='needs TensorBoard')
    found = reader.EventAccumulator(str(tmp_path / 'tensorboard'))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars('training/loss')] == [(5, 2.0), (10, 2.0)]
    assert [(one.step, one.value) for one in found.Scalars('evaluation/top1')] == [(10, 50.0)]
