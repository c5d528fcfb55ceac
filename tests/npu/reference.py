"""Logits of seeded weights, computed in float32 on a CPU and stored beside this file; every device must come near them.

    python -m tests.npu.reference [FILE]

computes them and writes FILE (default: the stored file). This is needed only when the network, or the weights or images of
this module, change.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from src import files, runtime
from src.inceptionv4 import InceptionV4
from src.options import load_settings
from src.weights import checkpoint

STORED = Path(__file__).with_name('reference.npz')
# {name: options of InceptionV4}: the network itself for an NPU, and one that a CPU compiles in seconds.
NETWORKS = {'whole': {'num_classes': 1000}, 'small': {'num_classes': 10, 'block_counts': (1, 1, 1), 'image_size': 75}}


def image_size(name: str) -> int:
    """Width and height of the images of NETWORKS[name], pixels."""
    return NETWORKS[name].get('image_size', 299)


def weights(shapes: dict[str, tuple]) -> dict[str, np.ndarray]:
    """{name: float32 values} for {name: shape}. NumPy draws them with a seed for each name, so that they do not depend on
    MindSpore's version.

    He normal: no activation leaves the range of float16, and the error of float16 stays below 1e-3 of the largest logit of
    the whole network (computed with O3 on a CPU). With filters that sum to 0 the error would grow from layer to layer, to
    0.17.
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


def images(size: int) -> np.ndarray:
    """float32 (4, 3, size, size) in [-1, 1], the same on every call: areas of colour with noise."""
    rng = np.random.default_rng(14)  # a seed with which the first class leads the second clearly, in all images
    coarse = rng.integers(0, 256, (4, 3, 5, 5)).repeat(-(-size // 5), 2).repeat(-(-size // 5), 3)[:, :, :size, :size]
    return ((coarse + rng.integers(-20, 21, coarse.shape)) / 127.5 - 1).clip(-1, 1).astype(np.float32)


def network(name: str) -> nn.Cell:
    """The `InceptionV4` of NETWORKS[name] with the seeded weights, in evaluation mode."""
    with no_init_parameters():
        cell = InceptionV4(**NETWORKS[name]).set_train(False)
    shapes = {parameter.name: parameter.shape for parameter in cell.get_parameters()}
    checkpoint.load_into(cell, weights(shapes), 'reference')
    return cell


def logits(cell: nn.Cell, name: str) -> np.ndarray:
    """The output of `cell` for `images`, float32 (4, classes)."""
    return cell(Tensor(images(image_size(name)))).asnumpy().astype(np.float32)


def stored(name: str) -> np.ndarray:
    """The stored logits of NETWORKS[name], float32 (4, classes)."""
    with np.load(STORED) as found:
        return found[name]


def main():
    """Compute the logits and write them."""
    runtime.start(load_settings(['--device_target', 'CPU']))
    path = Path(sys.argv[1] if len(sys.argv) > 1 else STORED)
    found = {name: logits(network(name), name) for name in NETWORKS}
    with files.replacing(path) as temporary, open(temporary, 'wb') as file:
        np.savez(file, **found)


if __name__ == '__main__':
    main()
