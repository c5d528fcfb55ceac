"""Which parameters are trained, and by which optimizer."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.errors import InputError
from src.training.rmsprop import RMSProp
from src.weights.checkpoint import CLASSIFIERS

_ADD, _MUL, _ASSIGN, _MOMENTUM_STEP = ops.Add(), ops.Mul(), ops.Assign(), ops.ApplyMomentum()

# Options of the configuration that `make_optimizer` takes.
OPTIMIZER_OPTIONS = ('weight_decay', 'momentum', 'rmsprop_decay', 'rmsprop_epsilon', 'use_nesterov', 'lr', 'lr_head')


def decayed_parameters(network: nn.Cell) -> list[Parameter]:
    """The weights that L2 regularisation counts: those of convolution and dense layers that are trained, no bias and no
    batch norm."""
    return [
        cell.weight
        for _, cell in network.cells_and_names()
        if isinstance(cell, (nn.Conv2d, nn.Dense)) and cell.weight.requires_grad
    ]


def freeze(network: nn.Cell, parts: list[str]) -> None:
    """Train no parameter whose name is, or starts with, one of `parts` (`mixed_5b`, `mixed_5b.branch_1`,
    `mixed_6*`).

    Batch norm in these parts computes as in an evaluation from now on: with its moving averages, which no longer move.

    InputError if the network has no such part, or if nothing is left to train.
    """
    held = set()
    for part in parts:
        frozen = [
            p for name, p in network.parameters_and_names() if fnmatchcase(name, part) or fnmatchcase(name, part + '.*')
        ]
        if not frozen:
            tops = dict.fromkeys(name.split('.')[0] for name, _ in network.parameters_and_names())
            raise InputError(f'freeze {part}: the network has no such part; parts are {", ".join(tops)}')
        for parameter in frozen:
            parameter.requires_grad = False
            held.add(id(parameter))
    for _, cell in network.cells_and_names():
        if isinstance(cell, nn.BatchNorm2d) and held.issuperset(map(id, cell.get_parameters())):
            cell.use_batch_statistics = False
    if not network.trainable_params():
        raise InputError(f'freeze {",".join(parts)}: nothing is left to train; name fewer parts')


class RateTable(nn.learning_rate_schedule.LearningRateSchedule):
    """Learning rate by step: int32 (1,) -> float32 (1,); after the last step of `rates` (steps,) it stays the last one.

    A constant of the graph: given as a list, MindSpore would make it a parameter, saved in checkpoints and restored.
    """

    def __init__(self, rates: np.ndarray):
        super().__init__()
        self.rates = Tensor(rates)
        self.last = len(rates) - 1

    def construct(self, global_step):
        return ops.gather(self.rates, ops.minimum(global_step, self.last), 0)


class NesterovMomentum(nn.Momentum):
    """`nn.Momentum` with `use_nesterov`, which MindSpore's CPU kernel (2.8) takes and ignores:

    moment = momentum * moment + gradient
    weight = weight - rate * (gradient + momentum * moment)
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.opt = _nesterov


def _nesterov(weight, moment, rate, gradient, momentum):
    """One tensor's step. From `new` the kernel makes momentum * new + gradient, Nesterov's direction, and takes the step; it
    changes `new` thereby, and no longer `moment`."""
    new = _ADD(_MUL(moment, momentum), gradient)
    kept = _ASSIGN(moment, new)
    return _MOMENTUM_STEP(weight, ops.depend(new, kept), rate, gradient, momentum)


def make_optimizer(
    name: str,
    network: nn.Cell,
    rates: np.ndarray,
    *,
    weight_decay: float,
    momentum: float,
    rmsprop_decay: float = 0.9,
    rmsprop_epsilon: float = 1.0,
    use_nesterov: bool = False,
    lr: float = 1.0,
    lr_head: float = 0.0,
    on_cpu: bool = False,
) -> nn.Optimizer:
    """Optimizer `rmsprop` or `momentum` for the trainable parameters of `network`; it takes gradients that are not scaled.

    The learning rate of a step is `rates[global_step]`, float32 (steps,), and of the classifier layers `lr_head` / `lr`
    times as much if `lr_head` is not 0. L2 regularisation as in `decayed_parameters`. InputError for another name.
    """
    trainable, rate = network.trainable_params(), RateTable(rates)
    decayed = {id(parameter) for parameter in decayed_parameters(network)}
    groups = {}
    for parameter in trainable:
        in_head = bool(lr_head) and parameter.name.startswith(CLASSIFIERS)
        groups.setdefault((id(parameter) in decayed, in_head), []).append(parameter)
    own_rate = {'lr': RateTable(rates * np.float32(lr_head / lr))} if lr_head else {}
    groups = [
        {'params': params, 'weight_decay': weight_decay if decays else 0.0, **(own_rate if in_head else {})}
        for (decays, in_head), params in groups.items()
    ]
    groups.append({'order_params': trainable})
    if name == 'momentum':
        if use_nesterov and on_cpu:
            return NesterovMomentum(groups, rate, momentum)
        return nn.Momentum(groups, rate, momentum, use_nesterov=use_nesterov)
    if name == 'rmsprop':
        rmsprop = RMSProp if on_cpu else nn.RMSProp
        return rmsprop(groups, rate, rmsprop_decay, momentum, rmsprop_epsilon)
    raise InputError(f'optimizer {name}: use rmsprop or momentum')
