"""The training step's guards: overflow, dynamic loss scale, clipping, moving average of the weights. One graph for all."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.evaluation.evaluation import take_weights
from src.inceptionv4 import InceptionV4, cross_entropy
from src.options import load_settings
from src.training.optimizer import create_optimizer, in_whole_vectors
from src.training.step import AUX_LOSS_WEIGHT, NetworkWithLoss, TrainStep, l2_term, on_host, square_sum

WEIGHT = 'mixed_5b.branch_0.conv2d_0a_1x1.conv.weight'
DECAY = 0.75
CLIP = 500.0  # between the norms that the test of it makes


class Training:
    def __init__(self):
        ms.set_context(mode=ms.GRAPH_MODE)
        ms.set_seed(1)
        network, rng = InceptionV4(10, block_counts=(1, 1, 1), image_size=75), np.random.default_rng(0)
        settings = load_settings([]).but(optimizer='momentum', weight_decay=0.0)
        optimizer = create_optimizer(network, settings, np.full(100, 0.001, np.float32))
        self.step = TrainStep(NetworkWithLoss(network, 0.1), optimizer, 'dynamic', CLIP, DECAY).set_train()
        self.parameters = self.step.parameters_dict()
        images, draws = rng.integers(0, 255, (2, 3, 75, 75)).astype(np.uint8), np.tile(np.float32([0, 1]), (2, 1))
        self.batch = [*map(Tensor, (images, draws, np.ones((2, 1536), np.float32), np.int32([1, 2])))]

    def __call__(self):
        return on_host(self.step(*self.batch))

    def state(self):
        return {name: parameter.asnumpy().copy() for name, parameter in self.parameters.items()}

    def set(self, **values):
        for name, value in values.items():
            ops.assign(self.parameters[name], Tensor(value, self.parameters[name].dtype))


@pytest.fixture(scope='module')
def training(compiles):
    made = Training()
    assert made().overflows == 0
    return made


def test_average_follows_the_weights(training):
    """average = decay * average + (1 - decay) * weight, of everything the network has, after the update."""
    before = training.state()
    training()
    after = training.state()
    assert (after[WEIGHT] != before[WEIGHT]).any()
    for name in (WEIGHT, 'mixed_5b.branch_0.conv2d_0a_1x1.bn.moving_mean'):
        expected = DECAY * before['ema.' + name] + (1 - DECAY) * after[name]
        assert np.allclose(after['ema.' + name], expected, rtol=1e-6, atol=1e-8)


def test_overflow_changes_no_weight_and_is_counted(training):
    """A loss scale at the end of float32's range overflows the gradients, not the loss."""
    before = training.state()
    training.set(scale_sense=3e38)
    outputs = [training() for _ in range(3)]
    assert [o.overflows for o in outputs] == [o.overflow_run for o in outputs] == [1, 2, 3]
    assert [o.loss_scale for o in outputs] == [np.float32(3e38), np.float32(1.5e38), np.float32(0.75e38)]
    state = training.state()
    assert all(np.isfinite(o.loss) for o in outputs)
    assert state['global_step'] == before['global_step'] + 3  # they count for the learning rate
    kept = [name for name in state if name.startswith(('moments.', 'ema.', 'logits', WEIGHT))]
    assert all(np.array_equal(state[name], before[name]) for name in kept)
    training.set(scale_sense=before['scale_sense'])
    after = training()
    assert (after.overflows, after.overflow_run) == (3, 0) and (training.state()[WEIGHT] != before[WEIGHT]).any()


def test_norm_is_that_of_all_gradients_and_is_clipped(training):
    """As `tf.clip_by_global_norm`: larger norms become the bound, smaller ones stay."""
    state, norms = training.state(), []
    moments = [name for name in state if name.startswith('moments.')]
    for factor in (1.0, 0.01):
        training.set(**{name: np.zeros_like(state[name]) for name in moments})  # they become what the optimizer sees
        training.set(**{'logits.weight': state['logits.weight'] * factor})  # the gradients behind it with it
        outputs, after = training(), training.state()
        norm = np.sqrt(sum(np.square(after[name].astype(np.float64)).sum() for name in moments))
        assert norm == pytest.approx(min(outputs.norm, CLIP), rel=5e-5)
        norms.append(outputs.norm)
        training.set(**state)
    assert norms[0] > CLIP > norms[1]  # both cases were there


