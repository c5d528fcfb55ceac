"""The training step: loss, gradients, overflow, optimizer, moving averages."""

from __future__ import annotations

import contextlib
from collections import namedtuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops import constexpr

from src.data.preprocess import Augment
from src.errors import InputError
from src.inceptionv4 import cross_entropy
from src.training.optimizer import changing_parameters
from src.weights import checkpoint

FIXED_LOSS_SCALE = 1024.0
AUX_LOSS_WEIGHT = 0.4  # factor of the auxiliary classifier's loss
_RESHAPE, _DOT, _SUM = ops.Reshape(), ops.BatchMatMul(transpose_b=True), ops.ReduceSum(keep_dims=True)
_HALF_SQUARE_SUM, _MAP = ops.L2Loss(), ops.HyperMap()

# What a step returns: the loss before its update, the norm of all gradients together, the steps skipped because of overflow
# so far (`overflows`) and just now in a row (`overflow_run`), and the loss scale of this step.
StepOutputs = namedtuple('StepOutputs', 'loss norm overflows overflow_run loss_scale')


def on_host(outputs: tuple) -> StepOutputs:
    """The outputs of a `TrainStep` as `StepOutputs` of float; waits for the device."""
    return StepOutputs(*(float(value.asnumpy()) for value in outputs))


class NetworkWithLoss(nn.Cell):
    """A batch of the training pipeline -> mean loss, a scalar.

    Inputs: image uint8 (N, 3, H, W), draws float32 (N, 2), dropout mask float32 (N, 1536), label int32 (N,). `network` makes
    logits, or (logits, auxiliary logits) with `aux_logits`, of images and mask. `Augment` computes in `augment_dtype`; where
    `augment` is None, images are outputs of frozen layers (frozen_trunk.py). `class_weights` (num_classes,) are factors of
    the loss of an image, by its label.
    """

    def __init__(
        self,
        network: nn.Cell,
        label_smoothing: float = 0.0,
        aux_logits: bool = False,
        augment_dtype: ms.Type = ms.float32,
        class_weights: np.ndarray | None = None,
    ):
        super().__init__(auto_prefix=False)  # parameters keep the network's own names
        self.network, self.augment = network, Augment(augment_dtype)
        self.smoothing, self.aux_logits = label_smoothing, aux_logits
        self.class_weights = None if class_weights is None else Tensor(class_weights)

    def construct(self, image, draws, dropout_mask, label):
        """See the class."""
        x = image if self.augment is None else self.augment(image, draws)
        logits = self.network(x, dropout_mask)
        loss = cross_entropy(logits[0] if self.aux_logits else logits, label, self.smoothing)
        if self.aux_logits:
            loss = loss + AUX_LOSS_WEIGHT * cross_entropy(logits[1], label, self.smoothing)
        if self.class_weights is not None:
            loss = loss * ops.gather(self.class_weights, label, 0)
        return loss.mean()


