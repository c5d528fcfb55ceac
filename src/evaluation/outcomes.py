"""What an evaluation found for each image, and the figures that follow from it."""

from __future__ import annotations

import datetime
from typing import NamedTuple

import numpy as np

BINS = 15  # of the confidence, as Guo et al. 2017 (https://arxiv.org/abs/1706.04599) have them
Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations of its mean
FEW = 5  # classes among which top-5 says nothing
INTERVALS = '95 % confidence intervals: Wilson score interval for top-1 and top-5, normal approximation for the mean loss'
HEADER = f'{"step":>9} {"epoch":>7} {"top1":>7} {"top5":>7} {"loss":>8}  checkpoint_time(UTC)'


class Result(NamedTuple):
    """Accuracies in per cent, mean loss, and of how many images; top5 is None among FEW classes."""

    top1: float
    top5: float | None
    loss: float
    images: int


def row(result: Result, step: int, epoch: float, when: float | None = None) -> str:
    """A line of the original's table below `HEADER`; `when` in seconds since 1970, now if None."""
    utc = datetime.timezone.utc
    time = datetime.datetime.fromtimestamp(when, utc) if when else datetime.datetime.now(utc)
    top5 = '-' if result.top5 is None else f'{result.top5:.2f}'
    return f'{step:>9} {epoch:>7.1f} {result.top1:>7.2f} {top5:>7} {result.loss:>8.4f}  {time:%Y-%m-%d %H:%M:%S}'


def merit(found: dict) -> tuple[float, float]:
    """What the best of several evaluations has most of: `top1`, among equals the smaller `loss`. A loss that is
    not finite, which files have as None, counts least; without figures there is no evaluation yet."""
    loss = found.get('loss')
    return found.get('top1', -1.0), -np.inf if loss is None or np.isnan(loss) else -loss


class Outcomes(NamedTuple):
    """Arrays (images,) in the order of the records; int64 and float64."""

    label: np.ndarray
    predicted: np.ndarray  # class with the highest probability
    probability: np.ndarray  # of the predicted class
    probability_true: np.ndarray  # of the true class
    loss: np.ndarray
    place: np.ndarray  # of the true class among all by probability, from 1
    activation: np.ndarray = np.empty((0, 1, 1))  # (images, h, w), see `EvaluationStep`

    @classmethod
    def of_rows(cls, rows: np.ndarray) -> Outcomes:
        """From the rows that `EvaluationStep` returns: the same columns, but places from 0; float32 (images, 6 + h * w)."""
        label, predicted, probability, probability_true, loss, place = rows[:, :6].T.astype(np.float64)
        side = round((rows.shape[1] - 6) ** 0.5)
        predicted = np.where(place < 1, label, predicted)  # of equally likely classes the true one counts, as in top-1
        label, predicted, place = (column.astype(np.int64) for column in (label, predicted, place + 1))
        # A network that returns NaN is sure of nothing.
        return cls(
            label,
            predicted,
            np.nan_to_num(probability),
            np.nan_to_num(probability_true),
            loss,
            place,
            rows[:, 6:].reshape(len(rows), side, side),
        )

    def result(self, num_classes: int) -> Result:
        """The figures over all images of a network with so many classes."""
        images = len(self.place)
        top1, top5 = (100 * int((self.place <= place).sum()) / images for place in (1, 5))
        return Result(top1, top5 if num_classes > FEW else None, float(self.loss.mean()), images)

    @property
    def hit(self) -> np.ndarray:
        """Whether the true class is the most probable one, bool (images,)."""
        return self.place == 1


def wilson(hits: int, images: int) -> tuple[float, float]:
    """Ends of the 95 % interval of a share of which `hits` of `images` were seen (Wilson 1927); from 0 to 1."""
    share, spread = hits / images, Z * Z / images
    middle = (share + spread / 2) / (1 + spread)
    half = Z * np.sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def all_figures(outcomes: Outcomes, num_classes: int) -> dict:
    """Everything that is counted: top1, top5 (per cent) and loss with their intervals, calibration, per_class, confusion:
    [true class, predicted class, images], most images first, without the pairs that have none."""
    images = len(outcomes.label)
    found = {'images': images, 'intervals': INTERVALS}
    for name, place in (('top1', 1), ('top5', 5)):
        hits = int((outcomes.place <= place).sum())
        low, high = wilson(hits, images)
        found[name] = {'value': 100 * hits / images, 'low': 100 * low, 'high': 100 * high}
    mean = outcomes.loss.mean()
    half = Z * outcomes.loss.std(ddof=1) / np.sqrt(images) if images > 1 else np.nan
    ends = {'value': mean, 'low': mean - half, 'high': mean + half}
    found['loss'] = {name: float(value) if np.isfinite(value) else None for name, value in ends.items()}  # JSON has no NaN
    pairs, counts = np.unique(outcomes.label * num_classes + outcomes.predicted, return_counts=True)
    confusion = [[*divmod(int(pairs[i]), num_classes), int(counts[i])] for i in np.argsort(-counts, kind='stable')]
    found.update(calibration=calibration(outcomes), per_class=per_class(outcomes, num_classes), confusion=confusion)
    return found


def calibration(outcomes: Outcomes) -> dict:
    """Expected calibration error (Guo et al. 2017): over the bins of the confidence, the mean distance of the accuracy from
    the mean confidence, weighted by their images. A bin contains its upper end."""
    number = np.clip(np.ceil(outcomes.probability * BINS).astype(int) - 1, 0, BINS - 1)
    weights = None, outcomes.hit.astype(float), outcomes.probability
    images, hits, confidence = (np.bincount(number, one, BINS) for one in weights)
    bins = [
        {'low': i / BINS, 'high': (i + 1) / BINS, 'images': int(n), 'accuracy': share(h, n), 'confidence': share(c, n)}
        for i, (n, h, c) in enumerate(zip(images, hits, confidence))
    ]
    return {'expected_calibration_error': float(np.abs(hits - confidence).sum() / images.sum()), 'bins': bins}


def share(part: float, whole: float) -> float | None:
    """None where there is nothing."""
    return part / whole if whole else None


def per_class(outcomes: Outcomes, num_classes: int) -> list[dict]:
    """Of each class: its images, images predicted as it, hits, precision, recall (0 to 1; None where nothing is divided)."""
    labels = outcomes.label, outcomes.predicted, outcomes.label[outcomes.hit]
    counts = zip(*(np.bincount(one, minlength=num_classes).tolist() for one in labels))
    return [
        {'class': number, 'images': n, 'predicted': p, 'hits': h, 'precision': share(h, p), 'recall': share(h, n)}
        for number, (n, p, h) in enumerate(counts)
    ]


def suspected_labels(outcomes: Outcomes, num_classes: int) -> np.ndarray:
    """Whether an image may be labelled wrongly, bool (images,): another class is the most probable one, with no
    less than its mean probability for the images that do have its label (confident learning, Northcutt et al. 2021, arXiv
    1911.00068)."""
    images = np.bincount(outcomes.label, minlength=num_classes)
    means = np.bincount(outcomes.label, outcomes.probability_true, num_classes) / np.maximum(images, 1)
    means[images == 0] = np.inf  # of no image nothing is known
    return ~outcomes.hit & (outcomes.probability >= means[outcomes.predicted])
