"""Log lines, checkpoints and evaluations on their schedule, also where steps come in sinks (no graph is compiled)."""
import re
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor, nn

from src import checkpoint
from src.errors import InputError, TrainingError
from src.evaluation import Result
from src.monitor import Checkpoints, Evaluations, Log, TrainingMonitor
from src.training import sink_size


class Run:
    """The part of MindSpore's `RunContext` that callbacks see; `steps` are done between two calls."""

    def __init__(self, callbacks):
        self.callbacks, self.state = callbacks, SimpleNamespace(cur_step_num=0, net_outputs=None)
        self.call('on_train_begin')

    def original_args(self):
        return self.state

    def call(self, name):
        for callback in self.callbacks:
            getattr(callback, name)(self)

    def step(self, steps=1, loss=2.0):
        self.state.cur_step_num += steps
        self.state.net_outputs = Tensor(np.float32(loss)), Tensor(np.float32(loss + 0.5))
        self.call('on_train_step_end')


@pytest.fixture
def monitor():
    lines = []
    rates = np.linspace(0.1, 0.001, 1000, dtype=np.float32)
    made = TrainingMonitor(lines.append, rates, batch_size=8, steps_per_epoch=10, display_every=20, start=0, stop=100)
    made.lines = lines
    return made


def logged(monitor):
    return [int(line.split()[1]) for line in monitor.lines if line.startswith('step: ')]


def test_lines_of_single_steps(monitor):
    run = Run([monitor])
    for _ in range(100):
        run.step()
    assert logged(monitor) == [20, 40, 60, 80, 100]
    assert 'compiling' in monitor.lines[0] and re.match('time to the first step, .*: [0-9.]+ s', monitor.lines[1])
    assert re.fullmatch(r'step: 20 epoch: 2.0 FPS: [\d.]+ loss: 2.000 total_loss: 2.500 lr:0.09812', monitor.lines[2])


@pytest.mark.parametrize('sink, expected', [(25, [25, 50, 75, 100]), (10, [20, 40, 60, 80, 100]), (50, [50, 100])])
def test_lines_of_sinks(monitor, sink, expected):
    run = Run([monitor])
    for _ in range(100 // sink):
        run.step(sink)
    assert logged(monitor) == expected
    assert monitor.images == 0 and monitor.all_images == (100 - sink) * 8  # the first sink holds the compilation


def test_time_of_other_work_is_not_in_fps(monitor):
    clock = [0.0]
    monitor_time = SimpleNamespace(perf_counter=lambda: clock[0])
    import src.monitor
    original, src.monitor.time = src.monitor.time, monitor_time
    try:
        def evaluate():
            clock[0] += 1000
            return Result(50.0, 90.0, 1.5, 30)
        run = Run([monitor, Evaluations(monitor, 20, evaluate)])
        clock[0] += 60
        run.step()  # compilation
        for _ in range(99):
            clock[0] += 2
            run.step()
    finally:
        src.monitor.time = original
    assert 'compilation included: 60.0 s' in monitor.lines[1]
    rates = [float(re.search(r'FPS: ([\d.]+)', line)[1]) for line in monitor.lines if line.startswith('step: ')]
    assert rates == [4.0] * 5 and monitor.fps == 4.0  # 8 images in 2 s
    assert sum(line.endswith('50.00   90.00   1.5000') or '50.00' in line for line in monitor.lines) == 5


@pytest.mark.parametrize('loss', [float('nan'), float('inf')])
def test_loss_that_is_not_finite_stops(monitor, loss):
    run = Run([monitor])
    for _ in range(19):
        run.step()
    with pytest.raises(TrainingError, match=f'loss is {loss} at step 20; .*--lr') as stopped:
        run.step(loss=loss)
    assert stopped.value.exit_status == 3


@pytest.mark.parametrize('sink, expected', [(1, [30, 60, 90, 100]), (25, [50, 75, 100]), (50, [50, 100])])
def test_checkpoints(monitor, tmp_path, sink, expected):
    """At the first end of a sink after every 30 steps and at the end; the newest three are kept."""
    cell = nn.Dense(2, 2)
    saved = Checkpoints(monitor, 30, tmp_path, cell, {'num_classes': 2}, keep=3)
    run = Run([monitor, saved])
    for _ in range(100 // sink):
        run.step(sink)
    paths = checkpoint.find(tmp_path)
    assert [p.name for p in paths] == [f'inceptionv4-{s // 10}_{s}.ckpt' for s in expected[-3:]]
    parameters, info = checkpoint.load(paths[-1])
    assert np.array_equal(parameters['weight'], cell.weight.asnumpy())
    assert info == {'format_version': 1, 'step': 100, 'epoch': 10, 'config': {'num_classes': 2}}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)


def test_older_checkpoints_of_a_longer_training_go_first(tmp_path):
    cell = nn.Dense(2, 2)
    for step in (500, 600, 10, 20):
        checkpoint.save(tmp_path, cell, step=step, epoch=0, config={})
    checkpoint.prune(tmp_path, 2)
    assert [p.name for p in checkpoint.find(tmp_path)] == ['inceptionv4-0_10.ckpt', 'inceptionv4-0_20.ckpt']


def test_failed_save_leaves_nothing(monitor, tmp_path, monkeypatch):
    cell = nn.Dense(2, 2)
    first = checkpoint.save(tmp_path, cell, step=1, epoch=0, config={})
    before = first.read_bytes()
    monkeypatch.setattr(checkpoint.os, 'fsync', lambda _: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError):
        checkpoint.save(tmp_path, cell, step=1, epoch=0, config={'other': 1})
    assert [p.name for p in tmp_path.iterdir()] == [first.name] and first.read_bytes() == before


def test_log_appends(tmp_path):
    for line in ('one', 'two'):
        Log(tmp_path / 'a/b.log')(line)
    assert (tmp_path / 'a/b.log').read_text() == 'one\ntwo\n'
    with pytest.raises(InputError, match='--log_dir'):
        Log('/proc/none/x.log')


@pytest.mark.parametrize('steps, loop, expected', [(1000900, 100, 100), (250200, 100, 100), (1001, 100, 91), (7, 100, 7),
                                                   (10007, 100, 1), (12, 5, 4)])
def test_sink_size_divides_the_steps(steps, loop, expected):
    assert sink_size(steps, loop) == expected
