"""Names and axes of InceptionV4's weights in other programs, and whether weights fit a network. NumPy only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby

import numpy as np

OPTIMIZER = ('moment', 'mean_square')  # beginnings of the names of an optimizer's state
NO_CLASSIFIER = (
    'the classifier is missing (logits.weight, logits.bias); a training run may start from it (--restore_path), but it '
    'cannot be evaluated, exported or imported'
)
_LEAVES = {  # ours: TF-slim's, timm's
    'conv.weight': ('weights', 'conv.weight'),
    'bn.beta': ('BatchNorm/beta', 'bn.bias'),
    'bn.gamma': ('BatchNorm/gamma', 'bn.weight'),
    'bn.moving_mean': ('BatchNorm/moving_mean', 'bn.running_mean'),
    'bn.moving_variance': ('BatchNorm/moving_variance', 'bn.running_var'),
    'weight': ('weights', 'weight'),
    'bias': ('biases', 'bias'),
}
# The branches 1 and 2 of block C, which fork.
_FORKS = {
    'timm': {1: ('1_0', '1_1a', '1_1b'), 2: ('2_0', '2_1', '2_2', '2_3a', '2_3b')},
    'mindcv': {1: ('1', '1_1', '1_2'), 2: ('2.0', '2.1', '2.2', '2_1', '2_2')},
}


def tf_slim_name(name: str) -> str:
    """Name of one of our parameters in TF-slim: `mixed_5b.branch_1.conv2d_0b_3x3.conv.weight` is
    `InceptionV4/Mixed_5b/Branch_1/Conv2d_0b_3x3/weights`. ValueError for other names."""
    for leaf, (slim, _) in _LEAVES.items():
        if name.endswith(f'.{leaf}'):
            first, *rest = name.removesuffix(f'.{leaf}').split('.')
            first = 'AuxLogits' if first == 'aux_logits' else 'Logits/Logits' if first == 'logits' else first.capitalize()
            return '/'.join(['InceptionV4', first, *map(str.capitalize, rest), slim])
    raise ValueError(f'{name}: not the name of an InceptionV4 parameter')


def _layers(names):
    """Yield (layer, number of its block, block, branch or None, position in the branch, layers in it) for the convolutions
    among our parameter names; in alphabetical order the names are in the order of the network."""
    layers = sorted(n[: -len('.conv.weight')] for n in names if n.endswith('.conv.weight') and 'aux_logits' not in n)
    for number, (block, inside) in enumerate(groupby(layers, lambda layer: layer.split('.')[0])):
        for branch, group in groupby(inside, lambda layer: layer.partition('.branch_')[2][:1]):
            group = list(group)
            for position, layer in enumerate(group):
                yield layer, number, block, int(branch) if branch else None, position, len(group)


def _layer(layout, number, block, branch, position, count):
    """timm numbers all layers of the stem and all blocks, and the layers of a branch where it has several. MindCV names the
    layers of the stem, which is its block 0, as TF-slim does."""
    stem = layout == 'mindcv' and block < 'mixed_5b'
    place = f'features.{number}' if layout == 'timm' else f'features.0.{block}' if stem else f'features.{number - 5}'
    if branch is None:
        return place
    if layout == 'timm' and block in ('mixed_3a', 'mixed_5a'):  # the only convolution beside a pool
        return f'{place}.conv'
    place += '.branch' if layout == 'timm' else '_branch_' if stem else '.branch_'
    if block > 'mixed_7a' and branch in _FORKS[layout]:
        return place + _FORKS[layout][branch][position]
    if branch == 3:  # after a pool
        return f'{place}3.1'
    return f'{place}{branch}' + (f'.{position}' if count > 1 else '')


def names_in(layout: str, ours: Iterable[str]) -> dict[str, str]:
    """{our name: name in `layout` ('tf_slim', 'timm' or 'mindcv')} for the parameters `ours` that exist there."""
    if layout == 'tf_slim':
        return {name: tf_slim_name(name) for name in ours}
    result, classifier = {}, 'last_linear' if layout == 'timm' else 'classifier'
    for layer, *place in _layers(ours):
        for leaf, (_, timm_leaf) in list(_LEAVES.items())[:5]:  # a convolution's
            result[f'{layer}.{leaf}'] = f'{_layer(layout, *place)}.{timm_leaf if layout == "timm" else leaf}'
    return {**result, 'logits.weight': f'{classifier}.weight', 'logits.bias': f'{classifier}.bias'}


def transposed(array: np.ndarray) -> np.ndarray:
    """Kernels of convolutions HWIO as OIHW, of dense layers IO as OI; anything else as it is."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T if array.ndim == 2 else array


