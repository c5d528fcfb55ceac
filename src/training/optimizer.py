"""Which parameters are trained, and by which optimizer."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.errors import InputError
from src.training.rmsprop import RMSProp

# Options of the configuration that `make_optimizer` takes.
OPTIMIZER_OPTIONS = ('weight_decay', 'momentum', 'rmsprop_decay', 'rmsprop_epsilon', 'use_nesterov')


def decayed_parameters(network: nn.Cell) -> list[Parameter]:
    """The weights that L2 regularisation counts: those of convolution and dense layers that are trained, no bias and no
    batch norm."""
    return [
        cell.weight
        for _, cell in network.cells_and_names()
        if isinstance(cell, (nn.Conv2d, nn.Dense)) and cell.weight.requires_grad
    ]


def freeze(network: nn.Cell, parts: list[str]) -> None:
    """Train no parameter whose name is, or starts with, one of `parts` (`mixed_5b`, `mixed_5b.branch_1`).

    InputError if the network has no such part, or if nothing is left to train.
    """
    for part in parts:
        frozen = [p for name, p in network.parameters_and_names() if name == part or name.startswith(part + '.')]
        if not frozen:
            tops = dict.fromkeys(name.split('.')[0] for name, _ in network.parameters_and_names())
            raise InputError(f'freeze {part}: the network has no such part; parts are {", ".join(tops)}')
        for parameter in frozen:
            parameter.requires_grad = False
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
    on_cpu: bool = False,
) -> nn.Optimizer:
    """Optimizer `rmsprop` or `momentum` for the trainable parameters of `network`; it takes gradients that are not scaled.

    The learning rate of a step is `rates[global_step]`, float32 (steps,). L2 regularisation as in `decayed_parameters`.
    InputError for another name.
    """
    decayed, trainable = decayed_parameters(network), network.trainable_params()
    ids = {id(parameter) for parameter in decayed}
    others = [parameter for parameter in trainable if id(parameter) not in ids]
    groups = [
        {'params': params, 'weight_decay': decay} for params, decay in ((decayed, weight_decay), (others, 0.0)) if params
    ]
    groups.append({'order_params': trainable})
    if name == 'momentum':
        return nn.Momentum(groups, RateTable(rates), momentum, use_nesterov=use_nesterov)
    if name == 'rmsprop':
        rmsprop = RMSProp if on_cpu else nn.RMSProp
        return rmsprop(groups, RateTable(rates), rmsprop_decay, momentum, rmsprop_epsilon)
    raise InputError(f'optimizer {name}: use rmsprop or momentum')
