"""The checks that all ranks make together; the launcher runs this file on every rank, and the first reports.

python -m src.cluster.launch TABLE tests/npu/on_ranks.py [-k start]
"""

import os
import sys

import numpy as np
import pytest

from src import collective, runtime
from src.data.records import open_records
from src.evaluation import evaluation
from src.inceptionv4 import InceptionV4
from src.options import load_settings
from src.weights import checkpoint
from tests.npu.small_training import SMALL, Recorder, make_step, train, training_data

pytestmark = [
    pytest.mark.compiles,
    pytest.mark.remedy("src/collective.py; CANN's logs are in ~/ascend/log; python -m src.cluster.rank_table check TABLE"),
]
SINK = 10


def on_all(fine):
    """Whether `fine` is true on all ranks: if one left alone, the others would wait for it."""
    return not collective.any_rank(not fine)


def is_shared(cell, wanted=lambda name: True):
    """Whether all ranks have the values of rank 0 in the parameters whose name is `wanted`."""
    values = [value.ravel() for name, value in checkpoint.values(cell).items() if wanted(name)]
    values = np.concatenate(values).astype(np.float32)
    return on_all((values == collective.from_first(values)).all())


@pytest.fixture(scope='module')
def run(option):
    """The `Run`. Every rank has another seed, so that only the values that rank 0 sends can make them equal."""
    given = {'device_target': option.device_target, 'rank_size': option.rank_size, 'seed': 1 + int(os.environ['RANK_ID'])}
    return runtime.start(load_settings([f'--{name}={value}' for name, value in given.items()]))


@pytest.fixture(scope='module')
def step(run, option):
    return make_step(run, SMALL, option.drop_overflow_update)


@pytest.mark.remedy(
    'python -m src.environment says what is missing; hccn_tool -i 0 -ip -g shows the address that '
    'HCCL needs of each NPU; docs/ascend.md, "When it goes wrong"'
)
def test_start(run, option, figures):
    """MindSpore connects the ranks."""
    assert (run.rank, run.world) == (int(os.environ['RANK_ID']), option.rank_size)
    figures(text=runtime.describe(run, run.device_target), ranks=run.world)


def test_start_of_all_reduce(run, figures):
    """All ranks know that one of them must stop."""
    last = run.rank == run.world - 1
    assert on_all((collective.any_rank(False), collective.any_rank(last)) == (False, True))
    figures(text=f'what rank {run.world - 1} says is known to all')


def test_values_of_rank_0(run, step, figures):
    """Parameters become those of rank 0: the seeds differ, and the last rank has moving means of 7."""
    means = {name: np.full_like(v, 7) for name, v in checkpoint.values(step).items() if name.endswith('.moving_mean')}
    if run.rank == run.world - 1:
        checkpoint.load_into(step, means, 'sevens', [name for name in checkpoint.values(step) if name not in means])
    assert not is_shared(step, lambda name: not name.startswith(checkpoint.AVERAGE)), 'the ranks must differ before'
    collective.share(step.get_parameters())
    assert is_shared(step)
    assert on_all(not any((checkpoint.values(step)[name] == 7).any() for name in means))
    figures(text=f'{sum(value.size for value in checkpoint.values(step).values()) / 1e6:.1f} million values')


def test_weights_of_all_ranks(run, step, output, figures):
    """After some steps the weights are the same on all ranks, and the batch norm statistics are not."""
    steps = 40 if run.sink else 10  # a CPU takes a second for one
    data = training_data(open_records(output / 'data', 'train'), SMALL, range(steps), run, batch_size=4)
    outputs = train(run, step, data, (steps // SINK, SINK), Recorder()).outputs
    assert is_shared(step, {parameter.name for parameter in step.optimizer.parameters}.__contains__)
    assert not is_shared(step, lambda name: name.endswith(evaluation.STATISTICS))
    figures(text=f'{steps} steps, loss {outputs[steps].loss:.3f}')


def test_network_evaluated(run, step, figures):
    """Every rank evaluates the network of rank 0."""
    network = InceptionV4(**SMALL)
    evaluation.take_weights(network, step, run.world)
    assert is_shared(network)
    figures(text='that of rank 0 on every rank')


if __name__ == '__main__':
    sys.exit(pytest.main(['-xv', '--no-header', '-p', 'no:cacheprovider', __file__, *sys.argv[1:]]))
