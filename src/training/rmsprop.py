"""RMSProp as TensorFlow defines it, on the CPU, and the same in every run."""

from __future__ import annotations

import math
import os

from mindspore import jit, nn, ops
from mindspore.ops import constexpr

VECTOR = 8  # float32 values in a vector of MindSpore's CPU kernels
# Primitives, because the operators and functions on top of them take longer to compile, for 300 tensors.
_KERNEL, _ADD, _SUB, _ASSIGN = ops.ApplyRMSProp(), ops.Add(), ops.Sub(), ops.Assign()


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
        gradients = self.scale_grad(self.decay_weight(gradients))
        rate = self.get_lr()  # of every parameter where groups have rates of their own
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        # A map, and not a loop, of which MindSpore would make several graphs a tensor.
        state = (self._parameters, self.ms, self.moment, gradients)
        if self.is_group_lr:
            return self.map_(ops.partial(_update, self.decay, self.momentum, self.epsilon), rate, *state)
        return self.map_(ops.partial(_update, self.decay, self.momentum, self.epsilon, rate), *state)


def _update(decay, momentum, epsilon, rate, weight, mean_square, moment, gradient):
    """One tensor's step: the new weight, or the new mean square.

    The kernel gets epsilon inside the mean square: decay * (mean_square + epsilon / decay) + (1 - decay) * gradient^2 is the
    new mean square plus epsilon, which is then taken off again. A third of the time of elementary operations.
    """
    if _in_whole_vectors(weight.shape):
        shifted = _ADD(mean_square, epsilon / decay)
        done = _KERNEL(weight, shifted, moment, rate, gradient, decay, momentum, 1e-30)
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
