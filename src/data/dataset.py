"""Records and preprocessing to sharded, seeded batches through `mindspore.dataset`.

Which record stands where in the training, and every random draw made for it, follows from (seed, epoch, record)
alone. So the order does not depend on the number of workers or ranks, and any step can be reached without running
the ones before it; MindSpore's own TFRecordDataset shuffles inside buffers and gives ranks fixed parts.
"""

import dataclasses
import multiprocessing
import os
import sys
import time
import zlib

import mindspore.dataset as ds
import numpy as np

from src import sysvipc
from src.data import imagenet
from src.data.preprocess import PREPROCESSING, augment, channels_first, evaluation_picture, random_colour, training_picture
from src.errors import InputError

POOLED_FEATURES = 1536
SUBSTITUTES = 100  # tried for a bad record
MOST_WORKERS = 32  # by default: twice what eight first Ascend 910 take (docs/scaling.md)


def label_offset(option, records):
    """What is subtracted from the labels of `records`: `option` ("0" or "1"), or for "auto" the lowest label of a class.

    TF-slim's ImageNet records count from 1 and leave 0 to a background class; folders count from 0.
    """
    return records.label_base if option == 'auto' else int(option)


def count_classes(option, records, offset):
    """(number of classes, where it comes from) of a training with `records`: `option` (int), or for 'auto' as many as have
    names or, where there are no names, labels.

    InputError where the labels, or the names, do not fit the number, and where a class has no image.
    """
    if records.empty:
        raise InputError(
            f'class folder {records.empty[0]} holds no image ({len(records.empty)} of '
            f'{len(records.folders)} class folders do not); put its images directly into it, or remove it'
            + (f' (left out: {records.left_out})' if records.left_out else '')
        )
    named = len(records.class_names) - offset if records.class_names else 0
    if option != 'auto':
        classes, source = option, 'num_classes'
    elif named:
        classes, source = named, 'those with names'
    else:
        largest = int(records.label.argmax())
        classes, source = int(records.label[largest]) + 1 - offset, f'by the largest label {records.label[largest]}'
        if classes > max(len(records), 1001):
            raise InputError(
                f'{records.where(largest)} has the label {records.label[largest]}, which would make {classes} '
                f'classes of {len(records)} images; mend it, or give --num_classes'
            )
    check_labels(records, offset, max(classes, 1))
    if 0 < named < classes:
        raise InputError(
            f'num_classes {classes}, but the records name {named} classes (label_offset {offset}); leave '
            'num_classes at auto, or name the others'
        )
    if classes < 2:
        raise InputError(f'all {len(records)} training images are of one class; a training needs two or more')
    return classes, source


def check_labels(records, offset, num_classes):
    """InputError naming the first record whose label is not one of `num_classes` after `offset` is subtracted."""
    bad = np.flatnonzero((records.label < offset) | (records.label >= num_classes + offset))
    if len(bad):
        label = records.label[bad[0]]
        likely = (
            'labels start at 1, as TF-slim writes them: use --label_offset 1'
            if label == num_classes and not offset and records.label.min() > 0
            else f'labels.txt names no class {label}: mend it'
            if records.class_names and label >= len(records.class_names)
            else f'the records have labels {records.label.min()} to {records.label.max()}: '
            'set --num_classes and --label_offset to match'
        )
        raise InputError(
            f'label {label} of {records.where(bad[0])} is outside {offset}..{num_classes - 1 + offset} '
            f'(num_classes {num_classes}, label_offset {offset}); {likely}'
        )


def match_names(records, recorded, source):
    """`records` with the labels of the training that recorded its class names as `recorded` (list by label, or None):
    every class gets the label that its name has there. As they are where either knows no names.

    InputError naming a class that `source`, a checkpoint, does not know.
    """
    names = records.class_names
    if not names or not recorded:
        return records
    labels = np.unique(records.label).tolist()
    # A name that is just the number says nothing: conversions of nameless records write such ones.
    name = {
        label: names[label]
        for label in labels
        if 0 <= label < len(names) and names[label] and (names[label] != str(label) or names[label] in recorded)
    }
    if not name:
        return records
    for spelled in (str, imagenet.words):  # ImageNet's classes go by WordNet ids in one place, by words in another
        number = _numbers(labels, {label: spelled(name[label]) for label in name}, [spelled(known) for known in recorded])
        if number:
            break
    else:
        raise InputError(_unmatched(labels, name, recorded, records, source))
    matched = np.array([number[label] for label in labels], np.int64)[np.searchsorted(labels, records.label)]
    return dataclasses.replace(records, label=matched, class_names=list(recorded))


