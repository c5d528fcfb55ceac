"""Checkpoints of this project: written, listed, read, and set into a network."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src import files
from src.errors import InputError
from src.weights import mindspore_file, misfit

PREFIX = 'inceptionv4'
BEST = f'{PREFIX}-best.ckpt'
FORMAT_VERSION = 2
AVERAGE = 'ema.'  # prefix of a parameter's name: the moving average of its values
CLASSIFIERS = ('logits.', 'aux_logits.')
INFO = (  # what a checkpoint may say beside its parameters
    'format_version',
    'step',
    'epoch',
    'position',
    'config',
    'data',
    'preprocessing',
    'class_names',
    'source',
    'training',
)
JSON_INFO = {'config', 'preprocessing', 'class_names'}  # stored as JSON text


def _digest(parameters, info):
    """SHA-256 over names, types, shapes and values of ndarrays, and over `info`."""
    sha = hashlib.sha256()
    for name, value in parameters.items():
        sha.update(f'{name} {value.dtype} {value.shape}\n'.encode())
        sha.update(np.ascontiguousarray(value).data)
    for name, value in info.items():
        sha.update(f'{name} {value}\n'.encode())
    return sha.digest()


def write(path: str | Path, parameters: dict[str, np.ndarray], info: dict) -> None:
    """Write `parameters` ({name: ndarray}) and `info` ({name of INFO: value}) to `path`, whole or not at all.

    The file is in MindSpore's format, but written by `files.replacing`: MindSpore's own `ModelCheckpoint` removes an old
    file of the name first and does not sync. It holds a checksum of everything, because MindSpore only warns about a file
    that was cut exactly where MindSpore's own checksum begins. OSError if it cannot be written.
    """
    info = {
        name: json.dumps(value) if name in JSON_INFO else value
        for name, value in {'format_version': FORMAT_VERSION, **info}.items()
    }
    # The checksum comes first, so that no cut leaves a readable file without it; MindSpore puts `info` last.
    entries = {'sha256': np.frombuffer(_digest(parameters, info), np.uint8), **parameters}
    with files.replacing(path) as temporary:
        whole = temporary.with_name('whole.ckpt')  # MindSpore would add the suffix to another name
        ms.save_checkpoint(
            [{'name': name, 'data': Tensor(value)} for name, value in entries.items()], str(whole), append_dict=info
        )
        whole.rename(temporary)


def save(
    directory: str | Path, state: nn.Cell | dict[str, np.ndarray], *, step: int, epoch: int, config: dict, **info: object
) -> Path:
    """Write `state`, a cell or its `values`, to `inceptionv4-<epoch>_<step>.ckpt`: its path. OSError if it cannot."""
    path = numbered(directory, step, epoch)
    write(
        path,
        values(state) if isinstance(state, nn.Cell) else state,
        {'step': step, 'epoch': epoch, 'config': dict(config), **info},
    )
    return path


def numbered(directory: str | Path, step: int, epoch: int) -> Path:
    """Path of the checkpoint of `step`."""
    return Path(directory) / f'{PREFIX}-{epoch}_{step}.ckpt'


def values(cell: nn.Cell) -> dict[str, np.ndarray]:
    """{name: ndarray} of the state of `cell`; on the CPU these are views of the live parameters."""
    return {name: p.asnumpy() for name, p in cell.parameters_dict().items()}


def snapshot(cell: nn.Cell) -> dict[str, np.ndarray]:
    """`values` that stay as they are when the training goes on."""
    return {name: value.copy() for name, value in values(cell).items()}


def mark_best(path: Path, top1: float) -> bool:
    """Make `inceptionv4-best.ckpt` another name of the checkpoint `path` if `top1` is the highest yet; True if so.

    The accuracy is kept in `inceptionv4-best.json`, so that a resumed training knows it. OSError if it cannot be written.
    """
    best = path.with_name(BEST)
    record = best.with_suffix('.json')
    try:
        if best.exists() and json.loads(record.read_text())['top1'] >= top1:
            return False
    except (OSError, ValueError, KeyError, TypeError):  # no record, or a damaged one: this one is the best known
        pass
    for name, make in (
        (best, partial(_link_or_copy, path)),
        (record, lambda p: p.write_text(json.dumps({'top1': top1, 'checkpoint': path.name}) + '\n')),
    ):
        with files.replacing(name) as temporary:
            make(temporary)
    return True


def _link_or_copy(source, target):
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def written_by(directory: str | Path, training: str) -> list[Path]:
    """Numbered checkpoints of `directory` that the training with the mark `training`, or one that it resumed, wrote; oldest
    first."""
    found = []
    for path in by_age(directory):
        with contextlib.suppress(OSError, ValueError, TypeError, IndexError):  # a damaged one belongs to nobody
            if mindspore_file.read_text(path, 'training') == training:
                found.append(path)
    return found


def by_age(directory: str | Path) -> list[Path]:
    """Numbered checkpoints of `directory`, oldest first."""
    return sorted(Path(directory).glob(f'{PREFIX}-*_*.ckpt'), key=lambda p: p.stat().st_mtime_ns)


def of_training(directory: str | Path) -> list[Path]:
    """All checkpoints of `directory`, the best one first and then the numbered ones, oldest first."""
    best = Path(directory, BEST)
    return [*([best] if best.exists() else []), *by_age(directory)]


def find(path: str | Path) -> list[Path]:
    """Checkpoints at `path`, by step: the file itself, or those of a directory. InputError if there is none."""
    path = Path(path)
    if path.is_dir():
        found = sorted(by_age(path), key=lambda p: _step(p.name))
        if not found:
            raise InputError(f'{path}: no checkpoint {PREFIX}-<epoch>_<step>.ckpt in this directory')
        return found
    if not path.is_file():
        raise InputError(f'{path}: no such checkpoint')
    return [path]


def _step(name):
    match = re.fullmatch(rf'{PREFIX}-\d+_(\d+)\.ckpt', name)
    return int(match[1]) if match else -1


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """Checkpoint at `path`: ({name: ndarray}, info); info has those values of `INFO` that were saved.

    InputError if it cannot be read, if its content does not fit its checksum, or if a weight is not finite. Checkpoints of
    other programs have no checksum.
    """
    if not Path(path).is_file():
        raise InputError(f'{path}: no such checkpoint')
    parameters, info, checksum = {}, {}, None
    try:
        for name, value in mindspore_file.read(path).items():
            if name == 'sha256':
                checksum = bytes(value)
            elif name in INFO:
                info[name] = value if isinstance(value, str) else value.item()
            elif not isinstance(value, str):  # other programs store notes of their own
                parameters[name] = value
        if checksum is None and 'format_version' in info or checksum not in (None, _digest(parameters, info)):
            raise ValueError('its checksum does not fit')
        for name in JSON_INFO & info.keys():
            info[name] = json.loads(info[name])
        if not isinstance(info.get('config', {}), dict):
            raise ValueError('its configuration is not one')
    except (OSError, ValueError, TypeError, IndexError, RecursionError) as error:
        reason = ' '.join(str(error).split())
        raise InputError(
            f'{path}: not a MindSpore checkpoint, or a damaged one ({reason:.150}); use another one or copy it again'
        ) from None
    if problem := misfit.not_finite(parameters):
        raise InputError(f'{path}: {problem}')
    return parameters, info


def with_classes(info: dict, parameters: dict[str, np.ndarray], path: str | Path) -> dict:
    """`info` of the weights `parameters` at `path`, its `config` with at least the number of classes. InputError if the
    classifier is missing, from whose size it is known."""
    config = dict(info.get('config', {}))
    if 'num_classes' not in config:
        if 'logits.bias' not in parameters:
            raise InputError(f'{path}: {misfit.NO_CLASSIFIER}')
        config['num_classes'] = parameters['logits.bias'].size
    return {**info, 'config': config}


def averaged(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`parameters` with the moving averages of the weights (`ema_decay`) instead of the weights, where there are any."""
    return {
        name: parameters.get(AVERAGE + name, value) for name, value in parameters.items() if not name.startswith(AVERAGE)
    }


def load_into(
    cell: nn.Cell, parameters: dict[str, np.ndarray], path: str | Path, left_out: tuple[str, ...] = ()
) -> tuple[list[str], list[str]]:
    """Set the parameters of `cell` from `parameters`, but those whose names start with one of `left_out`.

    Returns:
        (loaded, left): lists of names.

    Raises:
        InputError: the parameters do not fit, see `misfit.describe`; the message names `path`. Then none is set.
    """
    targets = cell.parameters_dict()
    left = [name for name in targets if name.startswith(tuple(left_out))]
    shapes = {name: parameter.shape for name, parameter in targets.items() if name not in left}
    if problem := misfit.describe(parameters, shapes, targets):
        raise InputError(f'{path}: {problem}')
    for name in shapes:
        targets[name].set_data(Tensor(parameters[name], targets[name].dtype))
    return list(shapes), left
