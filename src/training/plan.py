"""The numbers of a training: steps, batches and learning rates. Needs no MindSpore."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from src.errors import InputError
from src.options import REFERENCE_BATCH
from src.training.stages import Stage, make_stages, relative_computing

DECAY_UNITS = 10**9  # `batch_norm_decay` gives multiples of 1 / DECAY_UNITS, so that ranks can agree on one as an integer
# Options of the configuration that `learning_rates` takes.
RATE_OPTIONS = ('T_max', 'eta_min', 'lr_decay_rate', 'lr_decay_epochs', 'warmup_epochs')


def default_batch_size(world: int) -> int:
    """Images per device and step of the original recipe: 128 on one device, 64 on each of several."""
    return 128 if world == 1 else 64


@dataclass(frozen=True)
class Plan:
    """Which steps a training does, `start` to `stop`, counted from 0 over all its runs.

    `batch_size` is the images per device and step, `world` the number of devices, `evaluated` the step of
    the last evaluation by an earlier run, `sizes` what `make_stages` takes.
    """

    batch_size: int
    world: int
    steps_per_epoch: int
    stop: int
    start: int = 0
    sizes: tuple[int, ...] = (299,)
    evaluated: int = 0

    @property
    def stages(self) -> list[Stage]:
        """Stages of the whole training, each with images of one size."""
        return make_stages(self.sizes, self.stop)

    def left(self, step: int) -> float:
        """What is left to do after `step` steps, in steps of the size of the step before."""
        stages = self.stages
        now = next((stage.size for stage in stages if step <= stage.stop), self.sizes[-1])
        return sum(max(0, stop - max(start, step)) * relative_computing(size, now) for size, start, stop in stages)

    @property
    def global_batch(self) -> int:
        """Images of all devices in a step."""
        return self.batch_size * self.world

    @property
    def steps(self) -> int:
        """Steps that this run does."""
        return self.stop - self.start

    @property
    def epochs(self) -> int:
        """Epochs that are begun by the last step."""
        return -(-self.stop // self.steps_per_epoch)

    def position(self, step: int) -> tuple[int, int]:
        """(whole epochs, images of the next one) that have been seen after `step` steps."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        return epoch, rest * self.global_batch

    def step_at(self, epoch: int, images: int) -> int:
        """The step before which `epoch` whole epochs and `images` of the next one were seen, by batches of any size."""
        return epoch * self.steps_per_epoch + images // self.global_batch


def make_plan(
    records: int,
    batch_size: int,
    world: int,
    max_epochs: int,
    max_train_steps: int = 0,
    source: str = 'the data set',
    sizes: tuple[int, ...] = (299,),
) -> Plan:
    """The `Plan` of a new training on the `records` records of `source`; `max_train_steps` 0: the steps of `max_epochs`.

    InputError if the records do not fill one batch on every device.
    """
    steps_per_epoch = records // (batch_size * world)
    if not steps_per_epoch:
        raise InputError(f'batch_size {batch_size} on {world} device(s) needs as many records; {source} has {records}')
    return Plan(batch_size, world, steps_per_epoch, max_train_steps or max_epochs * steps_per_epoch, sizes=sizes)


def batch_norm_decay(steps: int) -> float:
    """What `bn_decay` auto stands for in a training of `steps` steps: the original's 0.9997, and less below 66,667 steps.

    The moving averages then look back over a twentieth of the training, but over 5 steps at least. With 0.9997 those of a
    short training would stay behind its weights, and every evaluation would be wrong.
    """
    return round(min(0.9997, max(0.8, 1 - 20 / steps)) * DECAY_UNITS) / DECAY_UNITS


def learning_rates(
    schedule: str,
    *,
    steps: int,
    steps_per_epoch: int,
    lr: float,
    T_max: int = 100,
    eta_min: float = 0.0,
    lr_decay_rate: float = 0.94,
    lr_decay_epochs: float = 2.0,
    warmup_epochs: float = 0.0,
) -> np.ndarray:
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


def rates_of(plan: Plan, options: dict) -> np.ndarray:
    """Learning rate of every step of `plan` by the options of its schedule, float32 (steps,)."""
    return learning_rates(
        options['lr_schedule'],
        steps=plan.stop,
        steps_per_epoch=plan.steps_per_epoch,
        lr=scaled_rate(options['lr'], options['lr_scaling'], plan.global_batch),
        **{name: options[name] for name in RATE_OPTIONS},
    )


def scaled_rate(lr: float, lr_scaling: str, global_batch: int) -> float:
    """`lr` for steps of `global_batch` images: itself (`none`, the original's rule) or in proportion (`linear`, Goyal et
    al. 2017, https://arxiv.org/abs/1706.02677, to be used with warm-up)."""
    return lr * global_batch / REFERENCE_BATCH if lr_scaling == 'linear' else lr
