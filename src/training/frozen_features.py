"""Training of the classifier alone, on features that the rest of the network, which is frozen, has computed once.

There is a row for each record in each copy; copy c has the draws of epoch c. Dropout's mask is drawn
anew in every epoch: another one than in a training run on images, where the crop is drawn before it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
from mindspore import nn
from tqdm import tqdm

from src.data import preprocess
from src.data.order import TrainingOrder, generator
from src.data.pipeline import TRAINING_COLUMNS, LoadTraining, batches
from src.errors import InputError, reading
from src.evaluation.evaluation import Evaluation, EvaluationStep, take_weights
from src.evaluation.outcomes import Result
from src.options import Settings
from src.runtime import Run
from src.training.step import NetworkWithLoss

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
    load_images: LoadTraining, with_loss: NetworkWithLoss, copies: int, run: Run
) -> Callable[[range, int], ds.Dataset]:
    """steps, image size -> data set of the features of so many augmented `copies` of each record of `load_images`, computed
    now; `with_loss` is changed so that it takes them in place of images. InputError if there is no room for them."""
    settings, records = load_images.settings, len(load_images.records)
    network, cell, begun = _inside(with_loss.network), Features(with_loss.network, with_loss.augment), time.perf_counter()
    with_loss.network, with_loss.augment = Classifier(network), None
    total, size, numbers = copies * records, settings.batch_size, ['epoch', 'record']
    filled = np.arange(-(-total // size) * size).clip(max=total - 1)  # the last batch with the last record
    order = [*zip(*np.divmod(filled, records))]
    images = _progress(batches(order, numbers, load_images, TRAINING_COLUMNS, settings, run.ranks_here))
    remedy = f'the features need {total * ROW.itemsize / 1e6:.1f} MB; use another --log_dir or fewer --cache_features'
    # A file without a name, which ends with this process: they may be more than fits into memory.
    with reading(run.directory, remedy), tempfile.TemporaryFile(dir=run.directory) as file:
        for image, draws, _, label in images:
            rows = np.zeros(size, ROW)
            rows['feature'], rows['label'] = cell(image, draws).asnumpy(), label.asnumpy()
            file.write(rows.tobytes())
        file.flush()
        rows = np.memmap(file, ROW, 'r', shape=(copies, records))
    run.log(f'features of {copies} x {records} images computed in {time.perf_counter() - begun:.1f} s')

    def load(epochs, numbers):
        found, keep = rows[epochs % copies, numbers], settings.dropout_keep_prob
        generators = [generator(settings.seed, int(epoch), int(number)) for epoch, number in zip(epochs, numbers)]
        masks = np.stack([preprocess.dropout_mask(rng, keep) for rng in generators])
        return found['feature'], np.zeros((len(found), 2), np.float32), masks, found['label']

    alone = settings.but(num_workers=1)
    return lambda steps, _: batches(TrainingOrder(records, settings, steps), numbers, load, TRAINING_COLUMNS, alone)


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
