"""Which record stands where in a training or an evaluation, and the random generator of each.

Both follow from (seed, epoch, record) alone. So the order does not depend on the number of workers or ranks, and any step
can be reached without running the ones before it; MindSpore's own TFRecordDataset shuffles inside buffers and gives ranks
fixed parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from src.options import Settings


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Order of the records in an epoch: a permutation of range(count), int64."""
    return generator(seed, epoch, count).permutation(count)


def generator(seed: int, epoch: int, record: int) -> np.random.Generator:
    """The random generator of a record in an epoch: counter-based, so making one is cheap."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, record]))


class TrainingOrder:
    """Iterable of (epoch, record) for the rank `rank` of `world`, in `steps` of a training with `count` records.

    Step s of an epoch takes the next world * batch_size records of its order, of which a rank has batch_size
    neighbours: N ranks with batches of B see in a step what one rank with batches of N * B sees. What is left over at
    the end of an epoch is another part in every epoch.
    """

    columns = ('epoch', 'record')

    def __init__(self, count: int, settings: Settings, steps: range, rank: int = 0, world: int = 1):
        self.count, self.seed, self.batch_size = count, settings.seed, settings.batch_size
        self.steps, self.rank, self.world = steps, rank, world

    def __len__(self):
        return len(self.steps) * self.batch_size

    def __iter__(self):
        steps_per_epoch = self.count // (self.batch_size * self.world)
        order, order_epoch = None, -1
        for step in self.steps:
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.seed, epoch, self.count), epoch
            first = (position * self.world + self.rank) * self.batch_size
            for record in order[first : first + self.batch_size]:
                yield np.int64(epoch), np.int64(record)


class EvaluationOrder:
    """Iterable of records for one rank, each of `numbers` on one rank once, filled up with -1 to whole batches."""

    columns = ('record',)

    def __init__(self, numbers: np.ndarray, batch_size: int, rank: int, world: int):
        self.numbers, self.rank, self.world = numbers, rank, world
        self.length = -(-len(numbers) // (world * batch_size)) * batch_size

    def __len__(self):
        return self.length

    def __iter__(self):
        for i in range(self.rank, self.length * self.world, self.world):
            yield (np.int64(self.numbers[i] if i < len(self.numbers) else -1),)