def test_sums_of_squares_are_exact_for_large_tensors():
    """MindSpore's L2Loss on the CPU is 1e-4 off here."""
    values = np.random.default_rng(0).standard_normal((384, 2304)).astype(np.float32)
    exact = sum(np.square(one.astype(np.float64)).sum() for one in (values, values[0]))
    assert float(square_sum((Tensor(values), Tensor(values[0]))).asnumpy()) == pytest.approx(exact, rel=1e-6)
    parameters = [ms.Parameter(Tensor(one)) for one in (values, values[0])]
    assert l2_term(parameters, 0.01) == pytest.approx(0.01 * exact / 2, rel=1e-5)


def test_evaluation_sees_the_averages(training):
    """It changes nothing in the training run."""
    state, network = training.state(), InceptionV4(10, block_counts=(1, 1, 1), image_size=75)
    take_weights(network, training.step)
    assert all(np.array_equal(p.asnumpy(), state['ema.' + p.name]) for p in network.get_parameters())
    assert (state['ema.' + WEIGHT] != state[WEIGHT]).any()
    assert all(np.array_equal(value, state[name]) for name, value in training.state().items())


class Two(nn.Cell):
    """A tensor in whole vectors of 8, and one that is not."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (ms.Parameter(Tensor(np.ones(n, np.float32)), name) for n, name in ((64, 'a'), (3, 'b')))

    def construct(self, x):
        return (self.a * x).sum() + (self.b * x[:3]).sum()


@pytest.mark.compiles
@pytest.mark.parametrize('name, nesterov', [('momentum', True), ('rmsprop', False)])
def test_selecting_equals_branching(name, nesterov):
    """Bit for bit, all outputs and all state, in steps with overflow and without, clipped, with moving averages."""
    ms.set_context(mode=ms.GRAPH_MODE)
    settings, found = load_settings([]).but(optimizer=name, weight_decay=0.0, use_nesterov=nesterov), []
    for drop_overflow_update in ('branch', 'select'):
        cell, rng = Two(), np.random.default_rng(0)
        optimizer = create_optimizer(cell, settings, np.linspace(0.1, 0.02, 6, dtype=np.float32), on_cpu=True)
        step = TrainStep(cell, optimizer, 'dynamic', 5.0, DECAY, drop_overflow_update).set_train()
        outputs = [
            on_host(step(Tensor(rng.standard_normal(64).astype(np.float32) * np.float32(factor))))
            for factor in (1, 1e37, 1e37, 1, 1e37, 1)
        ]
        assert [o.overflows for o in outputs] == [0, 1, 2, 2, 3, 3] and outputs[5].norm > 5
        found.append(([repr(o) for o in outputs], {p.name: p.asnumpy().tobytes() for p in step.get_parameters()}))
    assert found[0] == found[1] and len(found[0][1]) > 10


@pytest.mark.parametrize('size, cores, whole', [(1000, 2, 0), (1024, 2, 1), (96, 32, 0), (1536 * 1000, 64, 1)])
def test_tensors_in_whole_vectors(size, cores, whole):
    assert in_whole_vectors(size, cores) == whole


@pytest.mark.parametrize('aux_logits', [False, True])
def test_class_weights(aux_logits):
    """Factors of the loss of each image, also of the auxiliary classifier's part."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    logits, labels = Tensor(np.random.default_rng(0).normal(size=(4, 3)), ms.float32), Tensor([0, 2, 2, 1], ms.int32)
    inputs = Tensor(np.zeros((4, 3, 2, 2), np.uint8)), Tensor(np.zeros((4, 2), np.float32)), None, labels
    network = nn.Cell()
    network.construct = lambda image, mask: (logits, logits) if aux_logits else logits
    weights, losses = np.float32([0.5, 1, 2]), cross_entropy(logits, labels, 0.1).asnumpy()
    expected = (losses * weights[labels.asnumpy()]).mean() * (1 + AUX_LOSS_WEIGHT * aux_logits)
    found = NetworkWithLoss(network, 0.1, aux_logits, class_weights=weights)(*inputs)
    assert found.asnumpy() == pytest.approx(expected, rel=1e-6)
