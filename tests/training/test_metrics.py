"""metrics.jsonl and event files; what a resume makes of them is in test_resume.py (no graph is compiled)."""

import importlib.util
import json
import os

import mindspore  # noqa: F401, before tensorboardX: the other order ends the process
import pytest

from src.training import metrics
from src.training.metrics import Metrics
from src.training.plan import Plan


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
    record = metrics.begin(tmp_path, Plan(8, world=1, steps_per_epoch=10, stop=100), {'tensorboard': True}, {})
    record('step', 5, loss=2.0, images_per_second=None)
    record('evaluation', 10, top1=50.0)
    reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator', reason='needs TensorBoard')
    found = reader.EventAccumulator(str(tmp_path / 'tensorboard'))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars('training/loss')] == [(5, 2.0)]
    assert [(one.step, one.value) for one in found.Scalars('evaluation/top1')] == [(10, 50.0)]
