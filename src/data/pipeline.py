"""Records and preprocessing to sharded, seeded batches through `mindspore.dataset`."""

from __future__ import annotations

import multiprocessing
import os

import mindspore.dataset as ds
import numpy as np

from src.data.bad_records import BadRecords, PatientReader, where_and_why
from src.data.order import EvaluationOrder, TrainingOrder, generator
from src.data.preprocess import (
    PREPROCESSING,
    Preprocessing,
    augment,
    channels_first,
    draw_augmentation,
    dropout_mask,
    evaluation_image,
    training_image,
)
from src.data.records import Records
from src.errors import InputError

# Options of the configuration that `training_dataset` takes.
OPTIONS = ('image_size', 'batch_size', 'seed', 'dropout_keep_prob', 'min_object_covered')
MOST_WORKERS = 32  # by default: twice what eight first Ascend 910 take (docs/scaling.md)


def workers(option: int, ranks_here: int = 1) -> int:
    """Number of decoding processes: `option`, or for 0 this rank's share of the cores, at most MOST_WORKERS.

    With --bind_core the cores that this process may use are its share already; the launcher, which is not bound, says in
    LOCAL_CORES how many there are for all its ranks.
    """
    cores = len(os.sched_getaffinity(0))
    share = int(os.environ.get('LOCAL_CORES', cores)) // ranks_here
    return min(option, cores) if option else max(1, min(cores, share, MOST_WORKERS))


def batches(order, names, load, columns, batch_size, num_workers):
    if num_workers > 1 and (problem := _no_processes()):
        print(f'warning: {problem}; this process decodes by itself, which is slower (docker: --shm-size)', flush=True)
        num_workers = 1
    ds.config.set_prefetch_size(2)  # batches; with the default of 16 a waiting pipeline held 1 GB at batch 64, now a third
    data = ds.GeneratorDataset(order, names, shuffle=False, num_parallel_workers=1).batch(batch_size, drop_remainder=True)
    # A worker makes whole batches: one image a call costs the main process four times as much.
    return data.map(load, names, columns, num_parallel_workers=num_workers, python_multiprocessing=num_workers > 1)


def _no_processes():
    """Why there can be no data workers, or ''."""
    try:
        multiprocessing.Lock()  # it lies in /dev/shm, and so do those by which MindSpore speaks with its workers
        return ''
    except OSError as error:
        return f'/dev/shm: {error.strerror}'


def training_dataset(
    records: Records,
    *,
    offset: int,
    image_size: int,
    batch_size: int,
    seed: int,
    dropout_keep_prob: float,
    start: int,
    stop: int,
    min_object_covered: float = 0.1,
    augment_on_host: bool = False,
    bad: BadRecords | None = None,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 1,
    copies: int = 0,
) -> ds.Dataset:
    """Batches of the steps `start` to `stop` of a training, as `LoadTraining` makes them, in one pass.

    Args:
        records: of `open_records`.
        batch_size: images of this rank in a step; there are `world` ranks.
        start, stop: steps of the whole training, from 0.
        num_workers: processes that decode.
        copies: not the steps, but all records as in each of the first `copies` epochs, as `LoadCopies` makes them; 0: the
            steps.
    """
    order = TrainingOrder(len(records), seed, batch_size, rank, world, start, stop)
    kind, columns = LoadTraining, ['image', 'draws', 'dropout_mask', 'label']
    if copies:
        from src.data.features import CopiesOrder, LoadCopies

        order, kind, columns[2] = CopiesOrder(copies, len(records), batch_size), LoadCopies, 'size'
    load = kind(records, offset, image_size, seed, dropout_keep_prob, min_object_covered, augment_on_host, bad)
    return batches(order, ['epoch', 'record'], load, columns, batch_size, num_workers)


def evaluation_dataset(
    records: Records,
    *,
    offset: int,
    image_size: int,
    batch_size: int,
    preprocessing: Preprocessing = PREPROCESSING,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 1,
    numbers: np.ndarray | None = None,
) -> ds.Dataset:
    """Batches with every record, or those with the `numbers`, once over all ranks, as `LoadEvaluation` makes them; equally
    many on every rank."""
    order = EvaluationOrder(len(records), batch_size, rank, world, numbers)
    load = LoadEvaluation(records, offset, image_size, preprocessing)
    return batches(order, ['record'], load, ['image', 'label'], batch_size, num_workers)


