"""Whether an exported file computes what the network does."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from src.deploy.formats import Run
from src.deploy.graph import softmax
from src.errors import InputError

# Of the largest logit, or of the probability 1. A folded convolution in float16 or HF32 (10 bits both) is rounded in
# another way than the unfolded one and batch norm behind it: 6e-4 measured. bfloat16 has 7 bits.
BOUNDS = {'float32': 1e-4, 'float16 or HF32': 1e-2, 'float16': 1e-2, 'bfloat16': 8e-2}


def check_images(size: int, count: int = 2) -> dict[str, np.ndarray]:
    """Images to compare with, uint8 (count, size, size, 3): `random` pixels, whose mean is all that deep layers see, and
    `smooth` ones, because images of the world are: each pixel lies between its neighbours of a coarse random grid."""
    rng, cells = np.random.default_rng(0), 8
    distance = np.abs(np.linspace(0, cells, size)[:, None] - np.arange(cells + 1))
    weight = np.maximum(1 - distance, 0)  # linear interpolation: (pixels, points of the grid)
    grid = rng.uniform(0, 255, (count, cells + 1, cells + 1, 3))
    return {
        'random': rng.integers(0, 256, (count, size, size, 3), np.uint8),
        'smooth': np.einsum('yi,xj,nijc->nyxc', weight, weight, grid).astype(np.uint8),
    }


def run_in_calls(run: Run, images: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """`run` for all `images`, `batch_size` at a time (0: one, then the others), filled up with the first ones."""
    if batch_size:
        calls = -(-len(images) // batch_size)
        parts = np.split(np.resize(images, (calls * batch_size, *images.shape[1:])), calls)
    else:
        parts = images[:1], images[1:]
    parts = [run(part) for part in parts]
    return [np.concatenate(part)[: len(images)] for part in zip(*parts)]


def deviation(outputs: list[np.ndarray], logits: np.ndarray, output: str) -> float:
    """How far the `outputs` of the kind `output` (see `Served`) are from those of the network's own `logits` (N, classes):
    the largest difference in parts of the largest logit, or of probabilities. Infinite if an output is not finite.

    Of classes that are equally probable any may be among the five.
    """
    if output == 'logits':
        expected = (logits,)
        unit = max(np.abs(logits).max(), 1e-30)
    else:
        expected, unit = (softmax(logits),), 1
    if output == 'top5':
        values, classes = outputs
        outputs = values, values
        k = values.shape[1]
        expected = np.take_along_axis(expected[0], classes, 1), -np.sort(-expected[0], 1)[:, :k]
    largest = max(float(np.abs(found - wanted).max()) for found, wanted in zip(outputs, expected))
    return largest / unit if math.isfinite(largest) else math.inf


def check(path: Path, found: list[np.ndarray], logits: np.ndarray, output: str, computed_in: str) -> dict:
    """Compare the outputs `found` for all `check_images` with the network's own `logits`.

    Returns:
        dict: the deviation for `random` and for `smooth` images, the `bound` and the precision `computed_in`.

    Raises:
        InputError: the deviation is above the bound, or, below float32, another class is the likeliest.
    """
    half = len(logits) // 2
    deviations = {
        name: deviation([part[rows] for part in found], logits[rows], output)
        for name, rows in (('random', slice(half)), ('smooth', slice(half, None)))
    }
    worst, bound = max(deviations.values()), BOUNDS[computed_in]
    if not worst <= bound:
        raise InputError(
            f'{path}: the exported network deviates by {worst:.1e} (bound {bound:.0e}, computed in '
            f'{computed_in}); no file was written'
        )
    best = found[1][:, 0] if output == 'top5' else found[0].argmax(1)
    if computed_in != 'float32' and (best != logits.argmax(1)).any():
        raise InputError(
            f"{path}: the exported network finds another class than the checkpoint's (deviation "
            f'{worst:.1e}, computed in {computed_in}); no file was written'
        )
    return {**deviations, 'bound': bound, 'computed_in': computed_in}
