"""What an NPU is asked to compute: the whole network and the training step, built and compiled as for each chip."""

import operator
import os
import re
import subprocess
import sys
from collections import Counter, namedtuple
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from src.inceptionv4 import InceptionV4
from src.options import load_settings
from src.training.optimizer import create_optimizer
from src.training.step import TrainStep
from tests.ascend import BATCH, SIZE, pretend

CHIPS = ('ascend910', 'ascend910b', 'ascend910_93')
GRADIENTS = 104  # of the network with one block of each kind and the auxiliary classifier
CONVOLUTIONS = 50
VALUES = 254  # and gammas and moving averages of batch norm

# Every operation of the step, and the name below `mindspore.ops` whose documentation says that Ascend has it. `gradient:`
# marks those that MindSpore makes out of it in the backward pass, `part:` those that it makes out of it in any case.
OPERATIONS = {
    # the network
    'Conv2D': 'Conv2D',
    'BatchNorm': 'BatchNorm',
    'ReLU': 'relu',
    'MaxPool': 'MaxPool',
    'AvgPool': 'AvgPool',
    'Concat': 'cat',
    'ReduceMean': 'ReduceMean',
    'MatMul': 'MatMul',
    'BiasAdd': 'BiasAdd',
    'Flatten': 'Flatten',
    'Cast': 'Cast',
    # its gradients
    'Conv2DBackpropFilter': 'gradient: Conv2D',
    'Conv2DBackpropInput': 'gradient: Conv2D',
    'BatchNormGrad': 'gradient: BatchNorm',
    'ReluGrad': 'gradient: relu',
    'MaxPoolGrad': 'gradient: MaxPool',
    'AvgPoolGrad': 'gradient: AvgPool',
    'SplitWithSize': 'gradient: cat',
    'BiasAddGrad': 'gradient: BiasAdd',
    'LogSoftmaxGrad': 'gradient: log_softmax',
    'Tile': 'gradient: ReduceMean',
    'RealDiv': 'gradient: ReduceMean',
    # augmentation and loss
    'Add': 'add',
    'Sub': 'sub',
    'Mul': 'mul',
    'Div': 'div',
    'Muls': 'part: mul',
    'Neg': 'neg',
    'Maximum': 'maximum',
    'Minimum': 'minimum',
    'StridedSlice': 'strided_slice',
    'Reshape': 'reshape',
    'LogSoftmax': 'log_softmax',
    'OneHot': 'OneHot',
    'ReduceSum': 'ReduceSum',
    # an evaluation
    'Softmax': 'softmax',
    'Argmax': 'argmax',
    'ReduceMax': 'ReduceMax',
    'Stack': 'stack',
    'Less': 'less',
    'GreaterEqual': 'greater_equal',
    # overflow, norm, loss scale, optimizer
    'L2Loss': 'L2Loss',
    'AddN': 'AddN',
    'Sqrt': 'sqrt',
    'IsFinite': 'isfinite',
    'LogicalNot': 'LogicalNot',
    'LogicalOr': 'LogicalOr',
    'LogicalAnd': 'LogicalAnd',
    'LessEqual': 'less_equal',
    'Equal': 'equal',
    'ReduceAll': 'all',
    'Select': 'select',
    'BroadcastTo': 'broadcast_to',
    'Assign': 'assign',
    'AssignAdd': 'assign_add',
    'Gather': 'gather',
    'ApplyRMSProp': 'ApplyRMSProp',
    'AllReduce': 'AllReduce',
    'NPUClearFloatStatusV2': 'auto_generate.NPUClearFloatStatusV2',
    'NPUGetFloatStatusV2': 'auto_generate.NPUGetFloatStatusV2',
    'TensorMove': 'part: assign',  # a copy of what is read before the parameter is assigned to
    'GetNext': 'GetNext',  # a batch of the queue to the device
}
STRUCTURE = {'UpdateState', 'Load', 'MakeTuple', 'TupleGetItem', 'Depend', 'Partial'}  # computes nothing

Node = namedtuple('Node', 'operation arguments takes gives source')  # source: the operation that gives its first argument


