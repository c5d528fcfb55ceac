"""Exported files compute what the checkpoint's network does, are described, and are refused where they cannot be."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from onnx import load as load_model
from onnx import numpy_helper
from PIL import Image

import export as entry
from src.data.preprocess import PREPROCESSING, Preprocessing
from src.data.records import open_folder
from src.deploy import export, formats, predict, quantization
from src.deploy.formats import Signature, description, softmax
from src.deploy.quantization import batches, compare, quantize, spread
from src.errors import InputError
from src.inceptionv4 import InceptionV4
from src.weights import checkpoint
from tests.test_end_to_end import message_of

ROOT = Path(__file__).resolve().parents[2]
OTHER = Preprocessing((124.0, 117.0, 104.0), (58.0, 57.0, 56.5), 0.9, 'bicubic', True)
NAMES = [f'class "{i}"' for i in range(10)]
UINT8 = Signature(75, OTHER, 'uint8', 'top5', 2)


@pytest.fixture(scope='module')
def small(compiles, tmp_path_factory):
    """A checkpoint with moving averages of the weights, and what these give: (path, images uint8, probabilities)."""
    ms.set_seed(3)
    network = InceptionV4(10, block_counts=(1, 1, 1)).set_train(False)
    rng = np.random.default_rng(3)
    for name, p in network.parameters_dict().items():
        if '.bn.' in name:
            p.set_data(Tensor(rng.uniform(0.5, 1.5, p.shape), ms.float32))
    path = tmp_path_factory.mktemp('trained') / 'inceptionv4-2_34.ckpt'
    values = checkpoint.values(network)
    averages = {f'{checkpoint.AVERAGE}{n}': v for n, v in values.items()}
    config = {'num_classes': 10, 'block_counts': [1, 1, 1], 'image_size': 75}
    info = {'step': 34, 'epoch': 2, 'class_names': NAMES, 'preprocessing': OTHER._asdict(), 'config': config}
    checkpoint.write(path, {**values, 'logits.weight': 0 * values['logits.weight'], **averages}, info)
    images = rng.integers(0, 256, (3, 75, 75, 3), np.uint8)
    scaled = (images.astype(np.float64) - OTHER.mean) / OTHER.std
    logits = network(Tensor(scaled.transpose(0, 3, 1, 2), ms.float32)).asnumpy().astype(np.float64)
    return path, images, softmax(logits)


def run_export(*arguments):
    entry.main([str(a) for a in arguments])


@pytest.fixture(scope='module')
def exported(compiles, small, tmp_path_factory):
    """Directory, of a name that MindSpore's exporters refuse, with net.mindir (float, logits, any batch) and net.onnx
    (uint8, top5, batches of 2)."""
    directory = tmp_path_factory.mktemp('exported to ü+1')
    to = '--ckpt_path', small[0], '--file_name', directory / 'net'
    run_export(*to)
    run_export(*to, '--file_format', 'ONNX', '--export_input', 'uint8', '--export_output', 'top5', '--batch_size', 2)
    return directory


def types_of(path):
    return {parameter.dtype for parameter in ms.nn.GraphCell(ms.load(str(path))).get_parameters()}


def test_files_and_their_description(small, exported):
    assert sorted(p.name for p in exported.iterdir()) == ['net.mindir', 'net.mindir.json', 'net.onnx', 'net.onnx.json']
    onnx, mindir = (json.loads((exported / f'net.{kind}.json').read_text()) for kind in ('onnx', 'mindir'))
    for about in (onnx, mindir):
        assert about['classes'] == NAMES and about['num_classes'] == 10
        checksum = hashlib.sha256(small[0].read_bytes()).hexdigest()
        assert about['source'] == {'checkpoint': small[0].name, 'step': 34, 'epoch': 2, 'sha256': checksum}
        assert about['preprocessing'] == json.loads(json.dumps(OTHER._asdict()))
        assert 0 < about['deviation']['largest'] < 1e-5 and about['deviation']['measured_on'] == 'the file'
    assert (mindir['input']['shape'], mindir['output']['kind']) == ([None, 3, 75, 75], 'logits')
    assert (onnx['input']['shape'], onnx['output']['kind']) == ([2, 75, 75, 3], 'top5')
    assert onnx['output']['shapes'] == [[2, 5], [2, 5]] and onnx['output']['types'] == ['float32', 'int32']
    # Batch norm is folded; ONNX's operators are those that atc of CANN 8.5 takes.
    model = load_model(exported / 'net.onnx')
    kinds = {node.op_type for node in model.graph.node}
    known = {one.key: json.loads(one.value) for one in model.metadata_props}
    assert known == {'classes': NAMES, 'mean': list(OTHER.mean), 'std': list(OTHER.std)}
    assert 'Conv' in kinds and 'BatchNormalization' not in kinds and model.opset_import[0].version == 15
    assert b'BatchNorm' not in (exported / 'net.mindir').read_bytes()


@pytest.mark.parametrize(
    'precision, measured_on',
    [('float16', 'the file'), pytest.param('bfloat16', 'the rounded weights, in float32', marks=pytest.mark.slow)],
)
def test_mindir_in_16_bits(precision, measured_on, small, exported, tmp_path):
    """Half the size, all weights of the type, and outputs that are near, but not those of float32."""
    run_export('--ckpt_path', small[0], '--file_name', tmp_path / 'net', '--export_precision', precision)
    path = tmp_path / 'net.mindir'
    about = json.loads(description(path).read_text())
    assert types_of(path) == {getattr(ms, precision)} and about['precision'] == precision
    assert path.stat().st_size < 0.6 * (exported / 'net.mindir').stat().st_size
    found = about['deviation']
    assert found['computed_in'] == precision and found['measured_on'] == measured_on
    assert 1e-5 < found['largest'] < found['bound'] < 0.1


@pytest.mark.parametrize('kind', ['mindir', 'onnx', 'ckpt'])
def test_every_kind_of_model_gives_the_same(kind, small, exported):
    """The files by their own runtimes and the checkpoint, all of them from images, against NumPy's probabilities."""
    path, images, expected = small
    model = predict.open_model(str(path if kind == 'ckpt' else exported / f'net.{kind}'))
    assert model.signature[:2] == (75, OTHER) and model.class_names == NAMES
    assert model.signature.batch_size == (2 if kind == 'onnx' else 0)
    values, classes = model.probabilities(images[:2])
    k = 5 if kind == 'onnx' else 10
    assert np.abs(values - np.take_along_axis(expected[:2], classes, 1)).max() < 1e-5
    assert np.abs(values + np.sort(-expected[:2], 1)[:, :k]).max() < 1e-5


