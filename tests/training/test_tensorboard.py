"""Event files, read back by TensorBoard's own reader where it is installed (no graph is compiled)."""

import builtins
import time

import mindspore  # noqa: F401, before tensorboardX: the other order ends the process
import pytest

from src.errors import InputError
from src.options import Settings
from src.training import metrics, tensorboard
from src.training.metrics import Metrics
from src.training.tensorboard import TensorBoard

FIELDS = {'loss': 2.0, 'mean_loss': 2.5, 'lr': 0.1, 'images_per_second': None, 'data_wait': 0.05}


def test_event_files(tmp_path):
    """All curves at their steps and times; a run that goes on replaces the later steps of the one before."""
    pytest.importorskip('tensorboardX', reason='event files need tensorboardX (requirements-report.txt)')
    reader = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator', reason='read back by TensorBoard itself'
    )
    for start, stop, loss in ((0, 20, 2.0), (10, 15, 1.0)):
        record = Metrics(tmp_path / metrics.NAME, start, [TensorBoard(tmp_path, start)])
        for step in range(start + 1, stop + 1):
            record('step', step, **{**FIELDS, 'loss': loss})
        record('evaluation', stop, top1=50.0, top5=90.0, loss=1.5, images=30)
        time.sleep(1.1)  # the files are named by the second
    found = reader.EventAccumulator(str(tmp_path))
    found.Reload()
    assert set(found.Tags()['scalars']) == {
        *(f'training/{name}' for name, value in FIELDS.items() if value is not None),
        *(f'evaluation/{name}' for name in ('top1', 'top5', 'loss')),
    }
    losses = found.Scalars('training/loss')
    assert [(one.step, one.value) for one in losses] == [(n, 2.0 if n <= 10 else 1.0) for n in range(1, 16)]
    assert abs(losses[-1].wall_time - time.time()) < 60
    assert [(one.step, one.value) for one in found.Scalars('evaluation/top1')] == [(15, 50.0)]


def test_full_disk(tmp_path, monkeypatch):
    """Costs the records, not the training."""
    pytest.importorskip('tensorboardX', reason='event files need tensorboardX (requirements-report.txt)')
    board = TensorBoard(tmp_path, 0)

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(board.writer, '_py_recordio_writer', type('Full', (), {'write': full, 'flush': full})())
    Metrics(tmp_path / metrics.NAME, 0, [board])('step', 1, **FIELDS)
    assert len(metrics.read(tmp_path / metrics.NAME)[0]) == 1


def test_package_is_missing(monkeypatch):
    """One line at the start, before anything is made."""
    import train

    monkeypatch.setattr(tensorboard.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(builtins, 'open', None)
    with pytest.raises(InputError, match='tensorboard true needs the package tensorboardX: pip install -r requirements-rep'):
        train.train(Settings({'tensorboard': True}), None)
