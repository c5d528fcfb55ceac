"""The way of an image from disk to device: 15 hops in 7 files.

train.create_batches -> pipeline.training_dataset -> `batches`, with the numbers that order.TrainingOrder yields and forked
workers -> `LoadTraining` -> its `sample` -> records.Records.read -> read_file -> preprocess.training_image ->
image.EncodedImage -> its `decode_rgbx` -> jpeg.decode, of a random crop alone -> preprocess.resize -> channels_first, with
the flip -> on the device preprocess.Augment: brightness, saturation, scaling to [-1, 1].

Everything random is drawn in the worker from (seed, epoch, record), dropout's mask too. So the batches do not depend on the
number of workers or ranks, and any step can be reached without running the ones before it.
"""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import mindspore.dataset as ds
import numpy as np

from src.data import preprocess
from src.data.image import EncodedImage
from src.data.order import TrainingOrder, evaluation_order, generator
from src.data.preprocess import PREPROCESSING, Preprocessing, channels_first
from src.data.records import Records
from src.errors import InputError, counted

if TYPE_CHECKING:
    from src.options import Settings
    from src.runtime import Run

TRAINING_COLUMNS = ['image', 'draws', 'dropout_mask', 'label']
MOST_WORKERS = 32  # by default: twice what eight first Ascend 910 take (docs/ascend.md)
ALLOWED = 0.001  # share of the images of an epoch, but at least one, that may be unreadable and is replaced
SUBSTITUTES = 100  # tried for a bad record
LIST = 'python -m src.data.check DIR lists them all'
SECONDS = 30  # at most, of looking at images before they are needed


def training_dataset(
    records: Records, offset: int, settings: Settings, steps: range, run: Run, bad: BadRecords | None = None
) -> ds.Dataset:
    """This rank's batches of the `steps` of a training run, as `LoadTraining` makes them. `offset` is subtracted from the
    labels."""
    order = TrainingOrder(len(records), settings, steps, run.rank, run.world)
    load = LoadTraining(records, offset, settings, bad)
    return batches(order, ['epoch', 'record'], load, TRAINING_COLUMNS, settings, run.ranks_here)


def evaluation_dataset(
    records: Records, offset: int, settings: Settings, run: Run, preprocessing: Preprocessing = PREPROCESSING
) -> ds.Dataset:
    """Batches with every record once over all ranks, as `LoadEvaluation` makes them; equally many on every rank."""
    order = evaluation_order(len(records), settings.batch_size, run.rank, run.world)
    load = LoadEvaluation(records, offset, settings.image_size, preprocessing)
    return batches(order, ['record'], load, ['image', 'label'], settings, run.ranks_here)


def batches(
    order: Iterable, numbers: list[str], load: Callable, columns: list[str], settings: Settings, ranks_here: int = 1
) -> ds.Dataset:
    """Data set of what `load` makes of the `numbers` in `order`, a batch in each call, by `workers` processes."""
    num_workers = workers(settings.num_workers, ranks_here)
    try:
        multiprocessing.Lock()  # it lies in /dev/shm, and so do those by which MindSpore talks to its workers
    except OSError as error:
        print(f'warning: /dev/shm: {error.strerror}; one process decodes, slowly (docker: --shm-size)', flush=True)
        num_workers = 1
    # A batch has 34 MB at 128 images. malloc would give each back to the system, to get it again page by page, filled with
    # zeros: a tenth of all time. (M_MMAP_MAX and M_TRIM_THRESHOLD of glibc; the workers inherit them.)
    for parameter, value in ((-4, 0), (-1, 1 << 30)):
        ctypes.CDLL(None).mallopt(parameter, value)
    ds.config.set_prefetch_size(2)  # batches; with the default of 16 a waiting pipeline took 1 GB at batch 64, now a third
    data = ds.GeneratorDataset(order, numbers, shuffle=False, num_parallel_workers=1)
    # A worker makes whole batches: one image a call costs the main process four times as much.
    data = data.batch(settings.batch_size, drop_remainder=True)
    return data.map(load, numbers, columns, num_parallel_workers=num_workers, python_multiprocessing=num_workers > 1)


