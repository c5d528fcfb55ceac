"""Exported files compute what the checkpoint's network does, say what they are, and are refused where they cannot be."""

import hashlib
import json
import os
import re
import shutil
from unittest.mock import MagicMock, call

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

import export as entry
from src import files, runtime
from src.data import imagenet
from src.data.preprocess import PREPROCESSING, Preprocessing
from src.data.records import open_folder
from src.deploy import description, export, formats, graph, int8_weights, predict, predictor, quantization, verification
from src.deploy.aipp import write_aipp
from src.deploy.class_names import class_names, recorded_names
from src.deploy.quantization import Quantization, Sample, compare, quantized, spread
from src.errors import InputError
from src.inceptionv4 import InceptionV4
from src.weights import checkpoint
from src.weights.read import read_weights

OTHER = Preprocessing((124.0, 117.0, 104.0), (58.0, 57.0, 56.5), 0.9, 'bicubic', True)
NAMES = [f'class "{i}"' for i in range(10)]


@pytest.fixture(scope='module')
def small(compiles, tmp_path_factory):
    """A checkpoint with moving averages of the weights, and what these give: (path, images uint8, probabilities)."""
    ms.set_seed(3)
    network = InceptionV4(10, block_counts=(1, 1, 1)).set_train(False)
    rng = np.random.default_rng(3)
    for name, p in network.parameters_dict().items():
        if name.endswith(('.beta', '.moving_mean')):
            p.set_data(Tensor(rng.normal(0, 0.2, p.shape), ms.float32))
        elif name.endswith(('.gamma', '.moving_variance')):
            p.set_data(Tensor(rng.uniform(0.5, 1.5, p.shape), ms.float32))
    path = tmp_path_factory.mktemp('trained') / 'inceptionv4-2_34.ckpt'
    values = checkpoint.values(network)
    averages = {f'{checkpoint.AVERAGE}{n}': v for n, v in values.items()}
    checkpoint.write(
        path,
        {**values, 'logits.weight': 0 * values['logits.weight'], **averages},
        {
            'step': 34,
            'epoch': 2,
            'class_names': NAMES,
            'preprocessing': OTHER._asdict(),
            # The last three are options of earlier versions, which old checkpoints have recorded; they mean nothing now.
            'config': {
                'num_classes': 10,
                'block_counts': [1, 1, 1],
                'image_size': 75,
                'input': 'uint8',
                'output': 'top5',
                'labels': 'missing.txt',
            },
        },
    )
    images = rng.integers(0, 256, (3, 75, 75, 3), np.uint8)
    scaled = (images.astype(np.float64) - OTHER.mean) / OTHER.std
    logits = network(Tensor(scaled.transpose(0, 3, 1, 2), ms.float32)).asnumpy().astype(np.float64)
    return path, images, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.fixture(scope='module')
def exported(compiles, small, tmp_path_factory):
    """Directory, of a name that MindSpore's exporters refuse, with net.mindir (float, logits, any batch) and net.onnx
    (uint8, top5, batches of 2), the former written under another umask."""
    directory = tmp_path_factory.mktemp('exported to ü+1')
    before = os.umask(0o077)
    try:
        entry.main(['--ckpt_path', str(small[0]), '--file_name', str(directory / 'net')])
    finally:
        os.umask(before)
    entry.main(
        [
            '--ckpt_path',
            str(small[0]),
            '--file_name',
            str(directory / 'net'),
            '--file_format',
            'ONNX',
            '--export_input',
            'uint8',
            '--export_output',
            'top5',
            '--batch_size',
            '2',
        ]
    )
    return directory


def test_files_and_their_description(small, exported):
    assert sorted(p.name for p in exported.iterdir()) == ['net.json', 'net.mindir', 'net.onnx']
    os.umask(umask := os.umask(0))
    assert {p.suffix: p.stat().st_mode & 0o777 for p in exported.iterdir()} == {
        '.mindir': 0o600,
        '.onnx': 0o666 & ~umask,
        '.json': 0o666 & ~umask,
    }
    assert exported.stat().st_mode & 0o077 == exported.parent.stat().st_mode & 0o077  # as it was made
    onnx = json.loads((exported / 'net.json').read_text())
    mindir = onnx['other_files']['net.mindir']
    for about in (onnx, mindir):
        assert about['classes'] == NAMES and about['num_classes'] == 10
        assert about['source'] == {
            'checkpoint': small[0].name,
            'step': 34,
            'epoch': 2,
            'sha256': hashlib.sha256(small[0].read_bytes()).hexdigest(),
        }
        assert about['sha256'] == hashlib.sha256((exported / about['file']).read_bytes()).hexdigest()
        assert about['preprocessing'] == json.loads(json.dumps(OTHER._asdict()))
        assert 0 < about['deviation']['random'] < 1e-5 and 0 < about['deviation']['smooth'] < 1e-5
    assert (mindir['input']['type'], mindir['input']['shape']) == ('float32', [None, 3, 75, 75])
    assert (onnx['input']['type'], onnx['input']['shape']) == ('uint8', [2, 75, 75, 3])
    assert (mindir['output']['kind'], onnx['output']['kind']) == ('logits', 'top5')
    assert onnx['output']['shapes'] == [[2, 5], [2, 5]] and onnx['output']['types'] == ['float32', 'int32']


