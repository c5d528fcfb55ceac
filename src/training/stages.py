"""Stages of a training with images of different sizes, and what an image costs in each. Needs no MindSpore."""

from __future__ import annotations

from typing import NamedTuple

from src.errors import InputError

# Multiplications of a forward pass, at each position of the grid that a layer without padding leaves behind: conv2d_1a,
# conv2d_2a (and 2b), mixed_3a, 4a, 5a, 6a, 7a. Of the stem and the reductions, and of a block A, B and C.
STRIDES = (2, 1, 2, 1, 2, 2, 2)  # of the 3 x 3 layers that make these grids
ALONE = (864, 27_648, 133_120, 110_592, 792_576, 3_334_144, 1_253_376)
BLOCKS = (316_416, 2_931_712, 4_546_560)  # on the grids 5a, 6a, 7a
PAPER_BLOCKS = (4, 7, 3)


class Stage(NamedTuple):
    """The steps `start` to `stop` of a training, from 0, with images of `size` x `size` pixels."""

    size: int
    start: int
    stop: int


def stage_sizes(image_sizes: list[int], image_size: int, aux_logits: bool = False, cache_features: int = 0) -> tuple:
    """Sizes of the stages of a training: `image_sizes`, or `image_size` throughout. The other arguments are the options of
    these names; InputError if one of them takes images of one size only."""
    others = [size for size in image_sizes if size != image_size]
    if others and cache_features:
        raise InputError(f'cache_features needs images of one size; leave image_sizes {image_sizes} empty')
    unfit = [size for size in others if grids(size)[5] != grids(image_size)[5]]
    if unfit and aux_logits:
        raise InputError(
            f'image_sizes {image_sizes}: the auxiliary classifier takes images of image_size {image_size}, not {unfit[0]}; '
            'give --aux_logits false'
        )
    return tuple(image_sizes or [image_size])


def make_stages(sizes: tuple[int, ...], steps: int) -> list[Stage]:
    """The stages of a training of `steps` steps: an equal part for each of `sizes`; equal neighbours are one stage."""
    stages, ends = [], [steps * i // len(sizes) for i in range(len(sizes) + 1)]
    for size, start, stop in zip(sizes, ends, ends[1:]):
        if stages and stages[-1].size == size:
            stages[-1] = stages[-1]._replace(stop=stop)
        elif start < stop:
            stages.append(Stage(size, start, stop))
    return stages


def grids(size: int) -> list[int]:
    """Rows of the grids that images of `size` x `size` pixels go through in the network, see STRIDES."""
    found = []
    for stride in STRIDES:
        size = (size - 3) // stride + 1
        found.append(size)
    return found


def multiplications(size: int, block_counts: tuple[int, int, int] = PAPER_BLOCKS) -> int:
    """Multiplications of all convolutions in the forward pass of an image of `size` x `size` pixels."""
    counts = [*ALONE[:4], *(alone + count * block for alone, count, block in zip(ALONE[4:], block_counts, BLOCKS))]
    return sum(rows**2 * count for rows, count in zip(grids(size), counts))


def relative_computing(size: int, full: int = 299) -> float:
    """Computing for an image of `size` x `size` pixels, of that for one of `full` x `full`."""
    return multiplications(size) / multiplications(full)
