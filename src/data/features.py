"""Features of augmented images, kept in a file, in place of the images: for a training of the classifier alone.

The file has a row for each record in each copy; copy c has the draws of epoch c.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore.dataset as ds
import numpy as np

from src import files
from src.data import preprocess
from src.data.image import EncodedImage
from src.data.order import TrainingOrder, generator
from src.data.pipeline import LoadTraining, batches
from src.data.preprocess import POOLED_FEATURES, draw_augmentation, dropout_mask, random_crop
from src.errors import InputError

if TYPE_CHECKING:
    from src.options import Settings

PREFIX = 'features-'
# `size` is the image's height and width, 0 for one that could not be decoded.
ROW = np.dtype([('feature', '<f4', POOLED_FEATURES), ('label', '<i4'), ('size', '<i4', 2)])


class CopiesOrder:
    """Iterable of (copy, record): all records, once for each copy, the last one repeated to fill the last batch."""

    columns = TrainingOrder.columns

    def __init__(self, copies: int, count: int, batch_size: int):
        self.copies, self.count, self.batch_size = copies, count, batch_size

    def __len__(self):
        return -(-self.copies * self.count // self.batch_size) * self.batch_size

    def __iter__(self):
        for i in range(len(self)):
            yield tuple(map(np.int64, divmod(min(i, self.copies * self.count - 1), self.count)))


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

    def __init__(self, rows: np.ndarray, settings: Settings):
        self.rows, self.settings = rows, settings

    def __call__(self, epochs, records):
        rows = self.rows[epochs % len(self.rows), records]
        masks = [self.mask(int(e), int(r), row['size']) for e, r, row in zip(epochs, records, rows)]
        return rows['feature'], np.zeros((len(rows), 2), np.float32), np.stack(masks), rows['label']

    def mask(self, epoch: int, record: int, size: np.ndarray) -> np.ndarray:
        """The dropout mask of a record in an epoch, float32 (1536,)."""
        rng = generator(self.settings.seed, epoch, record)
        if size.all():  # the mask comes after the draws for the image
            random_crop(rng, int(size[0]), int(size[1]), self.settings.min_object_covered)
        draw_augmentation(rng)
        return dropout_mask(rng, self.settings.dropout_keep_prob)


def copies_dataset(load: LoadCopies, copies: int, ranks_here: int = 1) -> ds.Dataset:
    """Batches of all records as in each of the first `copies` epochs, as `load` makes them."""
    order = CopiesOrder(copies, len(load.records), load.settings.batch_size)
    return batches(order, load, ['image', 'draws', 'size', 'label'], load.settings, ranks_here)


def feature_dataset(rows: np.ndarray, settings: Settings, steps: range) -> ds.Dataset:
    """What `training_dataset` returns on one rank, with the features in `rows`, `ROW` (copies, count), for the images."""
    order = TrainingOrder(rows.shape[1], settings, steps)
    columns = ['image', 'draws', 'dropout_mask', 'label']
    return batches(order, LoadFeatures(rows, settings), columns, settings.but(num_workers=1))


def name(made_from: list, weights: Iterable[tuple[str, np.ndarray]]) -> str:
    """The file name of the features that a network with the `weights` (name, ndarray) makes of what `made_from` tells of the
    images; another one if anything changes on which they depend."""
    draws = [getattr(preprocess, one) for one in ('AREA', 'ASPECT', 'ATTEMPTS', 'BRIGHTNESS', 'SATURATION', 'PREPROCESSING')]
    sha = hashlib.sha256(json.dumps([made_from, draws], sort_keys=True).encode())
    for parameter, value in weights:
        sha.update(f'{parameter} {value.shape}\n'.encode())
        sha.update(np.ascontiguousarray(value).data)
    return f'{PREFIX}{sha.hexdigest()[:32]}.npy'


def read(path: Path, copies: int, count: int) -> np.ndarray | None:
    """The rows in the file, `ROW` (copies, count), mapped into memory; None if there is no such file or it is cut off."""
    try:
        rows = np.load(path, mmap_mode='r')
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    return rows if rows.dtype == ROW and rows.shape == (copies, count) else None


def write(path: Path, copies: int, count: int, columns: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Write the batches of (features, sizes, labels) of a `CopiesOrder` to `path`, whole or not at all, and remove the files
    of other features beside it. InputError if it cannot be written."""
    need, left = copies * count * ROW.itemsize, copies * count
    remedy = f'the features need {need / 1e6:.1f} MB there: choose another --log_dir, or fewer --cache_features'
    try:
        with files.replacing(path) as temporary, open(temporary, 'wb') as file:
            header = {'descr': ROW.descr, 'fortran_order': False, 'shape': (copies, count)}
            np.lib.format.write_array_header_1_0(file, header)
            for batch in columns:
                rows = np.zeros(min(left, len(batch[0])), ROW)
                for column, values in zip(('feature', 'size', 'label'), batch):
                    rows[column] = values[: len(rows)]
                left -= len(rows)
                file.write(rows.tobytes())
    except OSError as error:
        raise InputError(f'{path}: {error.strerror or error}; {remedy}') from None
    for other in path.parent.glob(f'{PREFIX}*.npy'):
        if other != path:
            other.unlink()
