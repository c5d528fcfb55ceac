"""A checkpoint or an exported file as one function from images to probabilities."""

import importlib.util
import json
import os
import sys
from collections import namedtuple
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.nn.utils import no_init_parameters

from src import config as configuration
from src.data import imagenet, labels
from src.data.preprocess import PREPROCESSING, recorded_preprocessing, scale
from src.errors import InputError
from src.inceptionv4 import InceptionV4
from src.weights import checkpoint
from src.weights import convert as weights

INPUTS = {'float': 'float32', 'uint8': 'uint8'}

# `probabilities(pictures)`: uint8 (n, size, size, 3) as `evaluation_picture` makes them -> float32 (n, k), best first, and
# their class numbers (n, k); n is `batch_size`, or whatever one likes where that is 0. `class_names` may be None.
Model = namedtuple('Model', 'probabilities size preprocessing batch_size class_names num_classes')


class Served(nn.Cell):
    """`network` with what a server would otherwise do around it.

    Args:
        input_type (str): `float`: float32 (N, 3, H, W), scaled; `uint8`: images (N, H, W, 3), scaled in the graph.
        output (str): `logits` or `softmax`: float32 (N, classes); `top5`: the five highest probabilities, float32 (N, 5),
            best first, and their class numbers, int32 (N, 5).
    """

    def __init__(self, network, input_type='uint8', output='softmax', preprocessing=PREPROCESSING):
        super().__init__(auto_prefix=False)
        self.network, self.input_type, self.output, self.preprocessing = network, input_type, output, preprocessing

    def construct(self, x):
        if self.input_type == 'uint8':
            x = scale(x.astype(ms.float32).transpose(0, 3, 1, 2), self.preprocessing)
        x = self.network(x).astype(ms.float32)
        if self.output == 'logits':
            return x
        x = ops.softmax(x, 1)
        if self.output == 'softmax':
            return x
        values, classes = ops.topk(x, min(5, x.shape[1]))
        return values, classes.astype(ms.int32)


def host_scale(pictures, preprocessing):
    """Images uint8 (N, H, W, 3) as a graph with the input type `float` takes them: float32 (N, 3, H, W)."""
    return scale(Tensor(pictures.transpose(0, 3, 1, 2).astype(np.float32)), preprocessing).asnumpy()


