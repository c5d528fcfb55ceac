"""What an NPU is asked to compute: the whole network and the training step, built and compiled as for each chip."""

import os
import re
import subprocess
import sys
from collections import Counter, namedtuple

import numpy as np
import pytest
from mindspore import nn

from src.options import load_settings
from src.training.optimizer import create_optimizer
from src.training.step import TrainStep
from tests.ascend import BATCH, SIZE, pretend
from tests.processes import ROOT

CHIPS = ('ascend910', 'ascend910b', 'ascend910_93')
# Compiled in every run of the tests, others in the slow ones: the last two chips are told apart nowhere, and the first from
# them by its flag of overflow.
FAST = ['ascend910:branch', 'ascend910b:branch', 'ascend910b:select', 'ascend910b:evaluation']
SLOW = sorted({f'{chip}:{graph}' for chip in CHIPS for graph in ('branch', 'select', 'evaluation')} - {*FAST})
GRADIENTS = 104  # of the network with one block of each kind and the auxiliary classifier
CONVOLUTIONS = 50
WEIGHTS = 52
VALUES = 254  # and gammas and moving averages of batch norm

# What the documentation of MindSpore 2.8 says that Ascend has ("Supported Platforms", below `mindspore.ops`), ...
DOCUMENTED = set(
    'Conv2D BatchNorm MaxPool AvgPool ReduceMean MatMul BiasAdd Flatten Cast OneHot ReduceSum ReduceMax '
    'L2Loss AddN LogicalNot LogicalOr LogicalAnd ApplyRMSProp AllReduce GetNext '
    'Add Sub Mul Div Neg Maximum Minimum StridedSlice Reshape LogSoftmax Softmax Argmax Stack Less GreaterEqual '
    'Sqrt LessEqual Equal Select BroadcastTo Assign AssignAdd Gather '
    'ReLU Concat IsFinite ReduceAll NPUClearFloatStatusV2 NPUGetFloatStatusV2'.split()
)
# ... and what MindSpore makes out of these in the backward pass and elsewhere: Tile and RealDiv of ReduceMean, SplitWithSize
# of Concat, Muls of Mul, TensorMove (a copy of what is read before the parameter is assigned to) of Assign.
MADE = set(
    'Conv2DBackpropFilter Conv2DBackpropInput BatchNormGrad ReluGrad MaxPoolGrad AvgPoolGrad BiasAddGrad '
    'LogSoftmaxGrad SplitWithSize Tile RealDiv Muls TensorMove'.split()
)
OPERATIONS = DOCUMENTED | MADE
STRUCTURE = {'UpdateState', 'Load', 'MakeTuple', 'TupleGetItem', 'Depend', 'Partial'}  # computes nothing

Node = namedtuple('Node', 'operation arguments takes gives source')  # source: the operation that gives its first argument
Graph = namedtuple('Graph', 'chip nodes counts returned')  # counts: of operations; returned: types, of each of its graphs


def parse(chip, path):
    """The `Graph` of an IR file."""
    nodes, returned, sources, lines = [], [], {}, path.read_text(errors='replace').splitlines()
    for line, types in zip(lines, lines[1:]):
        found = re.match(r'  (?:(%\d+)\(.*?\) = (?:PrimFunc_)?)?(\w+)\((.*)', line)
        if found and types.startswith('      : '):
            number, operation, arguments = found.groups()
            takes, _, gives = types[8:].partition(') -> (')
            source = sources.get(re.match(r'%?\w*', arguments)[0])
            sources[number] = source if operation == 'TupleGetItem' else operation
            nodes.append(Node(operation, arguments, takes, gives, source))
            if operation == 'Return':
                returned.append(takes)
                sources = {}
    nodes = [node for node in nodes if node.operation not in STRUCTURE | {'Return'}]
    return Graph(chip, nodes, Counter(node.operation for node in nodes), returned)


@pytest.fixture(scope='module')
def compiled(compiles, tmp_path_factory):
    """A function: CHIP:GRAPH -> `Graph`. Those of FAST are compiled in one process, those of SLOW in another."""
    found = {}

    def get(name):
        names = FAST if name in FAST else SLOW
        if name not in found:
            directory = tmp_path_factory.mktemp('ir')
            command = [sys.executable, 'tests/ascend.py', directory, *names]
            environment = {**os.environ, 'PYTHONPATH': '.'}
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900)
            assert done.returncode == 0, done.stderr[-3000:]
            paths = sorted(directory.glob('*validate*.ir'), key=lambda path: path.stat().st_mtime_ns)
            assert len(paths) == len(names)
            found.update({name: parse(name.split(':')[0], path) for name, path in zip(names, paths)})
        return found[name]

    return get


def graph_fixture(graph):
    """A fixture: the `graph` for each chip."""
    names = [f'{chip}:{graph}' for chip in CHIPS]
    params = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]
    return pytest.fixture(lambda request, compiled: compiled(request.param), name=graph, params=params, scope='module')


branch, select, evaluation = map(graph_fixture, ('branch', 'select', 'evaluation'))


