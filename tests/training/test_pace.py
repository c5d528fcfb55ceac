"""The wait for data and the rank that others wait for, as the log and metrics.jsonl have them (no graph is compiled)."""

from types import SimpleNamespace

import numpy as np
import pytest

from src.training import metrics, pace
from src.training.metrics import Metrics
from src.training.monitor import TrainingMonitor
from src.training.pace import Pace, straggler
from src.training.plan import Plan
from tests.training.test_callbacks import Run


def monitored(record, start=0, log=lambda _: None, **options):
    """A monitor of 10 steps an epoch that records every 5."""
    rates = np.linspace(0.1, 0.001, 100, dtype=np.float32)
    plan = Plan(batch_size=8, world=1, steps_per_epoch=10, stop=100, start=start, sizes=(75,))
    return TrainingMonitor(log, rates, plan, 5, l2_term=lambda: 0.5, metrics=record, **options)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands unless it is moved."""
    now = [0.0]
    fake = SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0])
    monkeypatch.setattr('src.training.monitor.time', fake)
    return now


def slow_run(clock, record, waits, log, steps=100, sink=False):
    """Steps of 1 s, before each of which the data takes `waits(step)` seconds."""
    run = Run([monitored(record, log=log, pace=Pace(sink, workers=1))])
    for step in range(steps):
        clock[0] += waits(step)
        for callback in run.callbacks:
            callback.on_train_step_begin(run)
            callback.moving.release()
        clock[0] += 1
        begin = run.callbacks[0].on_train_step_begin
        run.callbacks[0].on_train_step_begin = lambda _: run.callbacks[0].moving.acquire()
        run.step()
        run.callbacks[0].on_train_step_begin = begin


def test_wait_for_data_is_measured(tmp_path, clock):
    slow_run(clock, Metrics(tmp_path / metrics.NAME), lambda step: 0.25, lambda _: None)
    records = metrics.read(tmp_path / metrics.NAME)
    assert [one['data_wait'] for one in records if one['kind'] == 'step'] == pytest.approx([0.2] * 20)
    assert records[-1]['images_per_second'] == pytest.approx(8 / 1.25)


def test_wait_for_data_is_not_invented_in_sinks(tmp_path, clock):
    """The device fetches the batches there."""
    lines = []
    slow_run(clock, Metrics(tmp_path / metrics.NAME), lambda step: 5.0, lines.append, sink=True)
    assert {one['data_wait'] for one in metrics.read(tmp_path / metrics.NAME) if one['kind'] == 'step'} == {None}
    assert not [line for line in lines if 'waits for data' in line]


@pytest.mark.parametrize(
    'waits, told',
    [
        (lambda step: 0.3, 5),  # once in each epoch of 20 steps
        (lambda step: 0.05, 0),
        (lambda step: 15.0 if step < 2 else 0.0, 1),
        (lambda step: 0.9 if step == 1 else 0.0, 0),
    ],
)
def test_slow_data_is_explained(clock, monkeypatch, waits, told):
    lines = []
    monkeypatch.setattr(pace, 'STEPS', 8)
    monkeypatch.setattr(pace, 'SECONDS', 8.0)
    slow_run(clock, Metrics(), waits, lines.append, steps=50)
    found = [line for line in lines if 'waits for data' in line]
    assert len(found) == told, found
    for line in found:
        assert '--num_workers' in line or 'more cores' in line
        assert 'faster storage for --data_dir' in line and 'docs/monitoring.md' in line


def test_remedies_fit(monkeypatch):
    made = Pace(workers=10**6)
    made.took(100, 100.0, 50.0)
    monkeypatch.setattr('src.data.jpeg.library', lambda: None)
    line = made.explanation(0)
    assert 'more cores' in line and '--num_workers' not in line and 'libturbojpeg 3 instead of Pillow' in line
    assert line.startswith('50 % of the time waits for data')
    assert made.explanation(0) is None and made.explanation(1)


def test_ranks_of_an_epoch(tmp_path):
    """Each rank's means; the line names the one that the others wait for."""
    lines, asked = [], []

    def every_rank(values):
        asked.append(values)
        return np.array([[1.0, 0.01], [1.0, 0.02], [0.8, 0.25], [1.0, 0.01]])

    record = Metrics(tmp_path / metrics.NAME)
    run = Run([monitored(record, log=lines.append, pace=Pace(every_rank=every_rank))])
    for _ in range(25):
        run.step()
    assert len(asked) == 2 and all(len(values) == 2 for values in asked)
    found = [one for one in metrics.read(tmp_path / metrics.NAME) if one['kind'] == 'ranks']
    assert [one['epoch'] for one in found] == [1, 2] and found[0]['data_wait_seconds'] == pytest.approx(
        [0.01, 0.02, 0.25, 0.01]
    )
    assert [line for line in lines if line.startswith('rank')] == [
        'rank 2 is slower than the others: it begins its steps 0.235 s later than the median rank, 23 % of a step, for '
        'which all ranks wait; look at the storage and the load of its server'
    ] * 2


def test_no_straggler():
    assert straggler({'step_seconds': [1.0, 1.0, 1.0], 'data_wait_seconds': [0.5, 0.52, 0.55]}) is None
    assert straggler({'step_seconds': [1.0, 2.0], 'data_wait_seconds': None}) is None
    assert straggler({'step_seconds': [0.0, 0.0], 'data_wait_seconds': [0.0, 0.0]}) is None
