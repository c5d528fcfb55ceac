"""The formats of exported files, MINDIR, ONNX and AIR: writing them, and running those that have a runtime here."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import mindspore.onnx
import numpy as np
from mindspore import Tensor, nn

from src.errors import InputError, reading

Function = Callable[[np.ndarray], 'tuple[np.ndarray, ...]']

OPSET = 15  # version of ONNX's operators: what atc of CANN 8.5 takes


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


LOADED = ('.mindir', '.onnx')  # suffixes of what `load` takes


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


def parameter_types(path: str | Path) -> set[str]:
    """Names of the types of the parameters in the MINDIR file `path`, such as FLOAT16."""
    from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto

    model = ModelProto()
    model.ParseFromString(Path(path).read_bytes())
    return {TensorProto.DataType.Name(parameter.data_type) for parameter in model.graph.parameter}
