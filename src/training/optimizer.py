"""Which parameters are trained, and by which optimizer."""

from __future__ import annotations

import math
import os
from fnmatch import fnmatchcase

import numpy as np
from mindspore import Parameter, Tensor, jit, nn, ops
from mindspore.ops import constexpr

from src.errors import InputError
from src.options import Settings

RMSPROP_DECAY = 0.9  # of the mean square, per step
VECTOR = 8  # float32 values in a vector of MindSpore's CPU kernels
# Primitives, because the operators and functions on top of them take longer to compile, for 300 tensors.
_ADD, _SUB, _MUL, _ASSIGN = ops.Add(), ops.Sub(), ops.Mul(), ops.Assign()
_MOMENTUM_STEP, _RMSPROP_STEP = ops.ApplyMomentum(), ops.ApplyRMSProp()


def decayed_parameters(network: nn.Cell) -> list[Parameter]:
    """The weights that L2 regularisation counts: those of convolution and dense layers that are trained, no bias and no
    batch norm."""
    return [
        cell.weight
        for _, cell in network.cells_and_names()
        if isinstance(cell, (nn.Conv2d, nn.Dense)) and cell.weight.requires_grad
    ]


def changing_parameters(network: nn.Cell) -> list[Parameter]:
    """The parameters of the cells of which a training step changes any: not those of frozen layers."""
    own = [list(cell.get_parameters(expand=False)) for _, cell in network.cells_and_names()]
    changing = {id(p) for parameters in own if any(p.requires_grad for p in parameters) for p in parameters}
    return [parameter for parameter in network.get_parameters() if id(parameter) in changing]


def freeze(network: nn.Cell, layers: list[str]) -> None:
    """Train no parameter whose name is, or starts with, one of `layers` (`mixed_5b.branch_1`, `mixed_6*`).

    Batch norm in these layers computes as in an evaluation from now on: with its moving averages, which no longer move.
    InputError if the network has no such layer, or if nothing is left to train.
    """
    frozen_ids, named = set(), dict(network.parameters_and_names())
    for layer in layers:
        frozen = [p for name, p in named.items() if fnmatchcase(name, layer) or fnmatchcase(name, layer + '.*')]
        if not frozen:
            tops = ', '.join(dict.fromkeys(name.split('.')[0] for name in named))
            raise InputError(f'freeze {layer}: the network has no such layer; layers are {tops}')
        for parameter in frozen:
            parameter.requires_grad = False
            frozen_ids.add(id(parameter))
    for _, cell in network.cells_and_names():
        if isinstance(cell, nn.BatchNorm2d) and frozen_ids.issuperset(map(id, cell.get_parameters())):
            cell.use_batch_statistics = False
    if not network.trainable_params():
        raise InputError(f'freeze {",".join(layers)}: nothing is left to train; name fewer layers')


class RateTable(nn.learning_rate_schedule.LearningRateSchedule):
    """Learning rate by step: int32 (1,) -> float32 (1,); after the last step of `rates` (steps,) it stays the last one.

    A constant of the graph: given as a list, MindSpore would make it a parameter, saved in checkpoints and restored.
    """

    def __init__(self, rates: np.ndarray):
        super().__init__()
        self.rates = Tensor(rates)
        self.last = len(rates) - 1

    def construct(self, global_step):
        """See the class."""
        return ops.gather(self.rates, ops.minimum(global_step, self.last), 0)


def _nesterov(weight, moment, rate, gradient, momentum):
    """One tensor's step of `nn.Momentum` with `use_nesterov`, which MindSpore's CPU kernel (2.8) takes and ignores:

    moment = momentum * moment + gradient
    weight = weight - rate * (gradient + momentum * moment)

    From `new` the kernel makes momentum * new + gradient, Nesterov's direction, and takes the step; it changes `new`
    thereby, and no longer `moment`.
    """
    new = _ADD(_MUL(moment, momentum), gradient)
    kept = _ASSIGN(moment, new)
    return _MOMENTUM_STEP(weight, ops.depend(new, kept), rate, gradient, momentum)


