"""Foreign weights: what the programs themselves computed and wrote, and what a stranger might.

tests/files/foreign_networks.npz holds the tensors' names and the logits of timm 1.0.31 (PyTorch 2.13) and MindCV 0.3.0 with
weights made from their names; tensorflow_v1, tensorflow_v2.* and the .pth were written by TensorFlow 2.21 and PyTorch 2.13.
"""

import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.data import imagenet
from src.data.preprocess import evaluation_image, recorded_preprocessing, scale
from src.errors import InputError
from src.inceptionv4 import InceptionV4
from src.training import resume
from src.training.optimizer import make_optimizer
from src.training.step import NetworkWithLoss, TrainStep
from src.weights import checkpoint, safetensors_file, tf_file, torch_file
from src.weights.__main__ import main
from src.weights.convert import convert
from src.weights.names import to_tf_slim
from src.weights.network import empty_network
from src.weights.read import read_tensors, read_weights
from tests.reference import DATA, FIGURES, SHARED, batches, tf_variables

BOUND = 1e-4  # of the logits, relative to the largest
SMALL = {'num_classes': 1001, 'block_counts': [1, 1, 1], 'aux_logits': True}


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def logits(path, x):
    """Logits of the weights at `path`, with the network that the file itself describes, and its info."""
    parameters, info = read_weights(path)
    network = empty_network({**info['config'], 'aux_logits': False}).set_train(False)
    checkpoint.load_into(network, parameters, path)
    return network(Tensor(x)).asnumpy(), info


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


@pytest.fixture(autouse=True)
def mode():
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope='module')
def small():
    """{our name: value} of a small network with all that TF-slim has, random."""
    r = np.random.default_rng(1)
    shapes = {name: p.shape for name, p in empty_network(SMALL).parameters_dict().items()}
    return {
        name: np.ones(shape, 'f4')
        if name.endswith('gamma')
        else r.uniform(0.5, 1.5, shape).astype('f4')
        if name.endswith('variance')
        else (r.standard_normal(shape) * 0.05).astype('f4')
        for name, shape in shapes.items()
    }


# What the programs compute and write.


@pytest.mark.compiles
@pytest.mark.parametrize(
    'program, scaled, preprocessing',
    [
        ('timm', True, ((127.5,) * 3, (127.5,) * 3, 0.875, 'bicubic', True)),
        ('mindcv', True, ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 0.875, 'bilinear', True)),
        ('tf_slim', False, ((127.5,) * 3, (127.5,) * 3, 0.875, 'bilinear', False)),
    ],
)
def test_same_logits(tmp_path, program, scaled, preprocessing):
    if program == 'tf_slim':
        path, expected = tmp_path / 'model.ckpt-1', FIGURES['eval/logits']
        tf_file.write(path, tf_variables())
    else:
        tensors, expected = foreign(program)
        path = tmp_path / {'timm': 'timm.safetensors', 'mindcv': 'inception_v4-1_1.ckpt'}[program]
        if program == 'timm':
            safetensors_file.write(path, tensors)
        else:
            ms.save_checkpoint([{'name': name, 'data': Tensor(value)} for name, value in tensors.items()], str(path))
    found, info = logits(path, batches()[0][0][:1])
    assert relative(found, expected[:1]) < BOUND
    assert info['config'] == {
        'num_classes': 1000,
        'block_counts': [4, 7, 3],
        'aux_logits': program == 'tf_slim',
        'bn_scale': scaled,
        'image_size': 299,
    }
    assert recorded_preprocessing(json.loads(json.dumps(info['preprocessing']))) == preprocessing
    # The original trained its 1000 classes with labels from 1, so nobody knows what its class 0 is.
    assert info['class_names'] == (None if program == 'tf_slim' else imagenet.names())


