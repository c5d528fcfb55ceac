"""Going on with a training where its checkpoint ends, and never by accident over another one."""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, nn

from src import collective, files
from src.errors import ElsewhereError, InputError
from src.options import Settings, differences
from src.runtime import Run
from src.training import metrics
from src.training.plan import DECAY_UNITS, RATE_OPTIONS, Plan, batch_norm_decay, learning_rates, scaled_rate
from src.weights import checkpoint
from src.weights.names import first_of
from src.weights.read import read_weights

OPTIMIZER_STATE = ('moment', 'mean_square')
SCALE_STATE = ('scale_sense', 'current_iterator_step', 'last_overflow_iterator_step')
WAIT = 30  # seconds for another training in the directory to end
# A training's hold on its directory: the lock, kept for as long as this exists, and the files of an earlier training there
# that are removed when the first checkpoint is written.
Claim = namedtuple('Claim', 'lock replaced')
# A checkpoint to go on from: its file, {name: ndarray}, and what it says about its training (see `checkpoint.INFO`).
State = namedtuple('State', 'path parameters info')


def claim(directory: Path, option: str, overwrite: bool, log_name: str, say: Callable[[str], None] = print) -> Claim:
    """Make `directory` this training's own.

    InputError if another training is running in it, or if it has checkpoints which the training neither goes on from
    (`option`, the value of `resume`) nor replaces (`overwrite`). Log and metrics of a replaced training become
    <name>.1, or the first number that is free.
    """
    held = files.lock_directory(directory, 'choose another --log_dir', WAIT, say)
    if held:
        files.remove_abandoned(directory)
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
    for name in (log_name, metrics.NAME) if there else ():
        if (directory / name).exists():
            free = next(n for n in itertools.count(1) if not os.path.lexists(directory / f'{name}.{n}'))
            (directory / name).replace(directory / f'{name}.{free}')
    return Claim(held, [*there, *directory.glob(Path(checkpoint.BEST).with_suffix('.json').name)])


def find_start(
    run: Run, option: str, directory: Path, config: dict, data: str, override: bool, plan: Plan, log: Callable[[str], None]
) -> tuple[State | None, Plan, str, Settings]:
    """Where a training begins, the same on all ranks of `run` (Run).

    Returns:
        (State, Plan, str, Settings): on rank 0 what it goes on from, see `find` and `check`, None for a new training and on
        the other ranks; `plan` from the step to begin with; the training's id; `config` with a number for `bn_decay` auto,
        the recorded one if there is one, so that it stays when the training becomes longer.
    """
    state = on_rank_0(run, _found_and_checked, option, directory, config, data, override, log)
    start, training, decay, evaluated = 0, 0, 0.0, 0
    if run.rank == 0:
        training, decay = secrets.randbits(40), batch_norm_decay(plan.stop)
    if state:
        info = state.info
        decay = info['config'].get('bn_decay', decay)
        start, training = plan.step_at(info['epoch'], info['position']), int(info.get('training', '0'), 16) or training
        evaluated = metrics.last_evaluation(directory, start) if config['mode'] == 'train_and_evaluate' else start
        log(
            f'{state.path}: goes on after step {info["step"]}, {info["position"]} images into epoch {info["epoch"] + 1}, '
            f'here step {start} of {plan.stop} on {plan.world} device(s)'
        )
    units = [start, training, round(decay * DECAY_UNITS), evaluated]
    start, training, decay, evaluated = collective.agreed(units, run.world)
    if config['bn_decay'] == 'auto':
        config = config.but(bn_decay=decay / DECAY_UNITS)
        log(f'bn_decay {config.bn_decay:g} (auto)')
    return state, dataclasses.replace(plan, start=start, evaluated=evaluated), f'{training:x}', config


def _found_and_checked(option, directory, config, data, override, log):
    state = find(option, directory, log)
    if state:
        check(state.path, state.info, config, data, override, log)
    return state


def find(option: str, directory: Path, log: Callable[[str], None]) -> State | None:
    """The checkpoint that `option` (the value of `resume`) means: None for '', the newest whole one in `directory` for
    'auto' (None if there is none), that of a file, or the newest whole one of another directory.

    Damaged ones in a directory are passed over with a line to `log`; InputError if none is left, or a path has none at all.
    """
    if not option:
        return None
    place = Path(directory if option == 'auto' else option)
    if place.is_file():
        return _load(place)
    there = checkpoint.of_training(place)
    for number, path in reversed([*enumerate(there, 1)]):
        try:
            state = _load(path)
        except InputError as error:
            log(f'warning: passed over: {error}')
            continue
        if line := checkpoint.disagreement(there[:number]):
            log(line)
        return state
    if option != 'auto':
        raise InputError(f'resume {option}: no checkpoint there that a training can go on from')
    if there:  # a new training would take the place of one that may have run for days
        raise InputError(f'resume auto: no checkpoint in {directory} is whole; bring back a copy, or give --overwrite true')
    log(f'resume auto: no checkpoint in {directory}: a new training')
    return None


def _load(path):
    parameters, info = checkpoint.load(path)
    if not {'step', 'config', 'position'} <= info.keys():
        raise InputError(f'{path}: holds weights, not the state of a training; use it with --restore_path')
    return State(path, parameters, info)


def check(path: Path | str, info: dict, config: dict, data: str, override: bool, log: Callable[[str], None]) -> None:
    """InputError naming every option of the network, data or recipe in which the checkpoint's training differs from
    `config`, or its records from `data` (`records.fingerprint`); with `override` a line to `log` instead.

    More epochs are allowed: `max_epochs`, and with it `T_max`, may grow, with a line to `log`.
    """
    old = info['config']
    if config['bn_decay'] == 'auto':  # whatever it was
        config = {**config, 'bn_decay': old.get('bn_decay', 'auto')}
    if longer := longer_training(old, config, info.get('epoch', 0)):
        log(longer)
        old = {**old, 'max_epochs': config['max_epochs'], 'T_max': config['T_max']}
    if 'auto' in (old.get('amp_level', 'auto'), config['amp_level']):  # earlier checkpoints do not say what it stood for
        config = {**config, 'amp_level': old.get('amp_level', 'auto')}
    # With another number of devices another batch on each may keep the images in a step the same.
    free = ('batch_size',) if old.get('rank_size') != config['rank_size'] else ()
    found = [f'{name} {before} -> {now}' for name, before, now in differences(old, config) if name not in free]
    # Older checkpoints hold only the first part of today's fingerprint.
    found += [f'records {info["data"]} -> {data}'] if not data.startswith(info.get('data', data)) else []
    if found and not override:
        raise InputError(
            f'{path}: this training was another one ({"; ".join(found)}); give the old values, another '
            '--log_dir for a new training, or --resume_override true'
        )
    for difference in found:
        log(f'resume_override: {difference}')


def longer_training(old: dict, config: dict, epoch: int) -> str | None:
    """One line on the learning rate after `epoch` epochs if `config` differs from `old` by more epochs; None if it does
    not train more, or has a smaller `T_max`."""
    epochs, rising = (old.get('max_epochs'), config['max_epochs']), (old.get('T_max'), config['T_max'])
    if None in (*epochs, *rising) or not epochs[0] < epochs[1] or rising[0] > rising[1]:
        return None

    def rate(options):
        lr = scaled_rate(options['lr'], options['lr_scaling'], options['batch_size'] * options['rank_size'])
        others = {name: options[name] for name in RATE_OPTIONS}
        return learning_rates(options['lr_schedule'], steps=epoch + 1, steps_per_epoch=1, lr=lr, **others)[epoch]

    line = f'max_epochs {epochs[0]} -> {epochs[1]}' + ', over all of which image_sizes spread' * bool(config['image_sizes'])
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


def load(step: nn.Cell, state: State, start: int, override: bool = False) -> None:
    """Set all parameters of the `TrainStep` from `state`, to go on at step `start`.

    With `override` a moving average that is not in the checkpoint starts at its weights, and other missing state of the
    optimizer as in a new training. InputError if a parameter is missing or has another shape.
    """
    parameters = dict(state.parameters)
    # A dynamic loss scale starts anew if the checkpoint has none, as after a training in float32.
    dynamic = step.loss_scaling_manager is not None
    left = [name for name in SCALE_STATE if not dynamic or not parameters.keys() >= set(SCALE_STATE)]
    if override:
        for name in step.parameters_dict():
            if name not in parameters and name.startswith(checkpoint.AVERAGE):
                parameters[name] = parameters.get(name[len(checkpoint.AVERAGE) :])
            elif name not in parameters and name.startswith(OPTIMIZER_STATE):
                left.append(name)
    checkpoint.load_into(step, parameters, state.path, left)
    step.optimizer.global_step.set_data(Tensor([start], ms.int32))


def on_rank_0(run: Run, work: Callable, *arguments: object) -> object:
    """`work(*arguments)` on rank 0 of `run` (Run), which alone has the checkpoints; None on the other ranks.

    An InputError on rank 0 ends all ranks, so that none waits for it.
    """
    found, problem = None, None
    if run.rank == 0:
        try:
            found = work(*arguments)
        except InputError as error:
            problem = error
    if collective.agreed([int(problem is not None)], run.world)[0]:
        if problem:
            raise problem
        raise ElsewhereError('rank 0 cannot start; its log says why')
    return found


def restore(network: nn.Cell, path: str) -> str:
    """Start from the weights of another training, all but the classifiers, as `restore_path` of the original does.

    `path` is any weights file that `read_weights` knows. Returns a line on what was loaded. InputError if it does not fit.
    """
    parameters, _ = read_weights(path)
    loaded, left = checkpoint.load_into(network, checkpoint.averaged(parameters), path, left_out=checkpoint.CLASSIFIERS)
    return f'{path}: {len(loaded)} of {len(loaded) + len(left)} parameters loaded, all but {first_of(left)}'
