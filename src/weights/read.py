"""Weights in a file of any of the formats: our checkpoints, MindCV's, timm's (safetensors, `.pth`), TensorFlow's."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
from mindspore.nn.utils import no_init_parameters

from src.data.classes import BACKGROUND_CLASSES, imagenet_names
from src.data.preprocess import Preprocessing, recorded_preprocessing
from src.errors import reading
from src.inceptionv4 import InceptionV4
from src.options import Settings
from src.weights import checkpoint, tf_file, torch_file
from src.weights.names import NO_CLASSIFIER, OPTIMIZER, check_finite, fit, names_in, transposed

REMEDY = 'name a checkpoint file, or of TensorFlow what its files begin with; docs/weights.md has published weights'
OURS = 'conv2d_1a_3x3.conv.weight'  # the first convolution, by the name that it has in this project only
IMAGE_SIZE = 299
HALF = (127.5,) * 3
IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LAYOUTS = {  # a program's name for the first convolution, and the preprocessing that its weights were trained with
    'tf_slim': ('InceptionV4/Conv2d_1a_3x3/weights', Preprocessing(HALF, HALF, 0.875, 'bilinear', False)),
    'mindcv': ('features.0.conv2d_1a_3x3.conv.weight', Preprocessing(*IMAGENET, 0.875, 'bilinear', True)),
    'timm': ('features.0.conv.weight', Preprocessing(HALF, HALF, 0.875, 'bicubic', True)),
}
# Names that no other tensor's ends with. Our second convolution: MindCV's first ends as our first does.
MARKS = (*(first for first, _ in LAYOUTS.values()), 'conv2d_2a_3x3.conv.weight')
MEANS = re.compile(r'(?<![^\W_])(?:ema|swa|(?<!exp_)avg|averaged?|averages|shadow|ExponentialMovingAverage)(?![^\W_])', re.I)


def empty_network(options: dict) -> InceptionV4:
    """`InceptionV4` with the network options in `options`, other entries ignored; its parameters must be set before use."""
    with no_init_parameters():
        return InceptionV4(**Settings(options).network())


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray | None], dict]:
    """Tensors of a file, of the format that its content shows, by the names in it, None for what is no number, and the
    information in our own checkpoints. What other programs put before all names is taken away. Of weights and their moving
    averages side by side the averages are taken, which a line on stderr says. InputError if the file cannot be read."""
    tensors, info = _read(str(path))
    return tensors if OURS in tensors else _unwrapped(tensors, path), info


def _read(path):
    with reading(path, REMEDY):
        if tf_file.prefix_of(path):
            return tf_file.read(path), {}
        content = np.memmap(path, np.uint8, 'r') if os.path.getsize(path) else b''
        head, tail = bytes(content[:9]), bytes(content[-8:])
    if tail == tf_file.MAGIC:
        return tf_file.read(path), {}
    if head[8:] == b'{':  # the header of safetensors, JSON
        return torch_file.read_safetensors(path), {}
    if head.startswith((b'PK\3\4', b'\x80')):  # a ZIP archive, or a pickle of before PyTorch 1.6
        return torch_file.read_pth(path), {}
    return checkpoint.load(path)


def _unwrapped(tensors, path):
    """`tensors` with the names that their program gives them: without what stands before all of them, as nested dicts and
    wrappers of a model do; of several sets of weights the first, and in place of it its averages."""
    # TensorFlow names the averages NAME/ExponentialMovingAverage.
    tensors = {re.sub(r'^(.*)/(ExponentialMovingAverage)$', r'\2/\1', name): value for name, value in tensors.items()}
    for mark in MARKS:
        prefixes = [name.removesuffix(mark) for name in tensors if re.search(rf'(^|[./]){re.escape(mark)}$', name)]
        if prefixes := [prefix for prefix in prefixes if 'optim' not in prefix and not prefix.startswith(OPTIMIZER)]:
            break
    else:
        return tensors
    means = [prefix for prefix in prefixes if MEANS.search(prefix)]
    raw = [prefix for prefix in prefixes if prefix not in means]
    chosen = [*([''] if '' in raw else raw[:1]), *means[:1]]
    result = {name: value for name, value in tensors.items() if not name.startswith(tuple(filter(None, prefixes)))}
    for prefix in filter(None, chosen):  # averages may lack what has none, such as batch norm's statistics
        result.update({name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)})
    if len(prefixes) > 1:
        taken = chosen[-1].strip('./') or 'the one without a prefix'
        print(f'note: {path}: of {len(prefixes)} sets of weights {taken} is taken', file=sys.stderr)
    return result


def convert(tensors: dict, drop_background: bool = False) -> tuple[dict[str, np.ndarray], dict, dict]:
    """Take `tensors` ({name: ndarray or None}) of TF-slim, timm or MindCV as ours; with `drop_background` without the first
    of 1001 classes, so that class k becomes class k - 1. Returns (float32 ndarrays by our names, info as of a checkpoint,
    {our name: name in the file}). ValueError if these are not all weights of an InceptionV4, or not finite."""
    layout = next((layout for layout, (first, _) in LAYOUTS.items() if first in tensors), None)
    if layout is None:
        shown = f'{len(tensors)} tensors: {", ".join(list(tensors)[:3])[:150]}'
        raise ValueError(f'no InceptionV4 of TF-slim, timm, MindCV or this project; it has {shown}')
    kept = r'InceptionV4/(?!AuxLogits/)' if layout == 'tf_slim' else r'(features|last_linear|classifier)\.'
    model = {  # without an optimizer's state, counters, and the auxiliary classifier, from which no training run starts
        name: value
        for name, value in tensors.items()
        if value is not None and re.match(kept, name) and not name.endswith('.num_batches_tracked')
        if name.rpartition('/')[0] not in tensors  # TensorFlow names what belongs to a variable so
    }
    config = _config(model, layout)
    shapes = {name: p.shape for name, p in empty_network(config).parameters_dict().items()}
    if 'num_classes' not in config:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith('logits.')}
    names = names_in(layout, shapes)
    parameters = fit(model, names, shapes, hwio=layout == 'tf_slim')
    check_finite({names[name]: value for name, value in parameters.items()})
    info = {'step': 0, 'epoch': 0, 'config': config, 'source': layout, 'preprocessing': LAYOUTS[layout][1]._asdict()}
    classes = config.get('num_classes')
    if drop_background:
        if classes != BACKGROUND_CLASSES:
            raise ValueError(f'--drop_background needs {BACKGROUND_CLASSES} classes, it has {classes or "none"}')
        config['num_classes'] = classes = classes - 1
        parameters.update({name: parameters[name][1:] for name in ('logits.weight', 'logits.bias')})
    # Of 1000 classes of the original one cannot tell what class 0 is: it trained them with labels from 1.
    if (layout != 'tf_slim' or drop_background or classes == BACKGROUND_CLASSES) and imagenet_names(classes):
        info['class_names'] = imagenet_names(classes)
    return parameters, info, names


def _config(model, layout):
    """The options that describe the network of the tensors `model`; ValueError if it is another network."""
    bias = model.get(names_in(layout, ['logits.bias'])['logits.bias'])
    kernels = [value for value in model.values() if value.ndim == 4]
    shapes = [(transposed(value) if layout == 'tf_slim' else value).shape for value in kernels]
    # Kernels (output and input channels, height, width) of which blocks A and C have two each and block B has one.
    blocks = [shapes.count((96, 384, 1, 1)) // 2, shapes.count((384, 1024, 1, 1)), shapes.count((256, 1536, 1, 1)) // 2]
    if min(blocks) < 1 or max(blocks) > 25:
        raise ValueError(f"{blocks} blocks A, B and C were found; these are another network's weights")
    return {
        **({} if bias is None else {'num_classes': bias.size}),  # weights without a classifier are for fine-tuning
        'block_counts': blocks,
        'aux_logits': False,
        'bn_scale': any(name.endswith(('gamma', 'bn.weight')) for name in model),
        'image_size': IMAGE_SIZE,
    }


def read_weights(path: str | Path, classifier: bool = False) -> tuple[dict[str, np.ndarray], dict]:
    """Weights at `path`, of this project or of another program: (ndarrays by our names, info with `preprocessing`
    (Preprocessing) and, as far as they are known, `config` (dict), `class_names`, `step` and `epoch`). With `classifier` the
    config has at least the number of classes. InputError if the file is damaged, or holds no InceptionV4 or classifier."""
    parameters, info = read_tensors(path)
    with reading(path):
        if OURS not in parameters:
            parameters, info, _ = convert(parameters)
            info['source'] = str(path)
        config = {**info.get('config', {})}
        if 'num_classes' not in config and 'logits.bias' in parameters:
            config['num_classes'] = parameters['logits.bias'].size
        if classifier and 'num_classes' not in config:
            raise ValueError(NO_CLASSIFIER)
        return parameters, {**info, 'config': config, 'preprocessing': recorded_preprocessing(info.get('preprocessing'))}


def main_file(path: str | Path) -> str:
    """The file by which to know the weights at `path`: itself, or TensorFlow's index, which has all checksums."""
    return f'{prefix}.index' if (prefix := tf_file.prefix_of(path)) else str(path)
