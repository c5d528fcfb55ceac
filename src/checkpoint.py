"""Checkpoints: save, list, load."""
import json
import os
import re
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from src.errors import InputError

PREFIX = 'inceptionv4'
FORMAT_VERSION = 1
CLASSIFIERS = ('logits.', 'aux_logits.')


def save(directory, cell, *, step, epoch, config):
    """Write all parameters of `cell` as `inceptionv4-<epoch>_<step>.ckpt`, whole or not at all.

    The file is written beside, synced and then renamed; MindSpore's own `ModelCheckpoint` removes an old file of the
    name first and does not sync. `config` (dict) is the effective configuration that `load` gives back.

    Returns:
        Path of the checkpoint.
    """
    path = Path(directory) / f'{PREFIX}-{epoch}_{step}.ckpt'
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.ckpt')
    info = {'format_version': FORMAT_VERSION, 'step': step, 'epoch': epoch, 'config': json.dumps(dict(config))}
    try:
        ms.save_checkpoint([{'name': name, 'data': p} for name, p in cell.parameters_dict().items()], str(temporary),
                           append_dict=info)
        temporary.chmod(0o644)
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def prune(directory, keep):
    """Remove all but the `keep` newest checkpoints; call after the newest is written."""
    # Newest by time, not by step: the directory may hold a longer training's from before.
    for path in sorted(find(directory), key=lambda p: p.stat().st_mtime_ns)[:-keep]:
        path.unlink()


def find(path):
    """Checkpoints at `path`, by step: the file itself, or those of a directory. InputError if there is none."""
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob(f'{PREFIX}-*_*.ckpt'), key=lambda p: _step(p.name))
        if not found:
            raise InputError(f'{path}: no checkpoint {PREFIX}-<epoch>_<step>.ckpt in this directory')
        return found
    if not path.is_file():
        raise InputError(f'{path}: no such checkpoint')
    return [path]


def _step(name):
    match = re.fullmatch(rf'{PREFIX}-\d+_(\d+)\.ckpt', name)
    return int(match[1]) if match else -1


def load(path):
    """Checkpoint at `path`: ({name: ndarray}, info), info with `step`, `epoch` and `config` where they were saved."""
    if not Path(path).is_file():
        raise InputError(f'{path}: no such checkpoint')
    try:
        values = ms.load_checkpoint(str(path))
    except Exception as error:  # MindSpore raises ValueError, TypeError, RuntimeError and others on damaged files
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f'{path}: not a MindSpore checkpoint, or a damaged one ({reason[0]:.150}); '
                         'use another one or copy it again') from None
    parameters, info = {}, {}
    for name, value in values.items():
        if name in ('format_version', 'step', 'epoch', 'config'):
            info[name] = value if isinstance(value, str) else int(value.asnumpy())
        else:
            parameters[name] = value.asnumpy()
    if 'config' in info:
        try:
            info['config'] = json.loads(info['config'])
        except ValueError:
            raise InputError(f'{path}: its configuration cannot be read; the checkpoint is damaged') from None
    return parameters, info


def load_into(cell, parameters, path, left_out=()):
    """Set the parameters of `cell` from `parameters`; all must be there and fit, but those starting with `left_out`.

    Returns:
        (loaded, left): lists of names.
    """
    loaded, left, targets = [], [], cell.parameters_dict()
    for name, parameter in targets.items():
        if name.startswith(tuple(left_out)):
            left.append(name)
            continue
        value = parameters.get(name)
        if value is None:
            raise InputError(f'{path}: parameter {name} {parameter.shape} is missing; was it saved from another '
                             'network (num_classes, block_counts, bn_scale, aux_logits)?')
        if value.shape != parameter.shape:
            raise InputError(f'{path}: parameter {name} has the shape {value.shape}, the network needs '
                             f'{parameter.shape}; set num_classes, block_counts and bn_scale as it was trained')
        loaded.append(name)
    for name in loaded:
        targets[name].set_data(Tensor(parameters[name].astype(np.float32, copy=False)))
    return loaded, left


def restore(network, path):
    """Start from the weights of another training, all but the classifiers, as the `restore_path` of the original."""
    parameters, _ = load(path)
    return load_into(network, parameters, path, left_out=CLASSIFIERS)
