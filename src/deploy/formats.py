"""The formats of exported files, MINDIR, ONNX and AIR: writing them, and running those that have a runtime here."""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
import os
from pathlib import Path
from typing import Callable

import mindspore as ms
import mindspore.onnx
import numpy as np
from mindspore import Tensor, nn

from src.data.protobuf import read_values
from src.deploy.graph import as_function
from src.errors import InputError

Run = Callable[[np.ndarray], 'tuple[np.ndarray, ...]']

OPSET, INT8_OPSET = 15, 17  # what atc of CANN 8.5 takes; scales per channel need 13 at least
NO_NPU = (
    'file_format AIR: only an NPU can write it and MindSpore sees none here; run the same command on the NPU, or '
    'use --file_format ONNX and convert with atc (docs/deploy.md)'
)


def check_format(file_format: str) -> None:
    """InputError at once if `file_format` cannot be written here."""
    if file_format == 'AIR' and not ms.device_context.ascend.is_available():
        raise InputError(NO_NPU)
    if file_format == 'ONNX':
        need_onnx()


def need_onnx() -> None:
    """InputError if the packages for ONNX are missing."""
    for name in ('onnx', 'onnxruntime'):
        if importlib.util.find_spec(name) is None:
            raise InputError(f'ONNX needs the package {name}; pip install -r requirements-export.txt')


def need_utf8(path: str | Path):
    """InputError if the file `path` is or would be one that neither MindSpore nor ONNX Runtime can open."""
    try:
        os.path.realpath(path).encode()
    except UnicodeEncodeError:
        raise InputError(
            f'{path}: MindSpore and ONNX Runtime open no file whose name or directory is not UTF-8; rename it'
        ) from None


def write_mindir(cell: nn.Cell, path: str | Path, example: Tensor, names: list[str], any_batch: bool):
    """Write `cell` for inputs like `example`, with `any_batch` of any number of images. `names` of outputs have no place."""
    if any_batch:
        example = Tensor(shape=[None, *example.shape[1:]], dtype=example.dtype)
    ms.export(cell, example, file_name=str(path), file_format='MINDIR')


def write_onnx(cell: nn.Cell, path: str | Path, example: Tensor, names: list[str], any_batch: bool):
    """As `write_mindir`; the outputs get the `names`."""
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
        _save(model, path)


def convert_opset(path: str | Path, opset: int):
    """Bring the ONNX file `path` to version `opset` of the operators, from MindSpore's 11. ONNX's own checker must accept
    it."""
    import onnx.version_converter

    model = onnx.load(path)
    if model.opset_import[0].version != opset:
        _save(onnx.version_converter.convert_version(model, opset), path)
    onnx.checker.check_model(str(path), full_check=True)


def _save(model, path):
    import onnx

    os.unlink(path)  # MindSpore has made it unwritable
    onnx.save(model, path)


def write_air(cell: nn.Cell, path: str | Path, example: Tensor, names: list[str], any_batch: bool):
    """As `write_mindir`, for the number of images in `example`.

    https://www.mindspore.cn/docs/en/r2.7.0/api_python/mindspore/mindspore.export.html; AIR comes from the GE backend,
    which is that of jit_level O2. `ms.export` does not ask for the cell's own jit_level.
    """
    ms.set_context(jit_config={'jit_level': 'O2'})
    ms.export(cell, example, file_name=str(path), file_format='AIR')


WRITERS = {'MINDIR': write_mindir, 'ONNX': write_onnx, 'AIR': write_air}
SUFFIXES = tuple(f'.{name.lower()}' for name in WRITERS)


@contextlib.contextmanager
def plain_name(path: Path):
    """Another name for the file `path` that is to be written: MindSpore's exporters refuse names and directories with
    spaces and all that is not ASCII, but they do not look where a link leads."""
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        plain = Path(f'/proc/self/fd/{directory}/model{path.suffix}')
        yield plain
        plain.rename(path)
    finally:
        os.close(directory)


def load_mindir(path: str | Path, shape: list | None = None) -> Run:
    """The MINDIR file as a function: ndarray -> tuple of ndarrays. InputError if it cannot be loaded, or if its input has
    another `shape` than is given (None in it: any number)."""
    try:
        found = mindir_shape(path)
        graph = nn.GraphCell(ms.load(str(path)))
    except Exception as error:  # RuntimeError, ValueError and others, depending on what is wrong with the file
        raise InputError(_damaged(path, 'a MINDIR file', error)) from None
    _check_shape(path, found, shape)
    return as_function(graph)


def mindir_shape(path: str | Path) -> list[int]:
    """Shape of the first input of a MINDIR file, a protocol buffer; MindSpore takes any other shape without a word."""
    with open(path, 'rb') as file:
        part = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for field in (7, 5, 2):  # ModelProto.graph, its input, that one's tensor, whose dimensions are field 1
        part = next(value for number, value in read_values(part) if number == field)
    return [value for number, value in read_values(part) if number == 1]


def _check_shape(path, found, shape):
    """InputError if `shape` is given and not `found`, where text or a number that was negative stands for any number."""
    found = [size if isinstance(size, int) and 0 < size < 1 << 63 else None for size in found]
    if shape not in (None, found):
        raise InputError(f'{path}: its input has the shape {found}, its JSON file says {shape!s:.80}; export it again')


def load_onnx(path: str | Path, shape: list | None = None) -> Run:
    """The ONNX file in ONNX Runtime, on the CPU, as a function: ndarray -> tuple of ndarrays. InputError as of
    `load_mindir`."""
    need_onnx()
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    except Exception as error:  # classes of its own, one for each kind of damage
        raise InputError(_damaged(path, 'an ONNX file', error)) from None
    taken = session.get_inputs()[0]
    _check_shape(path, taken.shape, shape)
    return lambda images: tuple(session.run(None, {taken.name: images}))


def parameter_types(path: str | Path) -> set[str]:
    """Names of the types of the parameters in the MINDIR file `path`, such as FLOAT16."""
    from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto

    model = ModelProto()
    model.ParseFromString(Path(path).read_bytes())
    return {TensorProto.DataType.Name(parameter.data_type) for parameter in model.graph.parameter}


LOADERS = {'.mindir': load_mindir, '.onnx': load_onnx}


def _damaged(path, kind, error):
    return f'{path}: not {kind}, or a damaged one ({str(error).strip().splitlines()[0]:.150}); export it again'
