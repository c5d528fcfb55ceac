"""A network as a file that other programs run (MINDIR, ONNX, AIR): batch norm folded, verified, described."""

import contextlib
import hashlib
import io
import json
import math
import os
from pathlib import Path

import mindspore as ms
import mindspore.onnx
import numpy as np
from mindspore import Tensor, nn
from PIL import Image

from src import files
from src.data import demo_images
from src.data.preprocess import evaluation_picture
from src.deploy.predictor import INPUTS, LOADERS, Served, host_scale, need_onnx, need_utf8, softmax
from src.errors import InputError
from src.inceptionv4 import ConvBN

# Of the largest logit, or of the probability 1. A folded convolution in float16 or HF32 (10 bits both) is rounded in
# another way than the unfolded one and batch norm behind it: 6e-4 measured.
BOUNDS = {'float32': 1e-4, 'float16 or HF32': 1e-2}
OUTPUTS = {'logits': ['logits'], 'softmax': ['probabilities'], 'top5': ['probabilities', 'classes']}
NO_NPU = (
    'file_format AIR: only an NPU can write it and MindSpore sees none here; run the same command on the NPU, or '
    'use --file_format ONNX and convert with atc (docs/deploy.md)'
)


def fold(network):
    """Make convolution and batch norm of every `ConvBN` of `network` one convolution with a bias, in place.

    The bias goes through the average pool of `PoolConvBN` unchanged, because padding does not count in its mean.
    """
    for name, cell in list(network.cells_and_names()):
        if isinstance(cell, ConvBN):
            conv, bn = cell.conv, cell.bn
            gamma, beta, mean, variance = (
                p.asnumpy().astype(np.float64) for p in (bn.gamma, bn.beta, bn.moving_mean, bn.moving_variance)
            )
            factor = gamma / np.sqrt(variance + bn.eps)
            weight = conv.weight.asnumpy() * factor[:, None, None, None]
            cell.conv = nn.Conv2d(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                conv.stride,
                conv.pad_mode,
                has_bias=True,
                weight_init=Tensor(weight, ms.float32),
                bias_init=Tensor(beta - mean * factor, ms.float32),
            )
            cell.bn = nn.Identity()
            cell.update_parameters_name(f'{name}.')
    return network


def write_mindir(cell, path, example, names, any_batch):
    if any_batch:
        example = Tensor(shape=[None, *example.shape[1:]], dtype=example.dtype)
    ms.export(cell, example, file_name=str(path), file_format='MINDIR')


def write_onnx(cell, path, example, names, any_batch):
    import onnx

    ms.onnx.export(
        cell,
        example,
        file_name=str(path),
        input_names=['input'],
        output_names=names,
        dynamic_axes={'input': {0: 'N'}} if any_batch else None,
    )
    if any_batch:  # the exporter leaves the example's batch size in the outputs' shapes
        model = onnx.load(path)
        for output in model.graph.output:
            output.type.tensor_type.shape.dim[0].dim_param = 'N'
        onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


def write_air(cell, path, example, names, any_batch):
    """https://www.mindspore.cn/docs/en/r2.7.0/api_python/mindspore/mindspore.export.html; AIR comes from the GE backend,
    which is that of jit_level O2. `ms.export` does not ask for the cell's own jit_level."""
    ms.set_context(jit_config={'jit_level': 'O2'})
    ms.export(cell, example, file_name=str(path), file_format='AIR')


WRITERS = {'MINDIR': write_mindir, 'ONNX': write_onnx, 'AIR': write_air}
SUFFIXES = tuple(f'.{name.lower()}' for name in WRITERS)


def sample_pictures(size, preprocessing, count=2):
    """`count` images of random pixels and as many drawn ones, uint8 (2 count, size, size, 3)."""
    rng = np.random.default_rng(0)
    drawn = []
    for words in list(demo_images.CLASSES.values())[:count]:
        file = io.BytesIO()
        Image.fromarray(demo_images.draw(*words, rng)).save(file, 'PNG')
        drawn.append(evaluation_picture(file.getvalue(), size, preprocessing))
    return np.concatenate([rng.integers(0, 256, (count, size, size, 3), np.uint8), drawn])


