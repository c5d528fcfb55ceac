"""Training of the classifier alone, on features that the rest of the network, which is frozen, has computed once.

They are kept in a file with a row for each record in each copy; copy c has the draws of epoch c. Dropout's mask is drawn
anew in every epoch: another one than in a training run on images, where the crop is drawn before it.
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

    def __init__(self, network: nn.Cell, augment: nn.Cell | None, preprocessing: preprocess.Preprocessing | None = None):
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


def cached(
    data: TrainingSet, with_loss: NetworkWithLoss, copies: int, settings: Settings, run: Run, bad: BadRecords
) -> Callable[[range, int], ds.Dataset]:
    """steps, image size -> data set of the features of so many augmented `copies` of each image of `data`, kept in
    `run.directory`; `with_loss` is changed so that it takes them in place of images."""
    network, cell, begun = _inside(with_loss.network), Features(with_loss.network, with_loss.augment), time.perf_counter()
    with_loss.network, with_loss.augment = Classifier(network), None
    made_from = [settings.image_size, settings.seed, settings.min_object_covered, data.records.fingerprint, data.offset]
    made_from += [copies, run.device_target, run.amp_level, preprocess.PREPROCESSING]
    sha = hashlib.sha256(json.dumps(made_from).encode())
    for parameter in network.get_parameters():
        if not parameter.name.startswith(CLASSIFIER + '.'):
            sha.update(f'{parameter.name} {parameter.shape}\n'.encode())
            sha.update(np.ascontiguousarray(parameter.asnumpy()).data)
    path, shape = Path(run.directory, f'features-{sha.hexdigest()[:32]}.npy'), (copies, len(data.records))
    rows, how, numbers = read_features(path, shape), 'taken from', ['epoch', 'record']

    def load(epochs, records):
        found, keep = rows[epochs % copies, records], settings.dropout_keep_prob
        generators = [generator(settings.seed, int(epoch), int(record)) for epoch, record in zip(epochs, records)]
        masks = np.stack([preprocess.dropout_mask(rng, keep) for rng in generators])
        return found['feature'], np.zeros((len(found), 2), np.float32), masks, found['label']

    if rows is None:
        load_images, size = LoadTraining(data.records, data.offset, settings, bad), settings.batch_size
        filled = np.arange(-(-copies * shape[1] // size) * size).clip(max=copies * shape[1] - 1)  # with the last row
        order = [*zip(*np.divmod(filled, shape[1]))]
        images = _progress(batches(order, numbers, load_images, TRAINING_COLUMNS, settings, run.ranks_here))
        write_features(path, shape, ((cell(image, draws), label) for image, draws, _, label in images))
        rows, how = read_features(path, shape), f'computed in {time.perf_counter() - begun:.1f} s:'
    run.log(f'features of {copies} x {len(data.records)} images {how} {path.name}')
    alone = settings.but(num_workers=1)
    return lambda steps, _: batches(TrainingOrder(shape[1], settings, steps), numbers, load, TRAINING_COLUMNS, alone)


def read_features(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The rows in the file, `ROW` of (copies, records), mapped into memory; None if there is no such file or it is cut."""
    try:
        rows = np.load(path, mmap_mode='r')
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    return rows if (rows.dtype, rows.shape) == (ROW, shape) else None


def write_features(path: Path, shape: tuple[int, int], columns: Iterable) -> None:
    """Write the batches of (features, labels) to `path`, as many rows as `shape` says, whole or not at all, and remove the
    files of other features beside it. InputError if it cannot be written."""
    left = shape[0] * shape[1]
    remedy = f'the features need {left * ROW.itemsize / 1e6:.1f} MB; use another --log_dir or fewer --cache_features'
    with reading(path, remedy), files.replacing(path) as temporary, open(temporary, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, {'descr': ROW.descr, 'fortran_order': False, 'shape': shape})
        for features, labels in columns:
            rows = np.zeros(min(left, len(labels)), ROW)
            rows['feature'], rows['label'] = features.asnumpy()[: len(rows)], labels.asnumpy()[: len(rows)]
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

    def of_training(
        self, train_step: nn.Cell, step: int = 0, should_stop: Callable[[], bool] = lambda: False
    ) -> Result | None:
        """`Result` of the classifier of a `TrainStep` after so many steps; None if `should_stop()` became true."""
        network = self.step.network
        if self.step.preprocessing:  # the first time: from now on the data are features, and the step takes them
            take_weights(network, train_step)
            cell = Features(network, None, self.step.preprocessing)
            columns = zip(*((cell(image).asnumpy(), label.asnumpy()) for image, label in _progress(self.data)))
            arrays, batch_size = tuple(map(np.concatenate, columns)), self.data.get_batch_size()
            self.data = ds.NumpySlicesDataset(arrays, ['image', 'label'], shuffle=False).batch(batch_size)
            self.step = EvaluationStep(Classifier(network), None)
        take_weights(self.step.network.network.logits, train_step)
        return self.of_network({'step': step}, should_stop)