def test_images_of_the_comparison():
    """Neighbouring pixels are unrelated in the random ones and close in the smooth ones, which are no flat areas either."""
    for size in (75, 299):
        images = verification.check_images(size)
        assert list(images) == ['random', 'smooth']
        assert {(value.shape, value.dtype) for value in images.values()} == {((2, size, size, 3), np.dtype('u1'))}
        step = {name: np.abs(np.diff(value.astype(int), axis=1)) for name, value in images.items()}
        assert step['random'].mean() > 60 and 0 < step['smooth'].mean() and step['smooth'].max() <= 255 * 8 / (size - 1) + 1
        assert min(np.ptp(value) for value in images.values()) > 150


def test_batch_norm_is_folded(exported):
    import onnx

    kinds = [node.op_type for node in onnx.load(exported / 'net.onnx').graph.node]
    assert 'Conv' in kinds and 'BatchNormalization' not in kinds
    assert b'BatchNorm' not in (exported / 'net.mindir').read_bytes()


@pytest.mark.parametrize(
    'precision, measured_on',
    [('float16', 'the file'), pytest.param('bfloat16', 'the rounded weights, in float32', marks=pytest.mark.slow)],
)
def test_mindir_in_16_bits(precision, measured_on, small, exported, tmp_path):
    """Half the size, all weights of the type, and outputs that are near, but not those of float32."""
    arguments = ['--ckpt_path', small[0], '--file_name', tmp_path / 'net', '--export_precision', precision]
    entry.main([str(a) for a in arguments])
    about, path = json.loads((tmp_path / 'net.json').read_text()), tmp_path / 'net.mindir'
    assert formats.parameter_types(path) == {precision.upper()} and about['precision'] == precision
    assert formats.parameter_types(exported / 'net.mindir') == {'FLOAT'}
    assert path.stat().st_size < 0.6 * (exported / 'net.mindir').stat().st_size
    found = about['deviation']
    assert found['computed_in'] == precision and found['measured_on'] == measured_on
    assert 1e-5 < min(found['random'], found['smooth']) and max(found['random'], found['smooth']) < found['bound'] < 0.1


@pytest.mark.parametrize('opset', [17, 18])
def test_opset(opset, small, exported, tmp_path):
    """What atc of CANN 8.5 takes by default; other versions compute the same."""
    import onnx

    (tmp_path / 'net.onnx').write_bytes((exported / 'net.onnx').read_bytes())
    formats.convert_opset(tmp_path / 'net.onnx', opset)
    found = [onnx.load(path).opset_import[0].version for path in (exported / 'net.onnx', tmp_path / 'net.onnx')]
    assert found == [15, opset] and json.loads((exported / 'net.json').read_text())['opset'] == 15
    first, second = (formats.load_onnx(path)(small[1][:2]) for path in (exported / 'net.onnx', tmp_path / 'net.onnx'))
    assert np.abs(first[0] - second[0]).max() < 1e-6 and (first[1] == second[1]).all()


@pytest.mark.parametrize('kind', ['mindir', 'onnx', 'ckpt'])
def test_every_kind_of_model_gives_the_same(kind, small, exported):
    """The files by their own runtimes and the checkpoint, all of them from images, against NumPy's probabilities."""
    path, images, expected = small
    model = predictor.open_model(path if kind == 'ckpt' else exported / f'net.{kind}')
    assert (model.size, model.preprocessing, model.class_names) == (75, OTHER, NAMES)
    assert model.batch_size == (2 if kind == 'onnx' else 0)
    if kind == 'onnx':
        values, classes = (np.concatenate(part) for part in zip(*map(model.probabilities, (images[:2], images[1:]))))
        values, classes = values[[0, 1, 3]], classes[[0, 1, 3]]
    else:
        values, classes = model.probabilities(images)
    k = values.shape[1]
    assert k == (5 if kind == 'onnx' else 10)
    assert np.abs(values - np.take_along_axis(expected, classes, 1)).max() < 1e-5
    assert np.abs(values + np.sort(-expected, 1)[:, :k]).max() < 1e-5
    assert np.ptp(expected, 1).min() > 0.01  # or any order would do