def test_evaluation(evaluation):
    assert not evaluation.counts.keys() - OPERATIONS
    assert {'Conv2D', 'BatchNorm', 'Softmax', 'Argmax', 'OneHot'} <= evaluation.counts.keys()
    assert len(evaluation.returned) == 1 and '(2, 7)' in evaluation.returned[0]


def test_branches_return_plain_tensors(branch):
    """The graph engine refuses a branch that returns a parameter."""
    assert not branch.counts.keys() - OPERATIONS - {'Switch'} and branch.counts['Switch'] == 1
    assert {'GetNext', 'Conv2DBackpropInput', 'ApplyRMSProp', 'AllReduce', 'OneHot', 'AvgPool'} <= branch.counts.keys()
    assert len(branch.returned) == 3  # the step, and its two branches: with an overflow and without
    assert branch.returned[1:] == ['(<Tensor[Float32], ()>)'] * 2 and 'Ref[' not in branch.returned[0]


def test_without_the_branch_every_value_is_selected(select):
    """One graph; each weight, mean square and moment is set to its old value or the new one by the same condition."""
    nodes, counts = select.nodes, select.counts
    assert not counts.keys() - OPERATIONS and counts['ApplyRMSProp'] == GRADIENTS
    assert len(select.returned) == 1 and 'Ref[' not in select.returned[0]
    selected = [node for node in nodes if node.operation == 'Select' and re.search(r'Float32\], \(\d', node.takes)]
    assert len(selected) == 3 * GRADIENTS and {node.source for node in selected} == {'BroadcastTo'}
    assert len({node.arguments.split(',')[0] for node in nodes if node.operation == 'BroadcastTo'}) == 1
    assert 0 <= counts['Assign'] - 3 * GRADIENTS < 10


def test_nothing_lies_across_three_channels(branch):
    """Reductions over an axis of 3 and transposes of it are slow: vectors lie along the last axis."""
    reductions = [node for node in branch.nodes if node.operation.startswith(('Reduce', 'Arg', 'Sum'))]
    assert len(reductions) >= 4 and not branch.counts['Transpose']
    for node in reductions:
        shape = [int(n) for n in re.findall(r'\d+', re.search(r'\], \(([\d, ]*)\)', node.takes)[1])]
        axes = [int(n) for n in re.findall(r'I64\((-?\d+)\)', node.arguments.partition('Bool')[0])] or range(len(shape))
        assert 3 not in [shape[axis] for axis in axes], node


def test_kernels_are_few(branch):
    """Nothing stands between batch norm and ReLU, forward and backward: the graph engine makes one kernel of the two. The
    augmentation passes over the image six times: to float16, difference from the largest channel, factor, difference, two
    cuts; the rest is on one channel."""
    nodes = [node for node in branch.nodes if node.operation in ('ReLU', 'BatchNormGrad')]
    assert len(nodes) == 2 * CONVOLUTIONS
    assert {node.source for node in nodes} == {'BatchNorm', 'ReluGrad'}
    gives = [node.gives for node in branch.nodes if 'GetNext' not in node.operation]
    assert sum(text.startswith(f'<Tensor[Float16], ({BATCH}, 3, {SIZE}, {SIZE})') for text in gives) == 6


def test_overflow_is_read_as_the_chip_reports_it(branch):
    """The first 910 sets a flag, of which all ranks must know; later ones give infinities, which the all-reduce carries."""
    counts, flags = branch.counts, branch.chip == 'ascend910'
    assert (counts['NPUClearFloatStatusV2'], counts['NPUGetFloatStatusV2']) == ((2, 1) if flags else (0, 0))
    assert counts['IsFinite'] == (not flags) and counts['AllReduce'] == GRADIENTS + flags


def test_two_small_operations_a_gradient(branch):
    """Its part of the norm, and one multiplication by all factors at once: mean over the ranks, loss scale and clipping. The
    optimizer's decay is two of a weight, a moving average three of a value."""
    counts = branch.counts
    assert counts['L2Loss'] == counts['ApplyRMSProp'] == GRADIENTS
    assert counts['Mul'] - GRADIENTS - WEIGHTS - VALUES < 15 and counts['AddN'] - WEIGHTS < 15
    assert counts['Sub'] - VALUES < 10 and counts['Add'] - VALUES < 10
    assert counts['Assign'] + counts['AssignAdd'] - VALUES < 10


@pytest.mark.parametrize('chip, mode, saturates', [('ascend910b', '', False), ('ascend910b', 'SATURATION_MODE', True)])
def test_mode_of_overflow(chip, mode, saturates, monkeypatch):
    pretend(chip, monkeypatch.setattr)
    monkeypatch.setenv('MS_ASCEND_CHECK_OVERFLOW_MODE', mode)
    cell = nn.Dense(2, 2)
    optimizer = create_optimizer(cell, load_settings(['--optimizer', 'momentum']), np.ones(1, np.float32))
    assert TrainStep(cell, optimizer).saturates == saturates
