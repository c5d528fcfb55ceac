"""Checkpoints of this project: written, listed, read, and set into a network."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
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
# What a checkpoint may say beside its parameters.
INFO = tuple('format_version step epoch position config data preprocessing class_names source training evaluation'.split())
DAMAGED = (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError)  # of reading a damaged file
JSON_INFO = {'config', 'preprocessing', 'class_names', 'evaluation'}  # stored as JSON text


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
        name: json.dumps(value) if name in JSON_INFO else files.printable(value) if isinstance(value, str) else value
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


def mark_best(path: Path, evaluation: dict) -> None:
    """Write the checkpoint `path` once more, as `inceptionv4-best.ckpt`, which also holds what its `evaluation` found.

    OSError or InputError if that cannot be done; the best one is then the one before.
    """
    parameters, info = load(path)
    best, status = path.with_name(BEST), path.stat()
    write(best, parameters, {**info, 'evaluation': evaluation})
    os.utime(best, ns=(status.st_atime_ns, status.st_mtime_ns))


def best_evaluation(directory: str | Path) -> dict:
    """What the evaluation of the best checkpoint in `directory` found, empty if it is not known."""
    best, found = Path(directory, BEST), {}
    with contextlib.suppress(*DAMAGED):
        if best.exists():  # earlier versions wrote a file beside it
            found = json.loads(best.with_suffix('.json').read_text())
    with contextlib.suppress(*DAMAGED):
        found = json.loads(mindspore_file.read_some(best, ['evaluation'])['evaluation'])
    return found if isinstance(found, dict) else {}


def written_by(directory: str | Path, training: str) -> list[Path]:
    """Numbered checkpoints of `directory` that the training with the mark `training`, or one that it resumed, wrote; oldest
    first."""
    found = []
    for path in by_age(directory):
        with contextlib.suppress(*DAMAGED):  # a damaged one belongs to nobody
            if mindspore_file.read_some(path, ['training'])['training'] == training:
                found.append(path)
    return found


def progress(path: str | Path) -> tuple[int, ...]:
    """How far the training of a checkpoint was, to be compared: whole epochs, images of the next one, steps. As the file
    records it, since its time is lost when it is copied; by its name if it cannot be read."""
    try:
        found = mindspore_file.read_some(path, ['epoch', 'position', 'step'])
        return int(found['epoch']), int(found.get('position', 0)), int(found['step'])
    except DAMAGED:
        named = re.fullmatch(rf'{PREFIX}-(\d+)_(\d+)\.ckpt', Path(path).name)
        return (int(named[1]), 0, int(named[2])) if named else (-1, 0, -1)


def by_age(directory: str | Path) -> list[Path]:
    """Numbered checkpoints of `directory`, by `progress`, the newest last."""
    return sorted(Path(directory).glob(f'{PREFIX}-*_*.ckpt'), key=progress)


def of_training(directory: str | Path) -> list[Path]:
    """All checkpoints of `directory`, the best one included, by `progress`, the newest last."""
    best = Path(directory, BEST)
    return sorted([*([best] if os.path.lexists(best) else []), *by_age(directory)], key=progress)


def disagreement(paths: list[Path]) -> str:
    """A line if by the times of the files another one than the last of `paths`, by `progress`, is the newest; else ''."""
    times = [(path.stat().st_mtime_ns, place) for place, path in enumerate(paths) if path.exists()]
    latest = paths[max(times)[1]] if times else None
    if latest in (None, paths[-1]):
        return ''
    return (
        f'warning: by the times of the files {latest.name} is newer than {paths[-1].name}, by the steps that they record it '
        f'is not; {paths[-1]} is taken'
    )


def find(path: str | Path) -> list[Path]:
    """Checkpoints at `path`, the newest last: the file itself, or those of a directory. InputError if there is none."""
    path = Path(path)
    if path.is_dir():
        found = by_age(path)
        if not found:
            raise InputError(f'{path}: no checkpoint {PREFIX}-<epoch>_<step>.ckpt in this directory')
        return found
    if not path.is_file():
        raise InputError(f'{path}: no such checkpoint')
    return [path]


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
    except DAMAGED as error:
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
