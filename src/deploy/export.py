"""A network as a file that other programs run (MINDIR, ONNX, AIR): written, verified, described."""

from __future__ import annotations

import contextlib
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src import files, runtime
from src.deploy import description, verification
from src.deploy.formats import LOADERS, WRITERS, plain_name
from src.deploy.graph import OUTPUT_NAMES, Served, Signature, as_function, fold, host_scale
from src.errors import InputError


def export_network(
    network: nn.Cell, path: str | Path, signature: Signature, about: dict, fold_bn: bool = True, computed_in: str = 'float32'
) -> dict:
    """Write `network` to `path`, in the format of its suffix, and beside it a JSON file with what a server must know.

    The file is loaded by its own runtime and must give what the network gives for images of random pixels and smooth
    ones, within the bound of the precision `computed_in` (of `verification.BOUNDS`); only then do both files get their
    names. AIR has no runtime but the NPU's after atc: there the graph is compared before it is written.

    Args:
        network: in evaluation mode, never exported before, because MindSpore keeps the first graph of a cell. It is
            changed by this.
        signature: what the file takes and gives; AIR has a fixed batch size, 1 instead of any.
        about: further entries of the JSON file.
        fold_bn: make convolution and batch norm one convolution.

    Returns what the JSON file holds. InputError if the file deviates or cannot be written.
    """
    path = Path(path)
    if path.suffix == '.air' and not signature.batch_size:
        signature = signature._replace(batch_size=1)
    scaled, inputs = _inputs(signature)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path.with_suffix('.json')) as record, files.replacing(path) as temporary:
            # On the CPU this is faster than to compile a graph for one call.
            with runtime.eager() if computed_in == 'float32' else contextlib.nullcontext():
                logits = network(Tensor(scaled)).asnumpy().copy()
            if fold_bn:
                fold(network)
            run = _write(network, temporary, signature, inputs)
            outputs = verification.run_in_calls(run, inputs, signature.batch_size)
            found = verification.check(path, outputs, logits, signature.output, computed_in)
            found['measured_on'] = 'the file' if path.suffix in LOADERS else 'the graph before it was written'
            report = {
                'file': path.name,
                'file_format': path.suffix[1:].upper(),
                'sha256': description.sha256(temporary),
                **about,
                **description.of_signature(signature, outputs),
                'fold_bn': fold_bn,
                'deviation': found,
                'mindspore': ms.__version__,
                'other_files': description.check_target(path),
            }
            record.write_text(files.as_json(report, 1) + '\n')
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror}); choose another --file_name') from None
    return report


def _inputs(signature):
    """The images of the comparison as the network takes them, and as the file takes them."""
    images = np.concatenate(list(verification.check_images(signature.image_size).values()))
    scaled = host_scale(images, signature.preprocessing)
    return scaled, scaled if signature.input_type == 'float' else images


def _write(network, path, signature, inputs):
    """Write the graph to `path`; returns the function (ndarray -> tuple of ndarrays) of the file, for AIR of the graph."""
    cell = Served(network, signature.input_type, signature.output, signature.preprocessing).set_train(False)
    example = Tensor(inputs[:1].repeat(signature.batch_size or 1, 0))
    with plain_name(path) as plain:
        write = WRITERS[path.suffix[1:].upper()]
        write(cell, plain, example, OUTPUT_NAMES[signature.output], signature.batch_size == 0)
    return LOADERS[path.suffix](path) if path.suffix in LOADERS else as_function(cell)