def _numbers(labels, name, recorded):
    """{label: place of its name in `recorded`}; None if not every one has exactly one."""
    # As a whole first, since a list may hold a name twice: two of ImageNet's classes are called crane.
    for shift in (0, 1, -1):
        if all(0 <= label + shift < len(recorded) and recorded[label + shift] == name[label] for label in name) and (
            not shift or len(name) == len(labels)
        ):
            return {label: label + shift for label in labels}
    if len(name) == len(labels) and all(recorded.count(one) == 1 for one in name.values()):
        return {label: recorded.index(name[label]) for label in labels}
    return None


def _unmatched(labels, name, recorded, records, source):
    """Which class of `records` is not to be found among those of `source`, and why."""
    words, known = [imagenet.words(one) for one in recorded], [one for one in recorded if one]
    label = next(label for label in labels if label not in name or words.count(imagenet.words(name[label])) != 1)
    what = (
        'has no name, and the other names are numbered otherwise than'
        if label not in name
        else 'has a name that stands twice in the names of'
        if imagenet.words(name[label]) in words
        else 'is unknown to'
    )
    where = records.where(int(np.argmax(records.label == label)))
    return (
        f'class {repr(name[label]) if label in name else label} of {where} {what} {source}, which knows '
        f'{", ".join(known[:3])}{" ..." if len(known) > 3 else ""} ({len(known)} classes); name the classes as '
        'its training did'
    )


def fingerprint(records):
    """What a training must find again to go on with the same records: their number, the order of their labels, and what
    can be said of their images without reading them. Older checkpoints have the part before "and"."""
    labels = zlib.crc32(np.asarray(records.label, np.int64).tobytes())
    return f'{len(records)} with label checksum {labels:08x} and file checksum {records.files_checksum():08x}'


def epoch_order(seed, epoch, count):
    """Order of the records in an epoch: a permutation of range(count)."""
    return _generator(seed, epoch, count).permutation(count)


