"""The figures of a report against arrays that can be counted by hand, and against slow plain implementations."""

import json
import math

import numpy as np
import pytest

from src.data.order import EvaluationOrder
from src.evaluation import outcomes as found
from src.evaluation.outcomes import Outcomes, Rows


def step_rows(logits, label):
    """What `EvaluationStep` gives for each image, computed in NumPy."""
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    true = np.take_along_axis(probability, label[:, None], 1)[:, 0]
    rank = (logits > np.take_along_axis(logits, label[:, None], 1)).sum(1)
    columns = [label, logits.argmax(1), probability.max(1), true, -np.log(true), rank]
    return np.stack(columns, 1).astype(np.float32), probability.astype(np.float32)


def random_rows(images, classes, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), label] += 1.5
    return step_rows(logits, label)


def made(*images):
    """`Outcomes` of (label, predicted, probability, probability of the true class, place of the true class)."""
    label, predicted, p, true, place = np.array(images, np.float64).T
    return Outcomes.of_rows(np.stack([label, predicted, p, true, -np.log(true), place - 1], 1).astype(np.float32))


HAND = made((0, 0, 0.9, 0.9, 1), (0, 1, 0.8, 0.1, 2), (1, 1, 0.7, 0.7, 1), (1, 1, 0.5, 0.5, 1), (2, 1, 0.6, 0.05, 7))


def test_counted_by_hand():
    figures = found.figures(HAND, 4)
    assert figures['images'] == 5
    assert figures['top1']['value'] == 60 and figures['top5']['value'] == 80
    assert figures['loss']['value'] == pytest.approx(-sum(map(math.log, (0.9, 0.1, 0.7, 0.5, 0.05))) / 5, rel=1e-6)
    assert [one['recall'] for one in figures['per_class']] == [0.5, 1.0, 0.0, None]
    assert [one['precision'] for one in figures['per_class']] == [1.0, 0.5, None, None]
    assert [one['images'] for one in figures['per_class']] == [2, 2, 1, 0]
    assert figures['confusion'] == [[1, 1, 2], [0, 0, 1], [0, 1, 1], [2, 1, 1]]
    assert found.confident_mistakes(HAND).tolist() == [1, 4] and found.unsure_hits(HAND).tolist() == [3, 2, 0]
    assert found.suspected_label_errors(HAND, 4).tolist() == [1, 4]  # the threshold of class 1 is 0.6
    assert HAND._replace(probability=HAND.probability - 0.01).hit.tolist() == [True, False, True, True, False]


def test_equal_logits_count_as_in_the_top_1():
    """The label among several likeliest classes is a hit, so the class with the lowest number is not the predicted one."""
    outcomes = made((3, 0, 0.25, 0.25, 1))
    assert outcomes.hit.all() and outcomes.predicted.tolist() == [3]


@pytest.mark.parametrize('hits, images', [(0, 7), (7, 7), (3, 7), (760, 1000), (1, 50000)])
def test_wilson_solves_its_equation(hits, images):
    """Its ends are the shares from which the observed one is 1.96 standard deviations away."""
    observed = hits / images

    def distance(p):
        return abs(observed - p) - 1.959964 * math.sqrt(p * (1 - p) / images)

    def solve(inside, outside):
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if distance(middle) > 0 else (middle, outside)
        return inside

    expected = (solve(observed, 0.0) if hits else 0.0, solve(observed, 1.0) if hits < images else 1.0)
    assert found.wilson(hits, images) == pytest.approx(expected, abs=1e-9)


def test_wilson_against_a_known_figure():
    low, high = found.wilson(8, 10)  # as in Agresti and Coull 1998, with z = 1.96
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)


def test_interval_of_the_loss_holds_the_mean():
    """In about 95 of 100 draws the interval contains the mean of what the losses were drawn from."""
    inside = 0
    for seed in range(400):
        loss = np.random.default_rng(seed).exponential(2.0, 500)
        rows = np.zeros((500, 6), np.float32)
        rows[:, 4] = loss
        interval = found.figures(Outcomes.of_rows(rows), 2)['loss']
        assert interval['value'] == pytest.approx(loss.mean(), rel=1e-6)
        inside += interval['low'] <= 2.0 <= interval['high']
    assert 0.92 <= inside / 400 <= 0.98


