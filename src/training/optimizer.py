"""Learning rates (NumPy), parameter groups and RMSProp as TensorFlow defines it."""

import os

import numpy as np

from src.config import REFERENCE_BATCH
from src.errors import InputError


def learning_rates(
    schedule,
    *,
    steps,
    steps_per_epoch,
    lr,
    T_max=100,
    eta_min=0.0,
    lr_decay_rate=0.94,
    lr_decay_epochs=2.0,
    warmup_epochs=0.0,
):
    """Learning rate of every step, float32 (steps,).

    `cosine`: `eta_min + (lr - eta_min) * (1 + cos(pi * epoch / T_max)) / 2`, stepped once per epoch, the original's
    recipe; after T_max epochs it stays at `eta_min` instead of rising again. `exponential`: times `lr_decay_rate` every
    `lr_decay_epochs` epochs (paper, section 4: 0.94 every two). `constant`: `lr`. During the first `warmup_epochs` the
    rate of each step is multiplied by the share of the warm-up that is done, step by step.
    """
    step = np.arange(steps)
    epoch = step // steps_per_epoch
    if schedule == 'cosine':
        rates = eta_min + (lr - eta_min) * (1 + np.cos(np.pi * np.minimum(epoch, T_max) / T_max)) / 2
    elif schedule == 'exponential':
        rates = lr * lr_decay_rate ** (epoch // lr_decay_epochs)
    elif schedule == 'constant':
        rates = np.full(steps, lr)
    else:
        raise InputError(f'lr_schedule {schedule}: use cosine, exponential or constant')
    warmup_steps = warmup_epochs * steps_per_epoch
    return (rates * np.minimum(1, (step + 1) / max(warmup_steps, 1))).astype(np.float32)


def scaled_rate(lr, lr_scaling, global_batch):
    """`lr` for steps of `global_batch` images: itself (`none`, the original's rule) or in proportion (`linear`, Goyal et
    al. 2017, https://arxiv.org/abs/1706.02677, to be used with warm-up)."""
    return lr * global_batch / REFERENCE_BATCH if lr_scaling == 'linear' else lr


def decayed_parameters(network):
    """The weights that L2 regularisation counts: those of convolution and dense layers, no bias, no batch norm."""
    from mindspore import nn

    return [
        cell.weight
        for _, cell in network.cells_and_names()
        if isinstance(cell, (nn.Conv2d, nn.Dense)) and cell.weight.requires_grad
    ]


def freeze(network, parts):
    """Hold parameters still whose name is, or starts with, one of `parts` (`mixed_5b`, `mixed_5b.branch_1`)."""
    for part in parts:
        held = [p for name, p in network.parameters_and_names() if name == part or name.startswith(part + '.')]
        if not held:
            tops = dict.fromkeys(name.split('.')[0] for name, _ in network.parameters_and_names())
            raise InputError(f'freeze {part}: the network has no such part; parts are {", ".join(tops)}')
        for parameter in held:
            parameter.requires_grad = False
    if not network.trainable_params():
        raise InputError(f'freeze {",".join(parts)}: nothing is left to train; name fewer parts')


def make_optimizer(
    name, network, rates, *, weight_decay, momentum, rmsprop_decay=0.9, rmsprop_epsilon=1.0, use_nesterov=False, on_cpu=False
):
    """Optimizer for the trainable parameters of `network`, gradients unscaled; `rates` (steps,) are indexed by its
    `global_step`. L2 as in `decayed_parameters`."""
    from mindspore import Tensor, nn, ops

    class Table(nn.learning_rate_schedule.LearningRateSchedule):
        """Rates by step as a constant: a list would become a parameter, saved with and restored from checkpoints."""

        def __init__(self):
            super().__init__()
            self.rates = Tensor(rates)
            self.last = len(rates) - 1

        def construct(self, global_step):
            return ops.gather(self.rates, ops.minimum(global_step, self.last), 0)

    decayed = decayed_parameters(network)
    ids = {id(p) for p in decayed}
    trainable = network.trainable_params()
    rest = [p for p in trainable if id(p) not in ids]
    groups = [
        {'params': params, 'weight_decay': decay} for params, decay in ((decayed, weight_decay), (rest, 0.0)) if params
    ]
    groups.append({'order_params': trainable})
    if name == 'momentum':
        return nn.Momentum(groups, Table(), momentum, use_nesterov=use_nesterov)
    if name == 'rmsprop':
        return _rmsprop(on_cpu)(groups, Table(), rmsprop_decay, momentum, rmsprop_epsilon)
    raise InputError(f'optimizer {name}: use rmsprop or momentum')


def _rmsprop(on_cpu):
    """`nn.RMSProp`, or on the CPU a subclass of it that computes the same formula, in the same way every time.

    ms = decay * ms + (1 - decay) * g^2; mom = momentum * mom + lr * g / sqrt(ms + epsilon); w = w - mom.
    The CPU kernel (MindSpore 2.7, 2.8) computes lr * g / (sqrt(ms) + epsilon) instead in its vectorised part, against
    its own documentation, TensorFlow and the Ascend definition: with epsilon 1.0 its first steps are 0.71 times as long.
    """
    from mindspore import jit, nn, ops

    if not on_cpu:
        return nn.RMSProp
    kernel = ops.ApplyRMSProp()

    def update(rate, decay, momentum, epsilon, weight, mean_square, moment, gradient):
        ops.assign(mean_square, decay * mean_square + (1 - decay) * ops.square(gradient))
        ops.assign(moment, momentum * moment + rate * gradient / ops.sqrt(mean_square + epsilon))
        return ops.assign_sub(weight, moment)

    def fused_update(rate, decay, momentum, epsilon, weight, mean_square, moment, gradient):
        """The kernel gets epsilon inside the mean square: decay * (ms + epsilon / decay) + (1 - decay) * g^2 is the new
        mean square plus epsilon, and is taken back afterwards. 2.5 times as fast as `update` (0.17 s in place of 0.42 s
        for the whole network on 2 cores)."""
        ops.assign(mean_square, mean_square + epsilon / decay)
        done = kernel(weight, mean_square, moment, rate, gradient, decay, momentum, 1e-30)
        ops.assign(mean_square, mean_square - epsilon)
        return done

    class RMSProp(nn.RMSProp):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.fused, self.single = [], []
            for i, parameter in enumerate(self._parameters):
                (self.fused if in_whole_vectors(parameter.size) else self.single).append(i)

        @jit
        def construct(self, gradients):
            gradients = self.scale_grad(self.decay_weight(gradients))
            rate = self.get_lr()
            self.assignadd(self.global_step, self.global_step_increase_tensor)
            done = ()
            for i in self.fused:
                done += (
                    fused_update(
                        rate,
                        self.decay,
                        self.momentum,
                        self.epsilon,
                        self._parameters[i],
                        self.ms[i],
                        self.moment[i],
                        gradients[i],
                    ),
                )
            for i in self.single:
                done += (
                    update(
                        rate,
                        self.decay,
                        self.momentum,
                        self.epsilon,
                        self._parameters[i],
                        self.ms[i],
                        self.moment[i],
                        gradients[i],
                    ),
                )
            return done

    return RMSProp


VECTOR = 8  # float32 values in a vector of MindSpore's CPU kernels


def in_whole_vectors(size, cores=None):
    """Whether a tensor of `size` values is in whole vectors on every thread, into however many parts MindSpore cuts it.

    It tries 1, 2, 4 .. 32 threads, at most as many as there are cores, and keeps what was fastest on that day; values
    outside whole vectors are rounded in another way, so a training would not be repeatable.
    """
    cores = cores or os.cpu_count()
    return all(-(-size // min(threads, cores)) % VECTOR == 0 for threads in (1, 2, 4, 8, 16, 32))