class TrainStep(nn.TrainOneStepWithLossScaleCell):
    """One step of `optimizer` on `network_with_loss`; returns `StepOutputs`, all scalars.

    The other arguments are options. The loss is multiplied by `loss_scale` before the gradients are taken, and they are
    divided by it before anything else sees them. A step whose gradients overflowed on any rank changes no weight, but counts
    for the learning rate; with None nothing is scaled, and no step left out. `ema_decay` makes the moving averages
    `ema.<name>` of the parameters that steps change. With `drop_overflow_update` `select` every step updates; on overflow
    each parameter gets its old value back: the same values bit for bit, from a graph without branches.

    MindSpore's `Model` has no such step on the CPU, and of a sink it reports only the last overflow. So everything that
    must be known of every step is a parameter here.
    https://www.mindspore.cn/docs/en/r2.7.0/api_python/nn/mindspore.nn.TrainOneStepWithLossScaleCell.html
    """

    def __init__(
        self,
        network_with_loss: NetworkWithLoss,
        optimizer: nn.Optimizer,
        loss_scale: str | float | None = 'dynamic',
        clip_norm: float = 0.0,
        ema_decay: float = 0.0,
        drop_overflow_update: str = 'branch',
    ):
        super().__init__(network_with_loss, optimizer, loss_scale_update(1.0 if loss_scale is None else loss_scale))
        self.scales_loss = loss_scale is not None
        # Such an NPU cuts what overflows to the largest float16 and sets a flag; elsewhere it becomes infinite.
        self.saturates = self.ascend_910a_target or (
            self.ascend_910b_target and self._ascend_check_overflow_mode == 'SATURATION_MODE'
        )
        self.clip_norm = clip_norm
        # `grad_reducer` sums over the ranks; `unscale` divides by their number.
        self.ranks = self.degree if self.reducer_flag else 1
        self.values = ParameterTuple(changing_parameters(network_with_loss))
        self.averages = self.values.clone(checkpoint.AVERAGE[:-1], init='same') if ema_decay else None
        self.new_share = Tensor(1 - ema_decay, ms.float32)
        self.overflows = Parameter(Tensor(0, ms.int32), 'overflows', requires_grad=False)
        self.overflow_run = Parameter(Tensor(0, ms.int32), 'overflow_run', requires_grad=False)
        self.map = ops.HyperMap()
        self.branches = drop_overflow_update == 'branch'
        state = [p for p in optimizer.get_parameters() if p is not optimizer.global_step]
        self.updated = ParameterTuple([*state, *(self.averages or ())])

    def construct(self, *batch):
        """See the class."""
        scale, status = self.scale_sense * 1, False  # of this step, not as updated below
        if self.saturates:  # the flag must be cleared between the loss and its gradients
            loss = self.network(*batch)
            status, scale = self.start_overflow_check(loss, scale)
            gradients = self.grad(self.network, self.weights)(*batch, ops.fill(loss.dtype, loss.shape, 1) * scale)
        else:  # the same operations; as above, the network would be in the graph twice until MindSpore finds it is the same
            loss, gradients = ops.value_and_grad(self.network, None, self.weights, sens_param=True)(*batch, scale)
        gradients = self.grad_reducer(gradients)  # which carries what is not finite to all ranks
        divisor = scale * self.ranks
        norm = ops.sqrt(square_sum(gradients)) / divisor
        unscaled = self.unscale(gradients, norm, divisor)
        if not self.scales_loss:
            return ops.depend(loss, self.update(unscaled)), norm, self.overflows * 1, self.overflow_run * 1, scale
        overflow = self.process_loss_scale(self.has_overflow(status, gradients, norm))
        if not self.branches:
            loss = ops.depend(loss, self.update_or_restore(unscaled, overflow))
        elif overflow:
            loss = ops.depend(loss, ops.assign_add(self.optimizer.global_step, 1))
        else:
            loss = ops.depend(loss, self.update(unscaled))
        count = overflow.astype(ms.int32)
        overflows, run = self.overflows + count, (self.overflow_run + 1) * count
        ops.assign(self.overflows, overflows)
        ops.assign(self.overflow_run, run)
        return loss, norm, overflows, run, scale

    def unscale(self, gradients, norm, divisor):
        """`gradients` divided by loss scale and number of ranks, the `divisor`, and, where their `norm` is larger than
        `clip_norm`, scaled down to it: one multiplication each."""
        if not self.scales_loss and not self.clip_norm and self.ranks == 1:
            return gradients
        factor = 1 / divisor
        if self.clip_norm:
            factor = factor * self.clip_norm / ops.maximum(norm, self.clip_norm)
        return self.map(ops.partial(_times, factor), gradients)

    def has_overflow(self, status, gradients, norm):
        """Whether a gradient of any rank is too large for its type, a bool scalar."""
        if self.saturates:
            return self.get_overflow_status(status, gradients)
        return ops.logical_not(ops.isfinite(norm))

    def update(self, gradients):
        """The optimizer's step, then the moving averages."""
        done = self.optimizer(gradients)
        if self.averages is not None:
            done = ops.depend(done, self.map(ops.partial(update_ema, self.new_share), self.averages, self.values))
        return done

    def update_or_restore(self, gradients, overflow):
        """`update`, and on `overflow` the values from before it again, except the optimizer's count of steps."""
        before = self.map(_copy, self.updated)
        # After the copies, and after the flag of overflow was read, which must not see what becomes of such gradients.
        done = self.update(ops.depend(gradients, (overflow, before)))
        return self.map(ops.partial(_restore, ops.depend(overflow, done)), self.updated, before)


def _copy(parameter):
    return parameter * 1


def _restore(overflow, parameter, before):
    # Of one shape, as the graph engine would make them: a CPU takes ten times the memory for others.
    return ops.assign(parameter, ops.select(ops.broadcast_to(overflow, parameter.shape), before, parameter))


def _times(factor, gradient):
    return gradient * factor


def update_ema(new_share: Tensor, average: Parameter, value: Parameter) -> Tensor:
    """Move `average` by `new_share` of the way to `value`: its new value."""
    return ops.assign(average, average + (value - average) * new_share)


def square_sum(tensors: tuple[Tensor, ...]) -> Tensor:
    """Sum of the squares of all values of all `tensors`, a scalar."""
    if not _on_cpu():
        return 2 * ops.addn(_MAP(_HALF_SQUARE_SUM, tensors))
    # The CPU's L2Loss adds value after value, which is 1e-4 off for a large tensor, and takes twice as long.
    return ops.addn(_MAP(_square_sum, tensors)).reshape(())


def _square_sum(tensor):
    """As (1, 1, 1). In as few operations as it takes: their number decides how long the graph is compiled."""
    if tensor.ndim == 1:
        row = _RESHAPE(tensor, (1, 1, -1))
        return _DOT(row, row)
    rows = _RESHAPE(tensor, (tensor.shape[0], 1, -1))
    return _SUM(_DOT(rows, rows))


@constexpr
def _on_cpu():
    return ms.get_context('device_target') == 'CPU'


def loss_scale_update(option: str | float) -> nn.Cell | Tensor:
    """What `nn.TrainOneStepWithLossScaleCell` takes for the option `loss_scale`: `fixed` (1024), a number above 0, or
    `dynamic` (from 1024: halved at an overflow, doubled after 2,000 steps without). InputError for anything else."""
    if option == 'dynamic':
        return nn.DynamicLossScaleUpdateCell(FIXED_LOSS_SCALE, 2, 2000)
    with contextlib.suppress(ValueError):
        scale = FIXED_LOSS_SCALE if option == 'fixed' else float(option)
        if 0 < scale < 2.0**127:
            return Tensor(scale, ms.float32)
    raise InputError(f'loss_scale is {option!r:.80}; expected fixed, dynamic or a number above 0')


def l2_term(parameters: list[Parameter], weight_decay: float) -> float:
    """weight_decay * sum(w^2) / 2 over `parameters` (see `decayed_parameters`): the term of the total loss whose gradient
    is the optimizer's weight decay. Computed on the host, because only log lines need it."""
    weights = (parameter.asnumpy().ravel() for parameter in parameters)
    return weight_decay / 2 * sum(float(np.dot(weight, weight)) for weight in weights)
