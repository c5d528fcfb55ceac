"""Logits of seeded weights, computed in float32 on a CPU and stored beside this file: what every device must come near.

    python -m src.acceptance.reference [FILE]

computes them anew and writes FILE (default: the stored one). It is needed again only when network, weights or images of
this file change.
"""

import sys
import zlib
from pathlib import Path

import numpy as np

from src import files

STORED = Path(__file__).with_name('reference.npz')
# {name: options of InceptionV4}: the network itself for an NPU, and one that a CPU compiles in seconds.
NETWORKS = {'whole': {'num_classes': 1000}, 'small': {'num_classes': 10, 'block_counts': (1, 1, 1), 'image_size': 75}}


def image_size(name):
    return NETWORKS[name].get('image_size', 299)


def weights(shapes):
    """{name: float32 ndarray} for {name: shape}, by a seed for each name, so that no version of MindSpore matters.

    He normal: nothing leaves the range of float16, and its rounding stays below 1e-3 of the largest logit of the whole
    network (computed with O3 on a CPU). With filters that sum to 0 it would grow from layer to layer, to 0.17.
    """
    return {
        name: _weight(name.rpartition('.')[2], shape, np.random.default_rng(zlib.crc32(name.encode())))
        for name, shape in shapes.items()
    }


def _weight(kind, shape, rng):
    if kind == 'weight':
        value = rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
    else:
        value = {
            'gamma': 1 + 0.1 * rng.standard_normal(shape),
            'beta': 0.1 * rng.standard_normal(shape),
            'bias': 0.1 * rng.standard_normal(shape),
            'moving_mean': 0.1 * rng.standard_normal(shape),
            'moving_variance': rng.uniform(0.8, 1.2, shape),
        }[kind]
    return value.astype(np.float32)


def images(size):
    """float32 (4, 3, size, size) in [-1, 1], from integers of a seed: areas of colour with noise."""
    rng = np.random.default_rng(14)  # of which no two classes come near each other at the top
    coarse = rng.integers(0, 256, (4, 3, 5, 5)).repeat(-(-size // 5), 2).repeat(-(-size // 5), 3)[:, :, :size, :size]
    return ((coarse + rng.integers(-20, 21, coarse.shape)) / 127.5 - 1).clip(-1, 1).astype(np.float32)


def network(name):
    """The network of NETWORKS with the seeded weights, in evaluation mode."""
    from mindspore.nn.utils import no_init_parameters

    from src.inceptionv4 import InceptionV4
    from src.weights import checkpoint

    with no_init_parameters():
        cell = InceptionV4(**NETWORKS[name]).set_train(False)
    shapes = {parameter.name: parameter.shape for parameter in cell.get_parameters()}
    checkpoint.load_into(cell, weights(shapes), 'reference')
    return cell


def logits(cell, name):
    """What `cell` gives for `images`, float32 (4, classes)."""
    from mindspore import Tensor

    return cell(Tensor(images(image_size(name)))).asnumpy().astype(np.float32)


def stored(name, path=STORED):
    """The float32 figures of a CPU."""
    with np.load(path) as found:
        return found[name]


def main():
    from src import runtime

    runtime.start('CPU')
    path = Path(sys.argv[1] if len(sys.argv) > 1 else STORED)
    found = {name: logits(network(name), name) for name in NETWORKS}
    for name, value in found.items():
        first, second = np.sort(value, 1)[:, :-3:-1].T
        differ = np.abs(value - value[[1, 2, 3, 0]]).max() / np.abs(value).max()
        print(
            f'{name}: largest logit {np.abs(value).max():.2f}; of it, images differ by {differ:.2f}, and the first '
            f'class leads the second by {(first - second).min() / np.abs(value).max():.3f} at least'
        )
    with files.replacing(path) as temporary, open(temporary, 'wb') as file:
        np.savez(file, **found)


if __name__ == '__main__':
    main()
