"""RMSProp as TensorFlow defines it, on the CPU, and the same in every run."""

from __future__ import annotations

import os

from mindspore import jit, nn, ops

VECTOR = 8  # float32 values in a vector of MindSpore's CPU kernels
_KERNEL = ops.ApplyRMSProp()


class RMSProp(nn.RMSProp):
    """`nn.RMSProp` with the formula of its documentation, of TensorFlow and of the NPU:

        mean_square = decay * mean_square + (1 - decay) * gradient^2
        moment = momentum * moment + rate * gradient / sqrt(mean_square + epsilon)
        weight = weight - moment

    MindSpore's CPU kernel (2.7, 2.8) divides by sqrt(mean_square) + epsilon instead where it works on whole vectors. With
    epsilon 1.0 its first steps would be 0.71 times as long. It also rounds differently outside whole vectors (see
    `in_whole_vectors`), so small tensors are updated by elementary operations.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fused, self.single = [], []
        for i, parameter in enumerate(self._parameters):
            (self.fused if in_whole_vectors(parameter.size) else self.single).append(i)

    @jit
    def construct(self, gradients):
        gradients = self.scale_grad(self.decay_weight(gradients))
        rate = self.get_lr()  # of every parameter where groups have rates of their own
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        weight, mean_square, moment = self._parameters, self.ms, self.moment
        decay, momentum, epsilon = self.decay, self.momentum, self.epsilon
        rates = rate if self.is_group_lr else (rate,) * len(weight)
        done = ()
        for i in self.fused:
            done += (_fused(weight[i], mean_square[i], moment[i], gradients[i], rates[i], decay, momentum, epsilon),)
        for i in self.single:
            done += (_elementary(weight[i], mean_square[i], moment[i], gradients[i], rates[i], decay, momentum, epsilon),)
        return done


def _elementary(weight, mean_square, moment, gradient, rate, decay, momentum, epsilon):
    """The formula as it stands."""
    ops.assign(mean_square, decay * mean_square + (1 - decay) * ops.square(gradient))
    ops.assign(moment, momentum * moment + rate * gradient / ops.sqrt(mean_square + epsilon))
    return ops.assign_sub(weight, moment)


def _fused(weight, mean_square, moment, gradient, rate, decay, momentum, epsilon):
    """The formula by MindSpore's kernel, which gets epsilon inside the mean square: decay * (mean_square + epsilon / decay)
    + (1 - decay) * gradient^2 is the new mean square plus epsilon, which is then taken off again. 2.5 times as fast as
    `_elementary` (0.17 s in place of 0.42 s for the whole network on 2 cores)."""
    ops.assign(mean_square, mean_square + epsilon / decay)
    done = _KERNEL(weight, mean_square, moment, rate, gradient, decay, momentum, 1e-30)
    ops.assign(mean_square, mean_square - epsilon)
    return done


def in_whole_vectors(size: int, cores: int | None = None) -> bool:
    """Whether MindSpore's CPU kernels cut a tensor of `size` values into parts of whole vectors, however many parts.

    They try 1, 2, 4 .. 32 threads, at most as many as there are `cores` (those of this machine), and keep what was fastest
    on that day. Values outside whole vectors are rounded differently, so a training would not be repeatable.
    """
    cores = cores or os.cpu_count()
    return all(-(-size // min(threads, cores)) % VECTOR == 0 for threads in (1, 2, 4, 8, 16, 32))
