"""Top-1, top-5 and loss over exactly every record."""
import contextlib
import datetime
import json
from collections import namedtuple
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from tqdm import tqdm

from src import checkpoint
from src.errors import InputError
from src.preprocess import PREPROCESSING, scale
from src.training import cross_entropy

Result = namedtuple('Result', 'top1 top5 loss images')  # accuracies in per cent


class EvaluationStep(nn.Cell):
    """image uint8 (N, H, W, 3), label int32 (N,) -> float32 (4,): right in the first, in the first five, loss, images.

    All four are sums over the pictures whose label is not -1.
    """

    def __init__(self, network, preprocessing=PREPROCESSING):
        super().__init__(auto_prefix=False)
        self.network = network
        self.preprocessing = preprocessing

    def construct(self, image, label):
        pixels = image.astype(ms.float32).transpose(0, 3, 1, 2)
        logits = self.network(scale(pixels, self.preprocessing)).astype(ms.float32)
        counts = (label >= 0).astype(ms.float32)
        label = ops.maximum(label, 0)
        hit = ops.gather_elements(logits, 1, label.reshape(-1, 1))
        # Classes that are not surely worse; so a logit that is not a number is never a right answer.
        above = logits.shape[1] - (logits <= hit).astype(ms.float32).sum(1)
        loss = cross_entropy(logits, label)
        return ops.stack([((above < 1).astype(ms.float32) * counts).sum(),
                          ((above < 5).astype(ms.float32) * counts).sum(),
                          (loss * counts).sum(), counts.sum()])


@contextlib.contextmanager
def trained_weights(train_step, world=1):
    """While this lasts, the network of `train_step` is on every rank what its checkpoint would give: with the moving
    averages of the weights, if there are any, and with rank 0's batch norm statistics, which differ between ranks."""
    if world > 1:
        statistics = [p for p in train_step.values if p.name.endswith(('.moving_mean', '.moving_variance'))]
        shared = ops.Broadcast(0)((Tensor(np.concatenate([p.asnumpy() for p in statistics])),))[0].asnumpy()
        ends = np.cumsum([p.size for p in statistics])
        for parameter, part in zip(statistics, np.split(shared, ends[:-1])):
            ops.assign(parameter, Tensor(part.copy()))
    saved = [p.asnumpy().copy() for p in train_step.values] if train_step.averages else []
    for parameter, average in zip(train_step.values, train_step.averages or ()):
        ops.assign(parameter, Tensor(average.asnumpy().copy()))
    try:
        yield
    finally:
        for parameter, value in zip(train_step.values, saved):
            ops.assign(parameter, Tensor(value))


def evaluate(step, dataset, expected, world=1, asked_to_stop=lambda: False):
    """Run `step` (an `EvaluationStep`) over `dataset` and reduce over the ranks; None if `asked_to_stop()` came true.

    Raises InputError when the pictures counted are not the `expected` number of records.
    """
    training = step.training
    step.set_train(False)
    sums = np.zeros(4)
    for image, label in tqdm(dataset.create_tuple_iterator(num_epochs=1), 'evaluating',
                             total=dataset.get_dataset_size(), leave=False, disable=None, unit='batch'):
        if asked_to_stop():
            return None
        sums += step(image, label).asnumpy()
    step.set_train(training)
    if world > 1:
        sums = ops.AllReduce()(Tensor(sums.astype(np.float32))).asnumpy().astype(np.float64)
    if sums[3] != expected:
        raise InputError(f'{sums[3]:.0f} images were evaluated, but the records hold {expected}')
    return Result(100 * sums[0] / expected, 100 * sums[1] / expected, sums[2] / expected, expected)


HEADER = f'{"step":>9} {"epoch":>7} {"top1":>7} {"top5":>7} {"loss":>8}  checkpoint_time(UTC)'


def row(result, step, epoch, when=None):
    """A line of the original's table below `HEADER`; `when` in seconds since 1970, now if None."""
    when = datetime.datetime.fromtimestamp(when, datetime.timezone.utc) if when else datetime.datetime.now(
        datetime.timezone.utc)
    return (f'{step:>9} {epoch:>7.1f} {result.top1:>7.2f} {result.top5:>7.2f} {result.loss:>8.4f}  '
            f'{when:%Y-%m-%d %H:%M:%S}')


def evaluate_checkpoints(paths, step, dataset, expected, world, write):
    """Evaluate each checkpoint of `paths` with the network of `step`; lines go to `write`.

    Returns:
        list of dict: checkpoint, step, epoch, top1, top5, loss, images.
    """
    write(HEADER)
    results = []
    for path in paths:
        parameters, info = checkpoint.load(path)
        checkpoint.load_into(step.network, checkpoint.averaged(parameters), path)
        result = evaluate(step, dataset, expected, world)
        done, epoch = info.get('step', 0), info.get('epoch', 0)
        write(row(result, done, epoch, Path(path).stat().st_mtime))
        results.append({'checkpoint': str(path), 'step': done, 'epoch': epoch, **result._asdict()})
    write(f'{expected} validation images, each evaluated once')
    return results


def write_json(results, path):
    Path(path).write_text(json.dumps(results, indent=1) + '\n')
