"""Top-1, top-5 and loss over exactly every record."""

import datetime
from collections import namedtuple
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.nn.utils import no_init_parameters
from tqdm import tqdm

from src import collective, files
from src.data.preprocess import PREPROCESSING, scale
from src.errors import InputError
from src.inceptionv4 import InceptionV4, cross_entropy, set_precision
from src.weights import checkpoint
from src.weights import convert as weights

Result = namedtuple('Result', 'top1 top5 loss images')  # accuracies in per cent


class EvaluationStep(nn.Cell):
    """image uint8 (N, 3, H, W), label int32 (N,) -> float32 (4,): right in the first, in the first five, loss, images.

    All four are sums over the images whose label is not -1.
    """

    def __init__(self, network, preprocessing=PREPROCESSING):
        super().__init__(auto_prefix=False)
        self.network = network
        self.preprocessing = preprocessing

    def construct(self, image, label):
        logits = self.network(scale(image.astype(ms.float32), self.preprocessing)).astype(ms.float32)
        counts = (label >= 0).astype(ms.float32)
        label = ops.maximum(label, 0)
        hit = ops.ReduceSum(keep_dims=True)(logits * ops.one_hot(label, logits.shape[1], 1.0, 0.0), 1)
        # Classes that are not surely worse; so a logit that is not a number is never a right answer.
        above = logits.shape[1] - (logits <= hit).astype(ms.float32).sum(1)
        loss = cross_entropy(logits, label)
        return ops.stack(
            [
                ((above < 1).astype(ms.float32) * counts).sum(),
                ((above < 5).astype(ms.float32) * counts).sum(),
                (loss * counts).sum(),
                counts.sum(),
            ]
        )


STATISTICS = ('.moving_mean', '.moving_variance')  # ends of the names of what batch norm averages


def make_step(options, amp_level, preprocessing=PREPROCESSING):
    """An `EvaluationStep` in the precision `amp_level` on a network of `options` (dict), the auxiliary classifier left out,
    whose weights are not initialised: a checkpoint or `take_weights` fills them all."""
    with no_init_parameters():
        network = InceptionV4(**{**options, 'aux_logits': False})
    return EvaluationStep(set_precision(network, amp_level), preprocessing)


def take_weights(network, train_step, world=1):
    """Set `network` to what the checkpoint of `train_step` would give: the moving averages of the weights, if there are
    any, and rank 0's batch norm statistics, which differ between ranks.

    An evaluation has a network of its own, so that nothing of the training is changed by it.
    """
    state = train_step.parameters_dict()
    names = [parameter.name for parameter in network.get_parameters()]  # the optimizer's state stays on the device
    values = {name: state.get(checkpoint.AVERAGE + name, state[name]).asnumpy() for name in names}
    if world > 1:
        names = [name for name in names if name.endswith(STATISTICS)]
        shared = collective.from_first(np.concatenate([values[name] for name in names]))
        values.update(zip(names, np.split(shared, np.cumsum([values[name].size for name in names])[:-1])))
    checkpoint.load_into(network, values, 'this training')


def evaluate(step, dataset, expected, world=1, asked_to_stop=lambda: False):
    """Run `step` (an `EvaluationStep`) over `dataset` and reduce over the ranks; None if `asked_to_stop()` came true on
    one of them.

    Raises InputError when the images counted are not the `expected` number of records.
    """
    step.set_train(False)
    sums, stopped = np.zeros(4), False
    for image, label in tqdm(
        dataset.create_tuple_iterator(num_epochs=1),
        'evaluating',
        total=dataset.get_dataset_size(),
        leave=False,
        disable=None,
        unit='batch',
    ):
        stopped = bool(asked_to_stop())
        if stopped:
            break
        sums += step(image, label).asnumpy()
    if world > 1:
        *sums, stopped = collective.summed([*sums, stopped]).astype(np.float64)
    if stopped:
        return None
    if sums[3] != expected:
        raise InputError(f'{sums[3]:.0f} images were evaluated, but the records hold {expected}')
    return Result(100 * sums[0] / expected, 100 * sums[1] / expected, sums[2] / expected, expected)


HEADER = f'{"step":>9} {"epoch":>7} {"top1":>7} {"top5":>7} {"loss":>8}  checkpoint_time(UTC)'


def row(result, step, epoch, when=None):
    """A line of the original's table below `HEADER`; `when` in seconds since 1970, now if None."""
    when = (
        datetime.datetime.fromtimestamp(when, datetime.timezone.utc)
        if when
        else datetime.datetime.now(datetime.timezone.utc)
    )
    return f'{step:>9} {epoch:>7.1f} {result.top1:>7.2f} {result.top5:>7.2f} {result.loss:>8.4f}  {when:%Y-%m-%d %H:%M:%S}'


def evaluate_checkpoints(paths, step, dataset, expected, world, write):
    """Evaluate each checkpoint of `paths` with the network of `step`; lines go to `write`. Of several, one that cannot be
    read or does not fit is passed over with a warning. InputError if none is left.

    Returns:
        list of dict: checkpoint, step, epoch, top1, top5, loss, images.
    """
    write(HEADER)
    results = []
    for path in paths:
        try:
            parameters, info = weights.read(path)
            when = Path(weights.main_file(path)).stat().st_mtime
            checkpoint.load_into(step.network, checkpoint.averaged(parameters), path)
        except (InputError, OSError) as error:  # the latter if a training has removed it meanwhile
            if path == paths[-1] and not results:
                raise InputError(str(error)) from None
            write(f'warning: passed over: {error}')
            continue
        result = evaluate(step, dataset, expected, world)
        done, epoch = info.get('step', 0), info.get('epoch', 0)
        write(row(result, done, epoch, when))
        results.append({'checkpoint': str(path), 'step': done, 'epoch': epoch, **result._asdict()})
    write(f'{expected} validation images, each evaluated once')
    return results


def write_json(results, path):
    """OSError if it cannot be written."""
    with files.replacing(path) as temporary:
        temporary.write_text(files.as_json(results, 1) + '\n')