def plain_ece(confidences, hits, bins=15):
    error = 0.0
    for number in range(bins):
        members = [i for i, c in enumerate(confidences) if number / bins < c <= (number + 1) / bins]
        if members:
            accuracy = sum(bool(hits[i]) for i in members) / len(members)
            confidence = sum(confidences[i] for i in members) / len(members)
            error += len(members) / len(confidences) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize('images, classes', [(3000, 2), (3000, 10), (1, 5)])
def test_calibration_error_is_the_plain_one(images, classes):
    outcomes = Outcomes.of_rows(random_rows(images, classes)[0])
    calibration = found.calibration(outcomes)
    expected = plain_ece(outcomes.probability.tolist(), outcomes.hit.tolist())
    assert calibration['expected_calibration_error'] == pytest.approx(expected, abs=1e-12)
    assert sum(one['images'] for one in calibration['bins']) == images and len(calibration['bins']) == 15
    one = max(calibration['bins'], key=lambda one: one['images'])
    inside = (outcomes.probability > one['low']) & (outcomes.probability <= one['high'])
    assert one['accuracy'] == pytest.approx(outcomes.hit[inside].mean())
    assert one['confidence'] == pytest.approx(outcomes.probability[inside].mean())


def confident_learning(probability, label):
    """Northcutt et al. 2021, section 3.1, from all probabilities: {image: class that it is counted as}."""
    images, classes = probability.shape
    of_class = {j: [i for i in range(images) if label[i] == j] for j in range(classes)}
    threshold = {j: sum(float(probability[i, j]) for i in of_class[j]) / len(of_class[j]) for j in of_class if of_class[j]}
    counted_as = {}
    for i in range(images):
        candidates = [j for j in threshold if probability[i, j] >= threshold[j]]
        if candidates:
            counted_as[i] = max(candidates, key=lambda j: probability[i, j])
    return {i: j for i, j in counted_as.items() if j != label[i]}


@pytest.mark.parametrize('classes', [2, 6, 12])
def test_suspected_labels_are_those_of_confident_learning(classes):
    """All that the plain algorithm finds with the likeliest class as the other one, and nothing else; most of those whose
    labels were changed are among the first."""
    rng = np.random.default_rng(4)
    label = rng.integers(0, classes - 1, 600) if classes > 2 else rng.integers(0, 2, 600)  # of 3 and more one has no image
    logits = rng.normal(size=(600, classes))
    logits[np.arange(600), label] += 6
    changed = rng.choice(600, 20, replace=False)
    label[changed] = (label[changed] + 1) % max(classes - 1, 2)
    rows, probability = step_rows(logits, label)
    suspected = found.suspected_label_errors(Outcomes.of_rows(rows), classes)
    plain = confident_learning(probability, label)
    assert set(suspected.tolist()) == {i for i, j in plain.items() if j == probability[i].argmax()}
    assert len(suspected) >= 0.9 * len(plain)
    margin = [probability[i].max() - probability[i, label[i]] for i in suspected]
    assert margin == sorted(margin, reverse=True)
    assert len(set(suspected[:20].tolist()) & set(changed.tolist())) >= 14


@pytest.mark.parametrize('world, batch_size', [(1, 7), (2, 4), (3, 7)])
def test_rows_of_ranks_add_up_to_those_of_one(world, batch_size):
    """Each rank fills in its own images and leaves the others at zero, so their sum is what one rank has, bit for bit."""
    rows = random_rows(33, 5)[0]
    total = np.zeros_like(rows)
    for rank in range(world):
        order = np.array([record for (record,) in EvaluationOrder(33, batch_size, rank, world)])
        own = Rows(33, order)
        for start in range(0, len(order), batch_size):
            records = order[start : start + batch_size]
            own.add(np.where(records[:, None] >= 0, rows[records], 99))  # what fills a batch must not be kept
        total += own.values
    assert np.array_equal(total, rows)


def test_a_network_of_nan_gives_valid_json():
    rows = np.full((4, 6), np.nan, np.float32)
    rows[:, 0], rows[:, 1], rows[:, 5] = [0, 1, 1, 0], 0, 2
    outcomes = Outcomes.of_rows(rows)
    figures = found.figures(outcomes, 2)
    json.dumps(figures, allow_nan=False)
    assert figures['top1']['value'] == 0 and figures['loss'] == {'value': None, 'low': None, 'high': None}
    assert len(found.confident_mistakes(outcomes)) == 4
