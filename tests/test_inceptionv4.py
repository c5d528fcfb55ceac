"""The network: weights counted, initialisation, dropout, frozen layers."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.errors import InputError
from src.inceptionv4 import InceptionV4, set_precision
from src.training.optimizer import freeze

SMALL = {'num_classes': 10, 'block_counts': (1, 1, 1), 'image_size': 75}


@pytest.fixture(scope='module')
def small():
    ms.set_seed(1)
    return InceptionV4(**SMALL, aux_logits=True)


@pytest.fixture(scope='module')
def full(compiles):
    return dict(InceptionV4().parameters_and_names())


def test_number_of_weights(full):
    """42,679,816, as other implementations count: kernels, biases, betas and one gamma per batch norm channel, which is
    fixed at 1 here; no moving averages, no auxiliary classifier. Without the gammas 42,648,232 are trained."""
    counted = {name: p for name, p in full.items() if 'moving_' not in name}
    assert sum(p.size for p in counted.values()) == 42_679_816
    assert sum(p.size for p in counted.values() if p.requires_grad) == 42_648_232
    assert {name for name, p in counted.items() if not p.requires_grad} == {n for n in full if n.endswith('bn.gamma')}


def test_initialisation(full):
    for name in ('mixed_6b.branch_2.conv2d_0d_7x1.conv.weight', 'conv2d_2b_3x3.conv.weight', 'logits.weight'):
        value = full[name].asnumpy()
        sigma = np.sqrt(2 / np.prod(value.shape[1:]))
        assert abs(value.std() / sigma - 1) < 0.03 and abs(value.mean()) < 0.03 * sigma
        assert np.abs(value).max() <= 2.001 * sigma / 0.87962566  # cut at two standard deviations
    assert not full['logits.bias'].asnumpy().any()


@pytest.mark.compiles
def test_dropout(small):
    """The mask and its scale reach the logits; without a mask there is no dropout."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    bias, masks = small.logits.bias.asnumpy(), [np.full((2, 1536), share, np.float32) for share in (1.25, 0)]
    features = Tensor(np.random.default_rng(0).uniform(-1, 1, (2, 1536)).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, 'feature_maps', lambda x: (features[:, :, None, None], x))
        plain = small.set_train(False)(None).asnumpy() - bias
        kept, dropped = (small(None, Tensor(mask)).asnumpy() - bias for mask in masks)
    assert np.allclose(kept, plain / 0.8, atol=1e-4) and not dropped.any() and plain.any()


@pytest.mark.compiles
@pytest.mark.parametrize('level, decay', [('O0', 1.0), ('O3', 0.5)])
def test_frozen_batch_norm_computes_as_in_an_evaluation(level, decay):
    """Where a part is frozen, or everywhere with a decay of 1: the same output, and averages that stay."""
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(1)
    network = InceptionV4(**SMALL, bn_decay=decay)
    layers = network.conv2d_1a_3x3, network.conv2d_2a_3x3
    freeze(network, ['conv2d_1a_3x3', 'conv2d_2a_3x3.bn.beta'])
    norms = [layer.bn for layer in layers]
    set_precision(network, level)
    for layer, norm, channels in zip(layers, norms, (3, 32)):
        x = Tensor(np.random.default_rng(0).normal(3, 2, (4, channels, 9, 9)).astype(np.float32))
        inferred = layer.set_train(False)(x).asnumpy()
        before = norm.moving_mean.asnumpy().copy()
        trained = layer.set_train()(x).asnumpy()
        frozen = layer is layers[0] or decay == 1
        assert np.array_equal(inferred, trained) == np.array_equal(before, norm.moving_mean.asnumpy()) == frozen


def test_freeze():
    network = InceptionV4(**SMALL)
    freeze(network, ['conv2d_1a_3x3', 'mixed_5b.branch_1'])
    names = [name for name, p in network.parameters_and_names() if 'moving' not in name and not name.endswith('gamma')]
    frozen = {name for name in names if not network.parameters_dict()[name].requires_grad}
    assert frozen == {name for name in names if name.startswith(('conv2d_1a_3x3.', 'mixed_5b.branch_1.'))}
    with pytest.raises(InputError, match='freeze mixed_5: .*mixed_5a, mixed_5b'):
        freeze(network, ['mixed_5'])
    freeze(network, ['mixed_6*'])
    assert not network.mixed_6a.trainable_params() + network.mixed_6b.trainable_params()
