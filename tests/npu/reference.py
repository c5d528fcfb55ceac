"""Logits of seeded weights, computed in float32 on a CPU and stored beside this file; every device must come near them.

`python -m tests.npu.reference` computes and stores them; needed only when the network, or the weights or images of this
module, change.
"""

import zlib
from pathlib import Path

import numpy as np
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters

from src import runtime
from src.inceptionv4 import InceptionV4
from src.options import load_settings
from src.weights import checkpoint

STORED = Path(__file__).with_name('reference.npz')
# {name: options of InceptionV4}: the network itself for an NPU, and one that a CPU compiles in seconds.
NETWORKS = {'whole': {'num_classes': 1000}, 'small': {'num_classes': 10, 'block_counts': (1, 1, 1), 'image_size': 75}}


def weight(name, shape):
    """float32 values of a parameter. NumPy draws them, with a seed for each name: no version of MindSpore changes them.

    He normal: no activation leaves the range of float16, and the error of float16 stays below 1e-3 of the largest logit of
    the whole network (computed with O3 on a CPU). With filters that sum to 0 the error would grow from layer to layer, to
    0.17.
    """
    rng, kind = np.random.default_rng(zlib.crc32(name.encode())), name.rpartition('.')[2]
    if kind == 'weight':
        return (rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
    drawn = {one: 0.1 * rng.standard_normal(shape) for one in ('gamma', 'beta', 'bias', 'moving_mean')}
    drawn |= {'gamma': 1 + drawn['gamma'], 'moving_variance': rng.uniform(0.8, 1.2, shape)}
    return drawn[kind].astype(np.float32)


def images(size):
    """float32 (4, 3, size, size) in [-1, 1], the same on every call: areas of colour with noise."""
    rng = np.random.default_rng(14)  # a seed with which the first class leads the second clearly, in all images
    coarse = rng.integers(0, 256, (4, 3, 5, 5)).repeat(-(-size // 5), 2).repeat(-(-size // 5), 3)[:, :, :size, :size]
    return ((coarse + rng.integers(-20, 21, coarse.shape)) / 127.5 - 1).clip(-1, 1).astype(np.float32)


def network(name):
    """The `InceptionV4` of NETWORKS[name] with the seeded weights, in evaluation mode."""
    with no_init_parameters():
        cell = InceptionV4(**NETWORKS[name]).set_train(False)
    checkpoint.load_into(cell, {p.name: weight(p.name, p.shape) for p in cell.get_parameters()}, 'reference')
    return cell


def logits(cell, name):
    """The output of `cell` for `images`, float32 (4, classes)."""
    return cell(Tensor(images(NETWORKS[name].get('image_size', 299)))).asnumpy().astype(np.float32)


if __name__ == '__main__':
    runtime.start(load_settings(['--device_target', 'CPU']))
    np.savez(STORED, **{name: logits(network(name), name) for name in NETWORKS})
