"""Names and layouts of foreign InceptionV4 weights to this network's and back. NumPy only."""
import numpy as np

from src.errors import InputError

# TF-slim spells these in capitals; every other component is ours with a capital first letter.
_SPELLING = {'aux_logits': 'AuxLogits'}
_LEAVES = {'conv.weight': 'weights', 'weight': 'weights', 'bias': 'biases', 'bn.beta': 'BatchNorm/beta',
           'bn.gamma': 'BatchNorm/gamma', 'bn.moving_mean': 'BatchNorm/moving_mean',
           'bn.moving_variance': 'BatchNorm/moving_variance'}


def tf_slim_name(name):
    """Name of one of our parameters in TF-slim: `mixed_5b.branch_1.conv2d_0b_3x3.conv.weight` is
    `InceptionV4/Mixed_5b/Branch_1/Conv2d_0b_3x3/weights`."""
    for leaf, tf_leaf in _LEAVES.items():
        if name.endswith('.' + leaf):
            path = name[:-len(leaf) - 1].split('.')
            break
    else:
        raise InputError(f'{name}: not the name of an InceptionV4 parameter')
    scopes = [_SPELLING.get(path[0], path[0].capitalize())] + [part.capitalize() for part in path[1:]]
    if path == ['logits']:
        scopes.append('Logits')  # the dense layer stands in a scope of its own name
    return '/'.join(['InceptionV4', *scopes, tf_leaf])


def _transposed(array, inverse=False):
    """Convolution HWIO <-> OIHW, dense IO <-> OI; anything else as it is."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0) if inverse else array.transpose(3, 2, 0, 1)
    return array.T if array.ndim == 2 else array


def from_tf_slim(variables, shapes):
    """TF-slim variables to ours.

    Args:
        variables (dict[str, ndarray]): all model variables, TF names; kernels HWIO, dense IO. A network without
            batch norm scale has no gamma; then ours is filled with ones.
        shapes (dict[str, tuple]): our parameters' names and shapes.

    Returns:
        dict[str, ndarray]: a value for every name in `shapes`; kernels OIHW, dense OI.

    Raises:
        InputError: a variable is missing, unknown or of another shape; the message names all of them.
    """
    left, result, findings = dict(variables), {}, []
    for name, shape in shapes.items():
        tf_name = tf_slim_name(name)
        if tf_name not in left and name.endswith('.bn.gamma'):
            result[name] = np.ones(shape, np.float32)
        elif tf_name not in left:
            findings.append(f'{tf_name} is missing')
        else:
            value = _transposed(left.pop(tf_name))
            if value.shape != tuple(shape):
                findings.append(f'{tf_name} has the shape {_transposed(value, inverse=True).shape}, '
                                f'{name} needs {tuple(shape)}')
            result[name] = np.ascontiguousarray(value)
    findings += [f'{name} has no place in this network' for name in left]
    if findings:
        raise InputError('; '.join(findings))
    return result


def to_tf_slim(parameters):
    """The inverse of `from_tf_slim`: our names, OIHW and OI to TF-slim's names, HWIO and IO.

    Gammas that are all one, which is how a network without batch norm scale keeps them, are left out.
    """
    return {tf_slim_name(name): np.ascontiguousarray(_transposed(value, inverse=True))
            for name, value in parameters.items()
            if not (name.endswith('.bn.gamma') and (value == 1).all())}
