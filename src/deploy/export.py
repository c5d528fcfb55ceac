"""A network as a file that other programs run (MINDIR, ONNX, AIR): written, verified, described."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from PIL import Image

from src import files, runtime
from src.data.preprocess import scale
from src.deploy import formats
from src.deploy.formats import LOADED, OUTPUT_NAMES, Signature, as_function, load, softmax
from src.deploy.quantization import quantize
from src.errors import InputError
from src.inceptionv4 import InceptionV4
from src.layers import ConvBN
from src.options import Settings, load_settings
from src.weights import checkpoint
from src.weights.read import empty_network, read_weights

# Of the largest logit, or of the probability 1. A folded convolution in float16 or HF32 (10 bits both) is rounded in
# another way than the unfolded one and batch norm behind it: 6e-4 measured. bfloat16 has 7 bits.
BOUNDS = {'float32': 1e-4, 'float16 or HF32': 1e-2, 'float16': 1e-2, 'bfloat16': 8e-2}


class Served(nn.Cell):
    """`network` with the work around it that a server would do: scaling before it and probabilities behind it.

    Args:
        signature: its precision is that of the parameters. Logits and probabilities are float32 (N, classes); `top5`: the
            highest probabilities, float32 (N, 5), and their classes, int32 (N, 5).
    """

    def __init__(self, network: nn.Cell, signature: Signature):
        super().__init__(auto_prefix=False)
        self.network, self.dtype = network, getattr(ms, signature.precision)
        self.preprocessing, self.input_type, self.output = signature[1:4]

    def construct(self, x):
        """See the class."""
        if self.input_type == 'uint8':
            x = scale(x.astype(ms.float32).transpose(0, 3, 1, 2), self.preprocessing)
        x = self.network(x.astype(self.dtype)).astype(ms.float32)
        if self.output == 'logits':
            return x
        x = ops.softmax(x, 1)
        if self.output == 'softmax':
            return x
        values, classes = ops.topk(x, min(5, x.shape[1]))
        return values, classes.astype(ms.int32)


def load_network(path: str, argv: Sequence[str] = ()) -> tuple[InceptionV4, dict, Settings]:
    """The network of the weights at `path`, in evaluation mode, without the auxiliary classifier; the weights are their
    moving averages where the file has them.

    Returns (network, what the file records, settings); those in `argv` count more than what the file records. InputError if
    the file cannot be read, or does not fit the settings.
    """
    parameters, info = read_weights(path, classifier=True)
    settings = load_settings([*argv], info['config'])
    network = empty_network({**settings, 'aux_logits': False}).set_train(False)
    checkpoint.load_into(network, checkpoint.averaged(parameters), path)
    return network, info, settings


def fold(network: nn.Cell) -> None:
    """Make convolution and batch norm of every `ConvBN` of `network` one convolution with a bias, in place.

    The bias goes through the average pool of `PoolConvBN` unchanged, because padding does not count in its mean.
    """
    for name, cell in list(network.cells_and_names()):
        if isinstance(cell, ConvBN):
            cell.conv = _folded(cell.conv, cell.bn)
            cell.bn = nn.Identity()
            cell.update_parameters_name(f'{name}.')


def _folded(conv, bn):
    """`nn.Conv2d` that computes `bn(conv(x))`; the new weights are computed in float64."""
    gamma, beta, mean, variance = (
        p.asnumpy().astype(np.float64) for p in (bn.gamma, bn.beta, bn.moving_mean, bn.moving_variance)
    )
    factor = gamma / np.sqrt(variance + bn.eps)
    weight = Tensor(conv.weight.asnumpy() * factor[:, None, None, None], ms.float32)
    bias = Tensor(beta - mean * factor, ms.float32)
    kind = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.pad_mode
    return nn.Conv2d(*kind, has_bias=True, weight_init=weight, bias_init=bias)


def export_network(network: nn.Cell, path: Path, signature: Signature, about: dict, images: tuple | None = None) -> dict:
    """Write `network` to `path`, in the format of its suffix, and beside it a JSON file with what a server must know.

    The file is loaded by its own runtime and must compute what the network does for images of random pixels and smooth
    ones, within the bound of the precision; only then do both files get their names. AIR has no runtime but the NPU's after
    atc: there the graph is compared before it is written.

    Args:
        network: in evaluation mode, never exported before, because MindSpore keeps the first graph of a cell. It is
            changed by this.
        signature: what the file takes and returns; AIR has a fixed batch size, 1 instead of any.
        about: further entries of the JSON file.
        images: if given, the ONNX file is quantized with them: the other arguments of `quantize`.

    Returns what the JSON file holds. InputError if the file deviates, loses too much, or cannot be written.
    """
    if path.suffix == '.air' and not signature.batch_size:
        signature = signature._replace(batch_size=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(formats.description(path)) as record, files.replacing(path) as temporary:
            made = _write_and_check(network, temporary, signature)
            if images:
                made['deviation']['measured_on'] = 'the file in float32, before quantization'
                made['quantization'] = quantize(temporary, signature, *images)
            if path.suffix == '.onnx':
                formats.add_metadata(temporary, signature.preprocessing, about['classes'])
            report = {'file_format': path.suffix[1:].upper(), 'sha256': formats.sha256(temporary)}
            report.update(about, **made, mindspore=ms.__version__)
            record.write_text(json.dumps(report, indent=1) + '\n')
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror}); choose another --file_name') from error
    return report


def computed_in(precision: str) -> str:
    """What this device makes of `precision`, a key of BOUNDS."""
    return 'float16 or HF32' if precision == 'float32' and ms.get_context('device_target') == 'Ascend' else precision


def _write_and_check(network, path, signature):
    """Write the file `path`; returns the entries of the JSON file that follow from it."""
    images, found_in = check_images(signature.image_size), computed_in(signature.precision)
    # Operation by operation in float32, where on the CPU this is faster than to compile a graph for one call.
    with runtime.eager() if found_in == 'float32' else contextlib.nullcontext():
        logits = network(Tensor(signature._replace(input_type='float').as_input(images))).asnumpy().copy()
    fold(network)
    call, measured_on = _write(network, path, signature)
    size, inputs = signature.batch_size or len(images), signature.as_input(images)
    results = [call(np.resize(inputs[i : i + size], (size, *inputs.shape[1:]))) for i in range(0, len(images), size)]
    outputs = [np.concatenate(found)[: len(images)] for found in zip(*results)]
    verified = verify(path.name, outputs, logits, signature.output, found_in)
    return {**formats.describe(signature, outputs), 'deviation': {**verified, 'measured_on': measured_on}}


def _write(network, path, signature):
    """Write the graph to `path`; returns the function that is to be verified and its name: that of the file, or, where there
    is no runtime for it here, that of the graph."""
    cell = _served(network, signature)
    blank = np.zeros((signature.batch_size or 1, signature.image_size, signature.image_size, 3), np.uint8)
    example, names = Tensor(signature.as_input(blank)), OUTPUT_NAMES[signature.output]
    # MindSpore's exporters refuse names and directories with spaces and all that is not ASCII.
    with tempfile.TemporaryDirectory(prefix='export-') as plain:
        written = Path(plain, f'model{path.suffix}')
        formats.write(cell, written, example, names, signature.batch_size == 0)
        shutil.move(written, path)
    if signature.precision == 'bfloat16' and ms.get_context('device_target') == 'CPU':
        # MindSpore has no kernels for it there: what can be known is what the rounding of the weights does.
        return as_function(_served(network, signature._replace(precision='float32'))), 'the rounded weights, in float32'
    if path.suffix in LOADED:
        return load(path), 'the file'
    return as_function(cell), 'the graph before it was written'


def _served(network, signature):
    """`Served` with the parameters of `network` in the precision of `signature`."""
    for parameter in network.get_parameters():
        parameter.set_dtype(getattr(ms, signature.precision))
    return Served(network, signature).set_train(False)


def check_images(size: int) -> np.ndarray:
    """Images to compare with, uint8 (4, size, size, 3): two of random pixels, whose mean is all that deep layers see, and
    two smooth ones, because images of the world are: each pixel lies between its neighbours of a coarse random grid."""
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 256, (2, 9, 9, 3), np.uint8)
    smooth = [Image.fromarray(grid).resize((size, size), Image.Resampling.BILINEAR) for grid in grids]
    return np.concatenate([rng.integers(0, 256, (2, size, size, 3), np.uint8), np.stack(smooth)])


def verify(name: str, outputs: list[np.ndarray], logits: np.ndarray, output: str, computed_in: str) -> dict:
    """Compare the `outputs` of the file `name` for `check_images`, of the kind `output`, with the network's own `logits`.

    Returns the `largest` deviation, relative to the largest logit or to the probability 1, its `bound` and the precision
    `computed_in`. InputError if it is above the bound, or, below float32, if another class is the most probable one.
    """
    values, bound = outputs[0], BOUNDS[computed_in]
    if output == 'logits':
        differences = [(values - logits) / np.abs(logits).max(1, keepdims=True)]
    elif output == 'softmax':
        differences = [values - softmax(logits)]
    else:  # of classes that are equally probable any may be among the five
        expected = softmax(logits)
        highest = -np.sort(-expected, 1)[:, : values.shape[1]]
        differences = [values - highest, values - np.take_along_axis(expected, outputs[1], 1)]
    found = outputs[1][:, 0] if output == 'top5' else values.argmax(1)
    largest, problem = float(np.abs(differences).max()), None
    if not largest <= bound:  # or not a number
        problem = f'deviates by {largest:.1e} (bound {bound:.0e}, computed in {computed_in})'
    elif computed_in != 'float32' and (found != logits.argmax(1)).any():
        problem = f"finds another class than the checkpoint's (deviation {largest:.1e}, computed in {computed_in})"
    if problem:
        raise InputError(f'{name}: the exported network {problem}; no file was written')
    return {'largest': largest, 'bound': bound, 'computed_in': computed_in}
