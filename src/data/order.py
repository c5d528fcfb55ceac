"""Which record stands where in a training run or an evaluation, and the random generator of each.

Both follow from (seed, epoch, record) alone: not from the number of workers or ranks, and any step can be reached without
running the ones before it. MindSpore's own TFRecordDataset shuffles inside buffers and gives ranks fixed shares.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from src.options import Settings


def generator(seed: int, epoch: int, record: int) -> np.random.Generator:
    """The random generator of a record in an epoch: counter-based, so making one is cheap."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, record]))


class TrainingOrder:
    """Iterable of (epoch, record) for the rank `rank` of `world`, in `steps` of a training run with `count` records.

    Step s of an epoch takes the next world * batch_size records of its order, of which a rank has batch_size
    neighbours: N ranks with batches of B see in a step what one rank with batches of N * B sees. What is left over at
    the end of an epoch is another share in every epoch.
    """

    def __init__(self, count: int, settings: Settings, steps: range, rank: int = 0, world: int = 1):
        self.count, self.seed, self.batch_size = count, settings.seed, settings.batch_size
        self.steps, self.rank, self.world = steps, rank, world

    def __len__(self):
        return len(self.steps) * self.batch_size

    def __iter__(self):
        steps_per_epoch = self.count // (self.batch_size * self.world)
        for epoch, steps in itertools.groupby(self.steps, lambda step: step // steps_per_epoch):
            order = generator(self.seed, epoch, self.count).permutation(self.count)
            for step in steps:
                first = (step % steps_per_epoch * self.world + self.rank) * self.batch_size
                yield from zip(itertools.repeat(np.int64(epoch)), order[first : first + self.batch_size])


def evaluation_order(count: int, batch_size: int, rank: int, world: int) -> np.ndarray:
    """int64 [n], the records of one rank: each of `count` on one rank once, filled up with -1 to whole batches."""
    length = -(-count // (world * batch_size)) * world * batch_size
    return np.pad(np.arange(count), (0, length - count), constant_values=-1)[rank::world]
