"""Top-1, top-5 and loss over exactly every record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
from mindspore import nn, ops
from tqdm import tqdm

from src import collective
from src.data import pipeline
from src.data.classes import check_labels, match_names, validation_offset
from src.data.preprocess import PREPROCESSING, Preprocessing, scale
from src.data.records import Records, open_records
from src.evaluation.outcomes import Outcomes, Result, merit
from src.inceptionv4 import bare, cross_entropy, set_precision
from src.options import Settings
from src.runtime import Run
from src.weights import checkpoint
from src.weights.read import empty_network

STATISTICS = ('.moving_mean', '.moving_variance')  # ends of the names of batch norm's moving averages


class EvaluationStep(nn.Cell):
    """image uint8 (N, 3, H, W), label int32 (N,) -> float32 (N, 6 + h * w): the columns of `Outcomes` for each image, but
    with places from 0. The label of what only fills the batch is -1 there, too.

    The last columns are the class activation map of the predicted class (Zhou et al. 2016, https://arxiv.org/abs/1512.04150):
    how much each place of the feature maps adds to its logit, as the logit is a product with their means.

    With `preprocessing` None the images are what `network` takes.
    """

    def __init__(self, network: nn.Cell, preprocessing: Preprocessing | None = PREPROCESSING):
        super().__init__(auto_prefix=False)
        self.network, self.preprocessing = bare(network), preprocessing

    def construct(self, image, label):
        """See the class."""
        x = image if self.preprocessing is None else scale(image.astype(ms.float32), self.preprocessing)
        maps = self.network.feature_maps(x)[0]
        logits = self.network.logits(maps.mean((2, 3))).astype(ms.float32)
        true = ops.maximum(label, 0)
        target = ops.one_hot(true, logits.shape[1], 1.0, 0.0)
        true_logit = ops.ReduceSum(keep_dims=True)(logits * target, 1)
        # Place of the true class, from 0; comparisons with NaN are false, so NaN counts as wrong.
        place = logits.shape[1] - ops.ReduceSum()((logits <= true_logit).astype(ms.float32), 1)
        probabilities = ops.softmax(logits, -1)
        # float32 holds class numbers exactly up to 2^24.
        label, predicted = label.astype(ms.float32), logits.argmax(1).astype(ms.int32)
        highest, of_true = ops.ReduceMax()(probabilities, 1), ops.ReduceSum()(probabilities * target, 1)
        columns = label, predicted.astype(ms.float32), highest, of_true, cross_entropy(logits, true), place
        weights = ops.gather(self.network.logits.weight, predicted, 0).astype(ms.float32).reshape(*maps.shape[:2], 1)
        maps = maps.astype(ms.float32).reshape(*maps.shape[:2], -1)
        return ops.concat((ops.stack(columns, 1), ops.ReduceSum()(weights * maps, 1)), 1)


def make_step(options: dict, amp_level: str, preprocessing: Preprocessing = PREPROCESSING) -> EvaluationStep:
    """An `EvaluationStep` in the precision `amp_level` for a network of the network options `options`, without the auxiliary
    classifier. A checkpoint or `take_weights` must set its weights."""
    network = empty_network({**options, 'aux_logits': False})
    return EvaluationStep(set_precision(network, amp_level), preprocessing)


def take_weights(network: nn.Cell, train_step: nn.Cell, world: int = 1) -> None:
    """Set `network` as a checkpoint of `train_step` would: to the moving averages of the weights, if there are any, and
    with rank 0's batch norm statistics, which differ between ranks.

    An evaluation has a network of its own, so that it changes nothing of the training.
    """
    state = train_step.parameters_dict()
    names = [parameter.name for parameter in network.get_parameters()]  # the optimizer's state stays on the device
    values = {name: state.get(checkpoint.AVERAGE + name, state[name]).asnumpy() for name in names}
    if world > 1:
        names = [name for name in names if name.endswith(STATISTICS)]
        shared = collective.from_first(np.concatenate([values[name] for name in names]))
        values.update(zip(names, np.split(shared, np.cumsum([values[name].size for name in names])[:-1])))
    checkpoint.load_into(network, values, 'this training run')


def evaluate(
    step: EvaluationStep, data: ds.Dataset, expected: int, run: Run, should_stop: Callable[[], bool] = lambda: False
) -> Outcomes | None:
    """Run `step` over the batches of `data`: `Outcomes` of the images of all ranks, in the order of the records; None if
    `should_stop()` became true on a rank. RuntimeError if there were not the `expected` images: no accuracy over others is
    reported."""
    step.set_train(False)
    found, stop = [], False
    batches, length = data.create_tuple_iterator(num_epochs=1), data.get_dataset_size()
    for image, label in tqdm(batches, 'evaluating', length, leave=False, disable=None, unit='batch'):
        if stop := bool(should_stop()):
            break
        with run.graphs.compiling(step, (image, label), 'evaluation graph'):
            batch = step(image, label)
        found.append(batch.asnumpy())
    if run.world > 1:
        stop = collective.any_rank(stop)
    if stop:
        return None
    found = np.concatenate(found)
    found = found[found[:, 0] >= 0]
    mine = range(run.rank, expected, run.world)  # as `evaluation_order` deals the images out
    if len(found) != len(mine):
        raise RuntimeError(f'{len(found)} images were evaluated on rank {run.rank}, but it has {len(mine)} of {expected}')
    rows = np.zeros((expected, found.shape[1]), np.float32)
    rows[mine] = found
    return Outcomes.of_rows(collective.summed(rows) if run.world > 1 else rows)


def open_validation(
    settings: Settings, log: Callable[[str], None], names: list[str] | None, recorded_offset: str | None, source: str | Path
) -> tuple[Records, int]:
    """(records of the validation split, what is subtracted from their labels), labels as in the training.

    The training `source` recorded the class `names` by label and the `recorded_offset`, if any. Where the records name their
    classes, too, names tell which class is which. InputError if a record's class is unknown to the training, or if labels
    may count from 0 or 1.
    """
    records, classes = open_records(settings.data_dir, 'validation'), settings.num_classes
    if records.left_out:
        log(f'left out: {records.left_out}')
    matched = match_names(records, names, source)
    if matched is not records:
        # Without a record, a name more than classes is that of a background which was left out, as in imported weights.
        offset = int(recorded_offset or len(names) > classes)
    else:
        offset = validation_offset(settings.label_offset, records, classes, names, recorded_offset)
    check_labels(matched, offset, classes)
    return matched, offset


class Evaluation:
    """Evaluates weights on `records`, with a network of its own.

    Args:
        records, offset: see `open_validation`.
        settings: the network; `batch_size`, images per device and step; `num_workers`.
        run (Run): its precision, and this rank among how many.

    `best` is the best evaluation so far by `merit`, a dict of its `Result` and what it was of; `outcomes` are its images.
    """

    def __init__(
        self, records: Records, offset: int, settings: Settings, run: Run, preprocessing: Preprocessing = PREPROCESSING
    ):
        self.records, self.offset, self.run, self.num_classes = records, offset, run, settings.num_classes
        if run.world > 1:
            collective.require_same({'the validation records': records.fingerprint}, run.rank, run.world)
        pipeline.refuse_damaged(records, range(run.rank, len(records), run.world))  # now, and not after an epoch
        self.step = make_step(settings.network(), run.amp_level, preprocessing)
        self.data = pipeline.evaluation_dataset(records, offset, settings, run, preprocessing)
        self.images = pipeline.LoadEvaluation(records, 0, settings.image_size, preprocessing)
        self.best, self.outcomes = None, None

    def of_training(
        self, train_step: nn.Cell, step: int = 0, should_stop: Callable[[], bool] = lambda: False
    ) -> Result | None:
        """`Result` of the weights of a `TrainStep` after so many steps; None if `should_stop()` became true on a rank."""
        take_weights(self.step.network, train_step, self.run.world)
        return self.of_network({'step': step}, should_stop)

    def of_network(self, about: dict, should_stop: Callable[[], bool] = lambda: False) -> Result | None:
        """`Result` of the network with the weights that it has; `about` says which. None as above."""
        outcomes = evaluate(self.step, self.data, len(self.records), self.run, should_stop)
        if outcomes is None:
            return None
        result = outcomes.result(self.num_classes)
        found = {**about, **result._asdict()}
        if self.best is None or merit(found) > merit(self.best):
            self.best, self.outcomes = found, outcomes
        return result