def create_optimizer(network: nn.Cell, settings: Settings, rates: np.ndarray, on_cpu: bool = False) -> nn.Optimizer:
    """The optimizer `settings.optimizer` for the trainable parameters of `network`; it takes gradients that are not scaled.

    The learning rate of a step is `rates[global_step]`, float32 (steps,). L2 regularisation as in `decayed_parameters`.
    """
    trainable, rate = network.trainable_params(), RateTable(rates)
    decayed, groups = {id(parameter) for parameter in decayed_parameters(network)}, []
    for decays in (True, False):
        params = [parameter for parameter in trainable if (id(parameter) in decayed) == decays]
        if params:
            groups.append({'params': params, 'weight_decay': settings.weight_decay if decays else 0.0})
    groups.append({'order_params': trainable})
    if settings.optimizer == 'rmsprop':
        kind = RMSProp if on_cpu else nn.RMSProp
        return kind(groups, rate, RMSPROP_DECAY, settings.momentum, settings.rmsprop_epsilon)
    optimizer = nn.Momentum(groups, rate, settings.momentum, use_nesterov=settings.use_nesterov)
    if settings.use_nesterov and on_cpu:
        optimizer.opt = _nesterov
    return optimizer


class RMSProp(nn.RMSProp):
    """`nn.RMSProp` with the formula of its documentation, of TensorFlow and of the NPU:

        mean_square = decay * mean_square + (1 - decay) * gradient^2
        moment = momentum * moment + rate * gradient / sqrt(mean_square + epsilon)
        weight = weight - moment

    MindSpore's CPU kernel (2.7, 2.8) divides by sqrt(mean_square) + epsilon instead where it works on whole vectors. With
    epsilon 1.0 its first steps would be 0.71 times as long. It also rounds differently outside whole vectors (see
    `in_whole_vectors`), so small tensors are updated by elementary operations.
    """

    @jit
    def construct(self, gradients):
        """See the class."""
        gradients = self.scale_grad(self.decay_weight(gradients))
        rate = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        # A map, and not a loop, of which MindSpore would make several graphs a tensor.
        state = (self._parameters, self.ms, self.moment, gradients)
        return self.map_(ops.partial(_rmsprop, (self.decay, self.momentum, self.epsilon), rate), *state)


def _rmsprop(factors, rate, weight, mean_square, moment, gradient):
    """One tensor's step: the new weight, or the new mean square. `factors`: decay, momentum, epsilon.

    The kernel gets epsilon inside the mean square: decay * (mean_square + epsilon / decay) + (1 - decay) * gradient^2 is the
    new mean square plus epsilon, which is then taken off again. A third of the time of elementary operations.
    """
    decay, momentum, epsilon = factors
    if _in_whole_vectors(weight.shape):
        shifted = _ADD(mean_square, epsilon / decay)
        done = _RMSPROP_STEP(weight, shifted, moment, rate, gradient, decay, momentum, 1e-30)
        return _ASSIGN(mean_square, _SUB(ops.depend(shifted, done), epsilon))
    ops.assign(mean_square, decay * mean_square + (1 - decay) * ops.square(gradient))
    ops.assign(moment, momentum * moment + rate * gradient / ops.sqrt(mean_square + epsilon))
    return ops.assign_sub(weight, moment)


@constexpr
def _in_whole_vectors(shape):
    return in_whole_vectors(math.prod(shape))


def in_whole_vectors(size: int, cores: int | None = None) -> bool:
    """Whether MindSpore's CPU kernels cut a tensor of `size` values into parts of whole vectors, however many parts.

    They try 1, 2, 4 .. 32 threads, at most as many as there are `cores` (those of this machine), and keep what was fastest
    on that day. Values outside whole vectors are rounded differently, so a training would not be repeatable.
    """
    cores = cores or os.cpu_count()
    return all(-(-size // min(threads, cores)) % VECTOR == 0 for threads in (1, 2, 4, 8, 16, 32))