@pytest.mark.parametrize(
    'name', ['tensorflow_v1', 'tensorflow_v2', 'tensorflow_v2.index', 'tensorflow_v2.data-00000-of-00001']
)
def test_what_tensorflow_wrote(name):
    found, _ = read_tensors(DATA / name)
    assert {name: (value.shape, value.tolist()) for name, value in found.items()} == {
        'InceptionV4/Conv2d_1a_3x3/weights': ((2, 3, 4), (np.arange(24, dtype='f4').reshape(2, 3, 4) / 7).tolist()),
        'a/b': ((2,), [-1.5, 2.25]),
        'global_step': ((), 1234567),
        'count': ((), -7),
    }


def test_what_pytorch_wrote():
    found, _ = read_tensors(DATA / 'state_dict.pth')
    t = np.arange(12, dtype='f4').reshape(3, 4)
    expected = {
        'float': t,
        'transposed': t.T,
        'half': t,
        'bfloat16': t,
        'part': [2, 3],
        'whole': np.arange(6),
        'count': 7,
        'double': t[1],
    }
    assert set(found) == set(expected) and all(np.array_equal(found[name], expected[name]) for name in found)
    assert found['half'].dtype == np.float16 and found['double'].dtype == np.float64
    found, _ = read_tensors(DATA / 'training_state.pth')  # {'state_dict': {'module.w': parameter}, 'lr': ...}
    assert list(found) == ['state_dict.module.w'] and np.array_equal(found['state_dict.module.w'], t)


def test_types_of_safetensors(tmp_path):
    """Of a file written by hand; what holds no weights is None."""
    values = {
        'BF16': b'\x80\x3f\x00\xc0',
        'F16': np.array([1, -2], '<f2').tobytes(),
        'F32': np.array([1, -2], '<f4').tobytes(),
        'F64': np.array([1, -2], '<f8').tobytes(),
        'I32': np.array([1, -2], '<i4').tobytes(),
        'I64': np.array([1, -2], '<i8').tobytes(),
        'BOOL': b'\x01\x00',
        'F8_E4M3': b'\x01\x02',
    }
    header, start = {'__metadata__': {'format': 'pt'}}, 0
    for dtype, value in values.items():
        header[dtype] = {'dtype': dtype, 'shape': [2], 'data_offsets': [start, start := start + len(value)]}
    text = json.dumps(header).encode()
    path = tmp_path / 'types.safetensors'
    path.write_bytes(struct.pack('<Q', len(text)) + text + b''.join(values.values()))
    found, _ = read_tensors(path)
    assert set(found) == set(values) and found.pop('BOOL') is None and found.pop('F8_E4M3') is None
    assert all(np.array_equal(value, [1, -2]) for value in found.values()) and found['BF16'].dtype == np.float32


# The tool.


