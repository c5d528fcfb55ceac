"""Log lines, checkpoints and evaluations on their schedule, also where steps come in sinks (no graph is compiled)."""

import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor, nn

from src.data.bad_records import BadRecords
from src.errors import InputError, TrainingError
from src.evaluation.outcomes import Result
from src.graphs import Compiling
from src.log import Log
from src.training import monitor as monitor_module
from src.training.callbacks import Checkpoints, Evaluations
from src.training.loop import sink_length, sinks
from src.training.monitor import TrainingMonitor
from src.training.plan import Plan
from src.training.watch import Watch
from src.weights import checkpoint


@pytest.mark.parametrize('callback', [TrainingMonitor, Checkpoints, Evaluations, Compiling, Watch])
def test_no_old_names_of_callbacks(callback):
    """MindSpore takes our methods of these names for callbacks, and warns that they are going."""
    assert not {'begin', 'epoch_begin', 'epoch_end', 'step_begin', 'step_end', 'end'} & {
        name for kind in callback.__mro__ if kind.__module__.startswith('src.') for name in vars(kind)
    }


class Run:
    """The part of MindSpore's `RunContext` that callbacks see; `steps` are done between two calls."""

    def __init__(self, callbacks):
        self.callbacks, self.state = callbacks, SimpleNamespace(cur_step_num=0, net_outputs=None)
        self.stopped = False
        self.call('on_train_begin')

    def original_args(self):
        return self.state

    def call(self, name):
        for callback in self.callbacks:
            getattr(callback, name)(self)

    def request_stop(self):
        self.stopped = True

    def step(self, steps=1, loss=2.0, norm=1.0, overflows=0, overflow_run=0):
        self.state.cur_step_num += steps
        self.call('on_train_step_begin')
        self.state.net_outputs = [Tensor(np.float32(v)) for v in (loss, norm, overflows, overflow_run, 1024)]
        self.call('on_train_step_end')


@pytest.fixture
def monitor():
    lines = []
    rates = np.linspace(0.1, 0.001, 1000, dtype=np.float32)
    made = TrainingMonitor(
        lines.append,
        rates,
        Plan(batch_size=8, world=1, steps_per_epoch=10, stop=100),
        display_every=20,
        max_overflow_steps=3,
        l2_term=lambda: 0.5,
    )
    made.lines = lines
    return made


def logged(monitor):
    return [int(line.split()[1]) for line in monitor.lines if line.startswith('step: ')]


def test_lines_of_single_steps(monitor):
    run = Run([monitor])
    for _ in range(100):
        run.step()
    assert logged(monitor) == [20, 40, 60, 80, 100]
    assert re.match('time to the first step, .*: [0-9.]+ s', monitor.lines[0])
    assert re.fullmatch(r'step: 20 epoch: 2.0 FPS: [\d.]+ loss: 2.000 total_loss: 2.500 lr:0.09812', monitor.lines[1])