@pytest.mark.compiles
def test_file_that_deviates_is_not_left(small, tmp_path, monkeypatch, capsys):
    right = export.fold

    def fold_wrongly(network):
        right(network)
        network.logits.bias.set_data(network.logits.bias + Tensor(np.eye(10)[2] * 0.05, ms.float32))

    monkeypatch.setattr(export, 'fold', fold_wrongly)
    found = message_of(entry.main, ['--ckpt_path', small[0], '--file_name', tmp_path / 'net'], capsys)
    assert re.search(r'net.mindir: .*deviates by .*no file was written', found) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'outputs, kind, computed_in, message',
    [
        ([[3.99, 3.991]], 'logits', 'float16', r'finds another class than the checkpoint.s \(deviation'),
        ([[np.nan, 3.98]], 'logits', 'float16', 'deviates by nan'),
        ([[0.5, 0.5], [0, 0]], 'top5', 'float32', 'deviates by'),
    ],
)
def test_bound_of_the_precision(outputs, kind, computed_in, message):
    """Of a network with the logits 4 and 3.98: what its file returns instead."""
    with pytest.raises(InputError, match=f'net.air: .*{message}'):
        export.verify('net.air', [np.array([row]) for row in outputs], np.array([[4, 3.98]]), kind, computed_in)
    # Of classes that are equally probable any may be first.
    assert export.verify('net.air', [np.full((1, 2), 0.5), np.array([[1, 0]])], np.ones((1, 2)), 'top5', 'float32')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--file_format', 'AIR'], r'only an NPU can write it.*on the NPU, or use --file_format ONNX.*atc'),
        (['--export_precision', 'float16', '--file_format', 'ONNX'], 'only MINDIR is written in it, ONNX in float32'),
        (['--quantize', 'int8', '--file_format', 'ONNX'], 'use --file_format ONNX --data_dir DIR'),
        (['--file_name', 'models/'], "file_name 'models/' has no name of a file"),
        (['--file_name', '/proc/none/net'], '/proc/none/net.mindir: cannot be written .*--file_name'),
    ],
)
def test_what_is_refused(arguments, message, small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, message_of(entry.main, ['--ckpt_path', small[0], *arguments], capsys))
    assert not list(tmp_path.iterdir())


class _Constant(ms.nn.Cell):
    """Mean of each image as 10 equal logits."""

    def construct(self, x):
        return ms.ops.tile(x.mean((1, 2, 3)).reshape(-1, 1), (1, 10))


@pytest.mark.compiles
def test_air(tmp_path, monkeypatch):
    """MindSpore gets the GE backend first, then the network, with a fixed batch size.
    https://www.mindspore.cn/docs/en/r2.7.0/api_python/mindspore/mindspore.export.html"""
    calls = []

    def write(cell, example, file_name, file_format):
        calls.append((example.shape, file_format))
        Path(file_name).write_bytes(b'air')

    monkeypatch.setattr(ms, 'export', write)
    monkeypatch.setattr(ms, 'set_context', lambda **given: calls.append(given))
    monkeypatch.setattr(export, 'computed_in', lambda precision: 'float16 or HF32')
    about = export.export_network(_Constant(), tmp_path / 'net.air', Signature(75, OTHER), {})
    assert {'jit_config': {'jit_level': 'O2'}} in calls and calls[-1] == ((1, 3, 75, 75), 'AIR')
    assert about['deviation']['bound'] == 1e-2 and about['deviation']['measured_on'] == 'the graph before it was written'


