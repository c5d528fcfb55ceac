"""A checkpoint or an exported file as one function from images to probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
from mindspore import Tensor

from src.data.preprocess import Preprocessing
from src.deploy import description
from src.deploy.class_names import class_names, recorded_names
from src.deploy.formats import LOADERS, need_utf8
from src.deploy.graph import Served, host_scale, softmax
from src.deploy.network import load_network
from src.errors import InputError


@dataclass(frozen=True)
class Predictor:
    """A model of any kind, ready to run.

    Attributes:
        probabilities: function: images uint8 (N, size, size, 3), cropped and resized as the evaluation does -> float32
            (N, k), best first, and their class numbers (N, k). k is the number of classes, or 5 for some files.
        size: height and width of the images, pixels.
        preprocessing: crop and interpolation of the images; the scaling is a part of `probabilities`.
        batch_size: the N that the model needs; 0: any.
        class_names: by class number; None if they are not known.
        num_classes: number of classes of the network.
    """

    probabilities: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    size: int
    preprocessing: Preprocessing
    batch_size: int
    class_names: list[str] | None
    num_classes: int


def open_model(path: str | Path, labels_path: str = '') -> Predictor:
    """`Predictor` of a checkpoint, or of a MINDIR or ONNX file with its description beside it.

    `labels_path` is a file of class names, for models that know none. InputError if something is missing or unfit.
    """
    path = Path(path)
    return (_open_exported if path.suffix in LOADERS else _open_checkpoint)(path, labels_path)


def _open_checkpoint(path, labels_path):
    network, info, config = load_network(path)
    preprocessing = info['preprocessing']
    served = Served(network, preprocessing=preprocessing).set_train(False)
    return Predictor(
        lambda images: ranked(served(Tensor(images)).asnumpy()),
        config.image_size,
        preprocessing,
        0,
        class_names(labels_path, recorded_names(info), config.num_classes),
        config.num_classes,
    )


def _open_exported(path, labels_path):
    if not path.is_file():
        raise InputError(f'{path}: no such model')
    need_utf8(path)
    about = description.read(path)
    run = LOADERS[path.suffix](path, about['input']['shape'])
    batch_size, *shape = about['input']['shape']
    preprocessing, output = about['preprocessing'], about['output']['kind']

    def probabilities(images):
        outputs = run(images if about['input']['type'] == 'uint8' else host_scale(images, preprocessing))
        return outputs if output == 'top5' else ranked(softmax(outputs[0]) if output == 'logits' else outputs[0])

    return Predictor(
        probabilities,
        shape[1],
        preprocessing,
        batch_size or 0,
        class_names(labels_path, about['classes'], about['num_classes']),
        about['num_classes'],
    )


def ranked(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, classes) -> the values of each row, best first, and their class numbers."""
    order = np.argsort(-probabilities, 1, kind='stable')
    return np.take_along_axis(probabilities, order, 1), order