def message_of(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        entry.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.err.count('\n') == 1 and captured.err.startswith('error: ')
    return captured.err


@pytest.mark.compiles
def test_file_that_deviates_is_not_left(small, tmp_path, monkeypatch, capsys):
    right = export.fold

    def fold_wrongly(network):
        right(network)
        network.logits.bias.set_data(network.logits.bias + Tensor(np.eye(10)[2] * 0.05, ms.float32))

    monkeypatch.setattr(export, 'fold', fold_wrongly)
    found = message_of(['--ckpt_path', small[0], '--file_name', tmp_path / 'net'], capsys)
    assert re.search(r'net.mindir: .*deviates by .*no file was written', found) and not list(tmp_path.iterdir())


@pytest.mark.compiles
@pytest.mark.parametrize(
    'logits, computed_in, message',
    [
        ([10.03, 9.99], 'float16 or HF32', None),
        ([10.03, 9.99], 'float32', r'deviates by 3.0e-03 \(bound 1e-04, computed in float32\)'),
        ([10.2, 9.99], 'float16 or HF32', r'deviates by 2.0e-02 \(bound 1e-02, computed in float16 or HF32\)'),
        ([9.99, 10.0], 'float16 or HF32', r'finds another class than the checkpoint.s \(deviation 1.0e-03'),
    ],
)
def test_bound_of_the_precision(logits, computed_in, message, tmp_path, monkeypatch):
    """A network with the logits 10 and 9.99 for all images, and what its file gives instead."""

    class Two(ms.nn.Cell):
        def construct(self, x):
            first = x.mean((1, 2, 3)).reshape(-1, 1) * 0 + 10
            return ms.ops.concat((first, first * 0.999), 1)

    def write(cell, path, *_):
        path.write_bytes(b'air')

    monkeypatch.setitem(formats.WRITERS, 'AIR', write)
    monkeypatch.setattr(export, 'as_function', lambda cell: lambda images: (np.tile(np.float32(logits), (len(images), 1)),))
    arguments = graph.Signature(75, PREPROCESSING), {}, export.Encoding(), computed_in
    if message is None:
        found = export.export_network(Two(), tmp_path / 'net.air', *arguments)['deviation']
        assert (
            found['bound'] == 1e-2
            and found['computed_in'] == computed_in
            and found['random'] == pytest.approx(3e-3, rel=1e-2)
        )
        return
    with pytest.raises(InputError, match=message):
        export.export_network(Two(), tmp_path / 'net.air', *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            ['--file_format', 'AIR'],
            r'only an NPU can write it.*run the same command on the NPU, or use --file_format ONNX.*atc',
        ),
        (['--aipp', 'F', '--export_input', 'uint8'], 'both scale'),
        ([], 'ckpt_path is empty'),
        (['--ckpt_path', '.'], 'is a directory'),
        (['--ckpt_path', 'nothing.ckpt'], 'nothing.ckpt: cannot be read'),
        (['--export_output', 'top3'], 'logits, softmax, top5'),
        (['--export_input', 'int8'], 'float, uint8'),
        (['--export_precision', 'float16', '--file_format', 'ONNX'], 'only MINDIR is written in it, ONNX in float32'),
        (['--quantize', 'int8'], 'quantize int8 needs file_format ONNX, not MINDIR; use --file_format ONNX'),
        (['--quantize', 'int8', '--file_format', 'ONNX', '--fold_bn', 'false'], 'needs fold_bn True, not False'),
        (['--quantize', 'int8', '--file_format', 'ONNX', '--opset', '12'], 'opset 12 has no scales per channel'),
        (['--quantize', 'int8', '--file_format', 'ONNX'], 'needs images to calibrate with; use --data_dir DIR'),
        (['--opset', '10'], '>= 11'),
    ],
)
def test_bad_options(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if 'AIR' in arguments:  # refused before anything is loaded
        monkeypatch.setattr(checkpoint, 'load', MagicMock(side_effect=AssertionError))
        arguments = [*arguments, '--ckpt_path', 'nothing.ckpt']
    assert re.search(message, message_of(arguments, capsys)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'file_name, content, message',
    [
        (
            'notes',
            '{"mine": 1}',
            r'notes.json: would be replaced, but was not written by export.py; choose another --file_name',
        ),
        ('notes', '# mine', 'notes.json: would be replaced'),
        ('best', '{"top1": 50.0, "checkpoint": "x"}', 'best.json: would'),
        ('', None, r"file_name '.' has no name"),
        ('models/', None, "file_name 'models' has no name"),
        (os.fsdecode(b'm\xff'), None, r'm\\udcff.mindir: .* not UTF-8; rename it'),
    ],
)
def test_target_is_checked_first(file_name, content, message, small, tmp_path, monkeypatch, capsys):
    """Before anything is loaded, and nothing of others is replaced."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, 'start', MagicMock(side_effect=AssertionError))
    if content:
        (tmp_path / f'{file_name}.json').write_text(content)
    assert re.search(message, message_of(['--ckpt_path', small[0], '--file_name', file_name], capsys))
    assert [p.read_text() for p in tmp_path.iterdir()] == [content] * bool(content)


def test_cannot_be_written(small, capsys):
    assert re.search('--file_name', message_of(['--ckpt_path', small[0], '--file_name', '/proc/none/net'], capsys))


def test_labels_must_fit(small, tmp_path, capsys):
    (tmp_path / 'labels.txt').write_text('a\nb\n')
    assert re.search(
        'labels.txt: names the classes 0 to 1, but the network has 10 classes; give --export_labels FILE',
        message_of(['--ckpt_path', small[0], '--export_labels', tmp_path / 'labels.txt'], capsys),
    )


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr(formats.importlib.util, 'find_spec', lambda name: None)
    assert 'requirements-export.txt' in message_of(['--file_format', 'ONNX', '--ckpt_path', 'x'], capsys)


def test_air_on_an_npu(monkeypatch, tmp_path):
    """What is asked of MindSpore: the GE backend first, then the file.
    https://www.mindspore.cn/docs/en/r2.7.0/api_python/mindspore/mindspore.export.html"""
    recorder = MagicMock()
    recorder.device_context.ascend.is_available.return_value = True
    monkeypatch.setattr(formats, 'ms', recorder)
    formats.check_format('AIR')
    formats.write_air('cell', tmp_path / 'net.air', 'example', ['logits'], False)
    assert recorder.mock_calls[1:] == [
        call.set_context(jit_config={'jit_level': 'O2'}),
        call.export('cell', 'example', file_name=str(tmp_path / 'net.air'), file_format='AIR'),
    ]


@pytest.mark.compiles
def test_air_from_the_command_line(small, tmp_path, monkeypatch, capsys):
    """With an NPU the whole command goes through; its batch size is fixed, 1 if none is given."""
    written = []

    def write(cell, path, example, names, any_batch):
        written.append((example.shape, any_batch))
        path.write_bytes(b'air')

    monkeypatch.setattr(formats.ms.device_context.ascend, 'is_available', lambda: True)
    monkeypatch.setitem(formats.WRITERS, 'AIR', write)
    monkeypatch.setattr(runtime, 'start', lambda settings: runtime.Run('Ascend', amp_level='O3'))
    monkeypatch.setattr(
        entry, 'load_network', lambda path, argv: (_Constant(), read_weights(path)[1], entry.load_settings(argv))
    )
    entry.main(
        [
            '--ckpt_path',
            str(small[0]),
            '--file_format',
            'AIR',
            '--file_name',
            str(tmp_path / 'net'),
            '--num_classes',
            '10',
            '--image_size',
            '75',
        ]
    )
    assert written == [((1, 3, 75, 75), False)] and (tmp_path / 'net.air').read_bytes() == b'air'
    about = json.loads((tmp_path / 'net.json').read_text())
    assert about['input']['shape'] == [1, 3, 75, 75] and 'before' in about['deviation']['measured_on']
    assert about['deviation']['bound'] == 1e-2 and about['deviation']['computed_in'] == 'float16 or HF32'
    assert 'the graph before it was written' in capsys.readouterr().out


class _Constant(ms.nn.Cell):
    """Mean of each image as 10 equal logits."""

    def construct(self, x):
        return ms.ops.tile(x.mean((1, 2, 3)).reshape(-1, 1), (1, 10))


@pytest.mark.parametrize('preprocessing', [PREPROCESSING, OTHER])
def test_aipp_scales_as_we_do(preprocessing, tmp_path):
    """By CANN's formula, (pixel - mean_chn - min_chn) * var_reci_chn, with the float16 of its last two."""
    write_aipp(tmp_path / 'a/aipp.cfg', preprocessing, 299)
    text = (tmp_path / 'a/aipp.cfg').read_text()
    assert re.fullmatch(r'aipp_op \{\n(    \w+: \S+\n)+\}\n', text)
    value = dict(re.findall(r'(\w+): (\S+)', text))
    assert (value['input_format'], value['csc_switch'], value['rbuv_swap_switch']) == ('RGB888_U8', 'false', 'false')
    assert value['src_image_size_w'] == value['src_image_size_h'] == '299'
    pixels = np.arange(256.0)
    ours = graph.host_scale(np.tile(pixels[:, None, None, None], (1, 1, 1, 3)), preprocessing)
    for i in range(3):
        assert re.fullmatch(r'\d+', value[f'mean_chn_{i}'])
        low, factor = (float(np.float16(value[f'{name}_chn_{i}'])) for name in ('min', 'var_reci'))
        theirs = (pixels - int(value[f'mean_chn_{i}']) - low) * factor
        assert np.abs(theirs - ours[:, i, 0, 0]).max() < 3e-3


def test_aipp_alone(tmp_path, capsys):
    entry.main(['--aipp', str(tmp_path / 'aipp.cfg'), '--image_size', '150'])
    assert 'src_image_size_w: 150' in (tmp_path / 'aipp.cfg').read_text()


@pytest.mark.parametrize(
    'outputs, output, expected',
    [
        ([[[1.0, 2.0, 4.4]]], 'logits', 0.1),
        ([[[1.0, np.nan, 4.0]]], 'logits', np.inf),
        ([[[0.1, 0.3, 0.6]]], 'softmax', None),
        ([[[0.7, 0.2]], [[2, 1]]], 'top5', None),
        ([[[0.84379, 0.1142]], [[2, 1]]], 'top5', 0),
        ([[[0.1142, 0.84379]], [[1, 2]]], 'top5', 0.72959),
    ],
)
def test_deviation(outputs, output, expected):
    found = verification.deviation([np.array(part) for part in outputs], np.array([[1.0, 2.0, 4.0]]), output)
    if expected is None:
        assert 0.1 < found < 0.3
    else:
        assert found == pytest.approx(expected, abs=1e-5)


def test_equally_probable_classes_may_change_places():
    logits = np.array([[2.0, 2.0, 1.0]])
    values = np.sort(graph.softmax(logits), 1)[:, :0:-1]
    assert verification.deviation([values, np.array([[1, 0]])], logits, 'top5') < 1e-9


@pytest.mark.parametrize('batch_size, calls', [(0, [1, 3]), (1, [1] * 4), (3, [3, 3]), (4, [4]), (9, [9])])
def test_every_image_runs_once_in_calls_of_the_batch_size(batch_size, calls):
    sizes = []

    def run(images):
        sizes.append(len(images))
        return images, 2 * images

    images = np.arange(8.0).reshape(4, 2)
    found = verification.run_in_calls(run, images, batch_size)
    assert sizes == calls and np.array_equal(found[0], images) and np.array_equal(found[1], 2 * images)


@pytest.mark.parametrize(
    'text, expected',
    [
        ('a\nb\n\nc\n', ['a', 'b', 'c']),
        ('1:b\n0: a\n2:c d\n', ['a', 'b', 'c d']),
        ('background\na\nb\nc\n', ['a', 'b', 'c']),
        ('1:a\n2:b\n3:c\n', ['a', 'b', 'c']),
        ('0:background\n3:c\n2:b\n1:a', ['a', 'b', 'c']),  # labels that count from 1
        ('0:a\n2:c\n', ['a', 'class 1', 'c']),
        ('2:c', ['class 0', 'class 1', 'c']),
        ('0:background\n1:a\n2:b', ['background', 'a', 'b']),
    ],
)
def test_class_names(text, expected, tmp_path):
    (tmp_path / 'labels').write_text(text)
    assert class_names(tmp_path / 'labels', ['recorded'] * 3, 3) == expected
    assert class_names('', None, 3) is None and class_names('', ['x', 'y', 'z'], 3) == ['x', 'y', 'z']
    assert class_names('', ['background', 'y', 'z'], 3) == ['background', 'y', 'z']  # a folder of that name


@pytest.mark.parametrize(
    'text, message',
    [
        ('0:a\n1:b\n1:c\n', "names label 1 twice, 'b' and 'c'; mend it"),
        ('a\n1:b\nc\n', "'a' is no line label:name"),
        ('5:a\n7:b\n9:c\n', 'names the classes 0 to 9, but the network has 3 classes; give --labels FILE'),
        ('a\nb\n', 'names the classes 0 to 1, but the network has 3 classes'),
        (None, 'no such file'),
    ],
)
def test_class_names_that_do_not_fit(text, message, tmp_path):
    if text:
        (tmp_path / 'labels').write_text(text)
    with pytest.raises(InputError, match=message):
        class_names(tmp_path / 'labels', None, 3)


def test_imagenet_names(capsys):
    names = imagenet.names()
    assert class_names('', names, 1001) == ['background', *names]
    assert 'the checkpoint names 1000 classes, the network has 1001: class 0 is the background' in capsys.readouterr().err
    for source, classes, expected in (
        ('timm a.safetensors', 1001, ['background', *names]),
        ('mindcv a.ckpt', 1000, names),
        ('timm a', 10, None),
        ('tf_slim a', 1001, ['background', *names]),
        ('tf_slim a', 1000, None),
        ('', 1000, None),
    ):
        assert recorded_names({'source': source, 'config': {'num_classes': classes}}) == expected
    assert recorded_names({'source': 'timm a', 'config': {'num_classes': 1000}, 'class_names': ['x']}) == ['x']


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('a.mindir', None, 'a.mindir: no such model'),
        ('a.onnx', b'', 'a.json: missing'),
        (os.fsdecode(b'\xff.onnx'), b'', 'not UTF-8; rename it'),
        ('a.ckpt', None, 'a.ckpt: cannot be read'),
    ],
)
def test_models_that_cannot_be_opened(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        predictor.open_model(tmp_path / name)


@pytest.mark.parametrize('kind', ['mindir', 'onnx'])
def test_damaged_files(kind, exported, tmp_path):
    (tmp_path / 'net.json').write_text(re.sub(r'"sha256": "\w+",', '', (exported / 'net.json').read_text()))
    for content in (b'', b'text' * 99, (exported / f'net.{kind}').read_bytes()[:100000]):
        (tmp_path / f'net.{kind}').write_bytes(content)
        with pytest.raises(InputError, match=f'net.{kind}: not a.*export it again'):
            predictor.open_model(tmp_path / f'net.{kind}')


def predict_one(model, capsys):
    """(status, stdout, stderr) of predicting an image with the file `model`."""
    image, status = model.with_name('x.png'), 0
    Image.new('RGB', (90, 90)).save(image)
    try:
        predict.main([str(image), '--model', str(model), '--json'])
    except SystemExit as stopped:
        status = stopped.code
    return status, *capsys.readouterr()


def copied(exported, directory, name='net'):
    for path in exported.iterdir():
        shutil.copyfile(path, directory / f'{name}{path.suffix}')


@pytest.mark.parametrize('kind', ['mindir', 'onnx'])
def test_another_model_beside_the_description(kind, small, exported, tmp_path, capsys):
    """Its classes would have the names of others; and so would a damaged one that still loads."""
    copied(exported, tmp_path)
    model = tmp_path / f'net.{kind}'
    whole = model.read_bytes()
    damaged = whole[:-300_000] + bytes(100_000) + whole[-200_000:]
    arguments = ['--ckpt_path', small[0], '--file_name', tmp_path / 'dog', '--file_format', kind.upper(), '--batch_size', 1]
    entry.main([str(a) for a in arguments])
    capsys.readouterr()
    for content in (damaged, (tmp_path / f'dog.{kind}').read_bytes()):
        model.write_bytes(content)
        status, _, error = predict_one(model, capsys)
        assert status == 2 and error.count('\n') == 1, error
        assert error.startswith(f'error: {model}: not the file that net.json describes: its SHA-256 is another')
    model.write_bytes(whole)
    assert predict_one(model, capsys)[0] == 0


def test_renamed_together(exported, tmp_path, capsys):
    """Model and description stay a pair; a further export under the new name keeps what is known of the others."""
    copied(exported, tmp_path, 'renamed')
    for kind in ('mindir', 'onnx'):
        status, out, error = predict_one(tmp_path / f'renamed.{kind}', capsys)
        assert status == 0 and json.loads(out)['top'][0]['label'] in NAMES, error
    assert list(description.check_target(tmp_path / 'renamed.onnx')) == ['renamed.mindir']


@pytest.mark.parametrize('kind', ['mindir', 'onnx'])
def test_older_description_without_a_checksum(kind, exported, tmp_path, capsys):
    copied(exported, tmp_path)
    (tmp_path / 'net.json').write_text(re.sub(r'"sha256": "\w+",', '', (tmp_path / 'net.json').read_text()))
    status, out, error = predict_one(tmp_path / f'net.{kind}', capsys)
    assert status == 0 and f'note: {tmp_path}/net.json has no checksum of net.{kind}' in error and NAMES[0][:5] in out


@pytest.mark.parametrize('kind', ['mindir', 'onnx'])
@pytest.mark.parametrize(
    'key, value',
    [
        ('shape', [None, 3, 100000, 100000]),
        ('shape', [1 << 40, 3, 75, 75]),
        ('shape', [None, 3, 80, 80]),
        ('shape', [None, 3, -75, -75]),
        ('shape', [None, 3, '75', '75']),
        ('shape', []),
        ('shape', 7),
        ('num_classes', '10'),
        ('num_classes', None),
        ('classes', [1] * 10),
        ('classes', 7),
        ('kind', 'top9'),
        ('input', None),
    ],
)
def test_absurd_description(kind, key, value, exported, tmp_path, capsys):
    """One line, and no memory is asked for (28 GB, once)."""
    copied(exported, tmp_path)
    about = json.loads((tmp_path / 'net.json').read_text())
    about = about['other_files']['net.mindir'] | {'other_files': {}} if kind == 'mindir' else about
    part = about['input'] if key == 'shape' else about['output'] if key == 'kind' else about
    part[key] = value
    (tmp_path / 'net.json').write_text(json.dumps(about))
    status, _, error = predict_one(tmp_path / f'net.{kind}', capsys)
    assert status == 2 and error.startswith('error: ') and error.count('\n') == 1 and 'export' in error, error


# ---- 8-bit integers

UINT8 = graph.Signature(75, OTHER, 'uint8', 'top5', 2)


@pytest.fixture(scope='module')
def records(tmp_path_factory):
    """15 images in three classes, two colours each."""
    root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for k in range(3):
        (root / f'train/{k}').mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (2, 2, 3), np.uint8).repeat(45, 0).repeat(45, 1)
            Image.fromarray(pixels).save(root / f'train/{k}/{i}.png')
    return open_folder(root / 'train', root / 'train')


