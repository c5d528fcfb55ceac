"""InceptionV4 (Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
https://arxiv.org/abs/1602.07261, figures 3 to 9), with the layer names of TF-slim's `inception_v4`.

Shapes in the comments are height x width x channels at 299 x 299; the tensors themselves are N, C, H, W.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mindspore as ms
from mindspore import Tensor, amp, nn, ops

from src.layers import BatchNorm, Branches, ConvBN, PoolConvBN, Split, branch, dense, max_pool

LETTERS = 'bcdefghijklmnopqrstuvwxyz'  # of the blocks of a stage: mixed_5b, mixed_5c, ...; the reduction before them is a
Make = Callable[..., ConvBN]  # makes a layer: `ConvBN` or `PoolConvBN` with the network's batch norm


def mixed_3a(conv: Make) -> Branches:
    """Stem, first fork (figure 3): 147x147x64 -> 73x73x160."""
    return Branches(branch(maxpool_0a_3x3=max_pool()), branch(conv2d_0a_3x3=conv(64, 96, 3, 2, 'valid')))


def mixed_4a(conv: Make) -> Branches:
    """Stem, second fork (figure 3): 73x73x160 -> 71x71x192."""
    return Branches(
        branch(conv2d_0a_1x1=conv(160, 64, 1), conv2d_1a_3x3=conv(64, 96, 3, 1, 'valid')),
        branch(
            conv2d_0a_1x1=conv(160, 64, 1),
            conv2d_0b_1x7=conv(64, 64, (1, 7)),
            conv2d_0c_7x1=conv(64, 64, (7, 1)),
            conv2d_1a_3x3=conv(64, 96, 3, 1, 'valid'),
        ),
    )


def mixed_5a(conv: Make) -> Branches:
    """Stem, third fork (figure 3): 71x71x192 -> 35x35x384."""
    return Branches(branch(conv2d_1a_3x3=conv(192, 192, 3, 2, 'valid')), branch(maxpool_1a_3x3=max_pool()))


def inception_a(conv: Make, pool_conv: Make) -> Branches:
    """Figure 4: 35x35x384 -> 35x35x384."""
    return Branches(
        branch(conv2d_0a_1x1=conv(384, 96, 1)),
        branch(conv2d_0a_1x1=conv(384, 64, 1), conv2d_0b_3x3=conv(64, 96, 3)),
        branch(conv2d_0a_1x1=conv(384, 64, 1), conv2d_0b_3x3=conv(64, 96, 3), conv2d_0c_3x3=conv(96, 96, 3)),
        branch(conv2d_0b_1x1=pool_conv(384, 96)),
    )


def reduction_a(conv: Make) -> Branches:
    """Figure 7 with k, l, m, n = 192, 224, 256, 384 (table 1): 35x35x384 -> 17x17x1024."""
    return Branches(
        branch(conv2d_1a_3x3=conv(384, 384, 3, 2, 'valid')),
        branch(
            conv2d_0a_1x1=conv(384, 192, 1), conv2d_0b_3x3=conv(192, 224, 3), conv2d_1a_3x3=conv(224, 256, 3, 2, 'valid')
        ),
        branch(maxpool_1a_3x3=max_pool()),
    )


def inception_b(conv: Make, pool_conv: Make) -> Branches:
    """Figure 5: 17x17x1024 -> 17x17x1024."""
    return Branches(
        branch(conv2d_0a_1x1=conv(1024, 384, 1)),
        branch(conv2d_0a_1x1=conv(1024, 192, 1), conv2d_0b_1x7=conv(192, 224, (1, 7)), conv2d_0c_7x1=conv(224, 256, (7, 1))),
        branch(
            conv2d_0a_1x1=conv(1024, 192, 1),
            conv2d_0b_7x1=conv(192, 192, (7, 1)),
            conv2d_0c_1x7=conv(192, 224, (1, 7)),
            conv2d_0d_7x1=conv(224, 224, (7, 1)),
            conv2d_0e_1x7=conv(224, 256, (1, 7)),
        ),
        branch(conv2d_0b_1x1=pool_conv(1024, 128)),
    )


def reduction_b(conv: Make) -> Branches:
    """Figure 8: 17x17x1024 -> 8x8x1536."""
    return Branches(
        branch(conv2d_0a_1x1=conv(1024, 192, 1), conv2d_1a_3x3=conv(192, 192, 3, 2, 'valid')),
        branch(
            conv2d_0a_1x1=conv(1024, 256, 1),
            conv2d_0b_1x7=conv(256, 256, (1, 7)),
            conv2d_0c_7x1=conv(256, 320, (7, 1)),
            conv2d_1a_3x3=conv(320, 320, 3, 2, 'valid'),
        ),
        branch(maxpool_1a_3x3=max_pool()),
    )


def inception_c(conv: Make, pool_conv: Make) -> Branches:
    """Figure 6: 8x8x1536 -> 8x8x1536."""
    return Branches(
        branch(conv2d_0a_1x1=conv(1536, 256, 1)),
        Split(
            [('conv2d_0a_1x1', conv(1536, 384, 1))],
            [('conv2d_0b_1x3', conv(384, 256, (1, 3))), ('conv2d_0c_3x1', conv(384, 256, (3, 1)))],
        ),
        Split(
            [
                ('conv2d_0a_1x1', conv(1536, 384, 1)),
                ('conv2d_0b_3x1', conv(384, 448, (3, 1))),
                ('conv2d_0c_1x3', conv(448, 512, (1, 3))),
            ],
            [('conv2d_0d_1x3', conv(512, 256, (1, 3))), ('conv2d_0e_3x1', conv(512, 256, (3, 1)))],
        ),
        branch(conv2d_0b_1x1=pool_conv(1536, 256)),
    )


class AuxLogits(nn.Cell):
    """Auxiliary classifier on the last block B (TF-slim): (N, 1024, size, size) -> (N, num_classes); size 17 at 299."""

    def __init__(self, conv, num_classes, size):
        super().__init__()
        pool = min(5, size)
        self.pool = nn.AvgPool2d(pool, stride=3, pad_mode='valid')  # 17x17 -> 5x5
        self.conv2d_1b_1x1 = conv(1024, 128, 1)
        self.conv2d_2a = conv(128, 768, (size - pool) // 3 + 1, 1, 'valid')  # 5x5x128 -> 1x1x768
        self.flatten = nn.Flatten()
        self.aux_logits = dense(768, num_classes)

    def construct(self, x):
        """The auxiliary logits."""
        return self.aux_logits(self.flatten(self.conv2d_2a(self.conv2d_1b_1x1(self.pool(x)))))


class InceptionV4(nn.Cell):
    """(N, 3, H, W) -> logits (N, num_classes); H and W from 75, values in [-1, 1].

    Args:
        num_classes (int): width of the classifier.
        block_counts (tuple): blocks A, B and C; the paper's are 4, 7, 3 (figure 9).
        bn_decay (float): share that the moving averages of batch norm keep each step; 1: training uses them as they are.
        bn_scale (bool): learn batch norm's gamma.
        aux_logits (bool): build the auxiliary classifier; in training `construct` then returns (logits, aux_logits).
        image_size (int): height of the images, pixels; only the auxiliary classifier's kernel depends on it.

    `construct` takes as its second argument an optional `dropout_mask` (N, 1536), factors of the pooled features; without it
    there is no dropout. Training draws it beside the images (`src.data.preprocess.dropout_mask`), because MindSpore's own
    dropout stream can be neither saved nor replayed.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        block_counts: tuple[int, int, int] = (4, 7, 3),
        bn_decay: float = 0.9997,
        bn_scale: bool = False,
        aux_logits: bool = False,
        image_size: int = 299,
    ):
        super().__init__()
        batch_norm = partial(BatchNorm, decay=bn_decay, scale=bn_scale)
        conv, pool_conv = partial(ConvBN, batch_norm=batch_norm), partial(PoolConvBN, batch_norm=batch_norm)

        def repeated(stage, block, count):
            return [(f'mixed_{stage}{LETTERS[i]}', block(conv, pool_conv)) for i in range(count)]

        a, b, c = block_counts
        to_aux = [
            ('conv2d_1a_3x3', conv(3, 32, 3, 2, 'valid')),  # 299x299x3 -> 149x149x32
            ('conv2d_2a_3x3', conv(32, 32, 3, 1, 'valid')),  # -> 147x147x32
            ('conv2d_2b_3x3', conv(32, 64, 3)),  # -> 147x147x64
            ('mixed_3a', mixed_3a(conv)),
            ('mixed_4a', mixed_4a(conv)),
            ('mixed_5a', mixed_5a(conv)),
            *repeated(5, inception_a, a),
            ('mixed_6a', reduction_a(conv)),
            *repeated(6, inception_b, b),
        ]
        from_aux = [('mixed_7a', reduction_b(conv)), *repeated(7, inception_c, c)]
        for name, cell in to_aux + from_aux:
            setattr(self, name, cell)
        self.to_aux = [cell for _, cell in to_aux]
        self.from_aux = [cell for _, cell in from_aux]
        self.logits = dense(1536, num_classes)
        self.has_aux = aux_logits
        if aux_logits:
            size = image_size
            for stride in (2, 1, 2, 1, 2, 2):  # the 3 x 3 layers without padding on the way, conv2d_1a to mixed_6a
                size = (size - 3) // stride + 1
            self.aux_logits = AuxLogits(conv, num_classes, size)

    def feature_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> the maps (N, 1536, h, w) whose means the classifier takes, 8 x 8 at 299 pixels; the last block B's
        output, for the auxiliary classifier."""
        for cell in self.to_aux:
            x = cell(x)
        trunk = x
        for cell in self.from_aux:
            x = cell(x)
        return x, trunk

    def construct(self, x, dropout_mask=None):
        """The logits, in training with the auxiliary classifier (logits, auxiliary logits)."""
        maps = self.feature_maps(x)  # not unpacked: MindSpore warns of an output that is taken and not used
        x = maps[0].mean((2, 3))
        if dropout_mask is not None:
            x = x * dropout_mask
        if self.training and self.has_aux:
            return self.logits(x), self.aux_logits(maps[1])
        return self.logits(x)


def set_precision(network: nn.Cell, amp_level: str) -> nn.Cell:
    """`network` at mixed precision `O0`, `O2` or `O3`, its logits in float32; parameters stay float32 at all levels.

    O3 computes everything in float16, O2 all but batch norm (`mindspore.amp.auto_mixed_precision`).
    """
    return network if amp_level == 'O0' else amp.auto_mixed_precision(network, amp_level)


def bare(network: nn.Cell) -> nn.Cell:
    """The `InceptionV4` that `set_precision` returned, without the cell that MindSpore puts around it in mixed precision."""
    return getattr(network, '_backbone', network)


def cross_entropy(logits: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """Softmax cross entropy in float32: logits (N, C), labels int32 (N,) -> (N,).

    With label smoothing (Szegedy et al. 2016, section 7) the target is 1 - smoothing on the label plus smoothing / C
    on every class, as in TensorFlow.
    """
    # Multiplied by the targets, and not gathered: the gradient of that would run on an NPU's CPU.
    classes = logits.shape[1]
    targets = ops.one_hot(label, classes, 1 - smoothing + smoothing / classes, smoothing / classes)
    return -ops.ReduceSum()(targets * ops.log_softmax(logits.astype(ms.float32), -1), -1)
