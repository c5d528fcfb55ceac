"""The training step: loss, gradients, overflow, optimizer, moving averages."""

from collections import namedtuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops import constexpr

from src.data.preprocess import Augment
from src.errors import InputError
from src.inceptionv4 import cross_entropy
from src.weights import checkpoint

FIXED_LOSS_SCALE = 1024.0


class NetworkWithLoss(nn.Cell):
    """A batch of the training pipeline -> mean loss, the auxiliary classifier's added with `aux_loss_weight` (None for
    a network without one).

    Inputs: image uint8 (N, 3, H, W), draws float32 (N, 2), dropout mask uint8 (N, 1536), label int32 (N,). With
    `augment_dtype` None the images are what the network takes, float32 (N, 3, H, W), and the draws are not used.
    """

    def __init__(self, network, label_smoothing=0.0, aux_loss_weight=None, augment_dtype=ms.float32):
        super().__init__(auto_prefix=False)  # parameters keep the network's own names
        self.augment = Augment(augment_dtype) if augment_dtype else None
        self.network = network
        self.smoothing = label_smoothing
        self.aux_loss_weight = aux_loss_weight

    def construct(self, image, draws, dropout_mask, label):
        x = image if self.augment is None else self.augment(image, draws)
        logits = self.network(x, dropout_mask.astype(ms.float32))
        if self.aux_loss_weight is not None:
            loss = cross_entropy(logits[0], label, self.smoothing)
            return (loss + self.aux_loss_weight * cross_entropy(logits[1], label, self.smoothing)).mean()
        return cross_entropy(logits, label, self.smoothing).mean()


def multiplied(factor, gradient):
    return gradient * factor


def moved(share, average, value):
    return ops.assign(average, average + (value - average) * share)


def half_square_sum(gradient):
    """sum(gradient^2) / 2, a scalar."""
    if not _on_cpu():
        return ops.L2Loss()(gradient)
    # The CPU's L2Loss adds value after value, which is 1e-4 off for a large tensor, and takes twice as long.
    rows = gradient.reshape(gradient.shape[0] if gradient.ndim > 1 else 1, 1, -1)
    return ops.BatchMatMul(transpose_b=True)(rows, rows).sum() / 2


@constexpr
def _on_cpu():
    return ms.get_context('device_target') == 'CPU'


def loss_scale_update(option):
    """What `nn.TrainOneStepWithLossScaleCell` takes for the option `loss_scale`: `fixed` (1024), a number above 0, or
    `dynamic` (from 1024: halved at an overflow, doubled after 2,000 steps without)."""
    if option == 'dynamic':
        return nn.DynamicLossScaleUpdateCell(FIXED_LOSS_SCALE, 2, 2000)
    try:
        scale = FIXED_LOSS_SCALE if option == 'fixed' else float(option)
        if not 0 < scale < 2.0**127:
            raise ValueError
    except ValueError:
        raise InputError(f'loss_scale is {option!r:.80}; expected fixed, dynamic or a number above 0') from None
    return Tensor(scale, ms.float32)


def l2_term(parameters, weight_decay):
    """weight_decay * sum(w^2) / 2 over `parameters` (see `decayed_parameters`), the term of the total loss whose gradient
    is the optimizer's weight decay; computed on the host, because only log lines need it."""
    weights = (parameter.asnumpy().ravel() for parameter in parameters)
    return weight_decay / 2 * sum(float(np.dot(weight, weight)) for weight in weights)


# What a step gives back: the loss before the step, the norm of all gradients, then the steps without an update so far
# and those in a row, and the loss scale.
Outputs = namedtuple('Outputs', 'loss norm overflows overflow_run loss_scale')


def on_host(outputs):
    """What a `TrainStep` gave, as `Outputs` of float; waits for the device."""
    return Outputs(*(float(value.asnumpy()) for value in outputs))


