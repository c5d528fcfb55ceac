"""What ranks tell each other beside the steps: sums, and rank 0's values.

Each is a graph of its own: graphs with collectives are what the training step is, too, on every backend, while it is
not known whether the first Ascend 910 takes single operations beside them.
"""

import functools

import numpy as np
from mindspore import Tensor, nn, ops

PIECE = 8 << 20  # values in a broadcast: 32 MB


class AllReduce(nn.Cell):
    def __init__(self):
        super().__init__()
        self.reduce = ops.AllReduce()

    def construct(self, x):
        return self.reduce(x)


class Broadcast(nn.Cell):
    def __init__(self):
        super().__init__()
        self.broadcast = ops.Broadcast(0)

    def construct(self, x):
        return self.broadcast((x,))[0]


@functools.lru_cache(None)
def _graph(kind):
    return kind()


def summed(values):
    """Sum over all ranks of their `values` (sequence of numbers), float32; every rank must call it."""
    return _graph(AllReduce)(Tensor(np.asarray(values, np.float32))).asnumpy()


def any_rank(flag):
    """Whether `flag` is true on one of the ranks; every rank must call it."""
    return summed([bool(flag)])[0] > 0


def from_first(values):
    """The `values` (float32, one axis) of rank 0, bit for bit; every rank must call it with as many."""
    length = min(PIECE, len(values))
    found = np.empty_like(values)
    for start in range(0, len(values), length):
        part = values[start : start + length]
        padded = np.concatenate([part, np.zeros(length - len(part), np.float32)])  # one length, so one graph
        found[start : start + length] = _graph(Broadcast)(Tensor(padded)).asnumpy()[: len(part)]
    return found


def share(parameters):
    """Give every rank the values that `parameters` have on rank 0, before the first graph that uses them is compiled.

    MindSpore's own `parameter_broadcast` would do so again whenever a graph is compiled, an evaluation's too, and so
    overwrite what belongs to a rank: its batch norm statistics.
    """
    parameters = list(parameters)
    values = [parameter.asnumpy() for parameter in parameters]
    # Integers byte by byte: not every device reduces and sends them, and float32 holds them up to 2^24 only.
    flat = [
        value.ravel() if value.dtype == np.float32 else value.reshape(-1).view(np.uint8).astype(np.float32)
        for value in values
    ]
    parts = np.split(from_first(np.concatenate(flat)), np.cumsum([len(part) for part in flat])[:-1])
    for parameter, value, part in zip(parameters, values, parts):
        if value.dtype != np.float32:
            part = part.astype(np.uint8).view(value.dtype)
        parameter.set_data(Tensor(part.reshape(value.shape), parameter.dtype))