def load_mindir(path):
    """The MINDIR file as a function: ndarray -> tuple of ndarrays. InputError if it cannot be loaded."""
    try:
        graph = nn.GraphCell(ms.load(str(path)))
    except Exception as error:  # RuntimeError, ValueError and others, depending on what is wrong with the file
        raise InputError(
            f'{path}: not a MINDIR file, or a damaged one ({str(error).strip().splitlines()[0]:.150}); export it again'
        ) from None

    def run(images):
        outputs = graph(Tensor(images))
        return tuple(o.asnumpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return run


def need_onnx():
    """InputError if the packages for ONNX are missing."""
    for name in ('onnx', 'onnxruntime'):
        if importlib.util.find_spec(name) is None:
            raise InputError(f'ONNX needs the package {name}; pip install -r requirements-export.txt')


def need_utf8(path):
    """InputError if the file `path` is or would be one that neither MindSpore nor ONNX Runtime can open."""
    try:
        os.path.realpath(path).encode()
    except UnicodeEncodeError:
        raise InputError(
            f'{path}: MindSpore and ONNX Runtime open no file whose name or directory is not UTF-8; rename it'
        ) from None


def load_onnx(path):
    """The ONNX file in ONNX Runtime, on the CPU, as a function: ndarray -> tuple of ndarrays. InputError if it cannot be
    loaded."""
    need_onnx()
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    except Exception as error:  # classes of its own, one for each kind of damage
        raise InputError(
            f'{path}: not an ONNX file, or a damaged one ({str(error).strip().splitlines()[0]:.150}); export it again'
        ) from None
    name = session.get_inputs()[0].name
    return lambda images: tuple(session.run(None, {name: images}))


LOADERS = {'.mindir': load_mindir, '.onnx': load_onnx}


def class_names(path, recorded, num_classes):
    """Names by class number: those of the file `path` (lines `name` or `number:name`), else `recorded` (list or None).

    Number 0 may be the background's, and is left out, where the network has a class less; ImageNet's background is put in
    front, with a line on stderr, where the network has 1001 classes. InputError for names that do not fit.
    """
    names = recorded
    if path:
        try:
            names = labels.by_number(labels.parse(path)[0])
        except FileNotFoundError:
            raise InputError(f'labels {path}: no such file; give a text file, one class a line') from None
    if not names:
        return None
    if len(names) == num_classes + 1 and names[0] in ('background', ''):
        names = names[1:]
    elif len(names) == num_classes - 1 == len(imagenet.classes()):
        print(
            f'note: {path or "the checkpoint"} names {len(names)} classes, the network has {num_classes}: class 0 is the '
            'background',
            file=sys.stderr,
        )
        names = ['background', *names]
    if len(names) != num_classes:
        raise InputError(
            f'{path or "class_names in the checkpoint"}: names the classes 0 to {len(names) - 1}, but the '
            f'network has {num_classes} classes; give --labels FILE with one line per class'
        )
    return [name or f'class {number}' for number, name in enumerate(names)]


def recorded_names(info):
    """Class names in a checkpoint's `info`, or ImageNet's for weights of other programs that were imported without any."""
    layout, classes = str(info.get('source', '')).partition(' ')[0], info['config'].get('num_classes')
    if info.get('class_names') or layout not in ('tf_slim', 'timm', 'mindcv'):
        return info.get('class_names')
    # The original trained 1000 classes with labels from 1, so of its own weights one cannot tell what class 0 is.
    return imagenet.class_names(classes) if (layout, classes) != ('tf_slim', 1000) else None


def description(path):
    """What export.py wrote about the model file `path` into the JSON file beside it (dict)."""
    record = Path(path).with_suffix('.json')
    try:
        found = json.loads(record.read_text(encoding='utf-8'))
        found = {**found['other_files'], found['file']: found}[Path(path).name]
        return {**found, 'preprocessing': recorded_preprocessing(found['preprocessing'])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f'{record}: missing, or does not describe {Path(path).name}; it belongs beside the model as '
            'export.py wrote it, export again'
        ) from None


def network_of(path, argv=()):
    """The network of a checkpoint, of any kind that `weights.read` knows, in evaluation mode, with the moving averages of
    the weights if there are any.

    Returns:
        (network, info, configuration): with the checkpoint's network options, `argv` (list of str) above them.
    """
    parameters, info = weights.read(path)
    info = checkpoint.with_classes(info, parameters, path)
    config = configuration.load(list(argv), info['config'])
    with no_init_parameters():  # the checkpoint fills them all
        network = InceptionV4(**{**configuration.network_options(config), 'aux_logits': False}).set_train(False)
    checkpoint.load_into(network, checkpoint.averaged(parameters), path)
    return network, info, config


def open_model(path, labels_path=''):
    """`Model` of a checkpoint, or of a MINDIR or ONNX file with its description beside it.

    `labels_path` is a file of class names, for models that know none. InputError if something is missing or unfit.
    """
    path = Path(path)
    if path.suffix not in LOADERS:
        network, info, config = network_of(path)
        preprocessing = recorded_preprocessing(info.get('preprocessing'))
        served = Served(network, preprocessing=preprocessing).set_train(False)
        return Model(
            lambda pictures: ranked(served(Tensor(pictures)).asnumpy()),
            config.image_size,
            preprocessing,
            0,
            class_names(labels_path, recorded_names(info), config.num_classes),
            config.num_classes,
        )
    if not path.is_file():
        raise InputError(f'{path}: no such model')
    need_utf8(path)
    about = description(path)
    run, preprocessing, output = LOADERS[path.suffix](path), about['preprocessing'], about['output']['kind']
    batch_size, *shape = about['input']['shape']

    def probabilities(pictures):
        outputs = run(pictures if about['input']['type'] == 'uint8' else host_scale(pictures, preprocessing))
        return outputs if output == 'top5' else ranked(softmax(outputs[0]) if output == 'logits' else outputs[0])

    return Model(
        probabilities,
        shape[1],
        preprocessing,
        batch_size or 0,
        class_names(labels_path, about['classes'], about['num_classes']),
        about['num_classes'],
    )


def softmax(logits):
    """Rows of (n, classes) as probabilities."""
    x = np.exp(logits - logits.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


def ranked(probabilities):
    """(n, classes) -> the values of each row, best first, and their class numbers."""
    order = np.argsort(-probabilities, 1, kind='stable')
    return np.take_along_axis(probabilities, order, 1), order
