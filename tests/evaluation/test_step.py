"""The evaluation step's second output, and that it leaves the first one as it is."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.evaluation.evaluation import EvaluationStep
from tests.evaluation.test_outcomes import step_rows


class Pixels(nn.Cell):
    """image (N, 3, 2, 2) -> its 12 values as logits."""

    def construct(self, image):
        return image.reshape(image.shape[0], -1) * 7.3


@pytest.mark.compiles
def test_rows_of_each_image_and_the_same_sums():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (40, 3, 2, 2)).astype(np.uint8)
    image[3] = 128  # all classes equally likely
    label = rng.integers(0, 12, 40).astype(np.int32)
    label[-2:] = -1
    tensors = Tensor(image), Tensor(label)
    sums = EvaluationStep(Pixels())(*tensors).asnumpy()
    with_rows, rows = EvaluationStep(Pixels(), per_image=True)(*tensors)
    assert sums.tobytes() == with_rows.asnumpy().tobytes() and sums[3] == 38
    logits = (image.reshape(40, -1) / np.float32(127.5) - 1) * np.float32(7.3)
    expected = step_rows(logits, np.maximum(label, 0))[0]
    assert rows.dtype == ms.float32 and rows.asnumpy()[3, 5] == 0
    np.testing.assert_allclose(rows.asnumpy(), expected, rtol=2e-4, atol=1e-5)
