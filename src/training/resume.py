"""Resuming a training run where its checkpoint ends, and never by accident over another one."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TextIO

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src import collective, files
from src.errors import ElsewhereError, InputError
from src.options import Settings, differences
from src.runtime import Run
from src.training import metrics
from src.training.plan import DECAY_UNITS, Plan, batch_norm_decay, no_gain
from src.weights import checkpoint

OPTIMIZER_STATE = ('moment', 'mean_square')
SCALE_STATE = ('scale_sense', 'current_iterator_step', 'last_overflow_iterator_step')
WAIT = 30  # seconds for another training run in the directory to end


class Saved(NamedTuple):
    """A checkpoint to resume: its file, {name: value}, and what it records, see `checkpoint.INFO`."""

    path: Path
    parameters: dict[str, np.ndarray]
    info: dict


def reserve(settings: Settings, run: Run) -> tuple[TextIO, list[Path]]:
    """Make `run.directory` this training run's own. Returns the lock, to be kept as long as the training run lasts, and the
    checkpoints of an earlier training run there, which are to be removed when the first new one is written.

    InputError if another training run is active in it, or if it has checkpoints which are neither to be resumed nor to be
    replaced (`overwrite`). Log and metrics of a replaced training run become <name>.1, or the first number that is free.
    """
    directory, option = run.directory, settings.resume
    lock = files.lock_file(directory / files.LOCK, 'choose another --log_dir', WAIT, run.log)
    there, place = checkpoint.of_training(directory), Path(option).resolve()
    here = option == 'auto' or option and directory.resolve() in (place, place.parent)
    if here and settings.overwrite:
        raise InputError(f'--resume {option} and --overwrite contradict each other for {directory}; pass one')
    if there and not here and not settings.overwrite:
        raise InputError(
            f'{directory} holds the checkpoints of a training run ({", ".join(path.name for path in there)}); continue it '
            'by --resume auto, choose another --log_dir, or replace it by --overwrite true, which removes '
            'them as soon as the first new checkpoint is written'
        )
    replaced = there if settings.overwrite else []
    for path in (directory / settings.log_name, directory / metrics.NAME):
        if replaced and path.exists():
            path.replace(next(free for n in itertools.count(1) if not os.path.lexists(free := f'{path}.{n}')))
    return lock, replaced


def find_start(settings: Settings, run: Run, plan: Plan, data: str) -> tuple[Saved | None, Plan, Settings, str]:
    """Where a training run on records of the fingerprint `data` begins, the same on all ranks.

    Returns:
        the checkpoint that is resumed, None for a new training run and on other ranks than 0; `plan` from the step to begin
        with, and no further where evaluations found no gain for long (`patience`); `settings` with a number for `bn_decay`
        auto, the recorded one if there is one, so that it stays when the training run becomes longer; its id.
    """
    saved, start, evaluated, stop = on_rank_0(run, find, settings, run, data), 0, 0, plan.stop
    training, decay = secrets.randbits(40), batch_norm_decay(plan.stop)
    if saved:
        info = saved.info
        training, decay = int(info.get('training', '0'), 16) or training, info['config'].get('bn_decay', decay)
        start = plan.step_at(info['epoch'], info['position'])
        evaluated = metrics.last_evaluation(run.directory, start) if settings.mode == 'train_and_evaluate' else start
        run.log(
            f'{saved.path}: resuming from step {info["step"]}, {info["position"]} images into epoch {info["epoch"] + 1}; '
            f'this run: step {start} of {plan.stop} on {plan.world} device(s)'
        )
        if no_gain(settings, plan, checkpoint.best_evaluation(run.directory).get('step', start), evaluated):
            stop = start
    mine = [start, stop, training, round(decay * DECAY_UNITS), evaluated] if run.rank == 0 else [0] * 5
    start, stop, training, decay, evaluated = collective.agreed(mine, run.world)
    if settings.bn_decay == 'auto':
        settings = settings.but(bn_decay=decay / DECAY_UNITS)
        run.log(f'bn_decay {settings.bn_decay:g} (auto)')
    return saved, dataclasses.replace(plan, start=start, stop=stop, evaluated=evaluated), settings, f'{training:x}'


def find(settings: Settings, run: Run, data: str) -> Saved | None:
    """The checkpoint that the option `resume` means: None for '', the newest whole one in the log directory for auto (None
    if there is none), that of a file, or the newest whole one of another directory. Damaged ones in a directory are skipped.

    InputError if there is none, or if it belongs to another training run, see `require_same_training`.
    """
    if not (option := settings.resume):
        return None
    place = Path(run.directory if option == 'auto' else option)
    there = [place] if place.is_file() else checkpoint.of_training(place)
    for path in reversed(there):
        try:
            parameters, info = checkpoint.load(path)
            if not {'step', 'config', 'position'} <= info.keys():
                raise InputError(f'{path}: holds weights, not the state of a training run; use it with --restore_path')
        except InputError as error:
            if place.is_file():
                raise
            run.log(f'warning: skipped: {error}')
            continue
        require_same_training(path, info, settings, data, run.log)
        latest = max(checkpoint.by_age(path.parent), key=lambda one: one.exists() and one.stat().st_mtime, default=path)
        if checkpoint.progress(latest) < checkpoint.progress(path):
            run.log(f'warning: {latest} was written after {path}, but has fewer steps; the steps count')
        return Saved(path, parameters, info)
    if option != 'auto':
        raise InputError(f'resume {option}: no checkpoint there that can be resumed')
    if there:  # a new training run would take the place of one that may have run for days
        raise InputError(
            f'resume auto: all checkpoints in {place} are damaged; restore a copy, or start anew with --overwrite true '
            "and --resume ''"
        )
    run.log(f'resume auto: no checkpoint in {place}: a new training run')
    return None


def require_same_training(path: Path, info: dict, settings: Settings, data: str, log: Callable[[str], None] = print) -> None:
    """InputError naming every option of the network, data or recipe in which the checkpoint differs from `settings`, or its
    records from the fingerprint `data`; with `resume_override` a line to `log` instead.

    More epochs are allowed: `max_epochs`, and with it `T_max`, may grow, with a line to `log`.
    """
    old, new = {'T_max': 0, **info['config']}, dict(settings)
    if new['bn_decay'] == 'auto':  # whatever it was
        new['bn_decay'] = old.get('bn_decay', 'auto')
    if 'auto' in (old.get('amp_level', 'auto'), new['amp_level']):  # not recorded by earlier versions
        new['amp_level'] = old.get('amp_level', 'auto')
    if old.get('max_epochs', math.inf) < new['max_epochs'] and old['T_max'] <= new['T_max']:
        line = f'max_epochs {old["max_epochs"]} -> {new["max_epochs"]}, T_max {old["T_max"]} -> {new["T_max"]}'
        if settings.lr_schedule == 'cosine' and new['T_max'] < new['max_epochs']:
            line += f': the learning rate is 0 after epoch {new["T_max"]}; use --T_max {new["max_epochs"]}'
        log(line)
        old = {**old, 'max_epochs': new['max_epochs'], 'T_max': new['T_max']}
    # With another number of devices another batch on each may keep the images in a step the same.
    free = ('batch_size',) if old.get('rank_size') != new['rank_size'] else ()
    found = [f'{name} {before} -> {now}' for name, before, now in differences(old, new) if name not in free]
    # Older checkpoints hold only the first part of today's fingerprint.
    found += [f'records {info["data"]} -> {data}'] if not data.startswith(info.get('data', data)) else []
    if found and not settings.resume_override:
        raise InputError(
            f'{path}: the checkpoint does not match this configuration ({"; ".join(found)}); use the old values, another '
            '--log_dir for a new training run, or --resume_override true'
        )
    for difference in found:
        log(f'resume_override: {difference}')


def load(step: nn.Cell, saved: Saved, start: int, override: bool = False) -> None:
    """Set all parameters of the `TrainStep` from `saved`, to continue at step `start`.

    With `override` a moving average that is not in the checkpoint starts at its weights, and other missing state of the
    optimizer as in a new training run. InputError if a parameter is missing or has another shape.
    """
    parameters = dict(saved.parameters)
    missing, left = step.parameters_dict().keys() - parameters.keys(), []
    # A dynamic loss scale starts anew if the checkpoint has none, as after a training run in float32.
    if step.loss_scaling_manager is None or missing.intersection(SCALE_STATE):
        left += SCALE_STATE
    if override:
        left += [name for name in missing if name.startswith(OPTIMIZER_STATE)]
        averages = [name for name in missing if name.startswith(checkpoint.AVERAGE)]
        parameters.update({name: parameters.get(name[len(checkpoint.AVERAGE) :]) for name in averages})
    checkpoint.load_into(step, parameters, saved.path, left)
    step.optimizer.global_step.set_data(Tensor([start], ms.int32))


def on_rank_0(run: Run, work: Callable, *arguments: object) -> object:
    """`work(*arguments)` on rank 0 of `run`, which alone has the checkpoints; None on the other ranks.

    An InputError on rank 0 ends all ranks, so that none waits for it.
    """
    found, problem = None, None
    if run.rank == 0:
        try:
            found = work(*arguments)
        except InputError as error:
            problem = error
    if collective.agreed([int(problem is not None)], run.world)[0]:
        raise problem or ElsewhereError('rank 0 cannot start (see its log)')
    return found