def fit(
    tensors: dict[str, np.ndarray], names: dict[str, str], shapes: dict[str, tuple], hwio: bool = False
) -> dict[str, np.ndarray]:
    """Take `tensors`, {name in another program: ndarray}, as float32 ndarrays for the parameters `shapes` {our name: shape};
    `names` are {our name: name there}, with `hwio` kernels are HWIO and dense layers IO, as in TensorFlow. A network without
    batch norm scale has no gamma; then ours is ones. ValueError if a tensor is missing, misshapen or without a place."""
    result = {}
    for name, shape in shapes.items():
        value = tensors.get(names[name])
        if value is None and name.endswith('.bn.gamma'):
            value = np.ones(shape, np.float32)
        elif value is None:
            raise ValueError(f'{names[name]} is missing')
        elif (transposed(value) if hwio else value).shape != tuple(shape):
            raise ValueError(f'{names[name]} has the shape {value.shape}, {name} needs {tuple(shape)}')
        with np.errstate(over='ignore'):  # infinite then, which `check_finite` finds
            result[name] = np.ascontiguousarray(transposed(value) if hwio else value, np.float32)
    if left := tensors.keys() - names.values():
        raise ValueError(f'{min(left)} has no place in this network ({len(left)} such tensors)')
    return result


def check_finite(parameters: dict[str, np.ndarray]) -> None:
    """ValueError, with the remedy, if weights among `parameters` have values that are not finite."""
    for name, value in parameters.items():
        if value.dtype.kind == 'f' and not name.startswith(OPTIMIZER) and not np.isfinite(value).all():
            reason = 'has values that are not finite (NaN or infinite): its training run had diverged'
            raise ValueError(f'{name} {reason}; use an earlier checkpoint, or other weights')


def mismatch(parameters: dict[str, np.ndarray], shapes: dict[str, tuple], network: Iterable[str]) -> str:
    """Why `parameters` do not fit where the `shapes` {name: shape} are needed, and the remedy; '' if they fit.

    Blocks that are not among the parameters `network` of the whole network do not fit either: with a part of its blocks a
    network computes something else.
    """
    theirs, ours = _block_counts(parameters), _block_counts(network)
    if theirs != ours and min(theirs):
        counts = ','.join(map(str, theirs))
        return f'Inception blocks: {",".join(map(str, ours))} here, {counts} in the file; use --block_counts {counts}'
    found = {name: parameters[name].shape if name in parameters else None for name in shapes}
    wrong = [name for name in shapes if found[name] != shapes[name]]
    if not wrong:
        return ''
    shape = found[name := 'logits.bias' if 'logits.bias' in wrong else wrong[0]]  # which has the clearest remedy
    if name.startswith('logits.') and not shape:
        return NO_CLASSIFIER
    remedy = 'it is of another network, or of a training run with other options (optimizer, freeze, ema_decay)'
    if name == 'logits.bias':
        remedy = f'use --num_classes {shape[0]}'
    elif name.startswith('aux_logits.'):
        remedy = 'use the --image_size that it was trained with' if shape else 'use --aux_logits false'
    return f'{name}: shape {shapes[name]} here, {shape or "no such parameter"} in the file; {remedy}'


def _block_counts(names):
    """The numbers of Inception A, B and C blocks of which there are parameters in `names`."""
    blocks = {name.partition('.')[0] for name in names}
    return [sum(bool(re.fullmatch(f'mixed_{stage}[b-z]', block)) for block in blocks) for stage in (5, 6, 7)]