class TrainStep(nn.TrainOneStepWithLossScaleCell):
    """One step of `optimizer` on `network_with_loss`; gives `Outputs`, all scalars.

    Args:
        loss_scale (str, number or None): see `loss_scale_update`; the loss is multiplied by it before the gradients are
            taken, and they are divided by it before anything else sees them. A step whose gradients overflowed on any rank
            changes no weight, but counts as a step for the learning rate. None: nothing is scaled, and no step left out.
        clip_norm (float): gradients whose norm, over all of them together, is larger are scaled down to it; 0: never.
        ema_decay (float): the parameters `ema.<name>` hold moving averages of the network's; 0: there are none.

    MindSpore's `Model` would not give one such a step on the CPU, and nothing but the last overflow of a sink; hence
    everything that must be known of every step is a parameter here.
    https://www.mindspore.cn/docs/en/r2.7.0/api_python/nn/mindspore.nn.TrainOneStepWithLossScaleCell.html
    """

    def __init__(self, network_with_loss, optimizer, loss_scale='dynamic', clip_norm=0.0, ema_decay=0.0):
        super().__init__(network_with_loss, optimizer, loss_scale_update(1.0 if loss_scale is None else loss_scale))
        self.scaled = loss_scale is not None
        # Such an NPU cuts what overflows to the largest float16 and sets a flag; elsewhere it becomes infinite.
        self.saturates = self.ascend_910a_target or (
            self.ascend_910b_target and self._ascend_check_overflow_mode == 'SATURATION_MODE'
        )
        self.clip_norm = clip_norm
        self.values = ParameterTuple(network_with_loss.get_parameters())
        self.averages = self.values.clone(checkpoint.AVERAGE[:-1], init='same') if ema_decay else None
        self.new_share = Tensor(1 - ema_decay, ms.float32)
        self.overflows = Parameter(Tensor(0, ms.int32), 'overflows', requires_grad=False)
        self.overflow_run = Parameter(Tensor(0, ms.int32), 'overflow_run', requires_grad=False)
        self.map = ops.HyperMap()

    def construct(self, *batch):
        loss = self.network(*batch)
        status, scale = self.start_overflow_check(loss, self.scale_sense * 1)  # of this step, not as updated below
        gradients = self.grad(self.network, self.weights)(*batch, ops.fill(loss.dtype, loss.shape, 1) * scale)
        gradients = self.grad_reducer(gradients)  # which carries what is not finite to all ranks
        norm = ops.sqrt(2 * ops.addn(self.map(half_square_sum, gradients))) / scale
        factor = 1 / scale
        if self.clip_norm:
            factor = factor * self.clip_norm / ops.maximum(norm, self.clip_norm)
        if self.scaled or self.clip_norm:
            scaled_down = self.map(ops.partial(multiplied, factor), gradients)
        else:
            scaled_down = gradients
        if not self.scaled:
            return ops.depend(loss, self.update(scaled_down)), norm, self.overflows * 1, self.overflow_run * 1, scale
        if self.saturates:
            overflow = self.get_overflow_status(status, gradients)
        else:
            overflow = ops.logical_not(ops.isfinite(norm))
        overflow = self.process_loss_scale(overflow)
        if overflow:
            loss = ops.depend(loss, ops.assign_add(self.optimizer.global_step, 1))
        else:
            loss = ops.depend(loss, self.update(scaled_down))
        count = overflow.astype(ms.int32)
        overflows, run = self.overflows + count, (self.overflow_run + 1) * count
        ops.assign(self.overflows, overflows)
        ops.assign(self.overflow_run, run)
        return loss, norm, overflows, run, scale

    def update(self, gradients):
        done = self.optimizer(gradients)
        if self.averages is not None:
            done = ops.depend(done, self.map(ops.partial(moved, self.new_share), self.averages, self.values))
        return done


def sinks(steps, iterations_per_loop):
    """[(number of sinks, steps in each)] that are `steps` steps in all.

    One kind of sinks if a length from half of `iterations_per_loop` divides them; else whole ones and then the rest in one,
    for which the graph is compiled again. None of one step, which MindSpore runs in another, slower way.
    """
    longest = min(iterations_per_loop, steps)
    for length in range(longest, max(longest // 2, 1), -1):
        if steps % length == 0:
            return [(steps // length, length)]
    whole, rest = divmod(steps, longest)
    if rest == 1:
        whole, rest = whole - 1, longest + 1
    return [(count, length) for count, length in ((whole, longest), (1, rest)) if count and length]