def deviation(outputs, logits, output):
    """How far the `outputs` of a `Served` are from what the network's own `logits` (n, classes) mean: the largest
    difference in parts of the largest logit, or of probabilities. Of classes that are equally probable any will do."""
    if output == 'logits':
        expected = (logits,)
        unit = max(np.abs(logits).max(), 1e-30)
    else:
        expected, unit = (softmax(logits),), 1
    if output == 'top5':
        values, classes = outputs
        outputs = values, values
        k = values.shape[1]
        expected = np.take_along_axis(expected[0], classes, 1), -np.sort(-expected[0], 1)[:, :k]
    largest = max(float(np.abs(found - wanted).max()) for found, wanted in zip(outputs, expected))
    return largest / unit if math.isfinite(largest) else math.inf


def run_in_calls(run, images, batch_size):
    """`run` for all `images`, `batch_size` at a time (0: one, then the others), filled up with the first ones."""
    if batch_size:
        calls = -(-len(images) // batch_size)
        parts = np.split(np.resize(images, (calls * batch_size, *images.shape[1:])), calls)
    else:
        parts = images[:1], images[1:]
    parts = [run(part) for part in parts]
    return [np.concatenate(part)[: len(images)] for part in zip(*parts)]


def export_network(
    network,
    path,
    *,
    file_format,
    preprocessing,
    image_size,
    about,
    input_type='float',
    output='logits',
    batch_size=0,
    fold_bn=True,
    computed_in='float32',
):
    """Write `network` (in evaluation mode, never exported before: MindSpore keeps the first graph of a cell) to `path`,
    and what a server must know to the JSON file beside it: the arguments, shapes, `about` (dict) and the deviation.

    The file is loaded by its own runtime and must give what the network gives, for images of random pixels and drawn
    ones, within the bound of the precision `computed_in` (of `BOUNDS`; below float32 the likeliest class must be the same
    too); only then do both files get their names. AIR has no runtime but the NPU's after atc: there the graph is compared
    before it is written. `network` is changed by it.

    Returns:
        dict: what the JSON file holds. InputError if the file deviates or cannot be written.
    """
    path, any_batch = Path(path), batch_size == 0 and file_format != 'AIR'
    pictures = sample_pictures(image_size, preprocessing)
    scaled = host_scale(pictures, preprocessing)
    images = scaled if input_type == 'float' else pictures
    batch_size = 0 if any_batch else max(batch_size, 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path.with_suffix('.json')) as record, files.replacing(path) as temporary:
            logits = network(Tensor(scaled)).asnumpy().copy()
            if fold_bn:
                fold(network)
            cell = Served(network, input_type, output, preprocessing).set_train(False)
            example = Tensor(images[:1].repeat(max(batch_size, 1), 0))
            with _plain_name(temporary) as plain:
                WRITERS[file_format](cell, plain, example, OUTPUTS[output], any_batch)
            run = LOADERS[path.suffix](temporary) if path.suffix in LOADERS else _directly(cell)
            found = run_in_calls(run, images, batch_size)
            half = len(images) // 2
            deviations = {
                name: deviation([part[rows] for part in found], logits[rows], output)
                for name, rows in (('random', slice(half)), ('drawn', slice(half, None)))
            }
            worst, bound = max(deviations.values()), BOUNDS[computed_in]
            if not worst <= bound:
                raise InputError(
                    f'{path}: the exported network deviates by {worst:.1e} (bound {bound:.0e}, computed in '
                    f'{computed_in}); no file was written'
                )
            best = found[1][:, 0] if output == 'top5' else found[0].argmax(1)
            if computed_in != 'float32' and (best != logits.argmax(1)).any():
                raise InputError(
                    f"{path}: the exported network finds another class than the checkpoint's (deviation "
                    f'{worst:.1e}, computed in {computed_in}); no file was written'
                )
            report = {
                'file': path.name,
                'file_format': file_format,
                'sha256': sha256(temporary),
                **about,
                'input': {
                    'name': 'input',
                    'type': INPUTS[input_type],
                    'shape': [batch_size or None, *images.shape[1:]],
                    'layout': 'NCHW' if input_type == 'float' else 'NHWC',
                    'colours': 'RGB',
                    'range': '(pixel - mean) / std' if input_type == 'float' else '0 to 255',
                },
                'output': {
                    'kind': output,
                    'names': OUTPUTS[output],
                    'shapes': [[batch_size or None, *part.shape[1:]] for part in found],
                    'types': [str(part.dtype) for part in found],
                },
                'preprocessing': preprocessing._asdict(),
                'fold_bn': fold_bn,
                'deviation': {
                    **deviations,
                    'bound': bound,
                    'computed_in': computed_in,
                    'measured_on': 'the file' if path.suffix in LOADERS else 'the graph before it was written',
                },
                'mindspore': ms.__version__,
            }
            report['other_files'] = check_target(path)
            record.write_text(files.as_json(report, 1) + '\n')
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror}); choose another --file_name') from None
    return report