@pytest.mark.parametrize('sink, expected', [(25, [25, 50, 75, 100]), (10, [20, 40, 60, 80, 100]), (50, [50, 100])])
def test_lines_of_sinks(monitor, sink, expected):
    run = Run([monitor])
    for _ in range(100 // sink):
        run.step(sink)
    assert logged(monitor) == expected
    assert monitor.images == 0 and monitor.all_images == (100 - sink) * 8  # the first sink holds the compilation


def test_speed_of_the_compilation_alone_is_not_told(monitor):
    run = Run([monitor])
    assert monitor.fps is None
    run.step(20)
    assert re.fullmatch(r'step: 20 epoch: 2.0 FPS: - loss: 2.000 .*', monitor.lines[-1]) and monitor.fps is None
    run.step(20)
    assert 'FPS: -' not in monitor.lines[-1] and monitor.fps > 0


def test_time_of_other_work_is_not_in_fps(monitor):
    clock = [0.0]
    monitor_time = SimpleNamespace(perf_counter=lambda: clock[0], monotonic=lambda: 0.0)
    original, monitor_module.time = monitor_module.time, monitor_time
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
        monitor_module.time = original
    assert 'compilation included: 60.0 s' in monitor.lines[0]
    rates = [float(re.search(r'FPS: ([\d.]+)', line)[1]) for line in monitor.lines if line.startswith('step: ')]
    assert rates == [4.0] * 5 and monitor.fps == 4.0  # 8 images in 2 s
    assert sum(line.endswith('50.00   90.00   1.5000') or '50.00' in line for line in monitor.lines) == 5


@pytest.mark.parametrize('sink', [1, 25, 30])
def test_report_after_the_last_evaluation_only(monitor, sink):
    reported = []
    run = Run([monitor, Evaluations(monitor, 30, lambda: Result(50.0, 90.0, 1.5, 30), report=reported.append)])
    for _ in range(99 // sink):
        run.step(sink)
    assert not reported
    run.step(100 - monitor.step)
    assert reported == [100]


@pytest.mark.parametrize('loss', [float('nan'), float('inf')])
def test_loss_that_is_not_finite_stops(monitor, tmp_path, loss):
    """The message names the step, the loss scale and the newest checkpoint, and nothing is saved after it."""
    monitor.directory = tmp_path
    run = Run([monitor, Checkpoints(monitor, 5, tmp_path, nn.Dense(2, 2), {'config': {}}, keep=2)])
    for _ in range(14):
        run.step()
    with pytest.raises(
        TrainingError,
        match=rf'loss is {loss} at step 15, loss scale 1024; newest good checkpoint: '
        rf'{tmp_path}/inceptionv4-1_10.ckpt; try .*--lr',
    ) as stopped:
        run.step(loss=loss)
    assert stopped.value.exit_status == 3 and len(checkpoint.find(tmp_path)) == 2


def test_overflows_are_counted_and_too_many_in_a_row_stop(monitor):
    run = Run([monitor])
    for overflows, in_a_row in [(0, 0)] * 10 + [(1, 1), (2, 2)] + [(2, 0)] * 18:
        run.step(overflows=overflows, overflow_run=in_a_row)
    assert '2 of these steps skipped because gradients overflowed, 2 in all; loss scale 1024' in monitor.lines
    with pytest.raises(
        TrainingError,
        match=r'gradients overflowed in 3 steps running \(max_overflow_steps\) at step 31, '
        'loss scale 1024; newest good checkpoint: none',
    ):
        run.step(overflows=5, overflow_run=3)


def test_bad_records_are_logged_at_the_end_of_each_epoch(monitor):
    monitor.bad = BadRecords(per_epoch=4000, epochs=10)
    run = Run([monitor])
    for _ in range(2):
        monitor.bad.add(0, 'train-00000-of-00001 record 3: cut off')
    for _ in range(20):
        run.step()
    assert [line for line in monitor.lines if line.startswith('epoch')] == [
        'epoch 1: 2 records of this rank cannot be read or decoded, others took their places; first of all: '
        'train-00000-of-00001 record 3: cut off'
    ]


@pytest.mark.parametrize('per_epoch, allowed', [(4000, 4), (80, 1)])
def test_epoch_is_judged_when_it_is_trained(monitor, tmp_path, per_epoch, allowed):
    """Workers are an epoch ahead with their bad records. At least one is allowed; the training is saved when it ends."""
    monitor.bad, monitor.directory = BadRecords(per_epoch, epochs=10), tmp_path
    run = Run([monitor, Checkpoints(monitor, 100, tmp_path, nn.Dense(2, 2), {'config': {}}, keep=2)])
    for _ in range(allowed):
        monitor.bad.add(0, 'first.jpg: away')
    for _ in range(allowed + 1):
        monitor.bad.add(1, 'second.jpg: away')
    for _ in range(10):
        run.step()
    assert not run.stopped
    run.step()
    assert run.stopped and re.fullmatch(
        rf'{allowed + 1} of the {per_epoch} records that this rank takes in epoch 2 cannot be read or decoded, more than '
        rf'0.1%; the first was first.jpg: away; .*; stopped after step 11 of 100; '
        rf'checkpoints in {tmp_path}, go on with --resume auto',
        str(monitor.error_of_stop()),
    )
    assert monitor.error_of_stop().exit_status == 2 and [p.name for p in checkpoint.find(tmp_path)] == [
        'inceptionv4-1_11.ckpt'
    ]


def test_bad_records_of_a_sink_through_two_epochs(monitor):
    monitor.bad = BadRecords(per_epoch=80, epochs=10)
    run = Run([monitor])
    run.step(5)
    for name in 'ab':
        monitor.bad.add(0, f'{name}.jpg: away')
    run.step(15)
    assert run.stopped and 'in epoch 1 cannot' in monitor.problem


@pytest.mark.parametrize('asked', ['this rank', 'another rank'])
def test_signal_stops_all_ranks_at_one_step(monitor, tmp_path, asked):
    """Whichever rank is asked, all stop after the same step, because they ask each other after every one."""
    others = []
    monitor.any_rank = lambda flag: flag or bool(others)
    monitor.interruption = SimpleNamespace(number=0, can_save=False, hold=lambda: None)
    evaluations = []
    run = Run(
        [
            monitor,
            Checkpoints(monitor, 50, tmp_path, nn.Dense(2, 2), {'config': {}}, keep=2),
            Evaluations(monitor, 12, lambda: evaluations.append(monitor.step)),
        ]
    )
    for _ in range(10):
        run.step()
    assert monitor.interruption.can_save and not run.stopped
    if asked == 'this rank':
        monitor.interruption.number = 15
    else:
        others.append(True)
    run.step()
    assert run.stopped and monitor.stopping and not evaluations
    monitor.interruption.name = 'SIGTERM'
    assert str(monitor.error_of_stop()).startswith(
        'SIGTERM: stopped after step 11 of 100; '
        if asked == 'this rank'
        else 'another rank, whose log says why, ended the training: stopped after step 11'
    )
    assert [p.name for p in checkpoint.find(tmp_path)] == ['inceptionv4-1_11.ckpt']


def test_disk_full(monitor, tmp_path, monkeypatch):
    """The checkpoint before stays, the line says what is needed, and the next step tries again when there is room."""
    cell, room = nn.Dense(512, 512), [False]
    saved = Checkpoints(monitor, 10, tmp_path, cell, {'config': {}}, keep=3)
    original = checkpoint.os.fsync

    def fsync(descriptor):
        if not room[0]:
            raise OSError(28, 'No space left on device')
        original(descriptor)

    run = Run([monitor, saved])
    room[0] = True
    monkeypatch.setattr(checkpoint.os, 'fsync', fsync)
    for _ in range(10):
        run.step()
    room[0] = False
    monkeypatch.setattr(saved, '_free', lambda: 1e9 * room[0] + 1000)
    for _ in range(15):
        run.step()
        saved.settle()
    (warning,) = [line for line in monitor.lines if line.startswith('warning')][:1]
    assert re.fullmatch(
        r'warning: checkpoint of step 20 not saved: No space left on device; it needs 1.1 MB, 0.0 MB are '
        f'free in {tmp_path}; training goes on and tries again',
        warning,
    )
    assert [p.name for p in tmp_path.iterdir()] == ['inceptionv4-1_10.ckpt']
    room[0] = True
    run.step()
    saved.settle()
    assert [p.name for p in checkpoint.find(tmp_path)] == ['inceptionv4-1_10.ckpt', 'inceptionv4-2_26.ckpt']
    room[0] = False
    with pytest.raises(TrainingError, match='checkpoint of step 100 not saved: .*; the checkpoints before it are whole'):
        for _ in range(74):
            run.step()


def test_best_checkpoint_outlives_the_newest(monitor, tmp_path):
    accuracies = iter([10.0, 60.0, 50.0, 60.0, 20.0, 30.0, 30.0, 30.0, 30.0, 30.0])
    cell = nn.Dense(2, 2)
    saved = Checkpoints(monitor, 1000, tmp_path, cell, {'config': {}}, keep=2)

    def evaluate():
        cell.weight.set_data(Tensor(np.full((2, 2), monitor.step, np.float32)))
        return Result(next(accuracies), 90.0, 1.5, 30)

    run = Run([monitor, saved, Evaluations(monitor, 10, evaluate, saved)])
    for _ in range(99):
        run.step()
    best, info = checkpoint.load(tmp_path / checkpoint.BEST)
    assert info['step'] == 20 and (best['weight'] == 10).all()  # the first of two equals, as it was before its evaluation
    assert [p.name for p in checkpoint.find(tmp_path)] == ['inceptionv4-8_80.ckpt', 'inceptionv4-9_90.ckpt']


@pytest.mark.parametrize('sink, expected', [(1, [30, 60, 90, 100]), (25, [50, 75, 100]), (50, [50, 100])])
def test_checkpoints(monitor, tmp_path, sink, expected):
    """At the first end of a sink after every 30 steps and at the end; the newest three are kept."""
    cell = nn.Dense(2, 2)
    saved = Checkpoints(monitor, 30, tmp_path, cell, {'config': {'num_classes': 2}}, keep=3)
    run = Run([monitor, saved])
    for _ in range(100 // sink):
        run.step(sink)
    paths = checkpoint.find(tmp_path)
    assert [p.name for p in paths] == [f'inceptionv4-{s // 10}_{s}.ckpt' for s in expected[-3:]]
    parameters, info = checkpoint.load(paths[-1])
    assert np.array_equal(parameters['weight'], cell.weight.asnumpy())
    assert info == {'format_version': 2, 'step': 100, 'epoch': 10, 'position': 0, 'config': {'num_classes': 2}}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)


@pytest.mark.parametrize('seconds, meanwhile', [(0.0, [10]), (1e9, [])], ids=['quick', 'slow'])
def test_slow_save_does_not_hold_up_the_training(monitor, tmp_path, monkeypatch, seconds, meanwhile):
    """It holds what the weights were, though they change before it is written; the next save waits for it."""
    cell, gate, write = nn.Dense(2, 2), threading.Event(), checkpoint.write
    saved = Checkpoints(monitor, 10, tmp_path, cell, {'config': {}}, keep=3)
    saved.seconds = seconds  # of the last save; what is above 1 % of the time between two is slow

    def slow_write(*arguments):
        if seconds:
            assert gate.wait(60)
        write(*arguments)

    monkeypatch.setattr(checkpoint, 'write', slow_write)
    run = Run([monitor, saved])
    for step in range(1, 15):
        cell.weight.set_data(Tensor(np.full((2, 2), step, np.float32)))
        run.step()
    assert [checkpoint.load(path)[1]['step'] for path in checkpoint.by_age(tmp_path)] == meanwhile
    gate.set()
    monitor.stopping = True
    run.step()
    for step, path in zip((10, 15), checkpoint.by_age(tmp_path), strict=True):
        parameters, info = checkpoint.load(path)
        assert info['step'] == step and (parameters['weight'] == min(step, 14)).all()


def test_only_checkpoints_of_this_training_are_pruned(monitor, tmp_path):
    """Those that it and the ones that it goes on from wrote, by their steps; the rest is somebody else's."""
    cell = nn.Dense(2, 2)
    for step, info in ((60, {'training': '1'}), (70, {'training': 'f'}), (500, {}), (50, {'training': 'f'})):
        checkpoint.save(tmp_path, cell, step=step, epoch=0, config={}, **info)
    (tmp_path / 'inceptionv4-0_80.ckpt').write_bytes(b'damaged')
    saved = Checkpoints(monitor, 10, tmp_path, cell, {'config': {}, 'training': 'f'}, keep=2)
    run = Run([monitor, saved])
    for kept in ([60, 500, 70, 10], [60, 500, 10, 20], [60, 500, 20, 30]):
        for _ in range(10):
            run.step()
        saved.settle()
        assert {p.name for p in tmp_path.iterdir()} == {'inceptionv4-0_80.ckpt'} | {
            f'inceptionv4-{step // 10 if step < 40 else 0}_{step}.ckpt' for step in kept
        }


def test_training_that_is_replaced_goes_with_the_first_new_checkpoint(monitor, tmp_path):
    names = ['inceptionv4-0_5.ckpt', 'inceptionv4-1_10.ckpt', 'inceptionv4-best.ckpt', 'inceptionv4-best.json']
    for name in names:
        (tmp_path / name).write_text('old')
    saved = Checkpoints(monitor, 10, tmp_path, nn.Dense(2, 2), {'config': {}}, 2, [tmp_path / name for name in names])
    run = Run([monitor, saved])
    for _ in range(9):
        run.step()
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    run.step()
    assert [p.name for p in tmp_path.iterdir()] == ['inceptionv4-1_10.ckpt']
    assert checkpoint.load(saved.path)[1]['step'] == 10


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


@pytest.mark.parametrize(
    'steps, loop, expected',
    [
        (1000900, 100, [(10009, 100)]),
        (250200, 100, [(2502, 100)]),
        (1001, 100, [(11, 91)]),
        (7, 100, [(1, 7)]),
        (10009, 100, [(100, 100), (1, 9)]),
        (10001, 100, [(137, 73)]),
        (1009, 12, [(83, 12), (1, 13)]),
        (101, 100, [(1, 101)]),
        (1, 100, [(1, 1)]),
        (5, 2, [(1, 2), (1, 3)]),
        (5, 1, [(5, 1)]),
        (12, 5, [(3, 4)]),
    ],
)
def test_sinks(steps, loop, expected):
    """All steps and no more, and none in a sink of its own, whatever divides them."""
    assert sinks(steps, sink_length([steps], loop)) == expected
    assert sum(count * length for count, length in expected) == steps


def test_steps_go_on_counting_in_a_second_part(monitor):
    """MindSpore counts from 0 again with every call of `Model.train`."""
    run = Run([monitor])
    for _ in range(4):
        run.step(20)
    run = Run([monitor])
    run.step(20)
    assert logged(monitor) == [20, 40, 60, 80, 100] and monitor.all_images == 60 * 8


def test_gradients_that_are_not_finite_stop(monitor):
    """Where no loss scale leaves such a step out, the weights are lost."""
    run = Run([monitor])
    run.step(norm=float('inf'), overflows=1, overflow_run=1)
    with pytest.raises(TrainingError, match='gradients are not finite at step 2'):
        run.step(norm=float('nan'), overflows=1)