def parse(path):
    """Nodes of an IR file, and for each of its graphs the type that it returns."""
    nodes, returned, sources, lines = [], [], {}, Path(path).read_text(errors='replace').splitlines()
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
    return [node for node in nodes if node.operation not in STRUCTURE | {'Return'}], returned


@pytest.fixture(scope='module')
def compiled(compiles, tmp_path_factory):
    """The IR of a graph for a chip, as `parse` gives it: `evaluation`, or the step of a sink with a `branch` on overflow, or
    without one (`select`). Compiled once each."""
    found = {}

    def get(chip, graph='branch'):
        if chip not in found:
            directory = tmp_path_factory.mktemp(chip)
            done = subprocess.run(
                [sys.executable, 'tests/ascend.py', chip, str(directory)],
                capture_output=True,
                text=True,
                cwd=Path(__file__).parents[1],
                env={**os.environ, 'PYTHONPATH': '.'},
                timeout=600,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            paths = sorted(directory.glob('*validate*.ir'), key=lambda path: path.stat().st_mtime_ns)
            assert len(paths) == 3
            found[chip] = [*map(parse, paths)]
        return found[chip][('evaluation', 'branch', 'select').index(graph)]

    return get


@pytest.mark.parametrize('chip', CHIPS)
def test_whole_network_constructs(chip, monkeypatch):
    pretend(chip, monkeypatch.setattr)
    with no_init_parameters():
        assert len(InceptionV4(aux_logits=True).trainable_params()) > 300


each_chip = pytest.mark.parametrize(
    'chip', ['ascend910', 'ascend910b', pytest.param('ascend910_93', marks=pytest.mark.slow)]
)  # the last two are told apart nowhere


@each_chip
def test_operations_are_those_of_ascend(chip, compiled):
    for graph in ('branch', 'select'):
        found = {node.operation for node in compiled(chip, graph)[0]}
        assert not found - OPERATIONS.keys() - {'Switch'}
        assert {'GetNext', 'Conv2DBackpropInput', 'ApplyRMSProp', 'AllReduce', 'OneHot', 'AvgPool'} <= found


@each_chip
def test_operations_of_an_evaluation_are_those_of_ascend(chip, compiled):
    nodes, returned = compiled(chip, 'evaluation')
    assert not {node.operation for node in nodes} - OPERATIONS.keys()
    assert {'Conv2D', 'BatchNorm', 'Softmax', 'Argmax', 'OneHot'} <= {node.operation for node in nodes}
    assert len(returned) == 1 and '(2, 6)' in returned[0]


@pytest.mark.parametrize('documented', sorted({name.split(': ')[-1] for name in OPERATIONS.values()}))
def test_operations_are_documented_for_ascend(documented):
    platforms = re.search(r'Supported Platforms:\s*(.+)', operator.attrgetter(documented)(ms.ops).__doc__)
    assert platforms and '``Ascend``' in platforms[1]


@each_chip
def test_branches_return_plain_tensors(chip, compiled):
    """The graph engine refuses a branch that returns a parameter."""
    nodes, returned = compiled(chip)
    assert [node.operation for node in nodes].count('Switch') == 1
    assert len(returned) == 3  # the step, and its two branches: with an overflow and without
    assert returned[1:] == ['(<Tensor[Float32], ()>)'] * 2 and 'Ref[' not in returned[0]


@each_chip
def test_without_the_branch_every_value_is_selected(chip, compiled):
    """One graph; each weight, mean square and moment is set to its old value or the new one by the same condition."""
    nodes, returned = compiled(chip, 'select')
    assert len(returned) == 1 and 'Ref[' not in returned[0]
    counts = Counter(node.operation for node in nodes)
    assert not counts['Switch'] and counts['ApplyRMSProp'] == GRADIENTS
    selected = [node for node in nodes if node.operation == 'Select' and re.search(r'Float32\], \(\d', node.takes)]
    assert len(selected) == 3 * GRADIENTS and {node.source for node in selected} == {'BroadcastTo'}
    assert len({node.arguments.split(',')[0] for node in nodes if node.operation == 'BroadcastTo'}) == 1
    assert 0 <= counts['Assign'] - 3 * GRADIENTS < 10


@each_chip
def test_nothing_lies_across_three_channels(chip, compiled):
    """Reductions over an axis of 3 and transposes of it are slow: vectors lie along the last axis."""
    nodes, _ = compiled(chip)
    reductions = [node for node in nodes if node.operation.startswith(('Reduce', 'Arg', 'Sum'))]
    assert len(reductions) >= 4
    for node in reductions:
        shape = [int(n) for n in re.findall(r'\d+', re.search(r'\], \(([\d, ]*)\)', node.takes)[1])]
        axes = [int(n) for n in re.findall(r'I64\((-?\d+)\)', node.arguments.partition('Bool')[0])] or range(len(shape))
        assert 3 not in [shape[axis] for axis in axes], node
    assert not [node for node in nodes if node.operation == 'Transpose']


@each_chip
def test_nothing_stands_between_batch_norm_and_relu(chip, compiled):
    """Forward and backward, so that the graph engine can make one kernel of the two."""
    nodes = [node for node in compiled(chip)[0] if node.operation in ('ReLU', 'BatchNormGrad')]
    assert len(nodes) == 2 * CONVOLUTIONS
    assert {node.source for node in nodes} == {'BatchNorm', 'ReluGrad'}
    assert all('Tensor[Float16]' in node.takes.partition('>')[0] for node in nodes)


@each_chip
def test_augmentation_passes_over_the_image_six_times(chip, compiled):
    """To float16, difference from the largest channel, factor, difference, two cuts; the rest is on one channel."""
    gives = [node.gives for node in compiled(chip)[0] if 'GetNext' not in node.operation]
    assert sum(text.startswith(f'<Tensor[Float16], ({BATCH}, 3, {SIZE}, {SIZE})') for text in gives) == 6


@each_chip
def test_overflow_is_told_as_the_chip_tells_it(chip, compiled):
    """The first 910 sets a flag, of which all ranks must know; later ones give infinities, which the all-reduce carries."""
    counts = Counter(node.operation for node in compiled(chip)[0])
    flags = chip == 'ascend910'
    assert (counts['NPUClearFloatStatusV2'], counts['NPUGetFloatStatusV2']) == ((2, 1) if flags else (0, 0))
    assert counts['IsFinite'] == (not flags) and counts['AllReduce'] == GRADIENTS + flags


@pytest.mark.parametrize(
    'chip, mode, saturates',
    [
        ('ascend910', None, True),
        ('ascend910b', None, False),
        ('ascend910_93', 'INFNAN_MODE', False),
        ('ascend910b', 'SATURATION_MODE', True),
        ('', None, False),
    ],
)
def test_mode_of_overflow(chip, mode, saturates, monkeypatch):
    pretend(chip, monkeypatch.setattr)
    if mode:
        monkeypatch.setenv('MS_ASCEND_CHECK_OVERFLOW_MODE', mode)
    else:
        monkeypatch.delenv('MS_ASCEND_CHECK_OVERFLOW_MODE', raising=False)
    cell = nn.Dense(2, 2)
    optimizer = create_optimizer(cell, load_settings(['--optimizer', 'momentum']), np.ones(1, np.float32))
    assert TrainStep(cell, optimizer).saturates == saturates


@each_chip
def test_two_small_operations_a_gradient(chip, compiled):
    """Its part of the norm, and one multiplication by all factors at once: mean over the ranks, loss scale and clipping. The
    optimizer's decay is two of a weight, a moving average three of a value."""
    counts = Counter(node.operation for node in compiled(chip)[0])
    assert counts['L2Loss'] == counts['ApplyRMSProp'] == GRADIENTS
    weights = 52
    assert counts['Mul'] - GRADIENTS - weights - VALUES < 15 and counts['AddN'] - weights < 15
    assert counts['Sub'] - VALUES < 10 and counts['Add'] - VALUES < 10
    assert counts['Assign'] + counts['AssignAdd'] - VALUES < 10
