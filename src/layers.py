"""The layers that InceptionV4 is made of: convolution with batch norm, branches and forks, pools, the classifier."""

from collections import OrderedDict

import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import Initializer, Zero

BATCH_NORM_EPSILON = 1e-3


class HeNormal(Initializer):
    """Initial weights of a layer with `fan_in` inputs a value (He et al. 2015): a normal distribution cut at two standard
    deviations. The cut leaves 0.8796 of the standard deviation, for which `sigma` makes up.

    MindSpore's `VarianceScaling('truncated_normal')` draws from a uniform distribution (2.8: the name is compared with
    another spelling), and its `TruncatedNormal` takes 5 s for this network's 43 million weights, where this takes 0.6.
    """

    def __init__(self, fan_in: int):
        super().__init__(fan_in=fan_in)
        self.sigma = (2 / fan_in) ** 0.5 / 0.87962566

    def _initialize(self, arr):
        # The seed of `mindspore.set_seed` is also that of numpy.random.
        generator = np.random.Generator(np.random.SFC64(np.random.randint(1, 1 << 63, dtype=np.int64)))
        values = generator.standard_normal(arr.shape, np.float32).ravel()
        outside = np.flatnonzero(np.abs(values) > 2)
        while outside.size:
            values[outside] = generator.standard_normal(outside.size, np.float32)
            outside = outside[np.abs(values[outside]) > 2]
        np.multiply(values.reshape(arr.shape), np.float32(self.sigma), out=arr)


class BatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` of (N, C, H, W) only: a third of its graphs to compile, of which a network has 149 times as many.

    `decay` is the share that the moving averages keep each step; with 1 training computes with them, too, as an evaluation
    does. Without `scale` gamma stays 1, as in TF-slim.
    """

    def __init__(self, channels: int, decay: float, scale: bool):
        super().__init__(channels, BATCH_NORM_EPSILON, decay, use_batch_statistics=False if decay == 1 else None)
        self.gamma.requires_grad = scale

    def construct(self, x):
        """x, normalised."""
        if self.training and self.use_batch_statistics is None:
            return self.bn_train(x, self.gamma, self.beta, self.moving_mean, self.moving_variance)[0]
        return self.bn_infer(x, self.gamma, self.beta, self.moving_mean, self.moving_variance)[0]


class ConvBN(nn.Cell):
    """Convolution without bias, batch norm, ReLU: (N, in_channels, H, W) -> (N, out_channels, H', W').

    `batch_norm(channels)` makes the `BatchNorm`.

    In O3 the graph for an NPU has nothing between batch norm and ReLU, nor between their gradients, not even a cast: batch
    norm takes and returns float16, and its parameters in float32. O2 has casts on both sides of batch norm.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, pad_mode='same', *, batch_norm):
        super().__init__()
        rows, columns = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        self.conv = nn.Conv2d(
            in_channels, out_channels, (rows, columns), stride, pad_mode, weight_init=HeNormal(in_channels * rows * columns)
        )
        self.bn = batch_norm(out_channels)
        self.relu = nn.ReLU()

    def construct(self, x):
        """Figures 3 to 9 of the paper: every convolution is one of these."""
        return self.relu(self.bn(self.conv(x)))


class PoolConvBN(ConvBN):
    """3 x 3 average pool, then a 1 x 1 `ConvBN`, the last branch of blocks A, B and C.

    The convolution comes first here: it is linear, has no bias and mixes no positions, so the order does not change
    the result, and the pool then runs on 96 to 256 channels in place of 384 to 1536.
    """

    def __init__(self, in_channels, out_channels, batch_norm):
        super().__init__(in_channels, out_channels, 1, batch_norm=batch_norm)
        # Padding does not count in the mean, as with TensorFlow's SAME. The padding mode `pad` with the option that says
        # so raises an error on a 910B or A3, and elsewhere it becomes a pool in three dimensions.
        self.pool = nn.AvgPool2d(3, stride=1, pad_mode='same')

    def construct(self, x):
        """The pool and the convolution in the other order."""
        return self.relu(self.bn(self.pool(self.conv(x))))


def branch(**layers: nn.Cell) -> nn.SequentialCell:
    """The named layers, one after the other."""
    return nn.SequentialCell(OrderedDict(layers))


class Branches(nn.SequentialCell):
    """Branches beside each other on one input, their outputs concatenated over the channels."""

    def __init__(self, *branches):
        super().__init__(OrderedDict((f'branch_{i}', cell) for i, cell in enumerate(branches)))

    def construct(self, x):
        """(N, C, H, W) -> (N, sum of the branches' channels, H', W')."""
        outputs = ()
        for cell in self.cell_list:
            outputs += (cell(x),)
        return ops.concat(outputs, 1)


class Split(nn.Cell):
    """The fork at the end of block C's branches: `stem` (may be absent), then two convolutions of its output."""

    def __init__(self, stem, ends):
        super().__init__()
        self.stem = [cell for _, cell in stem]
        self.ends = [cell for _, cell in ends]
        for name, cell in stem + ends:
            setattr(self, name, cell)

    def construct(self, x):
        """(N, C, H, W) -> (N, channels of both ends, H, W)."""
        for cell in self.stem:
            x = cell(x)
        return ops.concat((self.ends[0](x), self.ends[1](x)), 1)


def max_pool() -> nn.MaxPool2d:
    """3 x 3, stride 2, no padding: (N, C, H, W) -> (N, C, (H - 1) // 2, (W - 1) // 2)."""
    return nn.MaxPool2d(3, stride=2, pad_mode='valid')


def dense(in_channels: int, out_channels: int) -> nn.Dense:
    """Fully connected layer with bias: (N, in_channels) -> (N, out_channels)."""
    return nn.Dense(in_channels, out_channels, weight_init=HeNormal(in_channels), bias_init=Zero())