@contextlib.contextmanager
def _plain_name(path):
    """Another name for the file `path` that is to be written: MindSpore's exporters refuse names and directories with
    spaces and all that is not ASCII, but they do not look where a link leads."""
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        plain = Path(f'/proc/self/fd/{directory}/model{path.suffix}')
        yield plain
        plain.rename(path)
    finally:
        os.close(directory)


def _directly(cell):
    def run(images):
        outputs = cell(Tensor(images))
        return tuple(o.asnumpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return run


def check_target(path):
    """What the JSON file beside the model file `path`, which is to be written, already says about other model files of the
    same name that are still there ({name: description}). InputError if it is another program's, which would be lost."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f'file_name {str(path.parent)!r} has no name of a file at its end')
    need_utf8(path)
    record = path.with_suffix('.json')
    try:
        old = json.loads(record.read_text(encoding='utf-8'))
        described = {**old.pop('other_files'), old['file']: old}
        return {name: value for name, value in described.items() if name != path.name and (path.parent / name).is_file()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f'{record}: would be replaced, but was not written by export.py; choose another --file_name or move it'
        ) from None


def sha256(path):
    """Checksum of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_aipp(path, preprocessing, image_size):
    """The scaling of `preprocessing` as a configuration for `atc --insert_op_conf`: the converted model then takes uint8
    (N, H, W, 3). InputError if it cannot be written.

    AIPP computes (pixel - mean_chn - min_chn) * var_reci_chn; mean_chn is a whole number, min_chn a float16.
    https://www.hiascend.com/document/detail/en/canncommercial/800/devaids/atc/atlasatc_16_0025.html
    """
    lines = [
        'aipp_mode: static',
        'input_format: RGB888_U8',
        'csc_switch: false',
        'rbuv_swap_switch: false',
        f'src_image_size_w: {image_size}',
        f'src_image_size_h: {image_size}',
    ]
    for i, (mean, std) in enumerate(zip(preprocessing.mean, preprocessing.std)):
        lines += [f'mean_chn_{i}: 0', f'min_chn_{i}: {mean:.8g}', f'var_reci_chn_{i}: {1 / std:.8g}']
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary:
            temporary.write_text('\n'.join(['aipp_op {', *(f'    {line}' for line in lines), '}']) + '\n')
    except OSError as error:
        raise InputError(f'aipp {path}: cannot be written ({error.strerror}); choose another file') from None


def check_format(file_format):
    """InputError at once if `file_format` cannot be written here."""
    if file_format == 'AIR' and not ms.device_context.ascend.is_available():
        raise InputError(NO_NPU)
    if file_format == 'ONNX':
        need_onnx()