@pytest.mark.compiles
def test_import_with_state_of_the_training(tmp_path, small, capsys):
    """A TensorFlow training with 1001 classes, all there and back, and the training step takes the result."""
    slim = to_tf_slim(small)
    trained = [name for name in slim if not name.endswith(('moving_mean', 'moving_variance'))]
    unused = 'InceptionV4/AuxLogits/Aux_logits/biases'  # the original adds no loss there: TensorFlow keeps no state
    slots = {
        name + suffix: np.random.default_rng(len(name)).uniform(1, 2, slim[name].shape).astype('f4')
        for suffix in ('/RMSProp', '/RMSProp_1')
        for name in trained
        if name != unused
    }
    source, out = str(tmp_path / 'model.ckpt-5'), str(tmp_path / 'imported.ckpt')
    tf_file.write(source, {**slim, **slots, 'global_step': np.float32(5), 'loss_scale': np.float32(1)})

    main(['import', source, '--out', out])
    text = capsys.readouterr().out
    assert (
        'InceptionV4/Conv2d_1a_3x3/weights (3, 3, 3, 32) -> conv2d_1a_3x3.conv.weight: loaded\n'
        'InceptionV4/Conv2d_1a_3x3/weights/RMSProp (3, 3, 3, 32): left out: state of RMSProp'
    ) in text
    assert 'loss_scale (): left out: not part of the network' in text and 'use --drop_background' in text
    assert (
        len([line for line in text.splitlines() if ': loaded' in line or ': left out' in line]) == len(slim) + len(slots) + 2
    )
    assert 'logits of a random image: finite' in text
    parameters, info = checkpoint.load(out)
    assert set(parameters) == set(small) and all(np.array_equal(parameters[name], small[name]) for name in small)
    assert info['config']['num_classes'] == 1001 and info['config']['label_offset'] == '0' and info['step'] == 0
    assert info['class_names'] == ['background', *imagenet.names()]

    main(['import', source, '--out', out, '--slots', '--drop_background'])
    text = capsys.readouterr().out
    assert 'class k is now ImageNet class k of 0..999' in text and 'as in a new training: aux_logits.aux_logits.bias' in text
    parameters, info = checkpoint.load(out)
    assert info['config']['num_classes'] == 1000 and 'label_offset' not in info['config']
    assert info['step'] == 5 and info['position'] == 5 * 128 and info['class_names'] == imagenet.names()
    assert np.array_equal(parameters['logits.bias'], small['logits.bias'][1:])
    assert np.array_equal(parameters['moment.logits.weight'], slots['InceptionV4/Logits/Logits/weights/RMSProp_1'].T[1:])
    assert (parameters['mean_square.aux_logits.aux_logits.bias'] == 1).all()
    network = InceptionV4(1000, block_counts=(1, 1, 1), aux_logits=True)
    optimizer = make_optimizer('rmsprop', network, np.full(9, 0.01, np.float32), weight_decay=0.0, momentum=0.9, on_cpu=True)
    step = TrainStep(NetworkWithLoss(network, 0.1, 0.4), optimizer)
    resume.load(step, resume.State(out, parameters, info), info['step'])
    assert int(optimizer.global_step.asnumpy()[0]) == 5
    state = {p.name: p.asnumpy() for p in (*optimizer.ms, *optimizer.moment)}
    assert np.array_equal(
        state['mean_square.conv2d_1a_3x3.conv.weight'],
        slots['InceptionV4/Conv2d_1a_3x3/weights/RMSProp'].transpose(3, 2, 0, 1),
    )

    prefix = str(tmp_path / 'exported')
    main(['export-tf', out, '--out', prefix])
    exported = tf_file.read(prefix)
    assert set(exported) == set(slim)
    for name, value in slim.items():
        dropped = value[..., 1:] if value.shape[-1] == 1001 else value
        assert np.array_equal(exported[name], dropped), name


def test_export_timm_and_back(tmp_path, small, capsys):
    ours = {
        name: value + 0.25 if name.endswith('gamma') else value
        for name, value in small.items()
        if not name.startswith('aux_logits.')
    }
    config = {**SMALL, 'aux_logits': False, 'bn_scale': True}
    path = tmp_path / 'inceptionv4-1_1.ckpt'
    checkpoint.write(path, {**ours, 'moment.logits.bias': np.zeros(3, 'f4')}, {'step': 1, 'epoch': 1, 'config': config})
    main(['export-timm', str(path)])
    assert f'{len(ours)} tensors written, 1 of' in capsys.readouterr().out
    parameters, info = read_weights(tmp_path / 'inceptionv4-1_1.safetensors')
    assert set(parameters) == set(ours) and all(np.array_equal(parameters[name], ours[name]) for name in ours)
    assert info['config']['bn_scale'] and info['config']['block_counts'] == [1, 1, 1]
    main(['export-tf', str(path)])
    assert 'scale=True' in capsys.readouterr().out
    assert 'InceptionV4/Conv2d_1a_3x3/BatchNorm/gamma' in tf_file.read(tmp_path / 'inceptionv4-1_1')


