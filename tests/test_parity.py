"""The network, its gradients and its optimizer against figures of the original entry. `-s` shows the deviations."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.inceptionv4 import InceptionV4, cross_entropy, set_precision
from src.options import load_settings
from src.training.optimizer import create_optimizer, decayed_parameters
from src.training.plan import batch_norm_decay, learning_rates
from src.training.step import NetworkWithLoss, TrainStep, l2_term
from src.weights.names import fit, names_in, tf_slim_name
from tests.reference import FIGURES, INFO, batches, deviation, tf_variables

WEIGHT_DECAY = INFO['weight_decay']
assert load_settings([]).weight_decay == WEIGHT_DECAY


@pytest.fixture(scope='module')
def variables():
    return tf_variables()


@pytest.fixture(scope='module')
def data():
    return batches()


@pytest.fixture(scope='module')
def network(compiles):
    return InceptionV4(INFO['num_classes'], aux_logits=True)


def load(network, variables):
    """All of `variables` into `network`; what the optimizer and the last test did to it is gone."""
    parameters = dict(network.parameters_and_names())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    for name, value in fit(variables, names_in('tf_slim', shapes), shapes, hwio=True).items():
        parameters[name].set_data(Tensor(value))


def report(what, value, bound):
    print(f'\nparity: {what}: {value:.1e} (bound {bound:.0e})', end='')
    assert value <= bound, what


def check_loss(kind, loss, variables, bound):
    """Loss and total loss of the network with these weights."""
    squares = sum((v.astype(np.float64) ** 2).sum() for k, v in variables.items() if k.endswith('/weights'))
    report(f'{kind}, loss, relative', deviation(loss, FIGURES[f'{kind}/loss']), bound)
    total = loss + WEIGHT_DECAY * squares / 2
    report(f'{kind}, total loss, relative', deviation(total, FIGURES[f'{kind}/total_loss']), bound)


def test_evaluation_forward(network, variables, data):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    load(network, variables)
    network.set_train(False)
    x, points = Tensor(data[0][0]), {}
    for cell in (*network.to_aux, *network.from_aux):
        x = points[tf_slim_name(next(cell.get_parameters()).name).split('/')[1]] = cell(x)
        if cell is network.to_aux[-1]:
            points['AuxLogits'] = network.aux_logits(x)
    points['global_pool'] = x.mean((2, 3))
    points['Logits'] = logits = network.logits(points['global_pool'])
    assert points.keys() == {key.split('/')[1] for key in FIGURES if key.startswith('eval/') and key.endswith('/mean')}
    worst = {'mean': 0, 'std': 0, 'head': 0}
    for name, value in points.items():
        value = value.asnumpy()
        value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        mean, std, head = (FIGURES[f'eval/{name}/{kind}'] for kind in worst)
        ours = value.reshape(len(value), -1)[:, : head.shape[-1]].reshape(head.shape)
        # Means and single values pass through zero: their deviation is relative to the spread.
        found = abs(value.mean() - mean) / std, deviation(value.std(), std), np.abs(ours - head).max() / std
        worst = {kind: max(worst[kind], one) for kind, one in zip(worst, found)}
    for kind, value in worst.items():
        report(f'endpoints, {kind}, relative', value, 1e-4)
    for kind, value in (('logits', logits), ('aux_logits', points['AuxLogits'])):
        report(f'{kind}, absolute', np.abs(value.asnumpy() - FIGURES[f'eval/{kind}']).max(), 2e-4)
    assert np.array_equal(network(Tensor(data[0][0])).asnumpy(), logits.asnumpy())
    loss = cross_entropy(logits, Tensor(data[1][0]), 0.1).mean().asnumpy()
    check_loss('eval', loss, variables, 1e-5)


class LossOf(nn.Cell):
    """Loss of the original: label smoothing 0.1, the auxiliary head built and not added."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x, label):
        return cross_entropy(self.network(x)[0], label, 0.1).mean()


