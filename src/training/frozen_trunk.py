"""What is frozen is computed once: the outputs of the trunk, which are the leading layers that are all frozen, for COPIES
augmented copies of each training image and for each validation image. A step then runs the layers behind them alone.

Copy c has the draws of epoch c. Dropout's mask is drawn anew in every epoch: another one than in a training run on images,
where the crop is drawn before it.
"""

from __future__ import annotations

import itertools
import os
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
from src.errors import reading
from src.evaluation.evaluation import Evaluation, EvaluationStep
from src.inceptionv4 import bare
from src.options import Settings
from src.runtime import Run
from src.training.optimizer import changing_parameters
from src.training.plan import output_shape, require_memory
from src.training.state import State
from src.training.step import TrainStep

COPIES = 2


class Trunk(nn.Cell):
    """Images float32 (N, 3, H, W), scaled -> output of the first `count` layers of `network` in inference mode, float32
    (N, C, h, w); of all its layers the means (N, 1536, 1, 1)."""

    def __init__(self, network: nn.Cell, count: int):
        super().__init__(auto_prefix=False)
        layers = network.to_aux + network.from_aux
        self.network, self.layers, self.pooled = network, layers[:count], count == len(layers)
        self.set_train(False)

    def construct(self, x):
        """See the class."""
        for layer in self.layers:
            x = layer(x)
        return (x.mean((2, 3), keep_dims=True) if self.pooled else x).astype(ms.float32)


class Tail(nn.Cell):
    """What a `Trunk` of `count` layers returns, and a dropout mask (N, 1536) or None -> logits float32 (N, num_classes), by
    the other layers of `network`."""

    def __init__(self, network: nn.Cell, count: int):
        super().__init__(auto_prefix=False)
        self.network, self.layers, self.logits = network, (network.to_aux + network.from_aux)[count:], network.logits

    def feature_maps(self, x: ms.Tensor) -> tuple[ms.Tensor]:
        """As those of the network."""
        x = x.astype(ms.float32)
        for layer in self.layers:
            x = layer(x)
        return (x,)

    def construct(self, x, dropout_mask=None):
        """See the class."""
        x = self.feature_maps(x)[0].mean((2, 3))
        x = x if dropout_mask is None else x * dropout_mask
        return self.logits(x).astype(ms.float32)


def trunk_layers(network: nn.Cell) -> list[str]:
    """Names of the leading layers of an `InceptionV4` that no training step changes."""
    layers = network.name_cells().items()
    return [name for name, _ in itertools.takewhile(lambda one: not changing_parameters(one[1]), layers)]