def test_images_are_spread_over_the_classes():
    labels = np.repeat([4, 7, 9], [50, 3, 20])
    for seed in range(3):
        chosen = spread(labels, 20, seed)
        assert np.unique(labels[chosen], return_counts=True)[1].tolist() == [9, 3, 8] or (
            np.unique(labels[chosen], return_counts=True)[1].tolist() == [8, 3, 9]
        )
        assert len(np.unique(chosen)) == 20 and (chosen == spread(labels, 20, seed)).all()
        others = spread(labels, 99, seed, chosen)
        assert sorted([*chosen, *others]) == list(range(73))
    assert (spread(labels, 20, 0) != spread(labels, 20, 1)).any()
    assert len(set(labels[spread(labels, 2, 0)])) == 2


def test_what_is_compared(records):
    """Likeliest classes, in whole batches; of each file some are wrong."""
    sample, calls = Sample(records, np.arange(15), 0), []
    number = {image.tobytes(): k for k, image in enumerate(next(sample.batches(UINT8, 15)))}

    def answers(*wrong):
        def run(images):
            calls.append(len(images))
            found = [number[image.tobytes()] for image in images]
            return (np.eye(3, dtype=np.float32)[[(records.label[k] + (k in wrong)) % 3 for k in found]],)

        return run

    runs, signature = {'float32': answers(7), 'int8': answers(0, 1, 14)}, UINT8._replace(output='softmax')
    figures = compare(runs, signature, sample)
    assert calls == [2] * 16 and figures['images'] == 15 and figures['deviation'] == 1
    assert figures['top1'] == {'float32': pytest.approx(1400 / 15), 'int8': pytest.approx(80)}
    assert figures['agreement'] == pytest.approx(1100 / 15) and figures['loss'] == pytest.approx(200 / 15)
    figures = compare(runs, signature, sample._replace(offset=None))
    assert figures['top1'] is None and figures['loss'] == pytest.approx(400 / 15)