SUBSTITUTES = 100  # tried for a bad record


class LoadTraining:
    """Epochs (N,), records (N,) -> image, draws float32 (N, 2), dropout mask float32 (N, 1536), label int32 (N,). The images
    are uint8 (N, 3, size, size), or with `augment_on_host` what the network takes, float32 of the same shape.

    A record that cannot be read or decoded is counted in `bad` (`BadRecords`) and another one takes its place, so that all
    ranks keep the same number of steps; without `bad` it is an InputError. `bad` also notes an error that ends a worker.

    Args:
        offset (int): subtracted from the labels.
        dropout_keep_prob (float): probability with which dropout keeps a pooled feature.
        min_object_covered (float): part of an image that its crop covers at least.
    """

    def __init__(
        self, records, offset, image_size, seed, dropout_keep_prob, min_object_covered, augment_on_host=False, bad=None
    ):
        self.records, self.offset, self.size, self.seed = records, offset, image_size, seed
        self.dropout_keep_prob, self.min_object_covered = dropout_keep_prob, min_object_covered
        self.augment_on_host, self.bad = augment_on_host, bad
        self.read = PatientReader(records)

    def __call__(self, epochs, records):
        try:
            return _batch([self.sample(int(epoch), int(record)) for epoch, record in zip(epochs, records)])
        except Exception as error:
            if isinstance(error, MemoryError):  # at an error of this name MindSpore kills the training process
                error = InputError('a data worker got no memory; fewer --num_workers need less')
            if self.bad:
                self.bad.fail(error)
            raise error from None

    def sample(self, epoch, record):
        """Image, draws, dropout mask and label of one record of one epoch."""
        rng = generator(self.seed, epoch, record)
        try:
            image = training_image(self.read(record), self.size, rng, self.min_object_covered, self.records.upright)
        except ValueError as error:
            where = where_and_why(self.records, record, error)
            if self.bad is None:
                raise InputError(where) from None
            self.bad.add(epoch, where)
            rng = generator(self.seed, epoch, record)  # again: how many draws were made depends on the damage
            image, record = self.substitute(rng)
        flip, draws = draw_augmentation(rng)
        image = channels_first(image, flip)
        mask = dropout_mask(rng, self.dropout_keep_prob)
        if self.augment_on_host:
            image = augment(image, draws)
        return image, draws, mask, np.int32(self.records.label[record] - self.offset)

    def substitute(self, rng):
        """Image and number of a record that can be decoded, drawn by `rng` from all records; InputError if none is found."""
        for _ in range(SUBSTITUTES):
            record = int(rng.integers(len(self.records)))
            drawn = np.random.Generator(np.random.Philox(rng.integers(1 << 32)))
            try:
                encoded = self.records.read(record)
                return training_image(encoded, self.size, drawn, self.min_object_covered, self.records.upright), record
            except (ValueError, OSError, InputError) as error:
                last = where_and_why(self.records, record, error)
        raise InputError(
            f'{SUBSTITUTES} records drawn in a row cannot be read or decoded, the last of them {last}; '
            'python -m src.data.check DIR lists them all'
        )


class LoadEvaluation:
    """Records (N,) -> image uint8 (N, 3, size, size), label int32 (N,); for -1 a black image with the label -1.

    InputError for a record that cannot be read or decoded: every record counts in an evaluation.
    """

    def __init__(self, records, offset, image_size, preprocessing=PREPROCESSING):
        self.records, self.offset, self.size, self.preprocessing = records, offset, image_size, preprocessing
        self.read = PatientReader(records)

    def __call__(self, records):
        return _batch([self.sample(int(record)) for record in records])

    def sample(self, record):
        """Image and label of one record."""
        if record < 0:
            return np.zeros((3, self.size, self.size), np.uint8), np.int32(-1)
        try:
            image = evaluation_image(self.read(record), self.size, self.preprocessing, self.records.upright)
        except ValueError as error:
            raise InputError(where_and_why(self.records, record, error)) from None
        return channels_first(image), np.int32(self.records.label[record] - self.offset)


def _batch(samples):
    return tuple(map(np.stack, zip(*samples)))
