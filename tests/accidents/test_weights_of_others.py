"""Weights as people have them: wrapped, nested, beside their averages, without a classifier, not finite, or no weights."""

import pickle

import numpy as np
import pytest

import eval as eval_entry
import export
import train
from src.deploy import predict
from src.errors import InputError
from src.inceptionv4 import InceptionV4
from src.weights import checkpoint
from src.weights.__main__ import main as weights_entry
from src.weights.names import names_in
from src.weights.read import empty_network, read_weights
from src.weights.torch_file import write_safetensors
from tests.conftest import SMALL
from tests.test_end_to_end import message_of
from tests.weights import tensorflow
from tests.weights.tensorflow import to_tf_slim
from tests.weights.test_weights import write_mindspore

CONFIG = {'num_classes': 10, 'block_counts': [1, 1, 1], 'bn_scale': True, 'image_size': 75}


@pytest.fixture(scope='module')
def ours():
    """{our name: value} of a small network."""
    r = np.random.default_rng(5)
    shapes = {name: p.shape for name, p in empty_network(CONFIG).parameters_dict().items()}
    return {name: r.uniform(0.01, 0.02, shape).astype('f4') for name, shape in shapes.items()}


@pytest.fixture(scope='module')
def timm(ours):
    return {foreign: ours[name] for name, foreign in names_in('timm', ours).items()}


def same(path, expected):
    parameters, info = read_weights(path)
    assert set(parameters) == set(expected) and all(np.array_equal(parameters[name], expected[name]) for name in expected)
    return info


def test_prefixes(ours, timm, tmp_path, capsys):
    tensorflow.write(tmp_path / 'model.ckpt-1', {f'tower_0/{name}': value for name, value in to_tf_slim(ours).items()})
    write_safetensors(tmp_path / 'timm', {f'module._orig_mod.{name}': value for name, value in timm.items()})
    write_mindspore(tmp_path / 'this.ckpt', {f'network.{name}': value for name, value in ours.items()})
    for name in ('model.ckpt-1.meta', 'timm', 'this.ckpt'):  # the graph beside its checkpoint is enough
        assert same(tmp_path / name, ours)['config']['num_classes'] == 10
    assert not capsys.readouterr().err


def test_averages_are_preferred(ours, timm, tmp_path, capsys):
    """As a training run's nested dicts are read; the optimizer's state is no set of weights."""
    path, sets = tmp_path / 'x.safetensors', {'state_dict.module': 1, 'state_dict_ema': 2, 'optimizer.state': 3}
    write_safetensors(path, {f'{prefix}.{name}': k * value for prefix, k in sets.items() for name, value in timm.items()})
    same(path, {name: 2 * value for name, value in ours.items()})
    assert capsys.readouterr().err == f'note: {path}: of 2 sets of weights state_dict_ema is taken\n'


def test_averages_without_statistics(ours, timm, tmp_path, capsys):
    """MindCV averages what is trained, not batch norm's statistics. TensorFlow keeps averages beside the variables."""
    mindcv, trained = names_in('mindcv', ours), [name for name in ours if 'moving' not in name]
    values = {**{mindcv[name]: ours[name] for name in ours}, **{f'ema.{mindcv[name]}': 2 * ours[name] for name in trained}}
    values.update({f'moments.{mindcv[name]}': 9 * ours[name] for name in trained})
    write_mindspore(tmp_path / 'x.ckpt', values)
    expected = {**ours, **{name: 2 * ours[name] for name in trained}}
    same(tmp_path / 'x.ckpt', expected)
    assert 'of 2 sets of weights ema is taken' in capsys.readouterr().err
    slim, wanted = to_tf_slim(ours), to_tf_slim(expected)
    means = {f'{name}/ExponentialMovingAverage': wanted[name] for name in slim if 'moving' not in name}
    tensorflow.write(tmp_path / 'slim', {**slim, **means})
    same(tmp_path / 'slim', expected)


@pytest.mark.parametrize(
    'content, message',
    [
        (
            b'version https://git-lfs.github.com/spec/v1\n',
            "begins with b'version https://git-lfs.*not a MindSpore checkpoint, or a",
        ),
        (pickle.dumps({'w': 1}), 'not a state dict of PyTorch 1.6 or later, .*safetensors.torch.save_file'),
        (b'', 'not a MindSpore checkpoint, or a damaged one'),
    ],
)
def test_what_holds_no_weights(content, message, tmp_path):
    (tmp_path / 'x.ckpt').write_bytes(content)
    with pytest.raises(InputError, match=f'x.ckpt: .*{message}'):
        read_weights(tmp_path / 'x.ckpt')


def test_without_a_classifier(ours, timm, data, tmp_path, capsys):
    """Enough for a training run to start from; everything else names what is missing."""
    write_safetensors(path := tmp_path / 'weights', {n: v for n, v in timm.items() if not n.startswith('last_linear.')})
    network = InceptionV4(7, block_counts=(1, 1, 1), bn_scale=True)
    assert 'all but logits.weight, logits.bias' in train.restore(network, str(path))
    name = 'mixed_7a.branch_1.conv2d_0b_1x7.conv.weight'
    assert np.array_equal(network.parameters_dict()[name].asnumpy(), ours[name])
    (tmp_path / 'x.png').touch()
    for main, *arguments in (
        (export.main, '--ckpt_path', path, '--file_name', tmp_path / 'net'),
        (eval_entry.main, '--ckpt_path', path, '--data_dir', data, *SMALL),
        (predict.main, tmp_path / 'x.png', '--model', path),
        (weights_entry, 'import', path, '--out', tmp_path / 'out.ckpt'),
    ):
        assert 'the classifier is missing' in message_of(main, arguments, capsys)


def test_values_that_are_not_finite(ours, timm, tmp_path):
    """The tensor is named, as it is called in the file; an optimizer's state is no weight."""
    averages = {f'ema.{name}': value for name, value in ours.items()} | {'moment.logits.bias': np.full(10, np.nan)}
    checkpoint.write(tmp_path / 'own', {**ours, **averages, 'ema.logits.bias': np.full(10, np.inf)}, {'config': CONFIG})
    write_safetensors(tmp_path / 'timm', {**timm, 'last_linear.bias': np.full(10, np.nan)})
    for file, name in (('own', 'ema.logits.bias'), ('timm', 'last_linear.bias')):
        with pytest.raises(InputError, match=f'/{file}: {name} has values that are not finite .NaN or infinite'):
            read_weights(tmp_path / file)
