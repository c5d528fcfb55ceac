"""metrics.jsonl: whole lines, no doubles after a resume, every kind of record (no graph is compiled)."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from src.errors import InputError, TrainingError
from src.evaluation.evaluation import Result
from src.log import Log
from src.options import load_settings, save_settings
from src.training import metrics, pace
from src.training.callbacks import Checkpoints, Evaluations
from src.training.metrics import Metrics
from src.training.monitor import TrainingMonitor
from src.training.pace import Pace, straggler
from src.training.plan import Plan
from tests.training.test_callbacks import Run

ROOT = Path(__file__).resolve().parents[2]


def monitored(record, start=0, log=lambda _: None, **options):
    """A monitor of 10 steps an epoch that records every 5."""
    rates = np.linspace(0.1, 0.001, 100, dtype=np.float32)
    plan = Plan(batch_size=8, world=1, steps_per_epoch=10, stop=100, start=start, sizes=(75,))
    return TrainingMonitor(log, rates, plan, 5, l2_term=lambda: 0.5, metrics=record, **options)


def run_of(path, stop, start=0, loss=2.0):
    """The records of a made run from `start` to `stop`, appended to the file."""
    plan = Plan(batch_size=8, world=1, steps_per_epoch=10, stop=100, start=start)
    record = metrics.begin(path.parent, plan, {'lr': 0.1}, {'training': 'a'})
    run = Run([monitored(record, start)])
    for _ in range(stop - start):
        run.step(loss=loss)
    return record


def test_records_of_steps(tmp_path):
    """Every field that is named; the mean is over all steps since the last line, not only over those with a line."""
    record = Metrics(tmp_path / metrics.NAME)
    run = Run([monitored(record)])
    for step in range(10):
        run.step(loss=float(step), norm=3.0, overflows=1)
    (first, second), damaged = metrics.read(tmp_path / metrics.NAME)
    assert damaged == 0 and (first['step'], second['step']) == (5, 10) and second['epoch'] == 1.0
    assert (second['loss'], second['mean_loss'], second['total_loss']) == (9.0, 7.0, 9.5)
    assert second['lr'] == pytest.approx(0.1 - 9 * 0.001, rel=1e-6)
    assert (second['gradient_norm'], second['overflows'], second['loss_scale'], second['image_size']) == (3.0, 1, 1024, 75)
    assert second['images_per_second'] > 0 and 0 <= second['data_wait'] <= 1
    assert second['time'].endswith('+00:00') and set(first) == set(second)


def test_events(tmp_path):
    """Start with the configuration and the machine, checkpoints with their sizes, evaluations, the end with its cause."""
    from mindspore import nn

    from src import runtime

    config = load_settings(['--lr', '0.01'])
    run = SimpleNamespace(device_target='CPU', world=1, amp_level='O0')
    plan = Plan(batch_size=8, world=1, steps_per_epoch=10, stop=20)
    record = metrics.begin(tmp_path, plan, config, runtime.facts(run))
    monitor = monitored(record)
    saved = Checkpoints(monitor, 10, tmp_path, nn.Dense(2, 2), {'config': {}}, keep=2)
    evaluations = Evaluations(monitor, 10, lambda: Result(50.0, 90.0, 1.5, 30), saved)
    steps = Run([monitor, saved, evaluations])
    with pytest.raises(TrainingError), record.until_end(lambda: monitor.step):
        for step in range(12):
            steps.step(loss=2.0 if step < 11 else float('nan'))
    records, _ = metrics.read(tmp_path / metrics.NAME)
    assert [one['kind'] for one in records] == ['start', 'step', 'step', 'checkpoint', 'evaluation', 'end']
    start, _, _, file, result, end = records
    assert start['config'] == dict(config) and start['versions']['MindSpore'].startswith('2.') and start['cores'] >= 1
    assert start['config_path'] == str(tmp_path / 'config.yaml') and start['stop'] == 20
    assert file['file'] == 'inceptionv4-1_10.ckpt' and file['bytes'] == (tmp_path / file['file']).stat().st_size
    assert (result['top1'], result['top5'], result['loss'], result['images'], result['epoch']) == (50, 90, 1.5, 30, 1)
    assert end['status'] == 3 and end['cause'].startswith('loss is nan at step 12') and end['step'] == 12


@pytest.mark.parametrize(
    'error, status, cause',
    [
        (None, 0, 'done'),
        (InputError('a\nb'), 2, 'a b'),
        (ValueError('x'), 1, 'ValueError: x'),
        (KeyboardInterrupt(), 1, 'Key'),
    ],
)
def test_causes(tmp_path, error, status, cause):
    record = Metrics(tmp_path / metrics.NAME)
    record.end(3, error)
    ((end,), _) = metrics.read(tmp_path / metrics.NAME)
    assert end['status'] == status and end['cause'].startswith(cause)


def test_resume_leaves_no_doubles(tmp_path):
    """Later steps of the earlier run go; its start and its end stay. A new training keeps no step of a failed one."""
    path = tmp_path / metrics.NAME
    record = run_of(path, 20)
    record('checkpoint', 20, epoch=2.0, file='x', bytes=1, seconds=0.1)
    record.end(20, TrainingError('loss is nan'))
    run_of(path, 15, start=10, loss=1.0)
    records, _ = metrics.read(path)
    assert [(one['kind'], one['step'], one.get('loss')) for one in records] == [
        ('start', 0, None),
        ('step', 5, 2.0),
        ('step', 10, 2.0),
        ('end', 20, None),
        ('start', 10, None),
        ('step', 15, 1.0),
    ]
    run_of(path, 5)
    records, _ = metrics.read(path)
    assert [one['kind'] for one in records] == ['start', 'end', 'start', 'start', 'step']
    assert [p.name for p in tmp_path.iterdir()] == [metrics.NAME]


def test_killed_while_it_is_rewritten(tmp_path, monkeypatch):
    """The file is the one before or the one after, never a part."""
    path = tmp_path / metrics.NAME
    run_of(path, 20)
    before = path.read_bytes()
    monkeypatch.setattr('src.files.os.replace', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        Metrics(path, start=10)
    assert path.read_bytes() == before


@pytest.mark.parametrize('moment', [0.0, 0.02, 0.05])
def test_killed_while_it_writes(tmp_path, moment):
    """Whenever it is killed, every line is whole, except the last if the kernel was copying it, and what goes on after it
    reads and extends the file."""
    path = tmp_path / metrics.NAME
    code = f"""
        from pathlib import Path
        from src.training.metrics import Metrics
        record = Metrics(Path({str(path)!r}))
        for step in range(10**9):
            record('step', step, loss=1.5, note='x' * 3000)
    """
    process = subprocess.Popen([sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT)
    while not path.exists() or not path.stat().st_size:
        time.sleep(0.01)
    time.sleep(moment)
    process.kill()
    process.wait()
    records, damaged = metrics.read(path)
    assert damaged == 0 and [one['step'] for one in records] == list(range(len(records)))
    Metrics(path, start=0)('step', 1, loss=1.0)
    assert [one['step'] for one in metrics.read(path)[0]] == [0, 1]


def test_damaged_lines_and_a_full_disk(tmp_path, monkeypatch):
    """A full disk costs whole lines, and a line that a power failure cut off itself only; what is no number becomes null."""
    path = tmp_path / metrics.NAME
    record = Metrics(path)
    record('step', 1, loss=float('nan'), norms=[float('inf'), 1.0])
    real = os.write
    with monkeypatch.context() as full:
        full.setattr(os, 'write', lambda file, line: real(file, line[:9]))
        record('step', 2, loss=2.0)
        full.setattr(os, 'write', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
        record('step', 3, loss=2.0)
    assert metrics.read(path) == ([json.loads(path.read_text())], 0)
    record('step', 4, loss=2.0)
    with open(path, 'ab') as file:
        file.write(b'\0\xff[1]\n[]\n{"kind": "step"}\n{"kind": "st')
    records, damaged = metrics.read(path)
    assert [one['step'] for one in records] == [1, 4] and damaged == 3  # the last one may still be being written
    assert records[0]['loss'] is None and records[0]['norms'] == [None, 1.0]
    Metrics(path, start=4)('step', 5)
    assert [one['step'] for one in metrics.read(path)[0]] == [1, 4, 5]


def test_cannot_be_written(tmp_path):
    (tmp_path / metrics.NAME).mkdir()
    with pytest.raises(InputError, match='metrics.jsonl: .*; choose another --log_dir'):
        Metrics(tmp_path / metrics.NAME)


@pytest.mark.parametrize('number, status', [(errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EROFS, 2)])
def test_start_on_a_full_disk_may_be_tried_again(number, status, tmp_path, monkeypatch):
    """The launcher starts a training again after status 1, not after 2."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    run_of(tmp_path / metrics.NAME, 20)
    monkeypatch.setattr('src.files.tempfile.mkdtemp', fail)
    for write in (
        lambda: Metrics(tmp_path / metrics.NAME, start=10),
        lambda: save_settings(load_settings([]), tmp_path / 'config.yaml'),
        lambda: monkeypatch.setattr('builtins.open', fail) or Log(tmp_path / 'log'),
    ):
        with pytest.raises(InputError, match=os.strerror(number)) as error:
            write()
        assert error.value.exit_status == status


# The wait for data.


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
    records = metrics.read(tmp_path / metrics.NAME)[0]
    assert [one['data_wait'] for one in records if one['kind'] == 'step'] == pytest.approx([0.2] * 20)
    assert records[-1]['images_per_second'] == pytest.approx(8 / 1.25)


def test_wait_for_data_is_not_invented_in_sinks(tmp_path, clock):
    """The device fetches the batches there."""
    lines = []
    slow_run(clock, Metrics(tmp_path / metrics.NAME), lambda step: 5.0, lines.append, sink=True)
    assert {one['data_wait'] for one in metrics.read(tmp_path / metrics.NAME)[0] if one['kind'] == 'step'} == {None}
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


# Ranks.


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
    found = [one for one in metrics.read(tmp_path / metrics.NAME)[0] if one['kind'] == 'ranks']
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


def test_lines_are_json(tmp_path):
    """By any reader, with names of any bytes."""
    Metrics(tmp_path / metrics.NAME)('start', 0, config_path='\udcff\u4e2d')
    assert json.loads((tmp_path / metrics.NAME).read_bytes().decode('ascii'))['kind'] == 'start'