@pytest.mark.compiles
def test_restore_path_takes_foreign_files(tmp_path, small):
    """All but the classifiers, whatever the number of classes."""
    tf_file.write(tmp_path / 'slim', to_tf_slim(small))
    network = InceptionV4(7, block_counts=(1, 1, 1))
    line, count = resume.restore(network, str(tmp_path / 'slim')), len(list(network.get_parameters()))
    assert line == f'{tmp_path}/slim: {count - 2} of {count} parameters loaded, all but logits.weight, logits.bias'
    weight = network.parameters_dict()['mixed_7a.branch_1.conv2d_0b_1x7.conv.weight']
    assert np.array_equal(weight.asnumpy(), small[weight.name])


# What cannot be used.


def test_other_networks_are_refused(small):
    slim = to_tf_slim(small)
    with pytest.raises(InputError, match='older MindSpore model zoo.*batch norm on the pooled features'):
        convert({'features.0.conv2d_1a_3x3.conv.conv.weight': np.zeros(1), 'bn0.gamma': np.zeros(1)})
    with pytest.raises(InputError, match='no InceptionV4 of TF-slim, timm, MindCV.*2 tensors: conv1.weight, fc.bias'):
        convert({'conv1.weight': np.zeros(1), 'fc.bias': np.zeros(1)})
    with pytest.raises(InputError, match='Mixed_5b/Branch_0/Conv2d_0a_1x1/BatchNorm/beta is missing'):
        convert({name: value for name, value in slim.items() if 'Mixed_5b/Branch_0/Conv2d_0a_1x1/BatchNorm/b' not in name})
    with pytest.raises(InputError, match='InceptionV4/Mixed_9a/weights has no place'):
        convert({**slim, 'InceptionV4/Mixed_9a/weights': np.zeros(3, 'f4')})
    with pytest.raises(InputError, match=r'beta has the shape \(33,\)'):
        convert({**slim, 'InceptionV4/Conv2d_1a_3x3/BatchNorm/beta': np.zeros(33, 'f4')})
    with pytest.raises(InputError, match='blocks A, B and C'):
        convert({name: value for name, value in slim.items() if 'Mixed_6b' not in name})
    with pytest.raises(InputError, match='--slots: there is no state'):
        convert(slim, slots=True)
    with pytest.raises(InputError, match='--drop_background: the file has 7 classes'):
        convert(
            {
                **slim,
                **{
                    f'InceptionV4/{scope}/{leaf}': slim[f'InceptionV4/{scope}/{leaf}'][..., :7]
                    for scope in ('Logits/Logits', 'AuxLogits/Aux_logits')
                    for leaf in ('weights', 'biases')
                },
            },
            drop_background=True,
        )


def test_auxiliary_classifier_of_another_image_size_is_left_out(small):
    slim = to_tf_slim(small)
    slim['InceptionV4/AuxLogits/Conv2d_2a/weights'] = np.zeros((3, 3, 128, 768), 'f4')
    found = convert(slim)
    assert not found.config['aux_logits'] and not any(name.startswith('aux') for name in found.parameters)
    assert any(name.endswith('Aux_logits/biases') and 'not for 299 pixels' in remark for name, *_, remark in found.report)


def test_weights_that_are_not_finite_are_not_written(tmp_path, small, capsys):
    tf_file.write(tmp_path / 'slim', {**to_tf_slim(small), 'InceptionV4/Logits/Logits/biases': np.full(1001, np.nan)})
    with pytest.raises(SystemExit) as stop:
        main(['import', str(tmp_path / 'slim'), '--out', str(tmp_path / 'out.ckpt')])
    assert stop.value.code == 2 and 'not finite' in capsys.readouterr().err and not (tmp_path / 'out.ckpt').exists()


