"""A network as a file that other programs run (MINDIR, ONNX, AIR): written, verified, described."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src import files, runtime
from src.deploy import description, verification
from src.deploy.formats import LOADERS, OPSET, WRITERS, convert_opset, parameter_types, plain_name
from src.deploy.graph import OUTPUT_NAMES, Served, Signature, as_function, as_input, fold, set_precision
from src.deploy.quantization import Quantization, quantized
from src.errors import InputError


class Encoding(NamedTuple):
    """How the network is written.

    Attributes:
        fold_bn: make convolution and batch norm one convolution.
        precision: of the weights and of what is computed, a key of `graph.PRECISIONS`; below float32 for MINDIR only.
        opset: version of ONNX's operators.
        quantization: if given, the ONNX file is quantized with it.
    """

    fold_bn: bool = True
    precision: str = 'float32'
    opset: int = OPSET
    quantization: Quantization | None = None


FLOAT32 = Encoding()


def export_network(
    network: nn.Cell,
    path: str | Path,
    signature: Signature,
    about: dict,
    encoding: Encoding = FLOAT32,
    computed_in: str = 'float32',
) -> dict:
    """Write `network` to `path`, in the format of its suffix, and beside it a JSON file with what a server must know.

    The file is loaded by its own runtime and must give what the network gives for images of random pixels and smooth
    ones, within the bound of the precision `computed_in` (of `verification.BOUNDS`); only then do both files get their
    names. AIR has no runtime but the NPU's after atc: there the graph is compared before it is written. bfloat16, which
    MindSpore does not compute on a CPU, is there known by the types of the weights. A quantized file is compared with that
    in float32 on real images.

    Args:
        network: in evaluation mode, never exported before, because MindSpore keeps the first graph of a cell. It is
            changed by this.
        signature: what the file takes and gives; AIR has a fixed batch size, 1 instead of any.
        about: further entries of the JSON file.

    Returns what the JSON file holds. InputError if the file deviates, loses too much, or cannot be written.
    """
    path = Path(path)
    if path.suffix == '.air' and not signature.batch_size:
        signature = signature._replace(batch_size=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path.with_suffix('.json')) as record, files.replacing(path) as temporary:
            made = _write_and_check(network, path, temporary, signature, encoding, computed_in)
            report = {
                'file': path.name,
                'file_format': path.suffix[1:].upper(),
                'sha256': description.sha256(temporary),
                **about,
                **made,
                'mindspore': ms.__version__,
                'other_files': description.check_target(path),
            }
            record.write_text(files.as_json(report, 1) + '\n')
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror}); choose another --file_name') from None
    return report


def _write_and_check(network, path, temporary, signature, encoding, computed_in):
    """Write the file `temporary`, which is to be `path`; gives the entries of the JSON file that follow from it."""
    images = np.concatenate(list(verification.check_images(signature.image_size).values()))
    inputs = as_input(images, signature)
    # On the CPU this is faster than to compile a graph for one call.
    with runtime.eager() if computed_in == 'float32' else contextlib.nullcontext():
        logits = network(Tensor(as_input(images, signature._replace(input_type='float')))).asnumpy().copy()
    if encoding.fold_bn:
        fold(network)
    by_types = encoding.precision == 'bfloat16' and ms.get_context('device_target') == 'CPU'
    write = _write_unseen if by_types else _write
    run, measured_on = write(network, temporary, signature, inputs, encoding)
    outputs = verification.run_in_calls(run, inputs, signature.batch_size)
    found = {**verification.check(path, outputs, logits, signature.output, computed_in), 'measured_on': measured_on}
    made = {
        **description.of_signature(signature, outputs),
        'fold_bn': encoding.fold_bn,
        'precision': encoding.precision,
        'opset': encoding.opset if path.suffix == '.onnx' else None,
        'deviation': found,
    }
    if encoding.quantization:
        found['measured_on'] = 'the file in float32, before quantization'
        made['quantization'] = quantized(temporary, run, path.name, signature, encoding.quantization)
    return made


def _write(network, path, signature, inputs, encoding):
    """Write the graph to `path`; returns the function (ndarray -> tuple of ndarrays) of the file, for AIR of the graph, and
    which it is."""
    set_precision(network, encoding.precision)
    cell = _served(network, signature, encoding.precision)
    example = Tensor(inputs[:1].repeat(signature.batch_size or 1, 0))
    with plain_name(path) as plain:
        write = WRITERS[path.suffix[1:].upper()]
        write(cell, plain, example, OUTPUT_NAMES[signature.output], signature.batch_size == 0)
    if path.suffix == '.onnx':
        convert_opset(path, encoding.opset)
    if path.suffix in LOADERS:
        return LOADERS[path.suffix](path), 'the file'
    return as_function(cell), 'the graph before it was written'


def _write_unseen(network, path, signature, inputs, encoding):
    """As `_write`, where the device has no kernels for the precision: the function is that of a network in float32 with the
    weights as they are rounded, and the file is known by their types."""
    _write(network, path, signature, inputs, encoding)
    if (types := parameter_types(path)) != {encoding.precision.upper()}:
        raise InputError(f'{path.name}: its weights are of the types {", ".join(sorted(types))}; no file was written')
    set_precision(network, 'float32')
    return as_function(_served(network, signature, 'float32')), 'the rounded weights, in float32'


def _served(network, signature, precision):
    return Served(network, signature.input_type, signature.output, signature.preprocessing, precision).set_train(False)
