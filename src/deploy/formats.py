"""Exported files, MINDIR, ONNX and AIR: what they take and return, the JSON file beside them, writing and running them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import mindspore.onnx
import numpy as np
from mindspore import Tensor, nn

from src.data.preprocess import Preprocessing, recorded_preprocessing, scale
from src.errors import InputError, reading

LOADED = ('.mindir', '.onnx')  # suffixes of what `load` takes
INPUT_TYPES = {'float': 'float32', 'uint8': 'uint8'}
OUTPUT_NAMES = {'logits': ['logits'], 'softmax': ['probabilities'], 'top5': ['probabilities', 'classes']}
MOST_PIXELS = 1 << 28  # in a call: 3.2 GB as float32
OPSET = 15  # version of ONNX's operators: what atc of CANN 8.5 takes
Function = Callable[[np.ndarray], 'tuple[np.ndarray, ...]']


class Signature(NamedTuple):
    """What an exported file takes and returns; src/deploy/export.py has the graph."""

    image_size: int  # height and width, pixels
    preprocessing: Preprocessing
    input_type: str = 'float'  # a key of INPUT_TYPES; float: float32 (N, 3, H, W), scaled; uint8: pixels (N, H, W, 3)
    output: str = 'logits'  # a key of OUTPUT_NAMES; top5: the five highest probabilities and their class numbers
    batch_size: int = 0  # images in a call; 0: any number
    precision: str = 'float32'  # of the weights and what is computed

    def as_input(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 (N, H, W, 3) as the file takes them."""
        if self.input_type == 'uint8':
            return images
        return scale(Tensor(images.transpose(0, 3, 1, 2).astype(np.float32)), self.preprocessing).asnumpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) of `logits` (N, classes)."""
    x = np.exp(logits - logits.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


def description(path: str | Path) -> Path:
    """The JSON file beside the model file `path`."""
    return Path(f'{path}.json')


def describe(signature: Signature, outputs: list) -> dict:
    """The entries of the JSON file for a file of `signature` that returned `outputs` (ndarrays)."""
    scaled, size = signature.input_type == 'float', signature.image_size
    batch_size = signature.batch_size or None
    return {
        'input': {
            'name': 'input',
            'type': INPUT_TYPES[signature.input_type],
            'shape': [batch_size, *((3, size, size) if scaled else (size, size, 3))],
            'layout': 'NCHW' if scaled else 'NHWC',
            'colours': 'RGB',
            'range': '(pixel - mean) / std' if scaled else '0 to 255',
        },
        'output': {
            'kind': signature.output,
            'names': OUTPUT_NAMES[signature.output],
            'shapes': [[batch_size, *output.shape[1:]] for output in outputs],
            'types': [str(output.dtype) for output in outputs],
        },
        'preprocessing': signature.preprocessing._asdict(),
        'precision': signature.precision,
    }


def read_description(path: Path) -> tuple[Signature, dict]:
    """What export.py wrote about the model file `path`: (signature, entries of the JSON file). InputError if there is none,
    or if it is about another file by its checksum."""
    with reading(path, 'name a file of export.py'):
        checksum = sha256(path)
    with reading(description(path), 'copy both files that export.py wrote, or export again', (TypeError, AttributeError)):
        about = json.loads(description(path).read_text(encoding='utf-8'))
        if about['sha256'] != checksum:
            raise ValueError(f'describes another file than {path}: the SHA-256 differs')
        batch_size, *size = about['input']['shape']
        if not 0 < (batch_size or 1) * size[1] ** 2 <= MOST_PIXELS:
            raise ValueError(f'has the shape {about["input"]["shape"]}, which is none of images')
        input_type = {text: kind for kind, text in INPUT_TYPES.items()}[about['input']['type']]
        preprocessing = recorded_preprocessing(about['preprocessing'])
        return Signature(size[1], preprocessing, input_type, about['output']['kind'], batch_size or 0), about


def sha256(path: str | Path) -> str:
    """Checksum of a file, hexadecimal. OSError if it cannot be read."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def as_text(path: Path, report: dict) -> str:
    """What was written to the file `path` with the entries `report`, in two lines."""
    found = report['deviation']
    return (
        f'{path}: {path.stat().st_size / 1e6:.0f} MB, described in {description(path)}\n'
        f"deviation of {found['measured_on']} from the checkpoint's network: {found['largest']:.1e} (bound "
        f'{found["bound"]:.0e}, computed in {found["computed_in"]})'
    )