def _generator(seed, epoch, record):
    """A generator of its own for every (seed, epoch, record): counter-based, so making one is cheap."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, record]))


class TrainingOrder:
    """Iterable of (epoch, record) for one rank, from step `start` to step `stop`.

    Step s of an epoch takes the next world * batch_size records of its order, of which a rank has batch_size
    neighbours: N ranks with batches of B see in a step what one rank with batches of N * B sees. What is left over at
    the end of an epoch is another part in every epoch.
    """

    def __init__(self, count, seed, batch_size, rank, world, start, stop):
        self.count, self.seed, self.batch_size, self.rank, self.world = count, seed, batch_size, rank, world
        self.start, self.stop = start, stop

    def __len__(self):
        return (self.stop - self.start) * self.batch_size

    def __iter__(self):
        steps_per_epoch = self.count // (self.batch_size * self.world)
        order, order_epoch = None, -1
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.seed, epoch, self.count), epoch
            first = (position * self.world + self.rank) * self.batch_size
            for record in order[first : first + self.batch_size]:
                yield np.int64(epoch), np.int64(record)


class EvaluationOrder:
    """Iterable of records for one rank, each record on one rank once, filled up with -1 to whole batches."""

    def __init__(self, count, batch_size, rank, world):
        self.count, self.rank, self.world = count, rank, world
        self.length = -(-count // (world * batch_size)) * batch_size

    def __len__(self):
        return self.length

    def __iter__(self):
        for i in range(self.length):
            record = i * self.world + self.rank
            yield (np.int64(record if record < self.count else -1),)


class BadRecords:
    """What data workers say to the training: records of this rank that cannot be read or decoded, counted by epoch over all
    workers, and the error that ended one of them.

    Workers run ahead of the steps, hence a count for each epoch, judged when the epoch is trained.

    Args:
        max_fraction (float): part of the rank's `per_epoch` records that may be bad, but at least one, if it is not 0.
        epochs (int): of the training.
    """

    def __init__(self, max_fraction, per_epoch, epochs):
        self.max_fraction, self.per_epoch = max_fraction, per_epoch
        self._counts = multiprocessing.Array('q', epochs)  # shared with the workers by fork
        self._first = multiprocessing.Array('c', 1000)
        self._failure, self._failed = multiprocessing.RawArray('c', 2000), multiprocessing.RawValue('b')

    def add(self, epoch, where):
        """Count one."""
        with self._counts.get_lock():
            self._counts[epoch] += 1
            self._first.value = self._first.value or where.encode()[:999]

    def fail(self, error):
        """Tell of the error that ends a worker."""
        self._failure.value = str(error if isinstance(error, InputError) else repr(error)).encode()[:1999]
        self._failed.value = 1

    def count(self, epoch):
        """How many were bad in `epoch` (from 0)."""
        return self._counts.get_obj()[epoch]  # without the lock, which a worker that was killed may hold

    @property
    def first(self):
        """Place and damage of the first one."""
        return self._first.get_obj().value.decode(errors='replace')

    @property
    def failure(self):
        """The error that ended a worker, or ''."""
        return self._failure.value.decode(errors='replace') if self._failed.value else ''

    def problem(self, epochs):
        """Why a training that is in `epochs` must end: `failure`, or too many bad records; '' where it need not."""
        for epoch in epochs:
            if self.count(epoch) > (self.max_fraction and max(1, self.max_fraction * self.per_epoch)):
                return (
                    f'{self.count(epoch)} of the {self.per_epoch} records that this rank takes in epoch {epoch + 1} cannot '
                    f'be read or decoded, more than max_bad_fraction {self.max_fraction} allows; the first was '
                    f'{self.first}; python -m src.data.check DIR lists them all'
                )
        return self.failure


class PatientReader:
    """`record` -> its bytes. What cannot be read is tried again after `PAUSES`: a network disk may stall for a while, a file
    be away while it is replaced. When that was in vain, less is waited for the next ones, until waiting has helped again.

    Raises ValueError.
    """

    PAUSES = (0.2, 0.5, 1, 2, 4)  # seconds

    def __init__(self, records):
        self.records, self.pauses = records, self.PAUSES

    def __call__(self, record):
        for waited in (0, *self.pauses):
            time.sleep(waited)
            try:
                encoded = self.records.read(record)
            except (OSError, InputError) as error:
                problem = error
                continue
            self.pauses = self.PAUSES if waited else self.pauses
            return encoded
        self.pauses = self.PAUSES[:1]
        raise ValueError(str(problem))


def _where(records, record, error):
    place, problem = records.where(record), str(error)
    return problem if problem.startswith(place) else f'{place}: {problem}'


class LoadTraining:
    """Epochs (N,), records (N,) -> image uint8 (N, 3, size, size), or with `augment_on_host` as the network takes it:
    float32 of the same shape; draws float32 (N, 2), dropout mask uint8 (N, 1536), label int32 (N,).

    A record that cannot be read or decoded is counted in `bad` and another one takes its place (so that all ranks keep the
    same number of steps); without `bad` it is an InputError. What ends a worker is told to `bad`, too.
    """

    def __init__(self, records, offset, image_size, seed, keep_prob, min_covered, augment_on_host=False, bad=None):
        self.records, self.offset, self.size, self.seed = records, offset, image_size, seed
        self.keep, self.min_covered, self.augment_on_host, self.bad = keep_prob, min_covered, augment_on_host, bad
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
        """The same, of one record."""
        rng = _generator(self.seed, epoch, record)
        try:
            image = training_picture(self.read(record), self.size, rng, self.min_covered, self.records.upright)
        except ValueError as error:
            where = _where(self.records, record, error)
            if self.bad is None:
                raise InputError(where) from None
            self.bad.add(epoch, where)
            rng = _generator(self.seed, epoch, record)  # again: how far it was read depends on the damage
            image, record = self.substitute(rng)
        flip, draws = random_colour(rng)
        image = channels_first(image, flip)
        mask = (rng.random(POOLED_FEATURES, np.float32) < self.keep).astype(np.uint8)
        if self.augment_on_host:
            image = augment(image, draws)
        return image, draws, mask, np.int32(self.records.label[record] - self.offset)

    def substitute(self, rng):
        """Picture and number of a record that can be decoded, drawn from all."""
        for _ in range(SUBSTITUTES):
            record = int(rng.integers(len(self.records)))
            drawn = np.random.Generator(np.random.Philox(rng.integers(1 << 32)))
            try:
                encoded = self.records.read(record)
                return training_picture(encoded, self.size, drawn, self.min_covered, self.records.upright), record
            except (ValueError, OSError, InputError) as error:
                last = _where(self.records, record, error)
        raise InputError(
            f'{SUBSTITUTES} records drawn in a row cannot be read or decoded, the last of them {last}; '
            'python -m src.data.check DIR lists them all'
        )


class LoadEvaluation:
    """Records (N,) -> image uint8 (N, 3, size, size), label int32 (N,); for -1 a black picture with the label -1."""

    def __init__(self, records, offset, image_size, preprocessing=PREPROCESSING):
        self.records, self.offset, self.size, self.preprocessing = records, offset, image_size, preprocessing
        self.read = PatientReader(records)

    def __call__(self, records):
        return _batch([self.sample(int(record)) for record in records])

    def sample(self, record):
        if record < 0:
            return np.zeros((3, self.size, self.size), np.uint8), np.int32(-1)
        try:
            image = evaluation_picture(self.read(record), self.size, self.preprocessing, self.records.upright)
        except ValueError as error:
            raise InputError(_where(self.records, record, error)) from None
        return channels_first(image), np.int32(self.records.label[record] - self.offset)


def _batch(samples):
    return tuple(map(np.stack, zip(*samples)))


def workers(option, ranks_here=1):
    """Decoding processes: `option` or, for 0, this rank's share of the cores, at most MOST_WORKERS.

    With --bind_core the cores that this process may use are its share already; the launcher, which is not bound, says in
    LOCAL_CORES how many there are for all its ranks.
    """
    cores = len(os.sched_getaffinity(0))
    share = int(os.environ.get('LOCAL_CORES', cores)) // ranks_here
    return min(option, cores) if option else max(1, min(cores, share, MOST_WORKERS))


def _pipeline(order, names, load, columns, batch_size, num_workers):
    if num_workers > 1 and (left := sysvipc.remove_orphans()):
        print(f'removed {left / 1e6:.1f} MB of shared memory that killed data workers had left', file=sys.stderr, flush=True)
    ds.config.set_prefetch_size(2)  # batches; with the default of 16 a waiting pipeline held 1 GB at batch 64, now a third
    data = ds.GeneratorDataset(order, names, shuffle=False, num_parallel_workers=1).batch(batch_size, drop_remainder=True)
    # A worker makes whole batches: one picture a call costs the main process four times as much.
    return data.map(load, names, columns, num_parallel_workers=num_workers, python_multiprocessing=num_workers > 1)


def training_dataset(
    records,
    *,
    offset,
    image_size,
    batch_size,
    seed,
    keep_prob,
    start,
    stop,
    min_covered=0.1,
    augment_on_host=False,
    bad=None,
    rank=0,
    world=1,
    num_workers=1,
):
    """Batches of the steps `start` to `stop` of a training, as `LoadTraining` makes them; one pass is all of it."""
    order = TrainingOrder(len(records), seed, batch_size, rank, world, start, stop)
    load = LoadTraining(records, offset, image_size, seed, keep_prob, min_covered, augment_on_host, bad)
    return _pipeline(order, ['epoch', 'record'], load, ['image', 'draws', 'mask', 'label'], batch_size, num_workers)


def evaluation_dataset(
    records, *, offset, image_size, batch_size, preprocessing=PREPROCESSING, rank=0, world=1, num_workers=1
):
    """Batches with every record once, as `LoadEvaluation` makes them; equally many on every rank."""
    order = EvaluationOrder(len(records), batch_size, rank, world)
    load = LoadEvaluation(records, offset, image_size, preprocessing)
    return _pipeline(order, ['record'], load, ['image', 'label'], batch_size, num_workers)
