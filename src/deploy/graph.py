"""The graph of an exported file: the network, its batch norm folded, with the work around it that a server would do."""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.data.preprocess import PREPROCESSING, Preprocessing, scale
from src.inceptionv4 import ConvBN

INPUT_TYPES = {'float': 'float32', 'uint8': 'uint8'}
PRECISIONS = {'float32': ms.float32, 'float16': ms.float16, 'bfloat16': ms.bfloat16}
OUTPUT_NAMES = {'logits': ['logits'], 'softmax': ['probabilities'], 'top5': ['probabilities', 'classes']}


class Signature(NamedTuple):
    """What an exported file takes and gives."""

    image_size: int  # height and width, pixels
    preprocessing: Preprocessing
    input_type: str = 'float'  # a key of `INPUT_TYPES`, see `Served`
    output: str = 'logits'  # a key of `OUTPUT_NAMES`, see `Served`
    batch_size: int = 0  # images in a call; 0: any number


class Served(nn.Cell):
    """`network` with scaling before it and probabilities behind it.

    Args:
        input_type (str): `float`: float32 (N, 3, H, W), scaled; `uint8`: images (N, H, W, 3), scaled in the graph.
        precision (str): of the network, to which `set_dtype` has brought its parameters: a key of `PRECISIONS`.
        output (str): `logits` or `softmax`: float32 (N, classes); `top5`: the five highest probabilities, float32 (N, 5),
            best first, and their class numbers, int32 (N, 5).
    """

    def __init__(self, network, input_type='uint8', output='softmax', preprocessing=PREPROCESSING, precision='float32'):
        super().__init__(auto_prefix=False)
        self.dtype = PRECISIONS[precision]
        self.network, self.input_type, self.output, self.preprocessing = network, input_type, output, preprocessing

    def construct(self, x):
        if self.input_type == 'uint8':
            x = scale(x.astype(ms.float32).transpose(0, 3, 1, 2), self.preprocessing)
        x = self.network(x.astype(self.dtype)).astype(ms.float32)
        if self.output == 'logits':
            return x
        x = ops.softmax(x, 1)
        if self.output == 'softmax':
            return x
        values, classes = ops.topk(x, min(5, x.shape[1]))
        return values, classes.astype(ms.int32)


def host_scale(images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Images uint8 (N, H, W, 3) as a graph with the input type `float` takes them: float32 (N, 3, H, W)."""
    return scale(Tensor(images.transpose(0, 3, 1, 2).astype(np.float32)), preprocessing).asnumpy()


def as_input(images: np.ndarray, signature: Signature) -> np.ndarray:
    """Images uint8 (N, H, W, 3) as a file of `signature` takes them."""
    return host_scale(images, signature.preprocessing) if signature.input_type == 'float' else images


def set_precision(network: nn.Cell, precision: str) -> None:
    """Bring the parameters of `network` to `precision`, a key of `PRECISIONS`."""
    for parameter in network.get_parameters():
        parameter.set_dtype(PRECISIONS[precision])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) of `logits` (N, classes)."""
    x = np.exp(logits - logits.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


def as_function(cell: nn.Cell):
    """`cell` as a function: ndarray -> tuple of ndarrays."""

    def run(images):
        outputs = cell(Tensor(images))
        return tuple(o.asnumpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return run


def fold(network: nn.Cell):
    """Make convolution and batch norm of every `ConvBN` of `network` one convolution with a bias, in place.

    The bias goes through the average pool of `PoolConvBN` unchanged, because padding does not count in its mean.
    """
    for name, cell in list(network.cells_and_names()):
        if isinstance(cell, ConvBN):
            cell.conv = _folded(cell.conv, cell.bn)
            cell.bn = nn.Identity()
            cell.update_parameters_name(f'{name}.')


def _folded(conv, bn):
    """`nn.Conv2d` that computes `bn(conv(x))`; the new weights are computed in float64."""
    gamma, beta, mean, variance = (
        p.asnumpy().astype(np.float64) for p in (bn.gamma, bn.beta, bn.moving_mean, bn.moving_variance)
    )
    factor = gamma / np.sqrt(variance + bn.eps)
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.pad_mode,
        has_bias=True,
        weight_init=Tensor(conv.weight.asnumpy() * factor[:, None, None, None], ms.float32),
        bias_init=Tensor(beta - mean * factor, ms.float32),
    )
