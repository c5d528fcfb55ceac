"""Features of augmented images, kept in a file, in place of the images: for a training of the classifier alone.

The file has a row for each record in each copy; copy c has the draws of epoch c.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import mindspore.dataset as ds
import numpy as np

from src import files
from src.data import preprocess
from src.data.image import EncodedImage
from src.data.order import TrainingOrder, generator
from src.data.pipeline import LoadTraining, batches
from src.data.preprocess import POOLED_FEATURES, draw_augmentation, dropout_mask, random_crop
from src.errors import InputError

PREFIX = 'features-'
# `size` is the image's height and width, 0 for one that could not be decoded; `crc` the checksum of what is before it.
ROW = np.dtype([('feature', '<f4', POOLED_FEATURES), ('label', '<i4'), ('size', '<i4', 2), ('crc', '<u4')])


class CopiesOrder:
    """Iterable of (copy, record): all records, once for each copy, the last one repeated to fill the last batch."""

    def __init__(self, copies, count, batch_size):
        self.copies, self.count, self.batch_size = copies, count, batch_size

    def __len__(self):
        return -(-self.copies * self.count // self.batch_size) * self.batch_size

    def __iter__(self):
        for i in range(len(self)):
            copy, record = divmod(min(i, self.copies * self.count - 1), self.count)
            yield np.int64(copy), np.int64(record)


class LoadCopies(LoadTraining):
    """As `LoadTraining`, with the height and width of the image, int32 (N, 2), in place of the dropout mask."""

    def sample(self, epoch, record):
        """Image, draws, size and label of one record of one copy."""
        self.sound = True
        image, draws, _, label = super().sample(epoch, record)
        size = 0, 0
        if self.sound:
            encoded = EncodedImage(self.read(record), self.records.upright)
            size = encoded.height, encoded.width
        return image, draws, np.array(size, np.int32), label

    def substitute(self, rng):
        """As in `LoadTraining`."""
        self.sound = False
        return super().substitute(rng)


class LoadFeatures:
    """Epochs (N,), records (N,) -> features float32 (N, 1536), zeros float32 (N, 2), dropout mask float32 (N, 1536), label
    int32 (N,).

    Epoch e takes copy e modulo the number of copies, and the dropout mask that `LoadTraining` draws for epoch e.
    """

    def __init__(self, rows, seed, dropout_keep_prob, min_object_covered):
        self.rows, self.seed = rows, seed
        self.dropout_keep_prob, self.min_object_covered = dropout_keep_prob, min_object_covered

    def __call__(self, epochs, records):
        rows = self.rows[epochs % len(self.rows), records]
        masks = [self.mask(int(e), int(r), row['size']) for e, r, row in zip(epochs, records, rows)]
        return rows['feature'], np.zeros((len(rows), 2), np.float32), np.stack(masks), rows['label']

    def mask(self, epoch, record, size):
        """The dropout mask of a record in an epoch, float32 (1536,)."""
        rng = generator(self.seed, epoch, record)
        if size.all():  # the mask comes after the draws for the image
            random_crop(rng, int(size[0]), int(size[1]), self.min_object_covered)
        draw_augmentation(rng)
        return dropout_mask(rng, self.dropout_keep_prob)


def feature_dataset(
    rows: np.ndarray,
    *,
    seed: int,
    dropout_keep_prob: float,
    min_object_covered: float,
    batch_size: int,
    start: int,
    stop: int,
) -> ds.Dataset:
    """What `training_dataset` gives on one rank, with the features in `rows` (see `src.data.features`) for the images."""
    order = TrainingOrder(rows.shape[1], seed, batch_size, 0, 1, start, stop)
    load = LoadFeatures(rows, seed, dropout_keep_prob, min_object_covered)
    return batches(order, ['epoch', 'record'], load, ['image', 'draws', 'dropout_mask', 'label'], batch_size, 1)


def name(settings: list, weights: Iterable[tuple[str, np.ndarray]]) -> str:
    """The file name of the features that a network with the `weights` (name, ndarray) makes under `settings`; another one
    if anything changes on which they depend."""
    draws = [getattr(preprocess, one) for one in ('AREA', 'ASPECT', 'ATTEMPTS', 'BRIGHTNESS', 'SATURATION', 'PREPROCESSING')]
    sha = hashlib.sha256(json.dumps([settings, draws], sort_keys=True).encode())
    for parameter, value in weights:
        sha.update(f'{parameter} {value.shape}\n'.encode())
        sha.update(np.ascontiguousarray(value).data)
    return f'{PREFIX}{sha.hexdigest()[:32]}.npy'


def read(path: Path, copies: int, count: int) -> np.ndarray | None:
    """The rows in the file, `ROW` (copies, count), mapped into memory; None if there is no such file or it is damaged."""
    try:
        rows = np.load(path, mmap_mode='r')
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    if rows.dtype != ROW or rows.shape != (copies, count):
        return None
    return rows if all(row['crc'] == _crc(row) for row in rows.reshape(-1)) else None


def _crc(row):
    return zlib.crc32(row.tobytes()[: -ROW['crc'].itemsize])


def write(path: Path, copies: int, count: int, batches: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Write the `batches` (features, sizes, labels) of a `CopiesOrder` to `path`, whole or not at all, and remove the files
    of other features beside it. InputError if it cannot be written."""
    need, left = copies * count * ROW.itemsize, copies * count
    try:
        with files.replacing(path) as temporary, open(temporary, 'wb') as file:
            np.lib.format.write_array_header_1_0(
                file, {'descr': ROW.descr, 'fortran_order': False, 'shape': (copies, count)}
            )
            for features, sizes, labels in batches:
                rows = np.zeros(min(left, len(labels)), ROW)
                left -= len(rows)
                for column, values in (('feature', features), ('size', sizes), ('label', labels)):
                    rows[column] = values[: len(rows)]
                rows['crc'] = [_crc(row) for row in rows]
                file.write(rows.tobytes())
            file.flush()
    except OSError as error:
        raise InputError(
            f'{path}: {error.strerror or error}; the features need {need / 1e6:.1f} MB there: choose another --log_dir, or '
            'fewer --cache_features'
        ) from None
    for other in path.parent.glob(f'{PREFIX}*.npy'):
        if other != path:
            os.unlink(other)
