"""When checkpoints are written, and which are kept: the newest ones, and the best one by its evaluations."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mindspore import nn

from src import files
from src.errors import TrainingError, only_warned
from src.evaluation.outcomes import merit
from src.heartbeat import SAVING
from src.options import Settings
from src.training.state import State
from src.weights import checkpoint

RETRIES = 10  # of a checkpoint that cannot be written, until the next one is due


class Checkpoints:
    """Saves the state of a training run. One that cannot be written is tried again; the training run continues without it.

    When their directory is renamed, they follow it. Every rank has a `Checkpoints`; on schedule only rank 0 saves.

    Args:
        cell: whose parameters are saved.
        info: goes into each checkpoint, see `checkpoint.INFO`.
        settings: `save_checkpoint_steps`, `keep_checkpoint_max`.
        replaced: files of an earlier training run, which are removed with the first new checkpoint.
        resumed: the checkpoint that is resumed. Those of later steps become <name>.1, so that the next one is the newest.
    """

    def __init__(
        self, state: State, cell: nn.Cell, info: dict, settings: Settings, replaced: Sequence[Path], resumed: Path | None
    ):
        self.state, self.cell, self.info, self.keep = state, cell, info, settings.keep_checkpoint_max
        plan, directory = state.plan, state.directory
        self.every, self.due, self.saved = settings.save_checkpoint_steps or plan.steps_per_epoch, plan.start, plan.start
        begun = checkpoint.numbered(directory, plan.start, plan.position(plan.start)[0])
        self.path, self.place = begun if begun.exists() else None, files.Place(directory)
        self.lock, self.replaced = threading.Lock(), [path.name for path in replaced]
        self.again = math.inf  # step after which one that could not be written is tried again
        written = checkpoint.written_by(directory, info['training']) if info.get('training') else []
        self.names = [path.name for path in written]  # in the order of writing
        for path in written if resumed else ():
            if checkpoint.progress(path) > checkpoint.progress(resumed):
                path.replace(f'{path}.1')
                self.names.remove(path.name)
                state.run.log(f'{path.name} has more steps than {resumed}: it is {path.name}.1 from now on')
        self.best = {} if replaced else checkpoint.best_evaluation(directory)
        self.unmarked = None  # name of a checkpoint that is the best, but is not marked yet; it stays, however old it is

    def after_step(self) -> None:
        """Save after every `save_checkpoint_steps` steps, after the last one, and where the training run stops."""
        step, stop = self.state.step, self.state.plan.stop
        if self.state.run.rank:
            return
        # Not `step % every`: a sink may step over the multiple.
        due = step // self.every > self.due // self.every or step >= min(stop, self.again) > self.due
        if due:
            self.due, self.again = step, math.inf
        if due or self.state.stopping:
            self.save()

    def save(self) -> Path | None:
        """Save the present state if that was not done yet. Path of the checkpoint, None if it cannot be written.

        TrainingError if it cannot be written and there is no later step to try again.
        """
        with self.lock, self.state.during(SAVING):  # `stopping.Guard` saves from its own thread when the main one hangs
            step = self.state.step
            epoch, position = self.state.plan.position(step)
            if self.saved == step:
                return self.path
            there = checkpoint.numbered(self.state.directory, step, epoch)
            if self.state.run.rank and there.exists():
                return there
            return self._write({'step': step, 'epoch': epoch, 'position': position})

    def follow(self) -> Path:
        """The directory of the checkpoints, where it is now, with a line if it was renamed."""
        place, state = self.place.find(), self.state
        if place != state.directory:
            state.again = f'--log_dir {place} --resume auto'
            state.run.log(f'warning: {state.directory} was renamed, and all goes to {place}; resume with {state.again}')
            state.directory = place
        return place

    def _write(self, about):
        step, state, begun = about['step'], self.state, time.monotonic()
        try:
            self.follow().mkdir(parents=True, exist_ok=True)  # rank 0's, on the server of another one
            path = checkpoint.save(state.directory, self.cell, **about, **self.info)
            size = path.stat().st_size
        except OSError as error:
            size = sum(parameter.nbytes for parameter in self.cell.get_parameters())
            problem = f'checkpoint of step {step} not saved: {error.strerror or error}; '
            problem += f'it needs {size / 1e6:.1f} MB in {state.directory}'
            if state.stopping or step >= state.plan.stop:
                raise TrainingError(f'{problem}; the checkpoints before it are whole') from None
            self.again = step + max(1, self.every // RETRIES)
            state.run.log(f'warning: {problem}; training continues and tries again after step {self.again}')
            return None
        self.path, self.saved = path, step
        state.heartbeat(saved=1)
        epoch = step / state.plan.steps_per_epoch
        state.metrics('checkpoint', step, epoch=epoch, file=path.name, bytes=size, seconds=time.monotonic() - begun)
        self._remove_older(path)
        return path

    def _remove_older(self, path):
        """Make room for `path`, which is written."""
        self.names = [other for other in self.names if other != path.name] + [path.name]
        removed = {*self.names[: -self.keep], *self.replaced} - {path.name, self.unmarked}
        with contextlib.suppress(OSError):  # they stay until the next checkpoint
            for other in removed:
                path.with_name(other).unlink(missing_ok=True)
            self.names, self.replaced = [other for other in self.names if other not in removed], []

    def mark_if_best(self, found: dict) -> None:
        """Take what an evaluation of the present weights has `found`: top1, loss, and `records`, the fingerprint of the
        validation records. The best checkpoint gets a name of its own, after the next evaluation if it cannot be written."""
        if self.best.get('records', found['records']) != found['records']:
            self.state.run.log(
                f'warning: {checkpoint.BEST} is the best by other validation records ({self.best["records"]}, now '
                f'{found["records"]}): it becomes {checkpoint.BEST}.1, and this evaluation makes a new one'
            )
            with contextlib.suppress(OSError):
                os.replace(self.follow() / checkpoint.BEST, self.state.directory / f'{checkpoint.BEST}.1')
            self.best = {}
        if self.path and self.saved == self.state.step and merit(found) > merit(self.best):
            self.best, self.unmarked = {**found, 'step': self.state.step}, self.path.name
        if self.unmarked:
            path, log = self.follow() / self.unmarked, self.state.run.log
            with only_warned(log, f'{checkpoint.BEST}, although {path} is the best so far'), self.state.during(SAVING):
                checkpoint.mark_best(path, self.best)
                self.unmarked = None
                log(f'best top-1 so far: {path.name} is also {checkpoint.BEST}')
