"""Training of the classifier alone, on features that the rest of the network has computed once."""

from __future__ import annotations

import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
from mindspore import nn
from tqdm import tqdm

from src.data import features
from src.data.bad_records import BadRecords
from src.data.preprocess import Preprocessing, scale
from src.errors import InputError
from src.evaluation.evaluation import Evaluation, EvaluationStep, take_weights
from src.evaluation.outcomes import Result
from src.inceptionv4 import InceptionV4
from src.training.step import NetworkWithLoss
from src.weights.names import first_of

if TYPE_CHECKING:
    from src.options import Settings
    from src.runtime import Run
    from train import TrainingSet

CLASSIFIER = 'logits'


def frozen(
    network: nn.Cell, option: list[str], cache_features: int, aux_logits: bool, world: int, log: Callable[[str], None]
) -> list[str]:
    """What is to be frozen: the parts that `option` names, but with `cache_features` all parts except the classifier.

    InputError if the other options leave more to train than the classifier, or more devices than one.
    """
    if not cache_features:
        return option
    if aux_logits:
        raise InputError('cache_features: the auxiliary classifier needs images; give --aux_logits false')
    if world > 1:
        raise InputError(f'cache_features is for one device, rank_size is {world}; give --rank_size 1 or --cache_features 0')
    parts = dict.fromkeys(name.split('.')[0] for name, _ in network.parameters_and_names())
    held = {part for part in parts for pattern in option if fnmatchcase(part, pattern)}
    left = [part for part in parts if part not in held and part != CLASSIFIER] if option else []
    if left:
        raise InputError(
            f'cache_features trains only the classifier, but freeze leaves {first_of(left)} to train; leave freeze empty, '
            'which then means all but the classifier, or give --cache_features 0'
        )
    if not option:
        log(f'cache_features {cache_features}: all parts of the network but the classifier ({CLASSIFIER}) are frozen')
    return option or [part for part in parts if part != CLASSIFIER]


class Classifier(nn.Cell):
    """Features (N, 1536) and dropout mask (N, 1536) or None -> logits float32 (N, num_classes), by the last layer of
    `network`, whose other layers are parameters only."""

    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        self.network = _inside(network)

    def construct(self, x, dropout_mask=None):
        if dropout_mask is not None:
            x = x * dropout_mask
        return self.network.logits(x).astype(ms.float32)


class Features(nn.Cell):
    """uint8 images (N, 3, H, W) and draws (N, 2) -> pooled features, float32 (N, 1536), by all but the last layer of
    `network` in inference mode. With `augment` None the images are what the network takes."""

    def __init__(self, network: nn.Cell, augment: nn.Cell | None):
        super().__init__(auto_prefix=False)
        self.network = _inside(network)
        self.augment = augment
        self.set_train(False)

    def construct(self, image, draws):
        x = image if self.augment is None else self.augment(image, draws)
        return self.network.features(x)[0].astype(ms.float32)


class ValidationFeatures(nn.Cell):
    """As `Features` of validation images, which are only scaled."""

    def __init__(self, network: nn.Cell, preprocessing: Preprocessing):
        super().__init__(auto_prefix=False)
        self.network, self.preprocessing = _inside(network), preprocessing
        self.set_train(False)

    def construct(self, image):
        return self.network.features(scale(image.astype(ms.float32), self.preprocessing))[0].astype(ms.float32)


def _inside(network) -> InceptionV4:
    """The network in what mixed precision has made of it."""
    return getattr(network, '_backbone', network)


def cached(
    data: TrainingSet, with_loss: NetworkWithLoss, copies: int, settings: Settings, run: Run, bad: BadRecords
) -> Callable[[int, int, int], ds.Dataset]:
    """Batches of the features of so many augmented `copies` of each image of `data`, kept in `run.directory`; `with_loss` is
    changed so that it takes them.

    Returns:
        callable: start, stop, image_size -> data set of the steps from `start` to `stop`; the size is that of the features.
    """
    network, augment = _inside(with_loss.network), with_loss.augment
    with_loss.network, with_loss.augment = Classifier(network), None
    weights = ((p.name, p.asnumpy()) for p in network.get_parameters() if not p.name.startswith(CLASSIFIER + '.'))
    images = {name: settings[name] for name in ('image_size', 'seed', 'min_object_covered')}
    made_from = [images, data.fingerprint, data.offset, run.device_target, run.amp_level, copies]
    count, begun = len(data.records), time.perf_counter()
    path = Path(run.directory) / features.name(made_from, weights)
    rows = features.read(path, copies, count)
    if rows is None:
        cell, load = Features(network, augment), features.LoadCopies(data.records, data.offset, settings, bad)
        batches = _progress(features.copies_dataset(load, copies, run.ranks_here), 'computing features')
        found = ((cell(image, draws).asnumpy(), size.asnumpy(), label.asnumpy()) for image, draws, size, label in batches)
        features.write(path, copies, count, found)
        rows = features.read(path, copies, count)
        run.log(f'features of {copies} x {count} images computed in {time.perf_counter() - begun:.1f} s: {path.name}')
    else:
        run.log(f'features of {copies} x {count} images taken from {path.name}')
    return lambda start, stop, image_size: features.feature_dataset(rows, settings, range(start, stop))


def _progress(data, title):
    total = data.get_dataset_size()
    return tqdm(data.create_tuple_iterator(num_epochs=1), title, total, leave=False, disable=None, unit='batch')


class FeatureEvaluation(Evaluation):
    """An `Evaluation` of trainings that change only the classifier: the features of its images are computed once."""

    known = False

    def of_training(
        self, train_step: nn.Cell, should_stop: Callable[[], bool] = lambda: False, done: Callable[[], int] = lambda: 0
    ) -> Result | None:
        """`Result` of the classifier of a `TrainStep` after `done()` steps; None if `should_stop()` became true."""
        if not self.known and not self._compute(train_step, should_stop):
            return None
        self.known = True
        take_weights(self.step.network.network.logits, train_step)
        return self._evaluate({'step': done()}, should_stop)

    def _compute(self, train_step, should_stop):
        """Replace the images by features, and the step by one that takes them; False if asked to stop."""
        network = self.step.network
        take_weights(network, train_step)
        cell, columns = ValidationFeatures(network, self.step.preprocessing), ([], [])
        for image, label in _progress(self.data, 'computing features'):
            if should_stop():
                return False
            columns[0].append(cell(image).asnumpy())
            columns[1].append(label.asnumpy())
        batch_size = len(columns[1][0])
        arrays = tuple(map(np.concatenate, columns))
        self.data = ds.NumpySlicesDataset(arrays, ['image', 'label'], shuffle=False).batch(batch_size)
        self.step = EvaluationStep(Classifier(network), None, self.step.per_image)
        return True