def made(exported, tmp_path, records, max_loss):
    """`quantized` of a copy of the float32 file; gives the figures and the path."""
    calibration = Sample(records, spread(records.label, 6, 1))
    others = Sample(records, spread(records.label, 9, 1, calibration.numbers))
    run = formats.load_onnx(exported / 'net.onnx')
    with files.replacing(tmp_path / 'net.onnx') as temporary:
        shutil.copy(exported / 'net.onnx', temporary)
        figures = quantized(temporary, run, 'net.onnx', UINT8, Quantization(calibration, others, max_loss))
    return figures, tmp_path / 'net.onnx'


def sum_of_neighbours(values):
    """Largest sum, without its sign, of two weights of the same sign that ONNX Runtime multiplies in one step."""
    rows = values.transpose(0, 2, 3, 1).reshape(len(values), -1).astype(int)
    pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
    return max(np.maximum(pairs, 0).sum(2).max(), np.maximum(-pairs, 0).sum(2).max())


@pytest.mark.parametrize('sizes', [(1, 0.3, 0.3), (1, 0.3) * 4])
def test_sums_of_products_do_not_overflow(sizes):
    """ONNX Runtime gives what integers give where every input has the largest value, with weights of the `sizes` by input
    channel; more than 7 bits are in use."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = rng.uniform(0.9, 1, (16, len(sizes), 3, 3)) * np.array(sizes)[:, None, None]
    weights *= rng.integers(-1, 2, (16, 1, 1, 1))  # the sign; 0: a channel without weights
    scales = int8_weights.weight_scales(weights)
    values = np.round(weights / scales[:, None, None, None])
    assert 64 < np.abs(values).max() <= 127 and sum_of_neighbours(values) <= 128
    sums = 255 * values.sum((1, 2, 3))
    step = np.float32(np.abs(sums).max() / 127)
    constants = {'one': np.float32(1), 'zero': np.uint8(0), 'step': step, 'middle': np.uint8(128)}
    constants.update(values=values.astype(np.int8), scales=np.ones(16, np.float32), zeros=np.zeros(16, np.int8))
    nodes = [
        helper.make_node('QuantizeLinear', ['x', 'one', 'zero'], ['a']),
        helper.make_node('DequantizeLinear', ['a', 'one', 'zero'], ['b']),
        helper.make_node('DequantizeLinear', ['values', 'scales', 'zeros'], ['w'], axis=0),
        helper.make_node('Conv', ['b', 'w'], ['c']),
        helper.make_node('QuantizeLinear', ['c', 'step', 'middle'], ['d']),
        helper.make_node('DequantizeLinear', ['d', 'step', 'middle'], ['y']),
    ]
    takes, gives = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, None, None]) for name in 'xy')
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, 'convolution', [takes], [gives], kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    (found,) = session.run(None, {'x': np.full((1, len(sizes), 5, 5), 255, np.float32)})
    assert np.abs(found - sums[:, None, None]).max() <= step


def test_rounding_shifts_no_output_on_average(exported, tmp_path):
    """The means of the first convolutions with rounded weights and changed biases are those with exact weights."""
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    path = tmp_path / 'net.onnx'
    shutil.copy(exported / 'net.onnx', path)
    images = np.random.default_rng(0).integers(0, 256, (2, 75, 75, 3), np.uint8)
    model = onnx.load(path)
    scales = int8_weights.prepare(path, [images])
    prepared, found = onnx.load(path), []
    first = [node for node in model.graph.node if node.op_type == 'Conv'][0]
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    for candidate in (model, rounded, prepared):
        stored = {tensor.name: tensor for tensor in candidate.graph.initializer}
        if candidate is not model:
            weight = first.input[1]
            step = np.array([one['scale'] for one in scales[weight]])[:, None, None, None]
            values = np.round(numpy_helper.to_array(stored[weight]) / step) * step
            stored[weight].CopyFrom(numpy_helper.from_array(values.astype(np.float32), weight))
        del candidate.graph.output[:]
        candidate.graph.output.append(onnx.helper.make_tensor_value_info(first.output[0], onnx.TensorProto.FLOAT, None))
        session = onnxruntime.InferenceSession(candidate.SerializeToString(), providers=['CPUExecutionProvider'])
        found.append(session.run(None, {'input': images})[0].mean((0, 2, 3)))
    assert np.abs(found[2] - found[0]).mean() < 0.3 * np.abs(found[1] - found[0]).mean()


def test_quantized_file(exported, tmp_path, records):
    """Convolutions have integers, by channel, the classifier and softmax have not; the outputs are close."""
    import onnx

    figures, path = made(exported, tmp_path, records, 100)
    assert [p.name for p in tmp_path.iterdir()] == ['net.onnx']
    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    by_output = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == 'Conv']
    for node in convolutions:
        weight = by_output[node.input[1]]
        values = onnx.numpy_helper.to_array(stored[weight.input[0]])
        assert weight.op_type == 'DequantizeLinear' and values.dtype == np.int8 and sum_of_neighbours(values) <= 128
        assert stored[weight.input[1]].dims == [len(values)] and by_output[node.input[0]].op_type == 'DequantizeLinear'
    assert len(convolutions) > 40 and path.stat().st_size < 0.3 * (exported / 'net.onnx').stat().st_size
    (softmax,), (classifier,) = ([n for n in model.graph.node if n.op_type == kind] for kind in ('Softmax', 'Gemm'))
    assert by_output[softmax.input[0]] == classifier and classifier.input[1] in stored
    assert 0 < figures['deviation'] < 0.2 and figures['images'] == 9 and figures['calibration_images'] == 6
    assert figures['images_per_second'].keys() == {'float32', 'int8'} and figures['images_per_second']['int8'].keys() == {
        '2'
    }
    images = next(Sample(records, np.arange(2)).batches(UINT8, 2))
    first, second = (formats.load_onnx(p)(images) for p in (exported / 'net.onnx', path))
    assert np.abs(first[0] - second[0]).max() < 0.2 and first[1].dtype == second[1].dtype == np.int32
    assert 'agree on' in quantization.as_text(figures) and 'at batch 2 images/s' in quantization.as_text(figures)


def test_file_that_loses_too_much_is_not_left(exported, tmp_path, records, monkeypatch):
    right = quantization.compare
    monkeypatch.setattr(quantization, '_quantize', lambda source, target, *_: shutil.copy(source, target))
    monkeypatch.setattr(quantization, 'compare', lambda *given: {**right(*given), 'loss': 1.01})
    with pytest.raises(
        InputError, match=r'net.onnx: int8 and float32 agree on .*loses more than max_accuracy_loss 1, no file'
    ):
        made(exported, tmp_path, records, 1.0)
    assert not list(tmp_path.iterdir())


def test_bad_image_is_named(records, tmp_path):
    (tmp_path / 'train/0').mkdir(parents=True)
    (tmp_path / 'train/0/a.png').write_bytes(b'text')
    sample = Sample(open_folder(tmp_path / 'train', tmp_path / 'train'), np.arange(1))
    with pytest.raises(InputError, match=r'train/0/a.png: not an image; mend or remove it'):
        list(sample.batches(UINT8, 2))