class StemLoss(nn.Cell):
    """0.5 * mean((mean over height and width of Mixed_5b - 1)^2): batch norm's training semantics, well conditioned."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.layers = nn.CellList(network.to_aux[:7], auto_prefix=False)

    def construct(self, x, label):
        for cell in self.layers:
            x = cell(x)
        return 0.5 * ops.square(x.mean((2, 3)) - 1).mean()


def values(cell):
    return {tf_slim_name(p.name): p.asnumpy().copy() for p in cell.get_parameters() if not p.name.endswith('gamma')}


def set_batch_norm(cell, kind):
    for _, child in cell.cells_and_names():
        if isinstance(child, nn.BatchNorm2d):
            child.use_batch_statistics = False if kind == 'frozen_bn' else None


@pytest.mark.parametrize(
    'kind, loss_of, lr, bounds',
    [
        ('frozen_bn', LossOf, 0.002 * INFO['lr'], {'gradients': 1e-3, 'loss': 5e-4, 'changes': 5e-3}),
        ('stem_bn', StemLoss, INFO['lr'], {'gradients': 5e-3, 'loss': 1e-5, 'changes': 5e-3}),
    ],
)
def test_training(kind, loss_of, lr, bounds, network, variables, data):
    """Gradients, losses and changes in four steps; batch norm in inference mode, and in training mode in the stem."""
    load(network, variables)
    cell, settings, steps, losses = loss_of(network), load_settings([]), range(INFO['steps']), []
    optimizer = create_optimizer(cell, settings, np.full(len(steps), lr, np.float32), on_cpu=True)
    step, before = TrainStep(cell, optimizer, 1024.0).set_train(), values(cell)
    set_batch_norm(cell, kind)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    if kind == 'stem_bn':  # the original took the gradients once before the steps, and moved its averages then
        cell(*(Tensor(array[0]) for array in data))
    ms.set_context(mode=ms.GRAPH_MODE)
    for i in steps:
        term = l2_term(decayed_parameters(cell), WEIGHT_DECAY)  # before the step, as the loss
        loss = float(step(*(Tensor(array[i]) for array in data))[0].asnumpy())
        losses.append((loss, loss + term))
        if i == 0:  # the first moments are the gradients, decay included, times rate / root of the mean square
            norms = {
                tf_slim_name(p.name): np.linalg.norm(moment.asnumpy() * np.sqrt(square.asnumpy() + settings.rmsprop_epsilon))
                / lr
                for p, moment, square in zip(optimizer.parameters, optimizer.moment, optimizer.ms)
            }
    names = list(FIGURES[f'{kind}/grad_norm_names'])
    assert all(norms[n] == 0 for n in set(norms) - set(names))  # TensorFlow lists no gradient where none arrives
    found, expected = [norms[n] for n in names], FIGURES[f'{kind}/grad_norms']
    report(f'{kind}, gradient norms, relative', deviation(found, expected), bounds['gradients'])
    for name, found in zip(('loss', 'total_loss'), np.transpose(losses)):
        report(f'{kind}, {name} of the steps, relative', deviation(found, FIGURES[f'{kind}/{name}']), bounds['loss'])
    names, changes, after = list(FIGURES[f'{kind}/final_norm_names']), FIGURES[f'{kind}/change_norms'], values(cell)
    ours = np.array([np.linalg.norm(before[n].astype(np.float64) - after[n]) for n in names])
    still = changes == 0
    assert (ours[still] == 0).all()
    report(f'{kind}, norms of the changes, relative', deviation(ours[~still], changes[~still]), bounds['changes'])


def test_whole_network_in_training(network, variables, data):
    """Batch norm in training mode, before any step; float32 keeps few digits of it at random weights."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    load(network, variables)
    set_batch_norm(network, 'train')
    network.set_train()
    loss = float(LossOf(network)(Tensor(data[0][0]), Tensor(data[1][0])).asnumpy())
    check_loss('train', loss, variables, 1e-3)


# Half precision keeps 11 bits, a relative 5e-4. On the way through some 20 layers and back, whose gradients grow
# towards the input, this becomes at most 1 % of a loss and a tenth of the gradients.
HALF_LOSS, HALF_GRADIENTS = 1e-2, 0.1


