"""Weights of other programs: what the programs themselves computed and wrote, and what a stranger might.

tests/files/foreign_networks.npz holds the tensors' names and the logits of timm 1.0.31 (PyTorch 2.13) and MindCV 0.3.0 with
weights made from their names; tensorflow_v1, tensorflow_v2.* and the .pth were written by TensorFlow 2.21 and PyTorch 2.13.
"""

import argparse
import json
import os
import pickle
import zipfile
import zlib
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.data.classes import imagenet_names
from src.errors import InputError
from src.inceptionv4 import InceptionV4
from src.weights import checkpoint, torch_file
from src.weights.__main__ import main
from src.weights.read import convert, empty_network, read_tensors, read_weights
from tests.reference import DATA, FIGURES, batches, tf_variables
from tests.test_end_to_end import message_of
from tests.weights import tensorflow
from tests.weights.tensorflow import to_tf_slim

BOUND = 1e-4  # of the logits, relative to the largest
SMALL = {'num_classes': 1001, 'block_counts': [1, 1, 1]}
DRAWS = np.random.RandomState(0).standard_normal(99991).astype('f4')  # a prime: tensors do not repeat row by row


def made_from_name(name, shape):
    value = np.resize(np.roll(DRAWS, zlib.crc32(name.encode())), shape)
    if len(shape) > 1:
        return value * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if name.endswith(('running_var', 'moving_variance', 'bn.weight', 'gamma')):
        return np.clip(1 + value / 5, 0.5, 1.5).astype('f4')
    return value * np.float32(0.1)


def foreign(program):
    """({name: value}, logits of the first batch) of timm or MindCV."""
    data = np.load(DATA / 'foreign_networks.npz')
    names = json.loads(data[f'{program}_names'].tobytes())
    return {name: made_from_name(name, shape) for name, shape in names}, data[f'{program}_logits']


def write_mindspore(path, tensors):
    ms.save_checkpoint([{'name': name, 'data': Tensor(value)} for name, value in tensors.items()], str(path))


@pytest.fixture(autouse=True)
def mode():
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope='module')
def small():
    """{our name: value} of a small network with all that TF-slim has, random."""
    shapes = {name: p.shape for name, p in empty_network(SMALL).parameters_dict().items()}
    return {name: np.ones(s, 'f4') if 'gamma' in name else made_from_name(name, s) for name, s in shapes.items()}


@pytest.mark.compiles
@pytest.mark.parametrize(
    'program, preprocessing',
    [
        ('timm', ((127.5,) * 3, (127.5,) * 3, 0.875, 'bicubic', True)),
        ('mindcv', ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 0.875, 'bilinear', True)),
        ('tf_slim', ((127.5,) * 3, (127.5,) * 3, 0.875, 'bilinear', False)),
    ],
)
def test_same_logits(tmp_path, program, preprocessing):
    """With the network that the file itself describes; and back to timm's names and shapes."""
    path = tmp_path / 'weights.ckpt'
    if program == 'tf_slim':
        tensors, expected = tf_variables(), FIGURES['eval/logits']
        tensorflow.write(path, tensors)
    else:
        tensors, expected = foreign(program)
        write = torch_file.write_safetensors if program == 'timm' else write_mindspore
        write(path, tensors)
    parameters, info = read_weights(path)
    network = empty_network({**info['config'], 'aux_logits': False}).set_train(False)
    checkpoint.load_into(network, parameters, path)
    found = network(Tensor(batches()[0][0][:1])).asnumpy()
    assert np.abs(found - expected[:1]).max() / np.abs(expected[:1]).max() < BOUND
    expected = {'num_classes': 1000, 'block_counts': [4, 7, 3], 'aux_logits': False, 'image_size': 299}
    assert info['config'] == {**expected, 'bn_scale': program != 'tf_slim'}
    assert info['preprocessing'] == preprocessing
    # The original trained its 1000 classes with labels from 1, so nobody knows what its class 0 is.
    assert info.get('class_names') == (None if program == 'tf_slim' else imagenet_names())
    if program == 'timm':
        main(['import', str(path), '--out', str(tmp_path / 'ours.ckpt')])
        main(['export-timm', str(tmp_path / 'ours.ckpt')])
        back, _ = read_tensors(tmp_path / 'ours.safetensors')
        kept = {name for name in tensors if not name.endswith('num_batches_tracked')}
        assert set(back) == kept and all(np.array_equal(back[name], tensors[name]) for name in kept)


