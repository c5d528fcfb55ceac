"""Safetensors files, by the `safetensors` library; as bytes, because its NumPy functions cannot read bfloat16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from src.errors import InputError
from src.files import replacing

DTYPES = {'F16': '<f2', 'F32': '<f4', 'F64': '<f8', 'I32': '<i4', 'I64': '<i8', 'BF16': '<u2'}  # bfloat16: see `widened`


def read(path: str | Path) -> dict[str, np.ndarray | None]:
    """{name: ndarray} of the file `path`, bfloat16 as float32; None for types that hold no weights.

    InputError if the file cannot be read or is damaged.
    """
    try:
        return {name: _array(**entry) for name, entry in deserialize(Path(path).read_bytes())}
    except (OSError, ValueError, MemoryError, SafetensorError) as error:
        reason = ' '.join(str(error).split())
        raise InputError(
            f'{path}: not a safetensors file, or a damaged one ({reason:.150}); use another one or copy it again'
        ) from None


def _array(dtype, shape, data):
    if dtype not in DTYPES:
        return None
    return widened(np.frombuffer(data, DTYPES[dtype]).reshape(shape), dtype)


def widened(array: np.ndarray, dtype: str) -> np.ndarray:
    """`array`; where `dtype` is BF16, which NumPy lacks, its bits (uint16) as the same values in float32."""
    return (array.astype('<u4') << 16).view('<f4') if dtype == 'BF16' else array


def write(path: str | Path, tensors: dict[str, np.ndarray]):
    """Write `tensors` as float32, whole or not at all, marked as PyTorch's. OSError if it cannot be written."""
    content = save({name: np.asarray(value, '<f4', 'C') for name, value in tensors.items()}, {'format': 'pt'})
    with replacing(path) as temporary:
        temporary.write_bytes(content)
