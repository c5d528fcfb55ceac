"""Loss, mixed precision and the training step."""
from collections import namedtuple

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, amp, nn, ops

from src import checkpoint
from src.errors import InputError
from src.optimizer import decayed_parameters
from src.preprocess import Augment

FIXED_LOSS_SCALE = 1024.0


def set_precision(network, amp_level):
    """`network` at mixed precision `O0`, `O2` or `O3`, its logits in float32; parameters stay float32 at all levels.

    O3 computes everything in float16, O2 all but batch norm (`mindspore.amp.auto_mixed_precision`).
    """
    return network if amp_level == 'O0' else amp.auto_mixed_precision(network, amp_level)


def cross_entropy(logits, label, smoothing=0.0):
    """Softmax cross entropy in float32: logits (N, C), labels int32 (N,) -> (N,).

    With label smoothing (Szegedy et al. 2016, section 7) the target is 1 - smoothing on the label plus smoothing / C
    on every class, as in TensorFlow.
    """
    log_p = ops.log_softmax(logits.astype(ms.float32), -1)
    hit = ops.gather_elements(log_p, 1, label.reshape(-1, 1)).reshape(-1)
    return -(1 - smoothing) * hit - smoothing * log_p.mean(-1)


class NetworkWithLoss(nn.Cell):
    """A batch of the training pipeline -> mean loss, the auxiliary classifier's added with `aux_loss_weight` (None for
    a network without one).

    Inputs: image uint8 (N, H, W, 3), draws float32 (N, 3), dropout mask uint8 (N, 1536), label int32 (N,). With
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


def overflowed(gradient):
    return ops.logical_not(ops.isfinite(gradient).all())


def moved(share, average, value):
    return ops.assign(average, average + (value - average) * share)


def loss_scale_update(option):
    """What `nn.TrainOneStepWithLossScaleCell` takes for the option `loss_scale`: `fixed` (1024), a number above 0, or
    `dynamic` (from 65,536: halved at an overflow, doubled after 2,000 steps without)."""
    if option == 'dynamic':
        return nn.DynamicLossScaleUpdateCell(2.0**16, 2, 2000)
    try:
        scale = FIXED_LOSS_SCALE if option == 'fixed' else float(option)
        if not 0 < scale < 2.0**127:
            raise ValueError
    except ValueError:
        raise InputError(f'loss_scale is {option!r:.80}; expected fixed, dynamic or a number above 0') from None
    return Tensor(scale, ms.float32)


# What a step gives back: loss and total_loss before the step, then the steps without an update so far and those in
# a row, the loss scale, and the number of ranks that were asked to stop.
Outputs = namedtuple('Outputs', 'loss total_loss overflows overflow_run loss_scale stop')


class TrainStep(nn.TrainOneStepWithLossScaleCell):
    """One step of `optimizer` on `network_with_loss`; gives `Outputs`, all scalars.

    The loss is multiplied by the loss scale before the gradients are taken, and they are divided by it before the
    optimizer sees them. total_loss adds weight_decay * sum(w^2) / 2 over `decayed_parameters`, the term whose gradient
    is the optimizer's weight decay. A step whose gradients overflowed on any rank changes no weight, but counts as a
    step for the learning rate. With `ema_decay` the parameters `ema.<name>` hold moving averages of the network's.

    MindSpore's `Model` would not give one such a step on the CPU, and nothing but the last overflow of a sink; hence
    everything that must be known of every step is a parameter here.
    https://www.mindspore.cn/docs/en/r2.7.0/api_python/nn/mindspore.nn.TrainOneStepWithLossScaleCell.html
    """

    def __init__(self, network_with_loss, optimizer, loss_scale='fixed', weight_decay=0.0, ema_decay=0.0):
        super().__init__(network_with_loss, optimizer, loss_scale_update(loss_scale))
        self.on_cpu = ms.get_context('device_target') == 'CPU'
        self.decayed = decayed_parameters(network_with_loss)
        self.weight_decay = weight_decay
        self.values = ParameterTuple(network_with_loss.get_parameters())
        self.averages = self.values.clone(checkpoint.AVERAGE[:-1], init='same') if ema_decay else None
        self.new_share = Tensor(1 - ema_decay, ms.float32)
        self.overflows = Parameter(Tensor(0, ms.int32), 'overflows', requires_grad=False)
        self.overflow_run = Parameter(Tensor(0, ms.int32), 'overflow_run', requires_grad=False)
        self.stop = Parameter(Tensor(0, ms.float32), checkpoint.NOT_STATE, requires_grad=False)
        self.map = ops.HyperMap()

    def get_overflow_status(self, status, gradients):
        """As MindSpore does it on the device; it has no way for the CPU."""
        if not self.on_cpu:
            return super().get_overflow_status(status, gradients)
        # After the all-reduce, which carries what is not finite to all ranks.
        return ops.stack(self.map(overflowed, gradients)).any()

    def construct(self, *batch):
        loss = self.network(*batch)
        squares = 0.0
        for weight in self.decayed:
            squares = squares + ops.square(weight).sum()  # `+=` would be an operation in place
        status, scale = self.start_overflow_check(loss, self.scale_sense * 1)  # of this step, not as updated below
        gradients = self.grad(self.network, self.weights)(*batch, ops.fill(loss.dtype, loss.shape, 1) * scale)
        gradients = self.map(ops.partial(multiplied, 1 / scale), self.grad_reducer(gradients))
        overflow = self.process_loss_scale(self.get_overflow_status(status, gradients))
        total_loss = loss + self.weight_decay / 2 * squares
        if overflow:
            loss = ops.depend(loss, ops.assign_add(self.optimizer.global_step, 1))
        else:
            loss = ops.depend(loss, self.update(gradients))
        count = overflow.astype(ms.int32)
        overflows = ops.assign_add(self.overflows, count)
        run = ops.assign(self.overflow_run, (self.overflow_run + 1) * count)
        stop = self.allreduce(self.stop) if self.is_distributed else self.stop * 1
        return loss, total_loss, overflows, run, scale, stop

    def update(self, gradients):
        done = self.optimizer(gradients)
        if self.averages is not None:
            done = ops.depend(done, self.map(ops.partial(moved, self.new_share), self.averages, self.values))
        return done


def sink_size(steps, iterations_per_loop):
    """Largest number of steps up to `iterations_per_loop` that divides `steps`, so that no sink overshoots the end."""
    return next(size for size in range(min(iterations_per_loop, steps), 0, -1) if steps % size == 0)
