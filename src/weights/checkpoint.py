"""Checkpoints of this project: written, listed, read, and set into a network."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src import files
from src.data.tfrecord import fields
from src.errors import InputError, reading
from src.weights import names

PREFIX = 'inceptionv4'
BEST = f'{PREFIX}-best.ckpt'
FORMAT_VERSION = 2
AVERAGE = 'ema.'  # prefix of a parameter's name: the moving average of its values
CLASSIFIERS = ('logits.', 'aux_logits.')
# What a checkpoint may say beside its parameters.
INFO = tuple('format_version step epoch position config data preprocessing class_names source training evaluation'.split())
JSON_INFO = {'config', 'preprocessing', 'class_names', 'evaluation'}  # stored as JSON text
DAMAGED = (OSError, ValueError, TypeError, LookupError, OverflowError)  # of damaged files


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
    """Write `parameters` ({name: ndarray}) and `info` ({name of INFO: value}) to `path`, whole or not at all. OSError if it
    cannot be written.

    MindSpore's own `ModelCheckpoint` removes an old file of the name first and does not sync. A checksum of everything is in
    the file, because MindSpore only warns about a file that was cut exactly where MindSpore's own checksum begins.
    """
    info = {
        name: json.dumps(value) if name in JSON_INFO else files.printable(value) if isinstance(value, str) else value
        for name, value in {'format_version': FORMAT_VERSION, **info}.items()
    }
    # The checksum comes first, so that no cut leaves a readable file without it; MindSpore puts `info` last.
    entries = {'sha256': np.frombuffer(_digest(parameters, info), np.uint8), **parameters}
    with files.replacing(path) as temporary:
        whole = temporary.with_name('whole.ckpt')  # MindSpore would add the suffix to another name
        stored = [{'name': name, 'data': Tensor(value)} for name, value in entries.items()]
        ms.save_checkpoint(stored, str(whole), append_dict=info)
        whole.rename(temporary)


def save(directory: str | Path, cell: nn.Cell, *, step: int, epoch: int, config: dict, **info: object) -> Path:
    """Write the state of `cell` to `inceptionv4-<epoch>_<step>.ckpt`. Returns its path. OSError if it cannot be written."""
    path = numbered(directory, step, epoch)
    write(path, values(cell), {'step': step, 'epoch': epoch, 'config': dict(config), **info})
    return path


def numbered(directory: str | Path, step: int, epoch: int) -> Path:
    """Path of the checkpoint of `step`."""
    return Path(directory) / f'{PREFIX}-{epoch}_{step}.ckpt'


def values(cell: nn.Cell) -> dict[str, np.ndarray]:
    """{name: ndarray} of the state of `cell`; on the CPU these are views of the live parameters."""
    return {name: p.asnumpy() for name, p in cell.parameters_dict().items()}


def mark_best(path: Path, evaluation: dict) -> None:
    """Write the checkpoint `path` once more, as `inceptionv4-best.ckpt`, which also holds what its `evaluation` found.
    OSError or InputError if that cannot be done; the best one is then the one before."""
    parameters, info = load(path)
    write(path.with_name(BEST), parameters, {**info, 'evaluation': evaluation})


def best_evaluation(directory: str | Path) -> dict:
    """What the evaluation of the best checkpoint in `directory` found, empty if it is not known."""
    return json.loads(_recorded(Path(directory, BEST), 'evaluation').get('evaluation', '{}'))


def written_by(directory: str | Path, training: str) -> list[Path]:
    """Numbered checkpoints of `directory` that the training run with the mark `training`, or one that it resumed, wrote;
    oldest first."""
    return [path for path in by_age(directory) if _recorded(path, 'training').get('training') == training]


def progress(path: str | Path) -> tuple[int, ...]:
    """How far the training run of a checkpoint was, to be compared: whole epochs, images of the next one, steps. As the file
    records it, since its time is lost when it is copied; by its name if it cannot be read."""
    found = _recorded(path, 'epoch', 'position', 'step')
    if {'epoch', 'step'} <= found.keys():
        return tuple(int(found.get(name, 0)) for name in ('epoch', 'position', 'step'))
    named = re.fullmatch(rf'{PREFIX}-(\d+)_(\d+)\.ckpt', Path(path).name)
    return (int(named[1]), 0, int(named[2])) if named else (-1, 0, -1)


def by_age(directory: str | Path) -> list[Path]:
    """Numbered checkpoints of `directory`, by `progress`, the newest last."""
    return sorted(Path(directory).glob(f'{PREFIX}-*_*.ckpt'), key=progress)


def of_training(directory: str | Path) -> list[Path]:
    """All checkpoints of `directory`, the best one included, by `progress`, the newest last."""
    return sorted([*Path(directory).glob(BEST), *by_age(directory)], key=progress)


def _stored(path, *wanted):
    """{name: ndarray or str} of the file `path`; with `wanted` only of these names, and nothing else is read. Not by
    `ms.load_checkpoint`: it trusts a tensor's shape, so that a damaged file can write over other memory."""
    data = memoryview(np.memmap(path, np.uint8, 'r'))
    if data[:1] != b'\n':  # with what it does: a pointer of Git LFS, a web page, an archive
        raise ValueError(f'begins with {bytes(data[:40])!r}')
    end, found = len(data) - 17 * (data[-17:-10] == b'crc_num'), {}  # a checksum that MindSpore can add
    for number, entry in fields(data[:end]):
        if number != 1 or isinstance(entry, int):
            raise ValueError('it is of another format')
        entry = dict(fields(entry))
        if wanted and str(entry[1], 'utf-8') not in wanted:
            continue
        shape, tensor = tuple(value for number, value in fields(entry[2]) if number == 1), dict(fields(entry[2]))
        kind, content = str(tensor[2], 'ascii').lower(), bytes(tensor[3])
        if kind == 'str':
            value = content.decode('utf-32-le').rstrip('\0')
        else:
            value = np.frombuffer(content, kind).reshape(() if shape == (0,) else shape)  # MindSpore's for a single number
        found[str(entry[1], 'utf-8')] = value
    return found


