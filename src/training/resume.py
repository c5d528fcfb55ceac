"""Going on with a training where its checkpoint ends, and never by accident over another one."""

from collections import namedtuple
from pathlib import Path

import mindspore as ms
from mindspore import Tensor

from src import collective, lock
from src.config import differences
from src.errors import ElsewhereError, InputError
from src.training.optimizer import learning_rates, scaled_rate
from src.weights import checkpoint
from src.weights.convert import read

# A training may go on with other values of these: they say where the records are and how fast they come.
FREE = ('data_dir', 'dataset_format', 'num_workers', 'augment_device', 'max_bad_fraction')
OPTIMIZER_STATE = ('moment', 'mean_square')
SCALE_STATE = ('scale_sense', 'current_iterator_step', 'last_overflow_iterator_step')
WAIT = 30  # seconds for another training in the directory to end
# Of a training: the lock of its directory, held for as long as this exists, and the files of another one that go with its
# first checkpoint.
Claim = namedtuple('Claim', 'lock replaced')


def claim(directory, option, overwrite, log_name, say=print):
    """Make `directory` (Path) this training's own; a `Claim`.

    InputError where another training is running in it, or where its checkpoints are neither what `option` (of `resume`)
    goes on from nor to be replaced (`overwrite`). The log of a training that is replaced becomes <log_name>.1.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'{directory}: cannot be made ({error.strerror}); choose another --log_dir') from None
    held = lock.hold(directory, WAIT, say)
    if held:
        checkpoint.remove_unfinished(directory)
    there, place = checkpoint.of_training(directory), Path(option).resolve()
    here = option == 'auto' or option and directory.resolve() in (place, place.parent)
    if here and overwrite:
        raise InputError(f'resume {option} goes on with the training in {directory}, overwrite true replaces it: give one')
    if there and not here and not overwrite:
        raise InputError(
            f'{directory} holds the checkpoints of a training ({", ".join(path.name for path in there)}); go on '
            'with it by --resume auto, choose another --log_dir, or replace it by --overwrite true, which removes '
            'them as soon as the first new checkpoint is written'
        )
    if not overwrite:
        return Claim(held, [])
    if there and (directory / log_name).exists():
        (directory / log_name).replace(directory / f'{log_name}.1')
    return Claim(held, [*there, *directory.glob(Path(checkpoint.BEST).with_suffix('.json').name)])


def continued(option, directory, config, data, override, log):
    """What `find` gives, after `check`."""
    found = find(option, directory, log)
    if found:
        check(found[0], found[2], config, data, override, log)
    return found


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
    for path in reversed(checkpoint.of_training(place)):
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
    `config`, or its records from `data` (`dataset.fingerprint`); with `override` a line to `log` instead.

    More epochs are no other training: `max_epochs`, and with it `T_max`, may be larger, with a line to `log`."""
    old = info['config']
    longer = longer_training(old, config, info.get('epoch', 0))
    if longer:
        log(longer)
        old = {**old, 'max_epochs': config['max_epochs'], 'T_max': config['T_max']}
    # The batch of a device is what makes up for another number of devices.
    free = (*FREE, 'batch_size') if old.get('rank_size') != config['rank_size'] else FREE
    found = [f'{name} {before} -> {now}' for name, before, now in differences(old, config) if name not in free]
    # Older checkpoints have the first part of what is said of the records now.
    found += [f'records {info["data"]} -> {data}'] if not data.startswith(info.get('data', data)) else []
    if found and not override:
        raise InputError(
            f'{path}: this training was another one ({"; ".join(found)}); give the old values, another '
            '--log_dir for a new training, or --resume_override true'
        )
    for difference in found:
        log(f'resume_override: {difference}')


def longer_training(old, config, epoch):
    """What it means for the learning rate after `epoch` epochs that `config` trains more of them than `old`, in one line;
    None if it does not, or in another way."""
    epochs, rising = (old.get('max_epochs'), config['max_epochs']), (old.get('T_max'), config['T_max'])
    if None in (*epochs, *rising) or not epochs[0] < epochs[1] or rising[0] > rising[1]:
        return None

    def rate(options):
        lr = scaled_rate(options['lr'], options['lr_scaling'], options['batch_size'] * options['rank_size'])
        return learning_rates(
            options['lr_schedule'],
            steps=epoch + 1,
            steps_per_epoch=1,
            lr=lr,
            **{name: options[name] for name in ('T_max', 'eta_min', 'lr_decay_rate', 'lr_decay_epochs', 'warmup_epochs')},
        )[epoch]

    line = f'max_epochs {epochs[0]} -> {epochs[1]}'
    if config['lr_schedule'] != 'cosine' or rising[0] == rising[1] >= epochs[1]:
        return f'{line}: the learning rate goes on from {rate(config):.5f} as its schedule says'
    if rising[0] == rising[1]:
        return (
            f'{line}, T_max stays {rising[1]}: the learning rate is {rate(config):.5f} now and eta_min {config["eta_min"]:g}'
            f' after epoch {rising[1]}; give --T_max {epochs[1]} too for a cosine over all of it'
        )
    return (
        f'{line}, T_max {rising[0]} -> {rising[1]}: the learning rate is {rate(config):.5f} now, where it would have been '
        f'{rate({**config, "T_max": rising[0]}):.5f}'
    )


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
                parameters[name] = parameters.get(name[len(checkpoint.AVERAGE) :])
            elif name not in parameters and name.startswith(OPTIMIZER_STATE):
                left.append(name)
    checkpoint.load_into(step, parameters, path, left)
    step.optimizer.global_step.set_data(Tensor([start], ms.int32))


def on_rank_0(run, work, *arguments):
    """What `work(*arguments)` gives on rank 0 of the `Runtime`, which alone has the checkpoints; None on the others. An
    InputError there is one on all ranks, none of which waits for another any more."""
    found, problem = None, None
    if run.rank == 0:
        try:
            found = work(*arguments)
        except InputError as error:
            problem = error
    if agreed([int(problem is not None)], run.world)[0]:
        if problem:
            raise problem
        raise ElsewhereError('rank 0 cannot start; its log says why')
    return found


def agreed(values, world):
    """`values` (list of int from 0 to 2^40) of rank 0 on every rank; call where the others give 0."""
    if world == 1:
        return values
    # Two digits: float32 is exact to 2^24 only.
    digits = iter(collective.summed([digit for value in values for digit in divmod(value, 1 << 20)]))
    return [int(high) * (1 << 20) + int(next(digits)) for high in digits]


def restore(network, path):
    """Start from the weights of another training, all but the classifiers, as the `restore_path` of the original.

    `path` is any file that `weights.convert.read` knows.
    """
    parameters, _ = read(path)
    return checkpoint.load_into(network, checkpoint.averaged(parameters), path, left_out=checkpoint.CLASSIFIERS)
