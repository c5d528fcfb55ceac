"""Going on with a training where its checkpoint ends."""
from pathlib import Path

import mindspore as ms
from mindspore import Tensor

from src import checkpoint, collective
from src.config import differences
from src.errors import InputError

# A training may go on with other values of these: they say where the records are and how fast they come.
FREE = ('data_dir', 'dataset_format', 'num_workers', 'augment_device', 'max_bad_fraction')
OPTIMIZER_STATE = ('moment', 'mean_square')
SCALE_STATE = ('scale_sense', 'current_iterator_step', 'last_overflow_iterator_step')


def find(option, directory, log):
    """(path, parameters, info) of the checkpoint that `option` means: None for '', the newest whole one in `directory`
    for 'auto' (None if there is none), that of a file, or the newest whole one of another directory.

    Damaged ones in a directory are passed over with a line to `log`. InputError where `option` is a path without any.
    """
    if not option:
        return None
    place = Path(directory if option == 'auto' else option)
    if place.is_file():
        return place, *_load(place)
    for path in reversed(checkpoint.by_age(place)):
        try:
            return path, *_load(path)
        except InputError as error:
            log(f'warning: passed over: {error}')
    if option != 'auto':
        raise InputError(f'resume {option}: no checkpoint there that a training can go on from')
    log(f'resume auto: no checkpoint in {directory}: a new training')
    return None


def _load(path):
    parameters, info = checkpoint.load(path)
    if not {'step', 'config', 'position'} <= info.keys():
        raise InputError(f'{path}: holds weights, not the state of a training; use it with --restore_path')
    return parameters, info


def check(path, info, config, data, override, log):
    """InputError naming every option of the network, data or recipe in which the checkpoint's training differs from
    `config`, or its records from `data` (`dataset.fingerprint`); with `override` a line to `log` instead."""
    old = info['config']
    # The batch of a device is what makes up for another number of devices.
    free = (*FREE, 'batch_size') if old.get('rank_size') != config['rank_size'] else FREE
    found = [f'{name} {before} -> {now}' for name, before, now in differences(old, config) if name not in free]
    # Older checkpoints have the first part of what is said of the records now.
    found += [f'records {info["data"]} -> {data}'] if not data.startswith(info.get('data', data)) else []
    if found and not override:
        raise InputError(f'{path}: this training was another one ({"; ".join(found)}); give the old values, another '
                         '--log_dir for a new training, or --resume_override true')
    for difference in found:
        log(f'resume_override: {difference}')


def first_step(info, steps_per_epoch, global_batch):
    """Step at which as many images of the same epoch have been seen: the checkpoint's own, if batches are of its size."""
    return info['epoch'] * steps_per_epoch + info['position'] // global_batch


def load(step, path, parameters, start, override=False, loss_scale='dynamic'):
    """Set the state of the training step `step` from `parameters`, to go on at step `start`.

    With `override` a moving average that is not in the checkpoint starts at its weights, and the rest of the optimizer's
    state as in a new training.
    """
    parameters = dict(parameters)
    # A loss scale that adapts itself starts anew where the checkpoint has none, as after a training in float32.
    left = [name for name in SCALE_STATE if loss_scale != 'dynamic' or not parameters.keys() >= set(SCALE_STATE)]
    if override:
        for name in step.parameters_dict():
            if name not in parameters and name.startswith(checkpoint.AVERAGE):
                parameters[name] = parameters.get(name[len(checkpoint.AVERAGE):])
            elif name not in parameters and name.startswith(OPTIMIZER_STATE):
                left.append(name)
    checkpoint.load_into(step, parameters, path, left)
    step.optimizer.global_step.set_data(Tensor([start], ms.int32))


def agreed(start, world):
    """`start` of rank 0, which alone has the checkpoints, on every rank; call where the others give 0."""
    if world == 1:
        return start
    # Two digits: float32 is exact to 2^24 only.
    high, low = collective.summed(divmod(start, 1 << 20))
    return int(high) * (1 << 20) + int(low)
