"""Names and axes of InceptionV4's weights in other programs, to ours and back. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import numpy as np

from src.errors import InputError

# TF-slim spells these in capitals; every other component is ours with a capital first letter.
_SPELLING = {'aux_logits': 'AuxLogits'}
_LEAVES = {
    'conv.weight': 'weights',
    'weight': 'weights',
    'bias': 'biases',
    'bn.beta': 'BatchNorm/beta',
    'bn.gamma': 'BatchNorm/gamma',
    'bn.moving_mean': 'BatchNorm/moving_mean',
    'bn.moving_variance': 'BatchNorm/moving_variance',
}
_TIMM_LEAVES = {
    'conv.weight': 'conv.weight',
    'bn.gamma': 'bn.weight',
    'bn.beta': 'bn.bias',
    'bn.moving_mean': 'bn.running_mean',
    'bn.moving_variance': 'bn.running_var',
}
# The branches 1 and 2 of block C, which fork.
_TIMM_FORKS = {1: ('1_0', '1_1a', '1_1b'), 2: ('2_0', '2_1', '2_2', '2_3a', '2_3b')}
_MINDCV_FORKS = {1: ('1', '1_1', '1_2'), 2: ('2.0', '2.1', '2.2', '2_1', '2_2')}


def tf_slim_name(name: str) -> str:
    """Name of one of our parameters in TF-slim: `mixed_5b.branch_1.conv2d_0b_3x3.conv.weight` is
    `InceptionV4/Mixed_5b/Branch_1/Conv2d_0b_3x3/weights`. InputError for other names."""
    leaf = next((leaf for leaf in _LEAVES if name.endswith('.' + leaf)), None)
    if leaf is None:
        raise InputError(f'{name}: not the name of an InceptionV4 parameter')
    path = name[: -len(leaf) - 1].split('.')
    scopes = [_SPELLING.get(path[0], path[0].capitalize())] + [part.capitalize() for part in path[1:]]
    if path == ['logits']:
        scopes.append('Logits')  # the dense layer stands in a scope of its own name
    return '/'.join(['InceptionV4', *scopes, _LEAVES[leaf]])


def _layers(names):
    """Yield (layer, number of its block, block, branch or None, position in the branch, layers in the branch) for the
    convolutions among our parameter names; in alphabetical order the names are in the order of the network."""
    layers = sorted(n[: -len('.conv.weight')] for n in names if n.endswith('.conv.weight') and 'aux_logits' not in n)
    for number, (block, inside) in enumerate(groupby(layers, lambda layer: layer.split('.')[0])):
        for branch, group in groupby(inside, lambda layer: layer.partition('.branch_')[2][:1]):
            group = list(group)
            for position, layer in enumerate(group):
                yield layer, number, block, int(branch) if branch else None, position, len(group)


def _timm_layer(number, block, branch, position, count):
    """timm numbers all layers of the stem and all blocks, and the layers of a branch where it has several."""
    place = f'features.{number}'
    if branch is None:
        return place
    if block in ('mixed_3a', 'mixed_5a'):  # the only convolution beside a pool
        return f'{place}.conv'
    if block > 'mixed_7a' and branch in _TIMM_FORKS:
        return f'{place}.branch{_TIMM_FORKS[branch][position]}'
    if branch == 3:  # after a pool
        return f'{place}.branch3.1'
    return f'{place}.branch{branch}' + (f'.{position}' if count > 1 else '')


def _mindcv_layer(number, block, branch, position, count):
    """MindCV names the layers of the stem, which is its block 0, as TF-slim does, and numbers the rest as timm does."""
    if branch is None:
        return f'features.0.{block}'
    place = f'features.0.{block}_branch_' if block < 'mixed_5b' else f'features.{number - 5}.branch_'
    if block > 'mixed_7a' and branch in _MINDCV_FORKS:
        return place + _MINDCV_FORKS[branch][position]
    if branch == 3:
        return f'{place}3.1'
    return f'{place}{branch}' + (f'.{position}' if count > 1 else '')


def names_in(layout: str, ours: Iterable[str]) -> dict[str, str]:
    """{our name: name in `layout` ('tf_slim', 'timm' or 'mindcv')} for the parameters `ours` that exist there."""
    if layout == 'tf_slim':
        return {name: tf_slim_name(name) for name in ours}
    layer_name, classifier = (_timm_layer, 'last_linear') if layout == 'timm' else (_mindcv_layer, 'classifier')
    result = {}
    for layer, *place in _layers(ours):
        for leaf, timm_leaf in _TIMM_LEAVES.items():
            result[f'{layer}.{leaf}'] = f'{layer_name(*place)}.{timm_leaf if layout == "timm" else leaf}'
    return {**result, 'logits.weight': f'{classifier}.weight', 'logits.bias': f'{classifier}.bias'}


def transposed(array: np.ndarray, inverse: bool = False) -> np.ndarray:
    """Kernels of convolutions HWIO as OIHW, of dense layers IO as OI, or with `inverse` back; anything else as it is."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0) if inverse else array.transpose(3, 2, 0, 1)
    return array.T if array.ndim == 2 else array


def fit(
    tensors: dict[str, np.ndarray], names: dict[str, str], shapes: dict[str, tuple], hwio: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Take the tensors of another program as our parameters.

    Args:
        tensors: by their names in the other program.
        names: our name to the other program's.
        shapes: by our names. A network without batch norm scale has no gamma; then ours is filled with ones.
        hwio: kernels of convolutions are HWIO, of dense layers IO, as in TensorFlow.

    Returns:
        (parameters, left): float32 ndarrays for every name in `shapes`, kernels OIHW, dense OI; the unused tensors.

    Raises:
        InputError: a tensor is missing or of another shape.
    """
    left, result, findings = dict(tensors), {}, []
    for name, shape in shapes.items():
        foreign = names[name]
        if foreign not in left and name.endswith('.bn.gamma'):
            result[name] = np.ones(shape, np.float32)
        elif foreign not in left:
            findings.append(f'{foreign} is missing')
        else:
            found = left.pop(foreign)
            value = transposed(found) if hwio else found
            if value.shape != tuple(shape):
                findings.append(f'{foreign} has the shape {found.shape}, {name} needs {tuple(shape)}')
            with np.errstate(over='ignore'):  # infinite then, which the caller finds
                result[name] = np.ascontiguousarray(value, np.float32)
    if findings:
        raise InputError('; '.join(findings[:5]) + (f'; and {len(findings) - 5} more' if len(findings) > 5 else ''))
    return result, left


def from_tf_slim(variables: dict[str, np.ndarray], shapes: dict[str, tuple]) -> dict[str, np.ndarray]:
    """TF-slim's model variables to our parameters with the names and shapes `shapes`, as `fit` does; InputError if one
    has no place in this network either."""
    result, left = fit(variables, names_in('tf_slim', shapes), shapes, hwio=True)
    if left:
        raise InputError('; '.join(f'{name} has no place in this network' for name in left))
    return result


def to_tf_slim(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `from_tf_slim`: our names, OIHW and OI to TF-slim's names, HWIO and IO.

    Gammas that are all one, which is how a network without batch norm scale keeps them, are left out.
    """
    return {
        tf_slim_name(name): np.ascontiguousarray(transposed(value, inverse=True))
        for name, value in parameters.items()
        if not (name.endswith('.bn.gamma') and (value == 1).all())
    }
