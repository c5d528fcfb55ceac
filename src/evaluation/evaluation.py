"""Top-1, top-5 and loss over exactly every record."""

from __future__ import annotations

import datetime
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
from mindspore import nn
from tqdm import tqdm

from src import collective, files
from src.data import pipeline
from src.data.bad_records import refuse_damaged
from src.data.classes import Offsets, check_labels, match_names, possible_offsets
from src.data.order import EvaluationOrder
from src.data.preprocess import PREPROCESSING, Preprocessing
from src.data.records import Records, fingerprint, open_records
from src.errors import InputError
from src.evaluation.outcomes import FEW, Outcomes, Rows, merit
from src.evaluation.step import EvaluationStep
from src.graphs import OFF, Graphs
from src.inceptionv4 import set_precision
from src.options import Settings
from src.runtime import Run
from src.weights import checkpoint
from src.weights.read import empty_network, main_file, read_weights

# Accuracies in per cent; top5 is None among FEW classes, where it says nothing.
Result = namedtuple('Result', 'top1 top5 loss images')
STATISTICS = ('.moving_mean', '.moving_variance')  # ends of the names of batch norm's moving averages


def make_step(
    options: dict, amp_level: str, preprocessing: Preprocessing = PREPROCESSING, per_image: bool = False
) -> EvaluationStep:
    """An `EvaluationStep` in the precision `amp_level` for a network of the network options `options`, without the auxiliary
    classifier. Its weights are not initialised: a checkpoint or `take_weights` sets them all."""
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
    checkpoint.load_into(network, values, 'this training')


def evaluate(
    step: EvaluationStep,
    data: ds.Dataset,
    expected: int,
    world: int = 1,
    asked_to_stop: Callable[[], bool] = lambda: False,
    rows: Rows | None = None,
    graphs: Graphs = OFF,
) -> Result | None:
    """Run `step` over the batches of `data` and sum over the ranks; None if `asked_to_stop()` became true on one of them.

    The step is compiled through `graphs`. `rows` takes what a step with `per_image` gives for this rank's images. InputError
    if the number of images was not `expected`.
    """
    step.set_train(False)
    sums, stopped = np.zeros(4), False
    for image, label in tqdm(
        data.create_tuple_iterator(num_epochs=1),
        'evaluating',
        total=data.get_dataset_size(),
        leave=False,
        disable=None,
        unit='batch',
    ):
        stopped = bool(asked_to_stop())
        if stopped:
            break
        with graphs.compiling(step, (image, label), 'evaluation graph'):
            found = step(image, label)
        if rows:
            found, batch = found
            rows.add(batch.asnumpy())
        sums += found.asnumpy()
    if world > 1:
        *sums, stopped = collective.summed([*sums, stopped]).astype(np.float64)
    if stopped:
        return None
    if sums[3] != expected:
        raise InputError(f'{sums[3]:.0f} images were evaluated, but the records hold {expected}')
    return Result(100 * sums[0] / expected, 100 * sums[1] / expected, sums[2] / expected, expected)


def open_validation(
    data_dir: str,
    offset: str,
    num_classes: int,
    log: Callable[[str], None],
    *,
    names: list[str] | None = None,
    recorded_offset: str | None = None,
    source: str | Path = '',
) -> tuple[Records, Offsets]:
    """(records of the validation split, what may have to be subtracted from their labels), labels as in the training.

    Args:
        offset (str): the option `label_offset`: auto, 0 or 1.
        names (list): class names by label that the training recorded, if any. Where the records name their classes,
            too, names tell which class is which, and labels count as in the training: from `recorded_offset`.
        recorded_offset: None if the training recorded none.
        source: where `names` come from, for messages.

    InputError if a record's class is unknown to the training.
    """
    records = open_records(data_dir, 'validation')
    if records.left_out:
        log(f'left out: {records.left_out}')
    matched = match_names(records, names, source)
    if matched is not records:
        # Without a record, a name more than classes is that of a background which was left out, as in imported weights.
        offsets = Offsets([int(recorded_offset or len(names) > num_classes)])
    else:
        offsets = possible_offsets(offset, records, num_classes, names, recorded_offset)
    check_labels(matched, offsets.possible[0], num_classes)
    return matched, offsets