def cached(
    load_images: LoadTraining, state: State, step: TrainStep, evaluation: Evaluation | None
) -> Callable[[range, int], ds.Dataset] | None:
    """steps, image size -> data set of the outputs of the trunk for the images that `load_images` loads; `step` and
    `evaluation` then take these in place of images. None if nothing is frozen or the option `trunk_cache` is 0, and, with a
    line that says why, where they cannot be kept."""
    run, plan, settings, records = state.run, state.plan, load_images.settings, load_images.records
    with_loss, network = step.network, bare(step.network.network)
    layers, copies, count = trunk_layers(network), min(COPIES, plan.epochs), len(records)
    if not settings.trunk_cache or not layers:
        return None
    trunk = Trunk(network, len(layers))
    shape = (preprocess.POOLED_FEATURES, 1, 1) if trunk.pooled else output_shape(layers[-1], settings.image_size)
    row = np.dtype([('output', '<f2', shape), ('label', '<i4')])
    need = (copies * count + (len(evaluation.records) if evaluation else 0)) * row.itemsize / 1e9
    for problem, found in (
        ('aux_logits is true', settings.aux_logits),
        (f'there are {run.world} devices', run.world > 1),
        (f'image_sizes is {settings.image_sizes}', len(plan.stages) > 1),
        (f'it needs {need:.1f} GB, more than trunk_cache {settings.trunk_cache:g}', need > settings.trunk_cache),
    ):
        if found:
            run.log(f'frozen layers are computed in every step, as a cache of their outputs is left out: {problem}')
            if run.device_target == 'CPU':
                require_memory(settings.but(trunk_cache=0.0), sum(p.size for p in network.get_parameters()), run.ranks_here)
            return None

    begun, alone, numbers = time.perf_counter(), settings.but(num_workers=1), ['epoch', 'record']  # a worker would only copy
    order = [divmod(i, count) for i in range(copies * count)]
    order += order[-1:] * (-len(order) % settings.batch_size)  # to whole batches
    images = batches(order, numbers, load_images, TRAINING_COLUMNS, settings, run.ranks_here)
    training = Rows(_outputs(trunk, images, row, run, with_loss.augment)[: copies * count], settings, copies)
    with_loss.network, with_loss.augment = Tail(network, len(layers)), None
    if evaluation:
        validation = Rows(_outputs(trunk, evaluation.data, row, run), settings)
        evaluation.step = EvaluationStep(Tail(evaluation.step.network, len(layers)), None)
        evaluation.data = batches(range(len(validation.rows)), ['row'], validation.evaluated, ['image', 'label'], alone)
    run.log(
        f'outputs of the frozen layers, {layers[0]} to {layers[-1]}, computed for {copies} x {count} training images'
        f'{" and the validation images" * bool(evaluation)}: {need:.2f} GB, {time.perf_counter() - begun:.1f} s'
    )
    load, columns = training.trained, TRAINING_COLUMNS
    return lambda steps, _: batches(TrainingOrder(count, settings, steps), numbers, load, columns, alone)


class Rows:
    """Batches of the `rows` (output, label), of training images in `copies`. By methods, not by functions around the rows:
    MindSpore (2.8) makes a text of a function's closure, with every number in it."""

    def __init__(self, rows: np.ndarray, settings: Settings, copies: int = 1):
        self.rows, self.settings, self.copies, self.records = rows, settings, copies, len(rows) // copies

    def trained(self, epochs: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, ...]:
        """Epochs (N,), records (N,) -> the columns of `LoadTraining`, with outputs in place of images, and no draws."""
        found, seed = self.rows[epochs % self.copies * self.records + records], self.settings.seed
        generators = [generator(seed, int(epoch), int(record)) for epoch, record in zip(epochs, records)]
        masks = np.stack([preprocess.dropout_mask(rng, self.settings.dropout_keep_prob) for rng in generators])
        return np.ascontiguousarray(found['output']), np.zeros((len(found), 2), np.float32), masks, found['label']

    def evaluated(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (N,) of rows -> the columns of `LoadEvaluation`, with outputs in place of images."""
        found = self.rows[numbers]
        return np.ascontiguousarray(found['output']), found['label']


def _outputs(trunk: nn.Cell, images: ds.Dataset, row: np.dtype, run: Run, augment: nn.Cell | None = None) -> np.ndarray:
    """The output of `trunk` and the label of every one of `images`, an array of `row` in a file without a name, which goes
    with this process. `augment` takes the draws of training images; without it, images are scaled."""
    total, size = images.get_dataset_size(), images.get_batch_size()
    file = tempfile.TemporaryFile(dir=run.directory)
    with reading(run.directory, 'use another --log_dir or --trunk_cache 0'):
        os.posix_fallocate(file.fileno(), 0, total * size * row.itemsize)  # a full disk shows now, and not as a crash
    rows = np.memmap(file, row, 'r+', shape=(total, size))
    progress = tqdm(images.create_tuple_iterator(num_epochs=1), 'computing frozen layers', total, leave=False, disable=None)
    for batch, (image, *draws, label) in zip(rows, progress):
        x = augment(image, draws[0]) if augment else preprocess.scale(image.astype(ms.float32))
        x = x.astype(ms.float32)
        with run.graphs.compiling(trunk, (x,), 'graph of the frozen layers', len(trunk.layers)):
            batch['output'] = trunk(x).asnumpy()
        batch['label'] = label.asnumpy()
    return rows.reshape(-1)