def workers(option: int, ranks_here: int = 1) -> int:
    """Number of decoding processes: `option`, or for 0 this rank's share of the cores, at most MOST_WORKERS."""
    cores = len(os.sched_getaffinity(0))
    return min(option, cores) if option else max(1, min(cores // ranks_here, MOST_WORKERS))


def stacked(count: int, samples: Iterable[tuple]) -> tuple[np.ndarray, ...]:
    """A batch of `count` samples: of each of their values an array. Each is copied while it is in the processor's cache,
    from which `np.stack` of all would find the first ones gone."""
    columns = None
    for i, sample in enumerate(samples):
        columns = columns or tuple(np.empty((count, *value.shape), value.dtype) for value in sample)
        for column, value in zip(columns, sample):
            column[i] = value
    return columns


class LoadTraining:
    """Epochs (N,), records (N,) -> images uint8 (N, 3, size, size), draws float32 (N, 2), dropout mask float32 (N, 1536),
    label int32 (N,), all of them by the options in `settings`.

    A record that cannot be read or decoded is counted in `bad`, and another one takes its place, so that all ranks keep the
    same number of steps. Without `bad` it is an InputError.
    """

    def __init__(self, records: Records, offset: int, settings: Settings, bad: BadRecords | None = None):
        self.records, self.offset, self.settings, self.bad = records, offset, settings, bad

    def __call__(self, epochs, records):
        """A batch. An error, which ends the worker, is noted in `bad`."""
        try:
            return stacked(len(records), map(self.sample, epochs.tolist(), records.tolist()))
        except Exception as error:
            if self.bad:
                self.bad.fail(error)
            raise

    def sample(self, epoch: int, record: int) -> tuple:
        """Image, draws, dropout mask and label of a record of one epoch, or of the one that takes its place."""
        settings, rng = self.settings, generator(self.settings.seed, epoch, record)
        rng_of_crop = rng
        for attempt in range(1 + SUBSTITUTES):
            try:
                encoded = self.records.read(record, patiently=not attempt)
                size, covered = settings.image_size, settings.min_object_covered
                image = preprocess.training_image(encoded, size, rng_of_crop, covered, self.records.upright)
                break
            except (InputError, ValueError) as error:
                problem = self.records.damage(record, error)
            if self.bad is None:
                raise InputError(problem)
            if not attempt:
                self.bad.add(epoch, problem)
                rng = generator(settings.seed, epoch, record)  # again: how many draws were made depends on the damage
            record = int(rng.integers(len(self.records)))
            rng_of_crop = np.random.Generator(np.random.Philox(rng.integers(1 << 32)))
        else:
            drawn = f'{SUBSTITUTES} records drawn in a row cannot be read or decoded'
            raise InputError(f'{drawn}, the last of them {problem}; {LIST}')
        flip, draws = preprocess.draw_augmentation(rng)
        mask = preprocess.dropout_mask(rng, settings.dropout_keep_prob)
        return channels_first(image, flip), draws, mask, np.int32(self.records.label[record] - self.offset)


class LoadEvaluation:
    """Records (N,) -> image uint8 (N, 3, size, size), label int32 (N,); for -1 a black image with the label -1. InputError
    for a record that cannot be read or decoded: every record counts in an evaluation."""

    def __init__(self, records: Records, offset: int, size: int, preprocessing: Preprocessing = PREPROCESSING):
        self.records, self.offset, self.size, self.preprocessing = records, offset, size, preprocessing

    def __call__(self, records):
        """A batch."""
        return stacked(len(records), map(self.sample, records.tolist()))

    def sample(self, record: int) -> tuple:
        """Image and label of one record."""
        if record < 0:
            return np.zeros((3, self.size, self.size), np.uint8), np.int32(-1)
        try:
            encoded = self.records.read(record, patiently=True)
            image = preprocess.evaluation_image(encoded, self.size, self.preprocessing, self.records.upright)
        except ValueError as error:
            raise InputError(self.records.damage(record, error)) from None
        return channels_first(image), np.int32(self.records.label[record] - self.offset)


class BadRecords:
    """What the data workers report to the training run: `counts`, int64 [epochs], how many of the `per_epoch` records that
    this rank takes cannot be read or decoded, the `first` of them, and the `failure` that ended a worker, or ''.

    Workers run ahead of the steps, so there is a count for each epoch, which is judged while that epoch is trained.
    """

    def __init__(self, per_epoch: int, epochs: int):
        self.per_epoch = per_epoch
        self._file = open(os.memfd_create('bad records'), 'w+b')  # shared with the workers by fork
        fields = [('counts', np.int64, (epochs,)), ('first', 'S1000'), ('failure', 'S1000')]
        self._shared = np.memmap(self._file, fields, 'w+', shape=1)[0]
        self.counts = self._shared['counts']

    def add(self, epoch: int, where: str) -> None:
        """Count a record of `epoch` (from 0); `where` says which and why."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)  # ends with its process, also where that is killed
        self.counts[epoch] += 1
        self._shared['first'] = self._shared['first'] or where.encode(errors='backslashreplace')
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def fail(self, error: Exception) -> None:
        """Note the error that ends a worker."""
        text = str(error) if isinstance(error, InputError) else repr(error)
        self._shared['failure'] = text.encode(errors='backslashreplace')

    @property
    def first(self) -> str:
        """Place and damage of the first bad record."""
        return self._shared['first'].decode(errors='replace')

    @property
    def failure(self) -> str:
        """The error that ended a worker, or ''."""
        return self._shared['failure'].decode(errors='replace')

    def problem(self, epochs: Iterable[int]) -> str:
        """Why a training run that is in `epochs` must end: too many bad records, or `failure`; '' if it need not."""
        for epoch in epochs:
            if self.counts[epoch] > max(1, ALLOWED * self.per_epoch):
                return (
                    f'{self.counts[epoch]} of the {self.per_epoch} records that this rank takes in epoch {epoch + 1} cannot '
                    f'be read or decoded, more than {ALLOWED:.1%}; the first was {self.first}; {LIST}'
                )
        return self.failure


def refuse_damaged(records: Records, numbers: Iterable[int]) -> None:
    """InputError that names those images of the records `numbers` that are cut off, are none, or cannot be read. Not damage
    inside an image, nor what 16 threads, which wait for a slow disk together, have not come to after `SECONDS`."""
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
        images, names = counted(len(damaged), 'validation image'), '; '.join(damaged)
        raise InputError(f'{images} cannot be read or decoded; restore or remove them: {names:.5000}')