def need_onnx() -> None:
    """InputError if the packages for ONNX are missing."""
    for name in ('onnx', 'onnxruntime'):
        if importlib.util.find_spec(name) is None:
            raise InputError(f'ONNX needs the package {name}; pip install -r requirements-export.txt')


def write(cell: nn.Cell, path: Path, example: Tensor, names: list[str], any_batch: bool) -> None:
    """Write `cell` in the format of `path` for inputs like `example`, with `any_batch` of any number of images; in ONNX the
    outputs get the `names`.

    https://www.mindspore.cn/docs/en/r2.7.0/api_python/mindspore/mindspore.export.html; AIR comes from the GE backend, which
    is that of jit_level O2. `ms.export` does not ask for the cell's own jit_level.
    """
    if path.suffix == '.onnx':
        return _write_onnx(cell, path, example, names, any_batch)
    if path.suffix == '.air':
        ms.set_context(jit_config={'jit_level': 'O2'})
    if any_batch:
        example = Tensor(shape=[None, *example.shape[1:]], dtype=example.dtype)
    ms.export(cell, example, file_name=str(path), file_format=path.suffix[1:].upper())


def _write_onnx(cell, path, example, names, any_batch):
    import onnx

    axes = {'input': {0: 'N'}} if any_batch else None
    ms.onnx.export(cell, example, file_name=str(path), input_names=['input'], output_names=names, dynamic_axes=axes)
    model = onnx.load(path)
    if any_batch:  # the exporter leaves the example's batch size in the outputs' shapes
        for output in model.graph.output:
            output.type.tensor_type.shape.dim[0].dim_param = 'N'
    os.unlink(path)  # MindSpore has made it unwritable
    onnx.save(model, path)
    convert_opset(path, OPSET)


def convert_opset(path: Path, opset: int) -> None:
    """Bring the ONNX file `path` to version `opset` of the operators; MindSpore writes 11. ONNX's checker must accept it."""
    import onnx.version_converter

    onnx.save(onnx.version_converter.convert_version(onnx.load(path), opset), path)
    onnx.checker.check_model(str(path), full_check=True)


def add_metadata(path: Path, preprocessing: Preprocessing, classes: list[str]) -> None:
    """Put what a server must know into the metadata of the ONNX file `path`, too: mean and std of R, G, B in pixel levels,
    names of the classes, as JSON."""
    import onnx

    model = onnx.load(path)
    known = {'mean': preprocessing.mean, 'std': preprocessing.std, 'classes': classes}
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in known.items()})
    onnx.save(model, path)


def load(path: str | Path) -> Function:
    """A MINDIR file in MindSpore, or an ONNX file in ONNX Runtime on the CPU, as a function: ndarray -> tuple of ndarrays.
    InputError if it cannot be loaded."""
    mindir = Path(path).suffix == '.mindir'
    if not mindir:
        need_onnx()
    # Errors of other kinds, RuntimeError among them, depending on what is wrong with the file.
    with reading(path, f'not {"a MINDIR" if mindir else "an ONNX"} file, or a damaged one: export it again', (Exception,)):
        if mindir:
            return as_function(nn.GraphCell(ms.load(str(path))))
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        name = session.get_inputs()[0].name
        return lambda images: tuple(session.run(None, {name: images}))


def as_function(cell: nn.Cell) -> Function:
    """`cell` as a function: ndarray -> tuple of ndarrays."""

    def call(images):
        outputs = cell(Tensor(images))
        return tuple(o.asnumpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return call