def _recorded(path, *wanted):
    """Those of `wanted`, names of `INFO`, that the checkpoint `path` has, as they are stored; {} if it cannot be read."""
    with contextlib.suppress(*DAMAGED):
        return _stored(path, *wanted)
    return {}


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """Checkpoint at `path`: ({name: ndarray}, info); info has those values of `INFO` that were saved.

    InputError if it cannot be read, has another checksum than it records (other programs record none), or if a weight is
    not finite.
    """
    with reading(path, 'not a MindSpore checkpoint, or a damaged one; use another one or copy it again', also=DAMAGED):
        stored = _stored(path)
        checksum = stored.pop('sha256', np.empty(0))
        info = {name: value if isinstance(value, str) else value.item() for name, value in stored.items() if name in INFO}
        # Other programs store notes of their own.
        parameters = {name: value for name, value in stored.items() if name not in INFO and not isinstance(value, str)}
        if (checksum.size or 'format_version' in info) and bytes(checksum) != _digest(parameters, info):
            raise ValueError('checksum mismatch')
        info.update({name: json.loads(info[name]) for name in JSON_INFO & info.keys()})
    with reading(path):
        names.check_finite(parameters)
    return parameters, info


def averaged(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`parameters` with the moving averages of the weights (`ema_decay`) instead of the weights, where there are any."""
    return {
        name: parameters.get(AVERAGE + name, value) for name, value in parameters.items() if not name.startswith(AVERAGE)
    }


def load_into(
    cell: nn.Cell, parameters: dict[str, np.ndarray], path: str | Path, left_out: tuple[str, ...] = ()
) -> tuple[list[str], list[str]]:
    """Set the parameters of `cell` from `parameters`, but those whose names start with one of `left_out`. Returns the names
    (loaded, left). InputError, with `path`, if the parameters do not fit; then none is set."""
    targets = cell.parameters_dict()
    left = [name for name in targets if name.startswith(tuple(left_out))]
    shapes = {name: parameter.shape for name, parameter in targets.items() if name not in left}
    if problem := names.mismatch(parameters, shapes, targets):
        raise InputError(f'{path}: {problem}')
    for name in shapes:
        targets[name].set_data(Tensor(parameters[name], targets[name].dtype))
    return list(shapes), left
