"""A training run without a graph: the callbacks are called as MindSpore does, with made outputs."""

from types import SimpleNamespace

import numpy as np
from mindspore import Tensor, nn

from src.data.pipeline import BadRecords
from src.options import load_settings
from src.runtime import Run
from src.training.checkpoints import Checkpoints
from src.training.metrics import Metrics
from src.training.monitor import Monitor
from src.training.plan import Plan, learning_rates
from src.training.state import State
from src.weights import checkpoint

PLAN = Plan(batch_size=8, world=1, steps_per_epoch=10, stop=100, sizes=(75,))


class Evaluation:
    """In place of an `evaluation.Evaluation`: `results` one after the other."""

    def __init__(self, records, results):
        self.records, self.results, self.at = records, iter(results), []

    def of_training(self, train_step, step, should_stop):
        """The next result."""
        self.at.append(step)
        return next(self.results)


class Training:
    """`lines` are those of the log, `ended` is whether `Model` is to stop. It is the `RunContext` of MindSpore, too."""

    def __init__(
        self, directory, plan=PLAN, options=(), rank=0, sink=False, cell=None, info=(), evaluation=None, replaced=(), **given
    ):
        self.lines, self.ended, self.cell = [], False, cell or nn.Dense(2, 2)
        target = 'Ascend' if sink else 'CPU'
        run = Run(target, rank=rank, world=plan.world, directory=directory, checkpoints=directory, log=self.lines.append)
        settings = load_settings(['--display_every', '20', '--keep_checkpoint_max', '3', *options])
        bad = BadRecords(plan.steps_per_epoch * plan.batch_size, plan.epochs)
        self.state = State(plan, run, **{'signals': signals(), 'bad': bad, 'metrics': Metrics(), **given})
        self.checkpoints = Checkpoints(self.state, self.cell, {'config': {}, **dict(info)}, settings, replaced, None)
        rates = learning_rates(settings, plan.stop, plan.steps_per_epoch)
        self.monitor = Monitor(settings, self.cell, rates, self.checkpoints, evaluation)
        self.begin()

    def begin(self):
        """As at the start of `Model.train`, which counts from 0 again."""
        more = {'train_network': self.cell, 'dataset_sink_mode': False, 'train_dataset_element': ()}
        self.about = SimpleNamespace(cur_step_num=0, net_outputs=None, **more)
        self.monitor.on_train_begin(self)

    def original_args(self):
        """As of MindSpore's `RunContext`."""
        return self.about

    def request_stop(self):
        """As of MindSpore's `RunContext`."""
        self.ended = True

    def step(self, times=1, *, steps=1, loss=2.0, norm=1.0, overflows=0, overflow_run=0, seconds=lambda: None):
        """So many calls, `steps` steps in each, which last as long as `seconds`."""
        for _ in range(times):
            self.monitor.on_train_step_begin(self)
            seconds()
            self.about.cur_step_num += steps
            outputs = (loss, norm, overflows, overflow_run, 1024)
            self.about.net_outputs = [Tensor(np.float32(value)) for value in outputs]
            self.monitor.on_train_step_end(self)

    def logged(self, begin='step: '):
        """Lines that begin so."""
        return [line for line in self.lines if line.startswith(begin)]


def names(directory):
    """The checkpoints in a directory, by their steps."""
    return [path.name for path in checkpoint.by_age(directory)]


def signals(number=0, name=''):
    """In place of `stopping.Signals`, without handlers."""
    return SimpleNamespace(number=number, name=name, can_save=False, first={}, install=lambda: None)
