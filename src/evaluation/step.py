"""From a batch of images to counts, and to what a report needs of each image."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from src.data.preprocess import PREPROCESSING, Preprocessing, scale
from src.inceptionv4 import cross_entropy


class EvaluationStep(nn.Cell):
    """image uint8 (N, 3, H, W), label int32 (N,) -> float32 (4,): images whose label has the highest logit, whose label is
    among the five highest, their loss, their number; sums over the images whose label is not -1 (those only fill the batch).

    With `per_image` there is a second output, float32 (N, 6): the columns of `outcomes.Rows`. With `preprocessing` None the
    images are what `network` takes.
    """

    def __init__(self, network: nn.Cell, preprocessing: Preprocessing | None = PREPROCESSING, per_image: bool = False):
        super().__init__(auto_prefix=False)
        self.network = network
        self.preprocessing = preprocessing
        self.per_image = per_image

    def construct(self, image, label):
        x = image if self.preprocessing is None else scale(image.astype(ms.float32), self.preprocessing)
        logits = self.network(x).astype(ms.float32)
        counts = (label >= 0).astype(ms.float32)
        label = ops.maximum(label, 0)
        target = ops.one_hot(label, logits.shape[1], 1.0, 0.0)
        true_logit = ops.ReduceSum(keep_dims=True)(logits * target, 1)
        # Rank of the true class, from 0; comparisons with NaN are false, so NaN counts as wrong.
        rank = logits.shape[1] - ops.ReduceSum()((logits <= true_logit).astype(ms.float32), 1)
        top1, top5 = (rank < 1).astype(ms.float32), (rank < 5).astype(ms.float32)
        loss = cross_entropy(logits, label)
        sums = ops.ReduceSum()(ops.stack((top1 * counts, top5 * counts, loss * counts, counts)), 1)
        if not self.per_image:
            return sums
        probability = ops.softmax(logits, -1)
        # float32 holds class numbers exactly up to 2^24.
        predicted, label = logits.argmax(1).astype(ms.float32), label.astype(ms.float32)
        true = ops.ReduceSum()(probability * target, 1)
        return sums, ops.stack((label, predicted, ops.ReduceMax()(probability, 1), true, loss, rank), 1)