def one_line(path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(['import', str(path), '--out', f'{path}.out.ckpt'])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.startswith('error: ') and message.count('\n') == 1
    return message


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


def test_a_pickle_runs_nothing(tmp_path, capsys):
    for content in (
        pickle.dumps({'w': Evil(tmp_path / 'ran')}, 2),
        pickle.dumps(Evil(tmp_path / 'ran'), 4),
        b'cbuiltins\nexec\n(S\'open("ran", "w")\'\ntR.',
    ):
        path = tmp_path / 'evil.pth'
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', content)
        assert 'not the content of a state dict' in one_line(path, capsys)
    assert not (tmp_path / 'ran').exists() and not Path('ran').exists()
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', bytes(100))
    assert 'compressed' in one_line(path, capsys)
    path.write_bytes(torch_file.LEGACY + bytes(100))
    assert 'before 1.6' in one_line(path, capsys)


def test_lengths_are_checked_before_memory_is_taken(tmp_path, capsys):
    path = tmp_path / 'big.safetensors'
    for header in (
        struct.pack('<Q', 1 << 60) + b'{}',
        *(
            struct.pack('<Q', len(text)) + text
            for text in (
                json.dumps({'w': entry}).encode()
                for entry in (
                    {'dtype': 'F32', 'shape': [1 << 40], 'data_offsets': [0, 1 << 42]},
                    {'dtype': 'F32', 'shape': [1 << 40], 'data_offsets': [0, 4]},
                    {'dtype': 'F32', 'shape': [-1, -1], 'data_offsets': [0, 4]},
                    {'dtype': 'F32', 'shape': [1], 'data_offsets': [-4, 0]},
                    {'dtype': 'F32', 'shape': [1]},
                    [],
                    None,
                )
            )
        ),
    ):
        path.write_bytes(header + bytes(4))
        assert 'not a safetensors file' in one_line(path, capsys)
    for content in (b'', b'x', b'no weights at all ' * 9):
        (tmp_path / 'x.ckpt').write_bytes(content)
        one_line(tmp_path / 'x.ckpt', capsys)
    for place in (tmp_path / 'missing', tmp_path):
        assert 'cannot be read' in one_line(place, capsys)


@pytest.mark.parametrize(
    'name',
    ['tensorflow_v1', 'tensorflow_v2.index', 'tensorflow_v2.data-00000-of-00001', 'state_dict.pth', 'tiny.safetensors'],
)
def test_damaged_files(tmp_path, name):
    """A byte changed, or the file cut there: an InputError, or tensors; never another error."""
    for file in DATA.glob('tensorflow_v2*'):
        shutil.copy(file, tmp_path)
    safetensors_file.write(tmp_path / 'tiny.safetensors', {'a.b': np.ones((2, 3), 'f4')})
    path = tmp_path / name
    whole = (path if path.exists() else DATA / name).read_bytes()
    path.unlink(missing_ok=True)
    refused = 0
    for place in range(0, len(whole), len(whole) // 300 + 1):
        flipped = whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]
        for damaged in (flipped, whole[:place]) if place % 7 == 0 else (flipped,):
            path.write_bytes(damaged)
            try:
                if name.endswith('.pth'):
                    torch_file.read(path)
                elif name.endswith('.safetensors'):
                    safetensors_file.read(path)
                else:
                    tf_file.read(path)
            except InputError as error:
                refused += 1
                assert '\n' not in str(error)
    assert refused > 20


# The programs themselves, where they are installed (requirements-import.txt).


def test_with_tensorflow(tmp_path, small):
    tf = pytest.importorskip('tensorflow', reason='TensorFlow is not installed')
    slim = {**to_tf_slim(small), 'global_step': np.int64(7)}
    for version in (tf.compat.v1.train.SaverDef.V1, tf.compat.v1.train.SaverDef.V2):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            variables = [tf.compat.v1.get_variable(name, initializer=value) for name, value in slim.items()]
            session.run(tf.compat.v1.global_variables_initializer())
            path = tf.compat.v1.train.Saver(variables, write_version=version).save(session, str(tmp_path / f'v{version}'))
        found, _ = read_tensors(path)
        assert set(found) == set(slim) and all(np.array_equal(found[name], slim[name]) for name in slim)
    tf_file.write(tmp_path / 'ours', slim)
    reader = tf.train.load_checkpoint(str(tmp_path / 'ours'))
    assert all(np.array_equal(reader.get_tensor(name), slim[name]) for name in slim)


def test_with_timm(tmp_path):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    timm = pytest.importorskip('timm', reason='timm cannot be imported', exc_type=ImportError)
    from safetensors.torch import load_file, save_file

    network = timm.create_model('inception_v4', num_classes=1000).eval()
    state = network.state_dict()
    for name, value in state.items():
        if not name.endswith('num_batches_tracked'):
            value.copy_(torch.from_numpy(made_from_name(name, tuple(value.shape))))
    x = batches()[0][0][:1]
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    assert relative(expected, np.load(DATA / 'foreign_networks.npz')['timm_logits']) < BOUND
    torch.save(state, tmp_path / 'timm.pth')
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / 'timm.safetensors')
    for file in ('timm.pth', 'timm.safetensors'):
        assert relative(logits(tmp_path / file, x)[0], expected) < BOUND
    main(['import', str(tmp_path / 'timm.pth'), '--out', str(tmp_path / 'ours.ckpt')])
    main(['export-timm', str(tmp_path / 'ours.ckpt'), '--out', str(tmp_path / 'back.safetensors')])
    back = load_file(tmp_path / 'back.safetensors')
    assert all(torch.equal(back[name], state[name]) for name in back)
    network.load_state_dict(back)  # refuses a missing or an unknown name


