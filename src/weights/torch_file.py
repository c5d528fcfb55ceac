"""Files of PyTorch's programs: `.pth`, read by our own code since `torch.load` would need PyTorch, and safetensors."""

from __future__ import annotations

import functools
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from src.errors import reading
from src.files import replacing

DTYPES = {'F16': '<f2', 'F32': '<f4', 'F64': '<f8', 'I32': '<i4', 'I64': '<i8', 'BF16': '<u2'}  # bfloat16: see `_array`
STORAGES = {'HalfStorage': 'F16', 'FloatStorage': 'F32', 'DoubleStorage': 'F64', 'IntStorage': 'I32', 'LongStorage': 'I64'}
STORAGES['BFloat16Storage'] = 'BF16'
DAMAGE = (pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, AttributeError, MemoryError, RuntimeError, TypeError)
REMEDY = 'not a state dict of PyTorch 1.6 or later, or damaged; write model.state_dict() with safetensors.torch.save_file'


def _array(data, dtype):
    """The numbers in the bytes `data`; of BF16, which NumPy lacks, the same values in float32."""
    array = np.frombuffer(data, DTYPES[dtype])
    return (array.astype('<u4') << 16).view('<f4') if dtype == 'BF16' else array


def _tensor(values, offset, shape, strides, *_):
    if values is None:  # of bytes or truth values
        return None
    if math.prod(shape) > values.size:
        raise ValueError(f'a tensor of the shape {shape} is larger than its storage')
    size = values.itemsize  # NumPy checks that all lies inside
    return np.ndarray(shape, values.dtype, values, offset * size, [step * size for step in strides])


class _Object(dict):
    """In place of any other object of a pickle: its code is never run."""

    def __init__(self, *_, **__):
        super().__init__()


BUILDERS = {'_rebuild_tensor_v2': _tensor, '_rebuild_parameter': lambda value, *_: value}


class _Unpickler(pickle.Unpickler):
    """Nothing that a pickle names is ever imported or run: but for PyTorch's functions for tensors it is an `_Object`."""

    def __init__(self, archive, files):
        super().__init__(archive.open(files['data.pkl']))
        self.storage = functools.lru_cache(None)(lambda dtype, key: _array(archive.read(files[f'data/{key}']), dtype))

    def find_class(self, module, name):
        """What stands for a name in the pickle."""
        if module == 'torch' and name.endswith('Storage'):
            return STORAGES.get(name, 'other')
        return BUILDERS.get(name, _Object) if module == 'torch._utils' else _Object

    def persistent_load(self, pid):
        """The numbers of a storage, None for those that are no weights."""
        _, dtype, key, *_ = pid
        return self.storage(dtype, key) if dtype in DTYPES else None  # tensors may share a storage


def _tensors(value):
    """Yield (name, ndarray) of the tensors in nested dicts, lists and tuples, the names joined by dots."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, np.ndarray):
            yield str(key), item
        elif isinstance(item, (dict, list, tuple)):
            yield from ((f'{key}.{name}', tensor) for name, tensor in _tensors(item))


def read_pth(path: str | Path) -> dict[str, np.ndarray]:
    """{name: ndarray} of all tensors in what `torch.save` writes since PyTorch 1.6: a state dict, or dicts of them, whose
    names are joined by dots. InputError on anything else."""
    with reading(path, REMEDY, also=DAMAGE), zipfile.ZipFile(path) as archive:
        files = {info.filename.partition('/')[2]: info for info in archive.infolist()}
        if found := dict(_tensors(_Unpickler(archive, files).load())):
            return found
        raise ValueError('no tensors in it, and nothing else is run')


def read_safetensors(path: str | Path) -> dict[str, np.ndarray | None]:
    """{name: ndarray} of the file `path`, bfloat16 as float32; None for types that hold no weights. InputError if it is
    damaged."""
    with reading(path, 'not a safetensors file, or a damaged one; use another one or copy it again', also=DAMAGE):
        return {
            name: _array(entry['data'], entry['dtype']).reshape(entry['shape']) if entry['dtype'] in DTYPES else None
            for name, entry in deserialize(Path(path).read_bytes())
        }


def write_safetensors(path: str | Path, tensors: dict[str, np.ndarray]) -> None:
    """Write `tensors` as float32, whole or not at all, marked as PyTorch's. OSError if it cannot be written."""
    content = save({name: np.asarray(value, '<f4', 'C') for name, value in tensors.items()}, {'format': 'pt'})
    with replacing(path) as temporary:
        temporary.write_bytes(content)
