"""Weights in a file of any of the formats: our checkpoints, MindCV's, timm's (safetensors, `.pth`), TensorFlow's."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

import numpy as np

from src.errors import InputError
from src.weights import checkpoint, misfit, safetensors_file, tf_file, torch_file
from src.weights.convert import LAYOUTS, convert

PUBLISHED = (  # the second with 80.98 % top-1 on ImageNet, by its page
    'published weights are at https://huggingface.co/timm/inception_v4.tf_in1k (model.safetensors) and https://'
    'download-mindspore.osinfra.cn/toolkits/mindcv/inception_v4/inception_v4-56e798fc-910v2.ckpt'
)
OURS = 'conv2d_1a_3x3.conv.weight'  # the first convolution, by the name that it has in this project only
# A name of each layout that no other tensor's ends with, MindCV's before those that are a part of it.
MARKS = (*sorted(LAYOUTS, key=len, reverse=True), 'conv2d_2a_3x3.conv.weight')
# Within names: what PyTorch calls the parts of a model, and what its compilation and its parallel training put around them.
AROUND = re.compile(
    r'\b(?:_modules|_parameters|_buffers|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.'
)
MEANS = re.compile(r'(?<![^\W_])(?:ema|swa|(?<!exp_)avg|averaged?|averages|shadow)(?![^\W_])', re.I)
TF_MEAN = '/ExponentialMovingAverage'
AGAIN = 'download or copy the file itself'
# What a file is that holds no weights, by how it begins, or by its name (where the content tells nothing).
CONTENTS = (
    (rb'version https://git-lfs', 'a pointer of Git LFS in place of the file; fetch the file with git lfs pull'),
    (rb'(\xef\xbb\xbf)?\s*<[!?a-zA-Z]', f'a web page (HTML or XML) in place of the file; {AGAIN}'),
    (rb'\x89HDF\r\n', 'HDF5, as Keras writes it, whose layers have other names; use the weights of TF-slim, timm or MindCV'),
    (rb'\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!', 'a compressed archive; unpack it, name the weights in it'),
    (rb'.{257}ustar', 'a tar archive; unpack it, name the weights in it'),
    (torch_file.LEGACY, 'written by PyTorch before 1.6, as a pickle that may run code; with PyTorch, load it with '
     'weights_only=True and write it with safetensors.torch.save_file'),
    (rb'\x80[\2-\5]', 'a pickle of Python, which may run code; write the weights with safetensors.torch.save_file'),
    (rb'\s*model_checkpoint_path', "TensorFlow's list of checkpoints; name one of those in it"),
    (rb'\x93NUMPY', 'an array of NumPy, a single tensor'),
    (rb'[\t\n\r -~\x80-\xff]+$', f'text, not weights; {AGAIN}'),
    (rb'$', f'empty; {AGAIN}'),
)  # fmt: skip
NAMES = (
    (r'\.data-\d+-of-\d+$', 'a part of a TensorFlow checkpoint, whose .index is missing beside it; copy all its files'),
    (r'\.meta$', 'the graph of a TensorFlow checkpoint, without weights; name the file or the files that lie beside it'),
    (r'\.(pb|onnx|mindir|ms|air|om|tflite)$', 'an exported model; name the checkpoint that it was made from'),
)


def read_tensors(path: str | Path, averages: bool = True) -> tuple[dict[str, np.ndarray | None], dict]:
    """Tensors of a file by the names in it, None for what is no number, and the information in our own checkpoints.

    The format is known by the content, whatever the name of the file. What other programs put before all names is taken
    away. Of weights and their moving averages side by side the averages are taken, or without `averages` the weights, and a
    line on stderr says so. InputError if the file cannot be read.
    """
    path = str(path)
    try:
        tensors, info = _read(path)
    except InputError:
        if what := _what_it_is(path):
            raise InputError(f'{path}: {what}') from None
        raise
    return tensors if OURS in tensors else _unwrapped(tensors, path, averages), info


def _read(path):
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
            'checkpoint what its files begin with' + f'; {PUBLISHED}' * isinstance(error, FileNotFoundError)
        ) from None
    if tail == tf_file.MAGIC:
        return tf_file.read(path), {}
    if head[:4] == b'PK\3\4':  # a ZIP archive
        return torch_file.read(path), {}
    if head[8:9] == b'{':  # the header of safetensors, JSON
        return safetensors_file.read(path), {}
    return checkpoint.load(path)


def _what_it_is(path):
    """What the file `path`, which cannot be read as weights, is instead; None if that is not known."""
    if not os.path.isfile(path):
        return None
    with contextlib.suppress(OSError), open(path, 'rb') as file:
        head = file.read(512)
        return next((what for begin, what in CONTENTS if re.match(begin, head, re.S)), None) or next(
            (what for end, what in NAMES if re.search(end, path)), None
        )


def _unwrapped(tensors, path, averages):
    """`tensors` with the names that their program gives them: without what stands before all of them, as nested dicts and
    wrappers of a model do; of several sets of weights the first, and in place of it its averages."""
    tensors = {AROUND.sub('', name): value for name, value in tensors.items()}
    means = [name for name in tensors if name.endswith(TF_MEAN) and name.removesuffix(TF_MEAN) in tensors]
    if averages and means:
        _say_which(path, TF_MEAN, [''])
        tensors.update({name.removesuffix(TF_MEAN): tensors.pop(name) for name in means})
    for mark in MARKS:
        before = [name.removesuffix(mark) for name in tensors if re.search(rf'(^|[./]){re.escape(mark)}$', name)]
        before = [prefix for prefix in before if 'optim' not in prefix and not prefix.startswith(misfit.STATE)]
        if before:
            break
    else:
        return tensors
    means = [prefix for prefix in before if MEANS.search(prefix)]
    raw = [prefix for prefix in before if prefix not in means]
    chosen = [*([''] if '' in raw else raw[:1]), *(means[:1] if averages or not raw else [])]
    result = {name: value for name, value in tensors.items() if not name.startswith(tuple(filter(None, before)))}
    for prefix in filter(None, chosen):  # averages may lack what has none, such as batch norm's statistics
        result.update({name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)})
    if len(before) > 1:
        _say_which(path, chosen[-1], [prefix for prefix in before if prefix != chosen[-1]])
    return result


def _say_which(path, taken, others):
    taken, *others = (prefix.strip('./') or 'the one without a prefix' for prefix in (taken, *others))
    print(f'note: {path}: of several sets of weights {taken} is taken, not {", ".join(others):.100}', file=sys.stderr)


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
