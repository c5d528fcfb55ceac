"""Communication between ranks outside the training step: sums over all ranks, and rank 0's values for all.

Each operation is a graph of its own, as the training step is on every backend. Whether the first Ascend 910 also takes
single operations is not known.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.errors import InputError

PIECE = 8 << 20  # values in one broadcast: 32 MB
LETTERS = 200  # of a value that are shown where ranks differ


class AllReduce(nn.Cell):
    """x of any shape -> its sum over all ranks."""

    def __init__(self):
        super().__init__()
        self.operation = ops.AllReduce()

    def construct(self, x):
        """See the class."""
        return self.operation(x)


class Broadcast(nn.Cell):
    """x of any shape -> the x of rank 0."""

    def __init__(self):
        super().__init__()
        self.operation = ops.Broadcast(0)

    def construct(self, x):
        """See the class."""
        return self.operation((x,))[0]


_graph = functools.lru_cache(None)(lambda kind: kind())  # one of each


def summed(values: Sequence[float]) -> np.ndarray:
    """The sum over all ranks of each of the values, float32; every rank must call it with as many."""
    return _graph(AllReduce)(Tensor(np.asarray(values, np.float32))).asnumpy()


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank; every rank must call it."""
    return summed([bool(flag)])[0] > 0


def gathered(values: Sequence[float], rank: int, world: int) -> np.ndarray:
    """The values of every one of `world` ranks, float32 (world, values); every rank must call it with as many."""
    rows = np.zeros((world, len(values)), np.float32)
    rows[rank] = values
    return summed(rows)


def agreed(values: list[int], world: int) -> list[int]:
    """Rank 0's `values`, each from 0 to 2^40, on every rank; the other ranks must pass zeros."""
    # Two digits: float32 is exact to 2^24 only.
    digits = [digit for value in values for digit in divmod(value, 1 << 20)]
    high, low = np.reshape(summed(digits) if world > 1 else digits, (-1, 2)).astype(int).T
    return [*map(int, high * (1 << 20) + low)]


def require_same(values: dict[str, object], rank: int, world: int) -> None:
    """InputError on every rank if one of the `values` is not, as text, what it is on rank 0; it names the first such value
    and the first rank that has another. Every rank must call it with the same names."""
    if world == 1:
        return
    texts = [str(value).encode(errors='backslashreplace') for value in values.values()]
    checksums = gathered([zlib.crc32(text) >> 8 for text in texts], rank, world)  # of 24 bits, which float32 holds
    for other, number in np.argwhere(checksums != checksums[0])[:1]:
        letters = gathered([*texts[number][:LETTERS].ljust(LETTERS, b'\0')], rank, world).astype(np.uint8)
        first, second = (letters[n].tobytes().rstrip(b'\0').decode(errors='replace') for n in (0, other))
        raise InputError(
            f'{[*values][number]} differs: rank 0 has {first}, rank {other} has {second}; give all servers the same records '
            'and the same options'
        )


def from_first(values: np.ndarray) -> np.ndarray:
    """The `values` (float32, one axis) of rank 0, bit for bit; every rank must call it with as many."""
    length = min(PIECE, len(values))
    padded = np.pad(values, (0, -len(values) % length))  # a single length needs a single graph
    found = [_graph(Broadcast)(Tensor(part)).asnumpy() for part in padded.reshape(-1, length)]
    return np.concatenate(found)[: len(values)]


def share(parameters: Iterable[Parameter]) -> None:
    """Set `parameters` to the values that they have on rank 0. To be called by every rank, before the first graph that uses
    them is compiled.

    MindSpore's own `parameter_broadcast` would do this whenever a graph is compiled, for an evaluation, too. That would
    overwrite the batch norm statistics, which differ from rank to rank.
    """
    parameters = list(parameters)
    values = [parameter.asnumpy() for parameter in parameters]
    # Integers are sent byte by byte, each as a float32: not every device can send integers, and float32 holds only those up
    # to 2^24.
    flat = [v.ravel() if v.dtype == np.float32 else v.reshape(-1).view(np.uint8).astype(np.float32) for v in values]
    pieces = np.split(from_first(np.concatenate(flat)), np.cumsum([len(piece) for piece in flat])[:-1])
    for parameter, value, piece in zip(parameters, values, pieces):
        piece = piece if value.dtype == np.float32 else piece.astype(np.uint8).view(value.dtype)
        parameter.set_data(Tensor(piece.reshape(value.shape), parameter.dtype))
