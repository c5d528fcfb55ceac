"""Training of the classifier alone, on features that the rest of the network, which is frozen, has computed once.

They are kept in a file with a row for each record in each copy; copy c has the draws of epoch c. Dropout's mask is drawn
anew in every epoch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
from mindspore import nn
from tqdm import tqdm

from src import files
from src.data import preprocess
from src.data.order import TrainingOrder, generator
from src.data.pipeline import TRAINING_COLUMNS, BadRecords, LoadTraining, batches
from src.errors import InputError, reading
from src.evaluation.evaluation import Evaluation, EvaluationStep, take_weights
from src.evaluation.outcomes import Result
from src.options import Settings
from src.runtime import Run
from src.training.step import NetworkWithLoss

if TYPE_CHECKING:
    from train import TrainingSet

CLASSIFIER = 'logits'
ROW = np.dtype([('feature', '<f4', preprocess.POOLED_FEATURES), ('label', '<i4')])
DRAWS = ('AREA', 'ASPECT', 'ATTEMPTS', 'BRIGHTNESS', 'SATURATION', 'PREPROCESSING')  # constants of preprocess.py


def frozen(network: nn.Cell, settings: Settings, run: Run) -> list[str]:
    """What is to be frozen: the option `freeze`, and with `cache_features` all layers except the classifier.

    InputError if the auxiliary classifier is to be trained, or on several devices.
    """
    if not settings.cache_features:
        return settings.freeze
    if settings.aux_logits or run.world > 1:
        needed = '--aux_logits false' if settings.aux_logits else '--rank_size 1'
        raise InputError(f'cache_features trains only the classifier, on one device; use {needed} or --cache_features 0')
    run.log(f'cache_features: all layers but the classifier ({CLASSIFIER}) are frozen')
    layers = dict.fromkeys(name.split('.')[0] for name, _ in network.parameters_and_names())
    return [*settings.freeze, *(layer for layer in layers if layer != CLASSIFIER)]


class Classifier(nn.Cell):
    """Features (N, 1536) and dropout mask (N, 1536) or None -> logits float32 (N, num_classes), by the last layer of
    `network`, whose other layers are parameters only."""

    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        self.network = _inside(network)

    def construct(self, x, dropout_mask=None):
        """See the class."""
        if dropout_mask is not None:
            x = x * dropout_mask
        return self.network.logits(x).astype(ms.float32)


class Features(nn.Cell):
    """uint8 images (N, 3, H, W) -> pooled features, float32 (N, 1536), by all but the last layer of `network` in inference
    mode. With `augment` a second input, its draws (N, 2); without, images are scaled as `preprocessing` says."""

    def __init__(
        self, network: nn.Cell, augment: nn.Cell | None, preprocessing: preprocess.Preprocessing = preprocess.PREPROCESSING
    ):
        super().__init__(auto_prefix=False)
        self.network, self.augment, self.preprocessing = _inside(network), augment, preprocessing
        self.set_train(False)

    def construct(self, image, draws=None):
        """See the class."""
        if self.augment is None:
            x = preprocess.scale(image.astype(ms.float32), self.preprocessing)
        else:
            x = self.augment(image, draws)
        return self.network.features(x)[0].astype(ms.float32)


def _inside(network):
    """The network in what mixed precision has made of it."""
    return getattr(network, '_backbone', network)


class CopiesOrder:
    """Iterable of (copy, record): all records, once for each copy, the last one repeated to fill the last batch."""

    def __init__(self, copies: int, count: int, batch_size: int):
        self.copies, self.count, self.batch_size = copies, count, batch_size

    def __len__(self):
        return -(-self.copies * self.count // self.batch_size) * self.batch_size

    def __iter__(self):
        for i in range(len(self)):
            yield tuple(map(np.int64, divmod(min(i, self.copies * self.count - 1), self.count)))


class LoadFeatures:
    """Epochs (N,), records (N,) -> what `LoadTraining` returns, with features float32 (N, 1536) in place of images and draws
    of zero. Epoch e takes copy e modulo the number of copies."""

    def __init__(self, rows: np.ndarray, settings: Settings):
        self.rows, self.settings = rows, settings

    def __call__(self, epochs, records):
        """See the class."""
        rows, keep = self.rows[epochs % len(self.rows), records], self.settings.dropout_keep_prob
        generators = [generator(self.settings.seed, int(e), int(r)) for e, r in zip(epochs, records)]
        masks = np.stack([preprocess.dropout_mask(rng, keep) for rng in generators])
        return rows['feature'], np.zeros((len(rows), 2), np.float32), masks, rows['label']


def cached(
    data: TrainingSet, with_loss: NetworkWithLoss, copies: int, settings: Settings, run: Run, bad: BadRecords
) -> Callable[[range, int], ds.Dataset]:
    """steps, image size -> data set of the features of so many augmented `copies` of each image of `data`, kept in
    `run.directory`; `with_loss` is changed so that it takes them."""
    network, cell = _inside(with_loss.network), Features(with_loss.network, with_loss.augment)
    with_loss.network, with_loss.augment = Classifier(network), None
    made_from = [settings.image_size, settings.seed, settings.min_object_covered, data.records.fingerprint, data.offset]
    made_from += [copies, run.device_target, run.amp_level, [getattr(preprocess, one) for one in DRAWS]]
    sha = hashlib.sha256(json.dumps(made_from).encode())
    for parameter in network.get_parameters():
        if not parameter.name.startswith(CLASSIFIER + '.'):
            sha.update(f'{parameter.name} {parameter.shape}\n'.encode())
            sha.update(np.ascontiguousarray(parameter.asnumpy()).data)
    path, shape = Path(run.directory, f'features-{sha.hexdigest()[:32]}.npy'), (copies, len(data.records))
    numbers, begun, how = ['epoch', 'record'], time.perf_counter(), 'taken from'
    if (rows := read_features(path, shape)) is None:
        order, load = CopiesOrder(*shape, settings.batch_size), LoadTraining(data.records, data.offset, settings, bad)
        images = _progress(batches(order, numbers, load, TRAINING_COLUMNS, settings, run.ranks_here))
        write_features(path, shape, ((cell(image, draws), label) for image, draws, _, label in images))
        rows, how = read_features(path, shape), f'computed in {time.perf_counter() - begun:.1f} s:'
    run.log(f'features of {shape[0]} x {shape[1]} images {how} {path.name}')
    alone = settings.but(num_workers=1)
    load = LoadFeatures(rows, settings)
    return lambda steps, _: batches(TrainingOrder(shape[1], settings, steps), numbers, load, TRAINING_COLUMNS, alone)


def read_features(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The rows in the file, `ROW` of (copies, records), mapped into memory; None if there is no such file or it is cut."""
    try:
        rows = np.load(path, mmap_mode='r')
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    return rows if (rows.dtype, rows.shape) == (ROW, shape) else None


