"""Weights of another program to ours: recognise the program by its names, build its network, take every tensor."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from src.data import imagenet
from src.data.preprocess import Preprocessing
from src.errors import InputError
from src.weights import misfit, rmsprop
from src.weights.names import fit, names_in, transposed
from src.weights.network import empty_network


class Layout(NamedTuple):
    """How a program names its tensors, and the preprocessing that its weights were trained with."""

    name: str
    prefix: str  # of the names of all tensors but timm's and MindCV's classifier
    preprocessing: Preprocessing


def _preprocessing(mean, std, interpolation, square):
    """From means and deviations in parts of full scale, as the programs document them."""
    mean, std = (tuple(round(255 * level, 3) for level in levels) for levels in (mean, std))
    return Preprocessing(mean, std, 0.875, interpolation, square)


LAYOUTS = {  # by the name of the first convolution
    'InceptionV4/Conv2d_1a_3x3/weights': Layout(
        'tf_slim', 'InceptionV4/', _preprocessing((0.5,) * 3, (0.5,) * 3, 'bilinear', False)
    ),
    'features.0.conv.weight': Layout('timm', 'features.', _preprocessing((0.5,) * 3, (0.5,) * 3, 'bicubic', True)),
    'features.0.conv2d_1a_3x3.conv.weight': Layout(
        'mindcv', 'features.', _preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'bilinear', True)
    ),
}
CLASSIFIERS = ('last_linear.', 'classifier.')  # of timm and MindCV
OLD_MODEL_ZOO = 'bn0.gamma'
AUX_KERNEL = 'InceptionV4/AuxLogits/Conv2d_2a/weights'  # its size depends on the size of the images
IMAGE_SIZE = 299


class Conversion(NamedTuple):
    """What `convert` finds in a file."""

    parameters: dict[str, np.ndarray]  # float32, by our names; RMSProp's state as `nn.RMSProp` names it
    config: dict  # the options that describe the network
    preprocessing: Preprocessing
    step: int
    layout: str  # `name` of a `Layout`
    report: list[tuple[str, tuple, str, str]]  # of every tensor: its name, its shape, our name or '', a remark
    notes: list[str]
    class_names: list[str] | None  # ImageNet's, where it is known that they are meant


def convert(tensors: dict[str, np.ndarray | None], drop_background: bool = False, slots: bool = False) -> Conversion:
    """Take `tensors` ({name: ndarray}) of TF-slim, timm or MindCV as ours.

    Args:
        drop_background: of 1001 classes drop the first, so that class k becomes class k - 1.
        slots: take RMSProp's state and the global step of a TensorFlow training too, so that it can go on.

    Raises:
        InputError: these are no InceptionV4's weights, or not all of them but the classifier, or not finite.
    """
    layout = _layout(tensors)
    model = _model(tensors, layout)
    config = _config(model, layout)
    used = {name: value for name, value in model.items() if config['aux_logits'] or '/AuxLogits/' not in name}
    network = empty_network(config)
    shapes = {
        name: p.shape
        for name, p in network.parameters_dict().items()
        if 'num_classes' in config or not name.startswith('logits.')
    }
    names = names_in(layout.name, shapes)
    parameters, left = fit(used, names, shapes, hwio=layout.name == 'tf_slim')
    if left:
        raise InputError(f'{next(iter(left))} has no place in InceptionV4 ({len(left)} such tensors)')
    if problem := misfit.not_finite({names[name]: value for name, value in parameters.items()}):
        raise InputError(problem)
    sources = {foreign: name for name, foreign in names.items() if foreign in used}
    notes, step = [], 0
    if slots:
        trained = [name for name, p in network.parameters_dict().items() if p.requires_grad]
        state, found, notes, step = rmsprop.state(tensors, {name: names[name] for name in trained}, shapes)
        parameters.update(state)
        sources.update(found)
    if drop_background:
        _drop_background(parameters, config)
        notes.append(
            'class 0, the background, is dropped: class k is now ImageNet class k of 0..999, '
            "label k + 1 of TF-slim's records (label_offset 1)"
        )
    elif 'num_classes' in config:
        notes += _class_notes(config, layout)
    # Of 1000 classes of the original one cannot tell what class 0 is: it trained them with labels from 1.
    classes = config.get('num_classes')
    known = layout.name != 'tf_slim' or drop_background or classes != len(imagenet.classes())
    class_names = imagenet.class_names(classes) if known else None
    report = [
        (name, np.shape(value), sources.get(name, ''), _remark(name, tensors, model, sources))
        for name, value in tensors.items()
    ]
    return Conversion(parameters, config, layout.preprocessing, step, layout.name, report, notes, class_names)


def _layout(tensors):
    """The `Layout` of `tensors`; InputError if they are of none of the programs."""
    if OLD_MODEL_ZOO in tensors:
        raise InputError(
            "the older MindSpore model zoo's network, which has batch norm on the pooled features and on the "
            "logits; it computes something else, use MindCV's, timm's or TF-slim's weights"
        )
    for name, layout in LAYOUTS.items():
        if name in tensors:
            return layout
    raise InputError(
        f'no InceptionV4 of TF-slim, timm, MindCV or this project; it has {len(tensors)} tensors: '
        f'{", ".join(list(tensors)[:3])[:150]}'
    )


def _model(tensors, layout):
    """Those of `tensors` that belong to the network, not to an optimizer, a moving average or a counter."""
    return {
        name: value
        for name, value in tensors.items()
        if value is not None
        and name.startswith((layout.prefix, *CLASSIFIERS))
        and not name.endswith('.num_batches_tracked')
        and name.rpartition('/')[0] not in tensors
    }


def _config(model, layout):
    """The options that describe the network of the tensors `model`; InputError if it is another network."""
    bias = model.get(names_in(layout.name, ['logits.bias'])['logits.bias'])
    kernels = [value for value in model.values() if value.ndim == 4]
    shapes = [(transposed(value) if layout.name == 'tf_slim' else value).shape for value in kernels]
    # Kernels (output and input channels, height, width) of which blocks A and C have two each and block B has one.
    blocks = [shapes.count((96, 384, 1, 1)) // 2, shapes.count((384, 1024, 1, 1)), shapes.count((256, 1536, 1, 1)) // 2]
    if min(blocks) < 1 or max(blocks) > 25:
        raise InputError(f"{blocks} blocks A, B and C were found; these are another network's weights")
    return {
        **({} if bias is None else {'num_classes': bias.size}),  # weights without a classifier are for fine-tuning
        'block_counts': blocks,
        'aux_logits': bias is not None and AUX_KERNEL in model and model[AUX_KERNEL].shape[:2] == (5, 5),
        'bn_scale': any(name.endswith(('gamma', 'bn.weight')) for name in model),
        'image_size': IMAGE_SIZE,
    }


def _drop_background(parameters, config):
    """Take the first class away from `parameters` and `config`, in place."""
    if config.get('num_classes') != imagenet.BACKGROUND_CLASSES:
        raise InputError(
            f'--drop_background: the file has {config.get("num_classes", "no")} classes, and only with '
            f'{imagenet.BACKGROUND_CLASSES} the first is the background'
        )
    config['num_classes'] -= 1
    for name in parameters:
        if name.endswith(('logits.weight', 'logits.bias')):
            parameters[name] = parameters[name][1:]


def _class_notes(config, layout):
    """Notes (list of str) on which label each class has; records `label_offset` in `config` where it is known."""
    if config['num_classes'] == imagenet.BACKGROUND_CLASSES:
        config['label_offset'] = '0'
        return [
            "1001 classes: class 0 is the background, class k is label k of TF-slim's records; "
            'for records with labels from 0 to 999 use --drop_background'
        ]
    if layout.name == 'tf_slim':
        return [
            f'{config["num_classes"]} classes: if they were trained with labels from 1 as they are, as the '
            'original entry did, class k is label k: evaluate with --label_offset 0'
        ]
    return []


def _remark(name, tensors, model, sources):
    """What became of the tensor `name`."""
    if name in sources:
        return 'loaded'
    if name in model:
        return f'left out: the auxiliary classifier is not for {IMAGE_SIZE} pixels'
    if tensors[name] is None:
        return 'left out: no numbers'
    variable, _, last = name.rpartition('/')
    if '/' + last in rmsprop.SLOTS:
        return 'left out: state of RMSProp (--slots takes it)'
    if variable in tensors:  # TensorFlow names what belongs to a variable so
        return 'left out: state of an optimizer or a moving average'
    counter = name.endswith('.num_batches_tracked')
    return 'left out: counter of batch norm' if counter else 'left out: not part of the network'