@pytest.mark.compiles
def test_o3_agrees_with_float32():
    """A forward pass and a training step with loss scale 1024, batch norm in inference mode, which is well conditioned. The
    graph of O3 is compared with float32 computed operation by operation."""
    rng, outputs = np.random.default_rng(0), []
    image = Tensor(rng.integers(0, 256, (4, 3, 75, 75), dtype=np.uint8))
    batch = image, Tensor(np.tile(np.float32([0, 1]), (4, 1))), Tensor(np.ones((4, 1536), np.float32))
    x = Tensor(rng.uniform(-1, 1, (2, 3, 75, 75)), ms.float32)
    for level, mode in (('O0', ms.PYNATIVE_MODE), ('O3', ms.GRAPH_MODE)):
        ms.set_seed(1)
        network = set_precision(InceptionV4(10, block_counts=(1, 1, 1), image_size=75, aux_logits=True), level)
        optimizer = create_optimizer(network, load_settings([]), np.full(1, 0.01, np.float32), on_cpu=True)
        before = [p.asnumpy().copy() for p in network.trainable_params()]
        step = TrainStep(NetworkWithLoss(network, 0.1, True), optimizer, 1024.0)
        ms.set_context(mode=ms.PYNATIVE_MODE)
        logits = network.set_train(False)(x).asnumpy()
        ms.set_context(mode=mode)
        step.set_train()
        set_batch_norm(network, 'frozen_bn')
        loss = step(*batch, Tensor(np.arange(4, dtype=np.int32)))[0].asnumpy()
        changes = [p.asnumpy() - old for p, old in zip(network.trainable_params(), before)]
        assert all(np.isfinite(change).all() and change.any() for change in changes)  # every parameter has a gradient
        assert {p.dtype for p in network.get_parameters()} == {ms.float32}
        outputs.append((loss, logits, np.concatenate([change.ravel() for change in changes])))
    (loss_32, logits_32, change_32), (loss, logits, change) = outputs
    report('O3 training step, loss, relative', deviation(loss, loss_32), HALF_LOSS)
    report('O3 forward, logits, relative', np.abs(logits - logits_32).max() / logits_32.std(), HALF_LOSS)
    difference = np.linalg.norm(change - change_32) / np.linalg.norm(change_32)
    report('O3 training step, change of the weights, relative', difference, HALF_GRADIENTS)


def test_learning_rates():
    """The cosine is stepped once per epoch, and stays at 0 after T_max."""
    plain = load_settings([])
    rates, step = learning_rates(plain.but(lr=0.045), 1501, 10), np.array([0, 9, 10, 499, 500, 999, 1000, 1500])
    assert rates.dtype == np.float32
    assert rates[step] == pytest.approx(0.0225 * (1 + np.cos(np.pi * np.minimum(step // 10, 100) / 100)), rel=1e-6)
    rates = learning_rates(plain.but(lr_schedule='exponential', lr=0.045), 60, 10)
    assert rates[[0, 19, 20, 39, 40]] == pytest.approx(0.045 * np.array([1, 1, 0.94, 0.94, 0.94**2]), rel=1e-6)
    warm = learning_rates(plain.but(lr_schedule='constant', lr=1.0, warmup_epochs=2.0), 30, 10)
    assert warm[[0, 9, 19, 20, 29]] == pytest.approx([0.05, 0.5, 1, 1, 1])


def test_batch_norm_decays_as_the_originals_in_long_trainings():
    assert batch_norm_decay(100 * 2502) == batch_norm_decay(100 * 10009) == 0.9997  # ImageNet on 8 devices and on one
    assert [batch_norm_decay(steps) for steps in (1, 100, 200, 10000)] == [0.8, 0.8, 0.9, 0.998]


class Dot(nn.Cell):
    """x . w"""

    def __init__(self, start):
        super().__init__()
        self.w = ms.Parameter(Tensor(start, ms.float32), name='w')

    def construct(self, x):
        return (self.w * x).sum()


@pytest.mark.compiles
@pytest.mark.parametrize('kind', ['rmsprop', 'momentum', 'nesterov'])
def test_formula_of_the_optimizer(kind):
    """Those of TensorFlow, in whole vectors of 8 and in what is left over: MindSpore's CPU kernels have other ones."""
    ms.set_context(mode=ms.GRAPH_MODE)
    w, square, moment, epsilon, rates = np.linspace(-2, 2, 67), np.ones(67), np.zeros(67), 0.5, np.float32([0.1, 0.05, 0.05])
    settings = load_settings([]).but(weight_decay=0.0, rmsprop_epsilon=epsilon, use_nesterov=kind == 'nesterov')
    settings, cell = settings.but(optimizer='rmsprop' if kind == 'rmsprop' else 'momentum'), Dot(w)
    step = nn.TrainOneStepCell(cell, create_optimizer(cell, settings, rates, on_cpu=True)).set_train()
    for i, rate in enumerate(rates):
        g = np.linspace(-3, 20, 67, dtype=np.float32) * (i + 1)
        step(Tensor(g))
        square = 0.9 * square + 0.1 * g.astype(np.float64) ** 2
        if kind == 'rmsprop':
            moment = 0.9 * moment + rate * g / np.sqrt(square + epsilon)
            w = w - moment
        else:
            moment = 0.9 * moment + g
            w = w - rate * (g + 0.9 * moment if kind == 'nesterov' else moment)
    assert cell.w.asnumpy() == pytest.approx(w, rel=1e-6, abs=1e-6)
