"""Learning rates (NumPy), parameter groups and RMSProp as TensorFlow defines it."""
import numpy as np

from src.errors import InputError


def learning_rates(schedule, *, steps, steps_per_epoch, lr, T_max=100, eta_min=0.0, lr_decay_rate=0.94,
                   lr_decay_epochs=2.0, warmup_epochs=0.0):
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


REFERENCE_BATCH = 128  # images a step for which the recipe's learning rate was chosen


def scaled_rate(lr, lr_scaling, global_batch):
    """`lr` for steps of `global_batch` images: itself (`none`, the original's rule) or in proportion (`linear`, Goyal et
    al. 2017, https://arxiv.org/abs/1706.02677, to be used with warm-up)."""
    return lr * global_batch / REFERENCE_BATCH if lr_scaling == 'linear' else lr


def decayed_parameters(network):
    """The weights that L2 regularisation counts: those of convolution and dense layers, no bias, no batch norm."""
    from mindspore import nn
    return [cell.weight for _, cell in network.cells_and_names()
            if isinstance(cell, (nn.Conv2d, nn.Dense)) and cell.weight.requires_grad]


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


def make_optimizer(name, network, rates, *, weight_decay, momentum, rmsprop_decay=0.9, rmsprop_epsilon=1.0,
                   use_nesterov=False, on_cpu=False):
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
    groups = [{'params': params, 'weight_decay': decay}
              for params, decay in ((decayed, weight_decay), (rest, 0.0)) if params]
    groups.append({'order_params': trainable})
    if name == 'momentum':
        return nn.Momentum(groups, Table(), momentum, use_nesterov=use_nesterov)
    if name == 'rmsprop':
        return _rmsprop(on_cpu)(groups, Table(), rmsprop_decay, momentum, rmsprop_epsilon)
    raise InputError(f'optimizer {name}: use rmsprop or momentum')


def _rmsprop(on_cpu):
    """`nn.RMSProp`, or on the CPU a subclass of it that computes the same formula.

    ms = decay * ms + (1 - decay) * g^2; mom = momentum * mom + lr * g / sqrt(ms + epsilon); w = w - mom.
    The CPU kernel (MindSpore 2.7, 2.8) computes lr * g / (sqrt(ms) + epsilon) instead in its vectorised part, against
    its own documentation, TensorFlow and the Ascend definition: with epsilon 1.0 its first steps are 0.71 times as long.
    """
    import mindspore as ms
    from mindspore import Tensor, jit, nn, ops
    if not on_cpu:
        return nn.RMSProp

    def shift(value, mean_square):
        return ops.assign(mean_square, mean_square + value)

    class RMSProp(nn.RMSProp):
        """The kernel gets epsilon inside the mean square: decay * (ms + epsilon / decay) + (1 - decay) * g^2 is the new
        mean square plus epsilon, and is taken back afterwards. 2.5 times as fast as the formula in elementary
        operations (0.17 s in place of 0.42 s for the whole network on 2 cores)."""

        def __init__(self, params, learning_rate, decay, momentum, epsilon):
            super().__init__(params, learning_rate, decay, momentum, epsilon=1e-30)
            self.before = Tensor(epsilon / decay, ms.float32)
            self.after = Tensor(-epsilon, ms.float32)

        @jit
        def construct(self, gradients):
            self.hyper_map(ops.partial(shift, self.before), self.ms)
            done = super().construct(gradients)
            self.hyper_map(ops.partial(shift, self.after), self.ms)
            return done

    return RMSProp
