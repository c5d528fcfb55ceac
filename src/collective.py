"""Communication between ranks outside the training step: sums over all ranks, and rank 0's values for all.

Each operation is a graph of its own: whether the first Ascend 910 takes single operations is not known.
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


class Collective(nn.Cell):
    """x of any shape -> its sum over all ranks, or, to `broadcast`, the x of rank 0."""

    def __init__(self, broadcast: bool):
        super().__init__()
        self.broadcast, self.operation = broadcast, ops.Broadcast(0) if broadcast else ops.AllReduce()

    def construct(self, x):
        """See the class."""
        return self.operation((x,))[0] if self.broadcast else self.operation(x)


_graph = functools.lru_cache(None)(Collective)  # one of each


def summed(values: Sequence[float]) -> np.ndarray:
    """The sum over all ranks of each of the values, float32; every rank must call it with as many."""
    return _graph(False)(Tensor(np.asarray(values, np.float32))).asnumpy()


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank; every rank must call it."""
    return summed([bool(flag)])[0] > 0


def gathered(values: Sequence[float], rank: int, world: int) -> np.ndarray:
    """The values of every one of `world` ranks, float32 (world, values); every rank must call it with as many."""
    rows = np.zeros((world, len(values)), np.float32)
    rows[rank] = values
    return summed(rows)


def agreed(values: Sequence[int], world: int) -> list[int]:
    """Rank 0's integers `values` on every one of `world` ranks; every rank must call it with as many."""
    return from_first(np.array(values, np.int64)).tolist() if world > 1 else [*values]


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
        reason = f'{[*values][number]} differs: rank 0 has {first}, rank {other} has {second}'
        raise InputError(f'{reason}; use the same records and options on all servers')


def from_first(values: np.ndarray) -> np.ndarray:
    """The `values` (of one axis) of rank 0, bit for bit; every rank must call it with as many of the same type."""
    if values.dtype != np.float32:
        # Byte by byte, each as a float32: not every device can send integers, and float32 holds only those up to 2^24.
        return from_first(values.view(np.uint8).astype(np.float32)).astype(np.uint8).view(values.dtype)
    length = min(PIECE, len(values))
    padded = np.pad(values, (0, -len(values) % length))  # a single length needs a single graph
    return np.concatenate([_graph(True)(Tensor(piece)).asnumpy() for piece in padded.reshape(-1, length)])[: len(values)]


def share(parameters: Iterable[Parameter]) -> None:
    """Set `parameters` to their values on rank 0. To be called by every rank before a graph that uses them is compiled.

    MindSpore's own `parameter_broadcast` would do this whenever a graph is compiled, for an evaluation, too. That would
    overwrite the batch norm statistics, which differ from rank to rank.
    """
    parameters = list(parameters)
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):  # in the same order on every rank
        group = [parameter for parameter in parameters if parameter.dtype == dtype]
        shared = from_first(np.concatenate([parameter.asnumpy().ravel() for parameter in group]))
        for parameter, value in zip(group, np.split(shared, np.cumsum([parameter.size for parameter in group])[:-1])):
            parameter.set_data(Tensor(value.reshape(parameter.shape), dtype))
