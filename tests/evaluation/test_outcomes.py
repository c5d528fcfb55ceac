"""The figures of an evaluation against arrays that can be counted by hand, and against plain implementations; the step."""

import json
import math

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
import pytest
from mindspore import nn

from src.evaluation.evaluation import EvaluationStep, evaluate
from src.evaluation.outcomes import Outcomes, all_figures, merit, suspected_labels, wilson
from src.runtime import Run


def step_rows(logits, label):
    """What `EvaluationStep` returns for each image, computed in NumPy."""
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    true = np.take_along_axis(probability, label[:, None], 1)[:, 0]
    rank = (logits > np.take_along_axis(logits, label[:, None], 1)).sum(1)
    columns = [label, logits.argmax(1), probability.max(1), true, -np.log(true), rank]
    return np.stack(columns, 1).astype(np.float32)


def random_outcomes(images, classes):
    rng = np.random.default_rng(0)
    label, logits = rng.integers(0, classes, images), rng.normal(size=(images, classes))
    logits[np.arange(images), label] += 1.5
    return Outcomes.of_rows(step_rows(logits, label))


def made(*images):
    """`Outcomes` of (label, predicted, probability, probability of the true class, place of the true class)."""
    label, predicted, p, true, place = np.array(images, np.float64).T
    return Outcomes.of_rows(np.stack([label, predicted, p, true, -np.log(true), place - 1], 1).astype(np.float32))


HAND = made((0, 0, 0.9, 0.9, 1), (0, 1, 0.8, 0.1, 2), (1, 1, 0.7, 0.7, 1), (1, 1, 0.5, 0.5, 1), (2, 1, 0.6, 0.05, 7))


def test_counted_by_hand():
    figures = all_figures(HAND, 4)
    assert figures['top1']['value'] == 60 and figures['top5']['value'] == 80
    assert HAND.result(6) == (60, 80, figures['loss']['value'], 5) and HAND.result(4).top5 is None
    assert figures['loss']['value'] == pytest.approx(-sum(map(math.log, (0.9, 0.1, 0.7, 0.5, 0.05))) / 5, rel=1e-6)
    assert [one['recall'] for one in figures['per_class']] == [0.5, 1.0, 0.0, None]
    assert [one['precision'] for one in figures['per_class']] == [1.0, 0.5, None, None]
    assert figures['confusion'] == [[1, 1, 2], [0, 0, 1], [0, 1, 1], [2, 1, 1]]
    # Classes 0 and 1 have 0.5 and 0.6 on average for their own images.
    assert suspected_labels(HAND, 4).tolist() == [False, True, False, False, True]
    # Each in a bin of its own: 0.1, 0.8, 0.3, 0.5 and 0.6 between probability and hit
    assert figures['calibration']['expected_calibration_error'] == pytest.approx(0.46)
    # The label among several likeliest classes is a hit, so the class with the lowest number is not the predicted one.
    assert made((3, 0, 0.25, 0.25, 1)).predicted.tolist() == [3]
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)  # as in Agresti and Coull 1998, with z = 1.96


def test_the_best_evaluation():
    """Of equals by top-1 the one with the smaller loss."""
    found = [{'top1': 40, 'loss': 0.5}, {'top1': 60, 'loss': None}, {'top1': 60, 'loss': 3}, {'top1': 60, 'loss': 1}]
    assert sorted(found, key=merit) == found


def test_a_network_of_nan_makes_valid_json():
    rows = np.full((4, 6), np.nan, np.float32)
    rows[:, 0], rows[:, 1], rows[:, 5] = [0, 1, 1, 0], 0, 2
    figures = all_figures(Outcomes.of_rows(rows), 2)
    json.dumps(figures, allow_nan=False)
    assert figures['top1']['value'] == 0 and figures['loss'] == {'value': None, 'low': None, 'high': None}


LIGHT = np.float32([[0.5, 1.5], [0.75, 1.25]])


class Pixels(nn.Cell):
    """The pixels as logits, of maps that are LIGHT times as high."""

    def __init__(self):
        super().__init__()
        self.logits, self.light = nn.Dense(12, 12, ms.Tensor(np.eye(12, dtype=np.float32)), has_bias=False), ms.Tensor(LIGHT)

    def feature_maps(self, x):
        return (x.reshape(x.shape[0], 12, 1, 1) * self.light * 7.3,)


@pytest.mark.compiles
def test_every_image_is_evaluated():
    """As NumPy does it, without what fills the last batch; other images than expected have no accuracy."""
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (40, 3, 2, 2)).astype(np.uint8)
    image[3] = 128  # all classes equally likely
    label = rng.integers(0, 12, 40).astype(np.int32)
    label[-2:] = -1
    data, step = ds.NumpySlicesDataset((image, label), shuffle=False).batch(20), EvaluationStep(Pixels())
    outcomes = evaluate(step, data, 38, Run())
    logits = (image[:38].reshape(38, -1) / np.float32(127.5) - 1) * np.float32(7.3)
    expected = Outcomes.of_rows(step_rows(logits, label[:38]))
    assert outcomes.place[3] == 1 and outcomes.label.dtype == np.int64
    activation = logits[np.arange(38), outcomes.predicted, None, None] * LIGHT
    for column, wanted in zip(outcomes, [*expected[:6], activation]):
        np.testing.assert_allclose(column, wanted, rtol=2e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match='38 images were evaluated .* 39 of 39'):
        evaluate(step, data, 39, Run())
    assert evaluate(step, data, 38, Run(), lambda: True) is None
