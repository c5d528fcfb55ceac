"""A checkpoint or an exported file as one function from images to probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.data.classes import by_number, imagenet_names, load_names
from src.deploy import description
from src.deploy.description import Signature, class_names, softmax
from src.deploy.export import Served
from src.deploy.formats import LOADED, as_function, load
from src.errors import reading
from src.inceptionv4 import InceptionV4
from src.options import Settings, load_settings
from src.weights import checkpoint
from src.weights.read import LAYOUTS, empty_network, read_weights


class Predictor(NamedTuple):
    """A model of any kind, ready to run."""

    # Images uint8 (N, size, size, 3), cropped and resized as the evaluation does -> float32 (N, k), best first, and their
    # class numbers (N, k). k is the number of classes, or 5 for some files.
    probabilities: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    signature: Signature  # of which scaling and output are a part of `probabilities`
    class_names: list[str] | None  # by class number, if they are known


def load_network(path: str, argv: Sequence[str] = ()) -> tuple[InceptionV4, dict, Settings]:
    """The network of the weights at `path`, in evaluation mode, without the auxiliary classifier; the weights are their
    moving averages where the file has them.

    Returns (network, what the file records, settings); those in `argv` count more than what the file records. InputError if
    the file cannot be read, or does not fit the settings.
    """
    parameters, info = read_weights(path, classifier=True)
    settings = load_settings([*argv], info['config'])
    network = empty_network({**settings, 'aux_logits': False}).set_train(False)
    checkpoint.load_into(network, checkpoint.averaged(parameters), path)
    return network, {**info, 'class_names': _recorded_names(info, settings.num_classes)}, settings


def _recorded_names(info, classes):
    """Class names in a checkpoint's `info`, or ImageNet's where an earlier version imported weights without any. TF-slim's
    weights of 1000 classes were trained with labels from 1, so one cannot tell what class 0 is."""
    layout = info.get('source', '').partition(' ')[0]
    known = layout in LAYOUTS and (layout, classes) != ('tf_slim', 1000)
    return info.get('class_names') or (imagenet_names(classes) if known else None)


def open_model(path: str, labels_path: str = '') -> Predictor:
    """`Predictor` of a checkpoint, or of a MINDIR or ONNX file with its description beside it.

    `labels_path` is a file of class names, for models that know none. InputError if something is missing or unfit.
    """
    if Path(path).suffix in LOADED:
        signature, about = description.read(Path(path))
        call, names, num_classes = load(path), about['classes'], about['num_classes']
    else:
        network, info, settings = load_network(path)
        signature = Signature(settings.image_size, info['preprocessing'], 'uint8', 'softmax')
        call = as_function(Served(network, signature).set_train(False))
        names, num_classes = info.get('class_names'), settings.num_classes
    if labels_path:
        with reading(labels_path, 'give a text file, one class a line'):
            names = by_number(load_names(labels_path)[0])

    def probabilities(images):
        outputs = call(signature.as_input(images))
        if signature.output == 'top5':
            return outputs
        values = softmax(outputs[0]) if signature.output == 'logits' else outputs[0]
        order = np.argsort(-values, 1, kind='stable')
        return np.take_along_axis(values, order, 1), order

    return Predictor(probabilities, signature, class_names(names, num_classes, labels_path or path))
