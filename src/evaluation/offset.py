"""Which class a label means, found by images, where neither labels nor names tell."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np

from src import collective
from src.data.classes import SURE, Offsets
from src.evaluation.evaluation import Evaluation
from src.weights import checkpoint

IMAGES = 256  # at most, drawn from all records, as shards may hold one class after the other


def settle(
    evaluation: Evaluation, offsets: Offsets, parameters: dict[str, np.ndarray], source: str, log: Callable[[str], None]
) -> None:
    """Make `evaluation` subtract the right one of `offsets` from the labels: that with which the weights `parameters` of
    the file `source` recognise more images. InputError if it stays open."""
    if len(offsets.possible) == 1:
        return
    step, hits, images = evaluation.step.set_train(False), np.zeros(len(offsets.possible)), 0
    checkpoint.load_into(step.network, checkpoint.averaged(parameters), source)
    numbers = np.random.default_rng(0).permutation(evaluation.images)[:IMAGES]
    data = evaluation.batches(offset=0, numbers=numbers)
    for image, label in data.create_tuple_iterator(num_epochs=1):
        label = label.asnumpy()
        found = []
        for offset in offsets.possible:
            shifted = ms.Tensor(np.where(label < 0, -1, label - offset).astype(np.int32))
            with evaluation.graphs.compiling(step, (image, shifted), 'evaluation graph'):
                sums = step(image, shifted)
            found.append((sums[0] if step.per_image else sums).asnumpy()[[0, 3]])
        counts = np.stack(found).ravel()
        counts = (collective.summed(counts) if evaluation.world > 1 else counts).reshape(-1, 2)
        hits, images = hits + counts[:, 0], images + int(counts[0, 1])
        if offsets.clear(hits, SURE):
            break
    evaluation.offset, why = offsets.settled(hits, images)
    log(why)
    evaluation.data = evaluation.batches(offset=evaluation.offset)