@pytest.mark.parametrize('name', ['tensorflow_v1', 'tensorflow_v2', 'tensorflow_v2.data-00000-of-00001'])
def test_what_tensorflow_wrote(name):
    found, _ = read_tensors(DATA / name)
    first = np.arange(24, dtype='f4').reshape(2, 3, 4) / 7
    assert np.array_equal(found['InceptionV4/Conv2d_1a_3x3/weights'], first) and found['a/b'].tolist() == [-1.5, 2.25]
    others = [None, None] if name.endswith('v1') else [1234567, -7]  # V1's integers are no weights
    assert len(found) == 4 and [found['global_step'], found['count']] == others


def test_what_pytorch_wrote():
    found, _ = read_tensors(DATA / 'state_dict.pth')
    t = np.arange(12, dtype='f4').reshape(3, 4)
    expected = {'float': t, 'transposed': t.T, 'half': t, 'bfloat16': t, 'part': [2, 3], 'whole': np.arange(6)}
    expected |= {'count': 7, 'double': t[1]}
    assert set(found) == set(expected) and all(np.array_equal(found[name], expected[name]) for name in found)
    assert found['half'].dtype == np.float16 and found['double'].dtype == np.float64
    found, _ = read_tensors(DATA / 'training_state.pth')  # {'state_dict': {'module.w': parameter}, 'lr': ...}
    assert list(found) == ['state_dict.module.w'] and np.array_equal(found['state_dict.module.w'], t)


@pytest.mark.parametrize('drop', [False, True])
def test_import(drop, tmp_path, small, capsys):
    """1001 classes of a TensorFlow training run, with the background and without."""
    slim, source, out = to_tf_slim(small), tmp_path / 'model.ckpt-5', tmp_path / 'imported.ckpt'
    slots = {f'{name}/RMSProp': value for name, value in slim.items()}
    tensorflow.write(source, {**slim, **slots, 'global_step': 5})
    main(['import', str(source), '--out', str(out), *['--drop_background'] * drop])
    assert f'{len(slim)} tensors of {source}, {len(slim) + 1} left out' in capsys.readouterr().out
    parameters, info = checkpoint.load(out)
    for name, value in small.items():
        assert np.array_equal(parameters[name], value[drop:] if name.startswith('logits.') else value)
    assert info['class_names'] == imagenet_names(1001 - drop) and info['source'] == f'tf_slim {source}'
    assert info['config']['num_classes'] == 1001 - drop
    assert 'already a checkpoint of this project' in message_of(main, ['import', out, '--out', source], capsys)


def test_other_networks_are_refused(small):
    slim, beta = to_tf_slim(small), 'InceptionV4/Conv2d_1a_3x3/BatchNorm/beta'
    for tensors, message in (
        ({'conv1.weight': np.zeros(1)}, 'no InceptionV4 of TF-slim, timm, MindCV.*1 tensors: conv1.weight'),
        ({name: value for name, value in slim.items() if name != beta}, f'{beta} is missing'),
        ({**slim, 'InceptionV4/Mixed_9a/weights': np.zeros(3, 'f4')}, 'InceptionV4/Mixed_9a/weights has no place'),
    ):
        with pytest.raises(ValueError, match=message):
            convert(tensors)


class Evil:
    def __reduce__(self):
        return os.system, ('touch ran',)


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (
        pickle.dumps({'w': Evil(), 'args': argparse.Namespace(lr=0.1)}, 2),
        b'cbuiltins\nexec\n(S\'open("ran", "w")\'\ntR.',
    ):
        with zipfile.ZipFile('evil.pth', 'w') as archive:
            archive.writestr('archive/data.pkl', content)
        with pytest.raises(InputError, match='evil.pth: no tensors in it, and nothing else is run; not a state dict'):
            read_tensors('evil.pth')
    assert not Path('ran').exists()


def test_mismatch_is_named_with_its_remedy():
    """Other options than here: test_bad_checkpoints in test_end_to_end.py."""
    options = {'num_classes': 7, 'block_counts': (1, 1, 1), 'image_size': 75}
    theirs, network = checkpoint.values(InceptionV4(**options)), InceptionV4(**options, aux_logits=True)
    before = network.logits.weight.asnumpy()
    with pytest.raises(InputError, match='^FILE: aux_.* here, no such parameter in the file; use --aux_logits false'):
        checkpoint.load_into(network, theirs, 'FILE')
    assert np.array_equal(network.logits.weight.asnumpy(), before)  # all or nothing
