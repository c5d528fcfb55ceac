"""Weights in a file of any of the formats: our checkpoints, MindCV's, timm's (safetensors, `.pth`), TensorFlow's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from src.errors import InputError
from src.weights import checkpoint, safetensors_file, tf_file, torch_file
from src.weights.convert import convert

OURS = 'conv2d_1a_3x3.conv.weight'  # the first convolution, by the name that it has in this project only


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray | None], dict]:
    """Tensors of a file by the names in it, None for what is no number, and the information in our own checkpoints.

    The format is known by the content, whatever the name of the file. InputError if the file cannot be read.
    """
    path = str(path)
    if tf_file.prefix_of(path):
        return tf_file.read(path), {}
    try:
        with open(path, 'rb') as file:
            head = file.read(16)
            file.seek(-min(8, os.path.getsize(path)), os.SEEK_END)
            tail = file.read()
    except OSError as error:
        raise InputError(
            f'{path}: cannot be read ({error.strerror}); name a checkpoint file, or of a TensorFlow '
            'checkpoint what its files begin with'
        ) from None
    if tail == tf_file.MAGIC:
        return tf_file.read(path), {}
    if head[:4] == b'PK\3\4':  # a ZIP archive
        return torch_file.read(path), {}
    if head[8:9] == b'{':  # the header of safetensors, JSON
        return safetensors_file.read(path), {}
    if head[:10] == torch_file.LEGACY:
        raise InputError(
            f'{path}: written by PyTorch before 1.6, as a pickle that may run code; with PyTorch, load it '
            'with weights_only=True and write it with safetensors.torch.save_file'
        )
    return checkpoint.load(path)


def read_weights(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """Weights at `path`, of this project or of another program.

    Returns:
        (parameters, info): ndarrays by our names; info with `config` and `preprocessing` (dicts), `class_names`, `step` and
        `epoch`, as far as they are known.

    Raises:
        InputError: the file cannot be read, or holds no InceptionV4.
    """
    tensors, info = read_tensors(path)
    if OURS in tensors:
        return tensors, info
    try:
        found = convert(tensors)
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    return found.parameters, {
        'step': 0,
        'epoch': 0,
        'config': found.config,
        'class_names': found.class_names,
        'preprocessing': found.preprocessing._asdict(),
        'source': str(path),
    }


def main_file(path: str | Path) -> str:
    """The file by which to know the weights at `path`: itself, or the index of a TensorFlow checkpoint, which has the
    checksums of all tensors."""
    prefix = tf_file.prefix_of(path)
    return f'{prefix}.index' if prefix else str(path)