def write_features(path: Path, shape: tuple[int, int], columns: Iterable) -> None:
    """Write the batches of (features, labels) of a `CopiesOrder` to `path`, whole or not at all, and remove the files
    of other features beside it. InputError if it cannot be written."""
    left = shape[0] * shape[1]
    remedy = f'the features need {left * ROW.itemsize / 1e6:.1f} MB; use another --log_dir or fewer --cache_features'
    with reading(path, remedy), files.replacing(path) as temporary, open(temporary, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, {'descr': ROW.descr, 'fortran_order': False, 'shape': shape})
        for batch in columns:
            rows = np.zeros(min(left, len(batch[0])), ROW)
            for column, values in zip(ROW.names, batch):
                rows[column] = values.asnumpy()[: len(rows)]
            left -= len(rows)
            file.write(rows.tobytes())
    for other in path.parent.glob('features-*.npy'):
        if other != path:
            other.unlink()


def _progress(data):
    total = data.get_dataset_size()
    return tqdm(data.create_tuple_iterator(num_epochs=1), 'computing features', total, leave=False, disable=None)


class FeatureEvaluation(Evaluation):
    """An `Evaluation` where only the classifier is trained: the features of its images are computed once."""

    known = False

    def of_training(
        self, train_step: nn.Cell, should_stop: Callable[[], bool] = lambda: False, done: Callable[[], int] = lambda: 0
    ) -> Result | None:
        """`Result` of the classifier of a `TrainStep` after `done()` steps; None if `should_stop()` became true."""
        if not self.known and not self._compute(train_step, should_stop):
            return None
        self.known = True
        take_weights(self.step.network.network.logits, train_step)
        return self.of_network({'step': done()}, should_stop)

    def _compute(self, train_step, should_stop):
        """Replace the images by features, and the step by one that takes them; False if it should stop."""
        network = self.step.network
        take_weights(network, train_step)
        cell, columns = Features(network, None, self.step.preprocessing), ([], [])
        for image, label in _progress(self.data):
            if should_stop():
                return False
            columns[0].append(cell(image).asnumpy())
            columns[1].append(label.asnumpy())
        batch_size, arrays = len(columns[1][0]), tuple(map(np.concatenate, columns))
        self.data = ds.NumpySlicesDataset(arrays, ['image', 'label'], shuffle=False).batch(batch_size)
        self.step = EvaluationStep(Classifier(network), None)
        return True
