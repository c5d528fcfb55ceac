"""The numbers of a training run: steps, batches, image sizes, sinks, learning rates, memory. Needs no MindSpore."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from src.errors import InputError
from src.options import Settings

DECAY_UNITS = 10**9  # `batch_norm_decay` returns multiples of 1 / DECAY_UNITS, so that ranks can agree on an integer
STRIDES = (2, 1, 2, 1, 2, 2, 2)  # of the 3 x 3 layers without padding: conv2d_1a, 2a (and 2b), mixed_3a, 4a, 5a, 6a, 7a
# By how a layer's name begins: its channels, and after how many of STRIDES it is.
OUTPUTS = {'conv2d_1a': (32, 1), 'conv2d_2a': (32, 2), 'conv2d_2b': (64, 2), 'mixed_3': (160, 3), 'mixed_4': (192, 4)}
OUTPUTS |= {'mixed_5': (384, 5), 'mixed_6': (1024, 6), 'mixed_7': (1536, 7)}
# Bytes of a float32 process on the CPU with MindSpore 2.8, within 12 % of what was measured: for each weight (its gradient,
# the optimizer's state, copies in the graph), for the convolutions' workspace and for each image, both at 299 x 299.
# 3.8, 4.9 and 6.9 GB were measured for the whole network with batches of 2, 8 and 16.
TRAINING_BYTES = 50, 0.9e9, 0.2e9
CACHED_BYTES = 16, 0.1e9, 0.045e9  # behind frozen layers whose outputs are cached: 2.1 and 2.8 GB with batches of 16 and 32
BASE_BYTES = 0.6e9


class Stage(NamedTuple):
    """The steps `start` to `stop` of a training run, from 0, with images of `size` x `size` pixels."""

    size: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """Which steps a training run does, `start` to `stop`, counted from 0 over all its processes.

    `batch_size` is the images per device and step, `world` the number of devices, `evaluated` the step of the last
    evaluation before `start`, `sizes` those of the images, each for an equal part of the steps.
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
        """The stages of the whole training run: an equal part of its steps for each of `sizes`; equal neighbours are one."""
        stages, ends = [], [self.stop * i // len(self.sizes) for i in range(len(self.sizes) + 1)]
        for size, start, stop in zip(self.sizes, ends, ends[1:]):
            if stages and stages[-1].size == size:
                stages[-1] = stages[-1]._replace(stop=stop)
            elif start < stop:
                stages.append(Stage(size, start, stop))
        return stages

    def stage_at(self, step: int) -> Stage:
        """The stage that continues after `step` steps."""
        return next(stage for stage in self.stages if step < stage.stop)

    def sinks(self, iterations_per_loop: int) -> list[tuple[int, int, int]]:
        """[(image size, number of sinks, steps in each)] of the steps from `start` on. Each of them needs a data set and a
        graph of its own; no sink crosses a stage.

        All are of one length, the largest from a tenth of `iterations_per_loop` up to it that divides the steps of every
        stage, so that one graph is enough; sinks of a tenth cost less than the minutes of a second compilation. If there is
        none, `iterations_per_loop`, and each stage ends with a sink of what is left. MindSpore keeps the length in one
        variable for all graphs of a process, set when a graph is compiled: here no earlier graph runs again. None has a
        single step, which MindSpore runs in another, slower way, unless that is all there is.
        """
        left = [(stage.size, stage.stop - max(stage.start, self.start)) for stage in self.stages if stage.stop > self.start]
        longest = min(iterations_per_loop, max((steps for _, steps in left), default=1))
        common, shortest = math.gcd(*(steps for _, steps in left)), max(longest // 10, 2)
        length, found = next((n for n in range(longest, shortest - 1, -1) if common % n == 0), longest), []
        for size, steps in left:
            whole, rest = divmod(steps, length)
            if rest == 1 and whole:
                whole, rest = whole - 1, length + 1
            found += [(size, count, each) for count, each in ((whole, length), (1, rest)) if count and each]
        return found

    @property
    def global_batch(self) -> int:
        """Images of all devices in a step."""
        return self.batch_size * self.world

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


def make_plan(records: int, settings: Settings, world: int) -> Plan:
    """The `Plan` of a new training run on `records` records. InputError if they do not fill one batch on every device."""
    size = settings.batch_size
    steps_per_epoch = records // (size * world)
    if not steps_per_epoch:
        raise InputError(f'batch_size {size} on {world} device(s) needs as many records; {settings.data_dir} has {records}')
    stop = settings.max_train_steps or settings.max_epochs * steps_per_epoch
    return Plan(size, world, steps_per_epoch, stop, sizes=stage_sizes(settings))


def default_batch_size(world: int) -> int:
    """Images per device and step of the original recipe: 128 on one device, 64 on each of several."""
    return 128 if world == 1 else 64


def stage_sizes(settings: Settings) -> tuple[int, ...]:
    """Sizes of the stages of a training run: `image_sizes`, or `image_size` throughout. InputError if the auxiliary
    classifier, which takes images of one size, does not fit."""
    sizes, size = settings.image_sizes, settings.image_size
    others = [other for other in sizes if other != size]
    if settings.aux_logits and any(grids(other)[5] != grids(size)[5] for other in others):
        raise InputError(f'image_sizes {sizes}: the auxiliary classifier takes image_size {size}; use --aux_logits false')
    return tuple(sizes or [size])


def grids(size: int) -> list[int]:
    """Rows of the grids that images of `size` x `size` pixels go through in the network, see STRIDES."""
    return [size := (size - 3) // stride + 1 for stride in STRIDES]


def output_shape(layer: str, size: int) -> tuple[int, int, int]:
    """(channels, height, width) of the output of a layer of the network for an image of `size` x `size` pixels."""
    channels, position = next(found for name, found in OUTPUTS.items() if layer.startswith(name))
    return channels, grids(size)[position - 1], grids(size)[position - 1]


def batch_norm_decay(steps: int) -> float:
    """What `bn_decay` auto stands for in a training run of `steps` steps: the original's 0.9997, less below 66,667.

    The moving averages then look back over a twentieth of the steps, but over 5 at least. With 0.9997 those of a short
    training run would stay behind its weights, and every evaluation would be wrong.
    """
    return round(min(0.9997, max(0.8, 1 - 20 / steps)) * DECAY_UNITS) / DECAY_UNITS


def learning_rates(settings: Settings, steps: int, steps_per_epoch: int) -> np.ndarray:
    """Learning rate of every step, float32 (steps,).

    `cosine`: `lr * (1 + cos(pi * epoch / T_max)) / 2`, stepped once per epoch, the original's recipe; after T_max epochs it
    stays at 0 instead of rising again. `exponential`: times 0.94 every two epochs (paper, section 4). `constant`: `lr`.
    During the first `warmup_epochs` the rate of each step is multiplied by the share of the warm-up that is done.
    """
    step = np.arange(steps)
    epoch = step // steps_per_epoch
    if settings.lr_schedule == 'cosine':
        factors = (1 + np.cos(np.pi * np.minimum(epoch, settings.T_max) / settings.T_max)) / 2
    else:
        factors = 0.94 ** (epoch // 2.0) if settings.lr_schedule == 'exponential' else np.ones(steps)
    warmup_steps = settings.warmup_epochs * steps_per_epoch
    return (settings.lr * factors * np.minimum(1, (step + 1) / max(warmup_steps, 1))).astype(np.float32)


def no_gain(settings: Settings, plan: Plan, best: int, evaluated: int) -> bool:
    """Whether the last `patience` evaluations, up to the step `evaluated`, found nothing better than that of step `best`."""
    return 0 < settings.patience <= (evaluated - best) // (settings.epochs_between_evals * plan.steps_per_epoch)


def require_memory(settings: Settings, weights: int, ranks: int) -> None:
    """InputError, naming a batch that fits, if `ranks` processes on the CPU, each with a network of `weights` weights, need
    more memory than this machine or container has left: the kernel would kill one without a word."""
    free, size = free_bytes(), max(settings.image_sizes or [settings.image_size])
    of_weight, workspace, of_image = CACHED_BYTES if settings.trunk_cache and settings.freeze else TRAINING_BYTES
    area = (size / 299) ** 2
    fixed, of_image = BASE_BYTES + of_weight * weights + workspace * area, of_image * area
    need = ranks * (fixed + of_image * settings.batch_size)
    if need > free:
        fits = int((free / ranks - fixed) / of_image)
        remedy = f'--batch_size {fits} fits' if fits > 0 else 'a smaller --image_size or --block_counts is needed'
        raise InputError(
            f'batch_size {settings.batch_size} at image_size {size} needs about {need / 1e9:.1f} GB for {ranks} '
            f'rank(s) on this machine, {free / 1e9:.1f} GB are free; {remedy}'
        )


def free_bytes() -> float:
    """Bytes of memory that this machine, or the container around this process, has left."""
    free, group = psutil.virtual_memory().available, Path('/sys/fs/cgroup')
    with contextlib.suppress(OSError, ValueError):  # control groups of version 1, or no limit
        return min(free, int((group / 'memory.max').read_text()) - int((group / 'memory.current').read_text()))
    return free