def test_aipp_scales_as_we_do():
    """By CANN's formula, (pixel - mean_chn - min_chn) * var_reci_chn, with the float16 of its last two."""
    value = dict(re.findall(r'^    (\w+): (\S+)$', (ROOT / 'deploy/aipp.cfg').read_text(), re.M))
    assert (value['input_format'], value['csc_switch'], value['rbuv_swap_switch']) == ('RGB888_U8', 'false', 'false')
    pixels = np.arange(256.0)
    ours = Signature(1, PREPROCESSING).as_input(np.tile(pixels[:, None, None, None], (1, 1, 1, 3)))
    for i in range(3):
        low, factor = (float(np.float16(value[f'{name}_chn_{i}'])) for name in ('min', 'var_reci'))
        theirs = (pixels - int(value[f'mean_chn_{i}']) - low) * factor
        assert np.abs(theirs - ours[:, i, 0, 0]).max() < 3e-3


@pytest.mark.parametrize('kind', ['onnx', 'mindir'])
def test_damaged_files(kind, exported, tmp_path):
    """A model beside the description of another, no model, one without a description, class names of another network."""
    model, whole = tmp_path / f'renamed.{kind}', (exported / f'net.{kind}').read_bytes()
    about = json.loads((exported / f'net.{kind}.json').read_text())

    def refused(content, message, labels='', **entries):
        model.write_bytes(content)
        description(model).write_text(json.dumps({**about, 'sha256': hashlib.sha256(content).hexdigest(), **entries}))
        with pytest.raises(InputError, match=message):
            predict.open_model(str(model), labels)

    refused(whole[:-9] + b'\0' * 9, f'another file than {model}: the SHA-256 differs', sha256=about['sha256'])
    for other in (b'text' * 99, whole[:100000]):
        refused(other, f'{model.name}: .*export it again')
    for shape in ([None, 3, 99999, 99999], [10**6, 75, 75, 3]):  # for which 28 GB would be asked
        refused(whole, 'which is none of images; copy both files', input={**about['input'], 'shape': shape})
    refused(whole, f'renamed.{kind}.json: .*copy both files that export.py wrote', input=None)
    (tmp_path / 'labels.txt').write_text('a\nb\n')
    refused(whole, 'labels.txt: names the classes 0 to 1, but the network has 10', str(tmp_path / 'labels.txt'))
    description(model).unlink()
    with pytest.raises(InputError, match='json: No such file.*copy both files that export.py wrote'):
        predict.open_model(str(model))


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
    order = spread(labels, 1)
    assert sorted(np.unique(labels[order[:20]], return_counts=True)[1].tolist()) == [3, 8, 9]
    assert {*labels[order[:3]]} == {4, 7, 9} and sorted(order) == list(range(73))
    assert (order == spread(labels, 1)).all() and (order != spread(labels, 0)).any()


def test_what_is_compared(records):
    """The most probable classes, in whole batches; of each file some are wrong."""

    def answers(*wrong):
        numbers = iter([*range(15), 0])  # the last batch is filled up
        return lambda images: (np.eye(3)[[(records.label[k] + (k in wrong)) % 3 for _, k in zip(images, numbers)]],)

    signature = UINT8._replace(output='softmax')
    figures = compare({'float32': answers(7), 'int8': answers(0, 1, 14)}, signature, records, 0)
    assert figures['top1'] == {'float32': pytest.approx(1400 / 15), 'int8': pytest.approx(80)} and figures['images'] == 15
    assert figures['agreement'] == pytest.approx(1100 / 15) and figures['loss'] == pytest.approx(200 / 15)


def test_quantized_file(exported, tmp_path, records, monkeypatch):
    """Convolutions have integers, by channel; the outputs are close. Two neighbouring weights fit into what processors
    without VNNI add in 16 bits, more than 7 bits are in use. One that loses too much is refused."""
    path = tmp_path / 'net.onnx'
    shutil.copy(exported / 'net.onnx', path)
    monkeypatch.setattr(quantization, 'MAX_LOSS', -100)
    refused = r'net.onnx: top-1 .* % in int8, .* of 15 images; \d+ and \d+ MB; this loses more than -100 percentage'
    with pytest.raises(InputError, match=refused):
        quantize(path, UINT8, records, (records, 0), 1)
    model = load_model(path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    by_output = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == 'Conv']
    for node in convolutions:
        weight = by_output[node.input[1]]
        values, scales = (stored[name] for name in weight.input[:2])
        assert values.dtype == np.int8 and len(scales) == len(values) and 64 < np.abs(values.astype(int)).max() <= 127
        rows = values.transpose(0, 2, 3, 1).reshape(len(values), -1).astype(int)
        pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
        assert max(np.maximum(pairs, 0).sum(2).max(), np.maximum(-pairs, 0).sum(2).max()) <= 128
        assert by_output[node.input[0]].op_type == 'DequantizeLinear'
    assert len(convolutions) > 40 and path.stat().st_size < 0.3 * (exported / 'net.onnx').stat().st_size
    images = next(batches(records, np.arange(2), UINT8, ''))
    first, second = (formats.load(p)(images) for p in (exported / 'net.onnx', path))
    assert np.abs(first[0] - second[0]).max() < 0.2 and first[1].dtype == second[1].dtype == np.int32
