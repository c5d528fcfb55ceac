"""Records that cannot be read or decoded: counted in a training run, named before an evaluation."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from src.data.image import EncodedImage
from src.data.records import Records
from src.errors import InputError, counted

ALLOWED = 0.001  # share of the images of an epoch, but at least one, that may be unreadable and is replaced
SECONDS, NAMED = 30, 20  # at most, of looking at images before they are needed; named of those that are damaged


class BadRecords:
    """What the data workers report to the training run: how many of the `per_epoch` records that this rank takes in each of
    `epochs` cannot be read or decoded, and the error that ended a worker.

    Workers run ahead of the steps, so there is a count for each epoch, which is judged while that epoch is trained.
    """

    def __init__(self, per_epoch: int, epochs: int):
        self.per_epoch = per_epoch
        # Shared with the workers by fork. Not by `multiprocessing.Array`, which a full /dev/shm refuses.
        self._file = os.memfd_create('bad records')
        os.truncate(self._file, 8 * epochs + 2000)
        memory = mmap.mmap(self._file, 8 * epochs + 2000)
        self._counts = np.frombuffer(memory, np.int64, epochs)
        self._texts = np.frombuffer(memory, 'S1000', 2, 8 * epochs)  # the first bad record, the error of a worker

    def add(self, epoch: int, where: str) -> None:
        """Count a record of `epoch` (from 0); `where` says which and why."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)  # ends with its process, also where that is killed
        self._counts[epoch] += 1
        self._texts[0] = self._texts[0] or where.encode(errors='backslashreplace')
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def fail(self, error: Exception) -> None:
        """Note the error that ends a worker."""
        text = str(error if isinstance(error, InputError) else repr(error))
        self._texts[1] = text.encode(errors='backslashreplace')

    def count(self, epoch: int) -> int:
        """How many records were bad in `epoch` (from 0)."""
        return int(self._counts[epoch])

    @property
    def first(self) -> str:
        """Place and damage of the first bad record."""
        return self._texts[0].decode(errors='replace')

    @property
    def failure(self) -> str:
        """The error that ended a worker, or ''."""
        return self._texts[1].decode(errors='replace')

    def problem(self, epochs: Iterable[int]) -> str:
        """Why a training run that is in `epochs` must end: too many bad records, or `failure`; '' if it need not."""
        for epoch in epochs:
            if self.count(epoch) > max(1, ALLOWED * self.per_epoch):
                return (
                    f'{self.count(epoch)} of the {self.per_epoch} records that this rank takes in epoch {epoch + 1} cannot '
                    f'be read or decoded, more than {ALLOWED:.1%}; the first was {self.first}; '
                    'python -m src.data.check DIR lists them all'
                )
        return self.failure


def refuse_damaged(records: Records, numbers: Iterable[int]) -> None:
    """InputError that names those images of the records `numbers` that are cut off, are none, or cannot be read.

    Damage inside an image is left to the evaluation, as is what threads, which wait for a slow disk together, have not come
    to after `SECONDS`.
    """
    end = time.monotonic() + SECONDS

    def look(number):
        try:
            if time.monotonic() < end:
                EncodedImage(records.read(number, patiently=True))
        except (InputError, ValueError) as error:
            return records.damage(number, error)

    with ThreadPoolExecutor(16) as pool:
        damaged = [*filter(None, pool.map(look, numbers))]
    if damaged:
        names = '; '.join(damaged[:NAMED]) + f' and {len(damaged) - NAMED} more' * (len(damaged) > NAMED)
        raise InputError(
            f'{counted(len(damaged), "validation image")} cannot be read or decoded: {names}; restore or remove them'
        )
