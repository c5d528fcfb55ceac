"""A training run without a graph: the callbacks are called as MindSpore does, with made outputs."""

import contextlib
from types import SimpleNamespace

import numpy as np
from mindspore import Tensor, nn

from src.options import load_settings
from src.runtime import Run
from src.training.checkpoints import Checkpoints
from src.training.monitor import Monitor
from src.training.plan import Plan
from src.training.state import State

PLAN = Plan(batch_size=8, world=1, steps_per_epoch=10, stop=100, sizes=(75,))


class Evaluation:
    """In place of an `evaluation.Evaluation`: `results` one after the other; more evaluations are an error."""

    def __init__(self, records, results):
        self.records, self.results, self.at = records, iter(results), []

    def of_training(self, step, should_stop, done):
        """The next result."""
        self.at.append(done())
        return next(self.results)


class Training:
    """`lines` are those of the log, `ended` is whether `Model` is to stop."""

    def __init__(self, directory, plan=PLAN, options=(), *, rank=0, sink=False, **given):
        self.lines, self.ended = [], False
        target = 'Ascend' if sink else 'CPU'
        run = Run(target, rank=rank, world=plan.world, directory=directory, checkpoints=directory, log=self.lines.append)
        settings = load_settings(['--display_every', '20', '--keep_checkpoint_max', '3', *options])
        evaluation = given.pop('evaluation', None)
        info = {'config': {}, **given.pop('info', {})}
        resume = {name: given.pop(name) for name in ('replaced', 'resumed') if name in given}
        self.cell, self.state = given.pop('cell', None) or nn.Dense(2, 2), State(plan, run, **given)
        self.checkpoints = Checkpoints(self.state, self.cell, info, settings, **resume)
        self.monitor = Monitor(self.state, settings, self.cell, self.checkpoints, evaluation)
        self.begin()

    def begin(self):
        """As at the start of `Model.train`, which counts from 0 again."""
        self.about = SimpleNamespace(
            cur_step_num=0, net_outputs=None, train_network=self.cell, dataset_sink_mode=False, train_dataset_element=()
        )
        self.monitor.on_train_begin(self)

    def original_args(self):
        """As of MindSpore's `RunContext`."""
        return self.about

    def request_stop(self):
        """As of MindSpore's `RunContext`."""
        self.ended = True

    def step(self, times=1, *, steps=1, loss=2.0, norm=1.0, overflows=0, overflow_run=0):
        """So many calls, `steps` steps in each."""
        for _ in range(times):
            self.monitor.on_train_step_begin(self)
            self.about.cur_step_num += steps
            outputs = (loss, norm, overflows, overflow_run, 1024)
            self.about.net_outputs = [Tensor(np.float32(value)) for value in outputs]
            self.monitor.on_train_step_end(self)

    def logged(self, begin='step: '):
        """Lines that begin so."""
        return [line for line in self.lines if line.startswith(begin)]


def signals(number=0, name='', **fields):
    """In place of `stopping.Signals`, without handlers."""
    made = {'number': number, 'name': name, 'can_save': False, 'first': {}, 'install': lambda: None, 'look': lambda: None}
    return SimpleNamespace(**{**made, **fields})


@contextlib.contextmanager
def raising(error, owner, name, monkeypatch):
    """A block in which the function `name` of `owner` raises `error`."""

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield
