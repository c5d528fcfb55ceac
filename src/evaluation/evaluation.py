"""Top-1, top-5 and loss over exactly every record."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
from mindspore import nn, ops
from tqdm import tqdm

from src import collective
from src.data import pipeline
from src.data.bad_records import refuse_damaged
from src.data.classes import SURE, Offsets, check_labels, match_names, possible_offsets
from src.data.order import EvaluationOrder
from src.data.preprocess import PREPROCESSING, Preprocessing, scale
from src.data.records import Records, open_records
from src.errors import InputError
from src.evaluation.outcomes import FEW, HEADER, Outcomes, Result, Rows, merit, row
from src.inceptionv4 import cross_entropy, set_precision
from src.options import Settings
from src.runtime import Run
from src.weights import checkpoint
from src.weights.read import empty_network, main_file, read_weights

STATISTICS = ('.moving_mean', '.moving_variance')  # ends of the names of batch norm's moving averages
ALONE = Run()  # one rank, no cache of graphs
OFFSET_IMAGES = 256  # that tell the label offset, at most; drawn from all records, as shards may be sorted by class


class EvaluationStep(nn.Cell):
    """image uint8 (N, 3, H, W), label int32 (N,) -> float32 (4,): images whose label has the highest logit, whose label is
    among the five highest, their loss, their number; sums over the images whose label is not -1 (those only fill the batch).

    With `per_image` there is a second output, float32 (N, 6): the columns of `outcomes.Rows`. With `preprocessing` None the
    images are what `network` takes.
    """

    def __init__(self, network: nn.Cell, preprocessing: Preprocessing | None = PREPROCESSING, per_image: bool = False):
        super().__init__(auto_prefix=False)
        self.network, self.preprocessing, self.per_image = network, preprocessing, per_image

    def construct(self, image, label):
        """See the class."""
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


def make_step(
    options: dict, amp_level: str, preprocessing: Preprocessing = PREPROCESSING, per_image: bool = False
) -> EvaluationStep:
    """An `EvaluationStep` in the precision `amp_level` for a network of the network options `options`, without the auxiliary
    classifier. A checkpoint or `take_weights` must set its weights."""
    network = empty_network({**options, 'aux_logits': False})
    return EvaluationStep(set_precision(network, amp_level), preprocessing, per_image)


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
    step: EvaluationStep,
    data: ds.Dataset,
    expected: int,
    run: Run = ALONE,
    should_stop: Callable[[], bool] = lambda: False,
    rows: Rows | None = None,
) -> Result | None:
    """Run `step` over the batches of `data` and sum over the ranks; None if `should_stop()` became true on one of them.
    `rows` takes what a step with `per_image` returns for this rank's images. RuntimeError if there were not
    `expected` images: no accuracy over others is reported."""
    step.set_train(False)
    sums, stop = np.zeros(4), False
    batches, length = data.create_tuple_iterator(num_epochs=1), data.get_dataset_size()
    for image, label in tqdm(batches, 'evaluating', length, leave=False, disable=None, unit='batch'):
        if stop := bool(should_stop()):
            break
        with run.graphs.compiling(step, (image, label), 'evaluation graph'):
            found = step(image, label)
        if step.per_image:
            found, batch = found
            if rows:
                rows.add(batch.asnumpy())
        sums += found.asnumpy()
    if run.world > 1:
        *sums, stop = collective.summed([*sums, stop]).astype(np.float64)
    if stop:
        return None
    if sums[3] != expected:
        raise RuntimeError(f'{sums[3]:.0f} images were evaluated, but the records hold {expected}')
    return Result(100 * sums[0] / expected, 100 * sums[1] / expected, sums[2] / expected, expected)


def open_validation(
    settings: Settings,
    log: Callable[[str], None],
    names: list[str] | None = None,
    recorded_offset: str | None = None,
    source: str | Path = '',
) -> tuple[Records, Offsets]:
    """(records of the validation split, what may have to be subtracted from their labels), labels as in the training.

    Args:
        settings: `label_offset` is that of the command line, not that of a checkpoint.
        names: class names by label that the training recorded in `source`, if any. Where the records name their classes,
            too, names tell which class is which, and labels count as in the training: from `recorded_offset`, if recorded.

    InputError if a record's class is unknown to the training.
    """
    records, classes = open_records(settings.data_dir, 'validation'), settings.num_classes
    if records.left_out:
        log(f'left out: {records.left_out}')
    matched = match_names(records, names, source)
    if matched is not records:
        # Without a record, a name more than classes is that of a background which was left out, as in imported weights.
        offsets = Offsets([int(recorded_offset or len(names) > classes)])
    else:
        offsets = possible_offsets(settings.label_offset, records, classes, names, recorded_offset)
    check_labels(matched, offsets.possible[0], classes)
    return matched, offsets


class Evaluation:
    """Evaluates weights on `records`, with a network of its own.

    Args:
        records, offset: see `open_validation`.
        settings: the network; `batch_size`, images per device and step; `num_workers`.
        run (Run): its precision, and this rank among how many.
        per_image (bool): keep what a report needs.
    """

    def __init__(
        self,
        records: Records,
        offset: int,
        settings: Settings,
        run: Run,
        preprocessing: Preprocessing = PREPROCESSING,
        per_image: bool = True,
    ):
        self.records, self.offset, self.run, self.num_classes = records, offset, run, settings.num_classes
        if run.world > 1:
            collective.require_same({'the validation records': records.fingerprint}, run.rank, run.world)
        refuse_damaged(records, range(run.rank, len(records), run.world))  # now, and not after an epoch
        self.step = make_step(settings.network(), run.amp_level, preprocessing, per_image)
        numbers = np.arange(len(records) if per_image else 0)
        self.order = EvaluationOrder(numbers, settings.batch_size, run.rank, run.world).records
        self.rows, self.best = None, None  # `best` is one of the dicts of `of_checkpoints`
        self.batches = partial(pipeline.evaluation_dataset, records, settings=settings, run=run, preprocessing=preprocessing)
        self.data = self.batches(offset=offset)

    def find_offset(self, offsets: Offsets, parameters: dict[str, np.ndarray], source: str | Path) -> None:
        """Subtract the right one of `offsets` from the labels: where neither labels nor names tell, that with which the
        weights `parameters` of the file `source` recognise more images. InputError if it stays open."""
        if len(offsets.possible) == 1:
            return
        hits, images = np.zeros(len(offsets.possible)), 0
        checkpoint.load_into(self.step.network, checkpoint.averaged(parameters), source)
        numbers = np.random.default_rng(0).permutation(len(self.records))[:OFFSET_IMAGES]
        for some in np.array_split(numbers, -(-len(numbers) // 64)):  # usually the first ones tell
            found = [
                evaluate(self.step, self.batches(offset=offset, numbers=some), len(some), self.run)
                for offset in offsets.possible
            ]
            hits, images = hits + [round(one.top1 * len(some) / 100) for one in found], images + len(some)
            if offsets.clear(hits, SURE):
                break
        self.offset, why = offsets.settled(hits, images)
        self.run.log(why)
        self.data = self.batches(offset=self.offset)

    def of_training(
        self, train_step: nn.Cell, should_stop: Callable[[], bool] = lambda: False, done: Callable[[], int] = lambda: 0
    ) -> Result | None:
        """`Result` of the weights of a `TrainStep` after `done()` steps; None if `should_stop()` became true on a rank."""
        take_weights(self.step.network, train_step, self.run.world)
        return self._evaluate({'step': done()}, should_stop)

    def _evaluate(self, about, should_stop=lambda: False):
        """`Result` of the network; the best by `merit` stays in `best`, with `about`, and its `rows`."""
        rows = Rows(len(self.records), self.order) if self.step.per_image else None
        result = evaluate(self.step, self.data, len(self.records), self.run, should_stop, rows)
        if result:
            result = result._replace(top5=result.top5 if self.num_classes > FEW else None)
            found = {**about, **result._asdict()}
            if self.best is None or merit(found) > merit(self.best):
                self.best, self.rows = found, rows
        return result

    def outcomes(self) -> Outcomes:
        """`Outcomes` of all ranks' images in the best evaluation, see `merit`. To be called by every rank."""
        values = self.rows.values  # each image's row is zero on all ranks but one
        return Outcomes.of_rows(collective.summed(values) if self.run.world > 1 else values)

    def of_checkpoints(self, paths: list[Path], log: Callable[[str], None], loaded: dict | None = None) -> list[dict]:
        """Evaluate each checkpoint of `paths`: dicts of checkpoint, step, epoch and `Result`; lines go to `log`. Of several,
        one that cannot be read or does not fit is skipped with a warning; InputError if none is left. `loaded` {path: what
        `read_weights` returned}: those that need not be read again."""
        names, results = {'the checkpoints': [Path(path).name for path in paths]}, []
        collective.require_same(names, self.run.rank, self.run.world)
        log(HEADER)
        for path in paths:
            try:
                parameters, info = (loaded or {}).get(path) or read_weights(path)
                when = Path(main_file(path)).stat().st_mtime
                checkpoint.load_into(self.step.network, checkpoint.averaged(parameters), path)
            except (InputError, OSError) as error:  # the latter if a training has removed it meanwhile
                if path == paths[-1] and not results:
                    raise
                log(f'warning: skipped: {error}')
                continue
            about = {'checkpoint': str(path), 'step': info.get('step', 0), 'epoch': info.get('epoch', 0)}
            result = self._evaluate(about)
            log(row(result, about['step'], about['epoch'], when))
            results.append({**about, **result._asdict()})
        log(f'{len(self.records)} validation images, each evaluated once')
        return results