class Evaluation:
    """Evaluates weights on `records`, with a network of its own.

    Args:
        records, offset: see `open_validation`.
        options (dict): network options.
        run (Run): its precision, and this rank among how many.
        batch_size (int): images per device and step.
        per_image (bool): keep what a report needs.
        known (dict): {path: what `read_weights` returned for it}, so that it is not read twice.
    """

    def __init__(
        self,
        records: Records,
        offset: int,
        options: dict,
        run: Run,
        *,
        batch_size: int,
        num_workers: int,
        preprocessing: Preprocessing = PREPROCESSING,
        per_image: bool = True,
        known: dict | None = None,
    ):
        self.records, self.offset, self.num_classes = records, offset, options['num_classes']
        self.images, self.rank, self.world, self.graphs = len(records), run.rank, run.world, run.graphs
        if run.world > 1:
            collective.require_same({'the validation records': fingerprint(records)}, run.rank, run.world)
        refuse_damaged(records, range(run.rank, len(records), run.world))  # now, and not after an epoch
        self.step = make_step(options, run.amp_level, preprocessing, per_image)
        order = EvaluationOrder(np.arange(len(records)), batch_size, run.rank, run.world) if per_image else ()
        self.order = np.array([record for (record,) in order])
        self.rows, self.best, self.known = None, None, known or {}  # `best` is one of the dicts of `of_checkpoints`
        settings = Settings({'image_size': options['image_size'], 'batch_size': batch_size, 'num_workers': num_workers})
        self.batches = partial(pipeline.evaluation_dataset, records, settings=settings, run=run, preprocessing=preprocessing)
        self.data = self.batches(offset=offset)

    def of_training(
        self, train_step: nn.Cell, asked_to_stop: Callable[[], bool] = lambda: False, done: Callable[[], int] = lambda: 0
    ) -> Result | None:
        """`Result` of the weights of a `TrainStep` after `done()` steps; None if `asked_to_stop()` became true on a rank."""
        take_weights(self.step.network, train_step, self.world)
        return self._evaluate({'step': done()}, asked_to_stop)

    def _evaluate(self, about, asked_to_stop=lambda: False):
        """`Result` of the network; the best by `merit` stays in `best`, with `about`, and its `rows`."""
        rows = Rows(self.images, self.order) if self.step.per_image else None
        result = evaluate(self.step, self.data, self.images, self.world, asked_to_stop, rows, self.graphs)
        if result:
            result = result._replace(top5=result.top5 if self.num_classes > FEW else None)
            found = {**about, **result._asdict()}
            if self.best is None or merit(found) > merit(self.best):
                self.best, self.rows = found, rows
        return result

    def outcomes(self) -> Outcomes:
        """`Outcomes` of all ranks' images in the best evaluation, see `merit`. To be called by every rank."""
        values = self.rows.values
        # Each image's row is zero on all ranks but one.
        return Outcomes.of_rows(collective.summed(values) if self.world > 1 else values)

    def of_checkpoints(self, paths: list[Path], write: Callable[[str], None]) -> list[dict]:
        """Evaluate each checkpoint of `paths`; lines go to `write`. Of several, one that cannot be read or does not fit is
        passed over with a warning. InputError if none is left.

        Returns:
            list of dict: checkpoint, step, epoch, and those of `Result`.
        """
        collective.require_same({'the checkpoints': [Path(path).name for path in paths]}, self.rank, self.world)
        write(HEADER)
        results = []
        for path in paths:
            try:
                parameters, info = self.known.pop(path, None) or read_weights(path)
                when = Path(main_file(path)).stat().st_mtime
                checkpoint.load_into(self.step.network, checkpoint.averaged(parameters), path)
            except (InputError, OSError) as error:  # the latter if a training has removed it meanwhile
                if path == paths[-1] and not results:
                    raise InputError(str(error)) from None
                write(f'warning: passed over: {error}')
                continue
            about = {'checkpoint': str(path), 'step': info.get('step', 0), 'epoch': info.get('epoch', 0)}
            result = self._evaluate(about)
            write(row(result, about['step'], about['epoch'], when))
            results.append({**about, **result._asdict()})
        write(f'{self.images} validation images, each evaluated once')
        return results


HEADER = f'{"step":>9} {"epoch":>7} {"top1":>7} {"top5":>7} {"loss":>8}  checkpoint_time(UTC)'


def row(result: Result, step: int, epoch: float, when: float | None = None) -> str:
    """A line of the original's table below `HEADER`; `when` in seconds since 1970, now if None."""
    utc = datetime.timezone.utc
    time = datetime.datetime.fromtimestamp(when, utc) if when else datetime.datetime.now(utc)
    top5 = '-' if result.top5 is None else f'{result.top5:.2f}'
    return f'{step:>9} {epoch:>7.1f} {result.top1:>7.2f} {top5:>7} {result.loss:>8.4f}  {time:%Y-%m-%d %H:%M:%S}'


def write_json(results: list[dict], path: Path) -> None:
    """Write the results of `of_checkpoints` to `path`; OSError if it cannot be written."""
    with files.replacing(path) as temporary:
        temporary.write_text(files.as_json(results, 1) + '\n')