# ImageNet's number of each of the 100 classes of the images.
CLASSES = (
    0,
    11,
    14,
    21,
    22,
    39,
    42,
    46,
    103,
    114,
    120,
    125,
    129,
    159,
    164,
    168,
    180,
    270,
    271,
    378,
    381,
    385,
    386,
    405,
    414,
    426,
    428,
    479,
    488,
    506,
    509,
    518,
    521,
    525,
    531,
    532,
    534,
    545,
    546,
    556,
    563,
    566,
    569,
    570,
    582,
    586,
    590,
    598,
    604,
    605,
    606,
    639,
    640,
    644,
    645,
    647,
    649,
    653,
    656,
    665,
    670,
    676,
    686,
    689,
    693,
    710,
    721,
    725,
    727,
    728,
    729,
    736,
    738,
    741,
    744,
    752,
    754,
    755,
    759,
    766,
    768,
    783,
    784,
    789,
    791,
    795,
    805,
    876,
    883,
    884,
    886,
    888,
    892,
    897,
    904,
    908,
    912,
    916,
    917,
    921,
)


@pytest.mark.slow
def test_real_weights_recognise_images():
    weights = SHARED / 'weights' / 'inception_v4_imagenet1001_timm.safetensors'
    paths = sorted((SHARED / 'data' / 'ilsvrc_train100').glob('train/*/*'))
    if not weights.exists() or not paths:
        pytest.skip('needs weights and images that are not part of the project')
    parameters, info = read_weights(weights)
    preprocessing = recorded_preprocessing(info['preprocessing'])
    network = empty_network(info['config']).set_train(False)
    checkpoint.load_into(network, parameters, weights)
    images = np.stack([evaluation_image(path.read_bytes(), 299, preprocessing) for path in paths]).transpose(0, 3, 1, 2)
    found = np.concatenate(
        [
            network(scale(Tensor(images[i : i + 20]).astype(ms.float32), preprocessing)).asnumpy()
            for i in range(0, len(images), 20)
        ]
    )
    label = np.array(CLASSES) + 1  # 0 is the background
    above = (found > found[np.arange(len(label)), label][:, None]).sum(1)
    print(f'\ntop-1 {(above < 1).mean():.0%}, top-5 {(above < 5).mean():.0%} of {len(label)} images')
    assert (above < 1).mean() > 0.7 and (above < 5).mean() > 0.85
