"""When checkpoints are written, and which are kept: the newest ones, and the best one by its evaluations."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from mindspore import nn

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
        self.every, self.saved = settings.save_checkpoint_steps or plan.steps_per_epoch, plan.start
        self.due = self._next_multiple(plan.start)
        begun = checkpoint.numbered(directory, plan.start, plan.position(plan.start)[0])
        self.path, self.lock = begun if begun.exists() else None, threading.Lock()
        written = checkpoint.written_by(directory, info['training']) if info.get('training') else []
        self.written, self.replaced = [path.name for path in written], [path.name for path in replaced]  # in that order
        for path in written if resumed else ():
            if checkpoint.progress(path) > checkpoint.progress(resumed):
                path.replace(f'{path}.1')
                self.written.remove(path.name)
                state.run.log(f'{path.name} has more steps than {resumed}: it is {path.name}.1 from now on')
        self.best = {} if replaced else checkpoint.best_evaluation(directory)
        self.unmarked = None  # a checkpoint that is the best, but is not marked yet; it stays, however old it is
        self.place = None  # the directory itself, whatever its name is
        if state.run.rank == 0:
            directory.mkdir(parents=True, exist_ok=True)
            self.place = os.open(directory, os.O_RDONLY)

    def _next_multiple(self, step):
        """The next step after `step` at which a checkpoint is due."""
        return min(self.state.plan.stop, (step // self.every + 1) * self.every)

    def after_step(self) -> None:
        """Save after every `save_checkpoint_steps` steps, after the last one, and where the training run stops."""
        step = self.state.step
        if self.state.run.rank == 0 and (step >= self.due or self.state.stopping):
            self.due = self._next_multiple(step)  # from here on, as a sink may step over a multiple
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
        now, state = Path(f'/proc/self/fd/{self.place}').resolve(), self.state
        if now.is_dir() and now != state.directory.resolve():
            state.run.log(f'warning: {state.directory} was renamed; resume with --log_dir {now} --resume auto')
            state.directory = now
        return state.directory

    def _write(self, about):
        step, state = about['step'], self.state
        try:
            self.follow().mkdir(parents=True, exist_ok=True)  # rank 0's, on the server of another one
            path = checkpoint.save(state.directory, self.cell, **about, **self.info)
        except OSError as error:
            size = sum(parameter.nbytes for parameter in self.cell.get_parameters())
            problem = f'checkpoint of step {step} not saved: {error.strerror or error}; '
            problem += f'it needs {size / 1e6:.1f} MB in {state.directory}'
            if state.stopping or step >= state.plan.stop:
                raise TrainingError(f'{problem}; the checkpoints before it are whole') from None
            self.due = min(self.due, step + max(1, self.every // RETRIES))
            state.run.log(f'warning: {problem}; training continues and tries again after step {self.due}')
            return None
        self.path, self.saved = path, step
        state.heartbeat(saved=1)
        state.metrics('checkpoint', step, epoch=state.epoch, file=path.name)
        # Only now is there room for others than the newest.
        self.written = [name for name in self.written if name != path.name] + [path.name]
        removed = {*self.replaced, *self.written[: -self.keep]} - {path.name, self.unmarked}
        self.written, self.replaced = [name for name in self.written if name not in removed], []
        for name in removed:
            with contextlib.suppress(OSError):
                path.with_name(name).unlink(missing_ok=True)
        return path

    def mark_if_best(self, found: dict) -> None:
        """Take what an evaluation of the present weights has `found`: top1, loss, and `records`, the fingerprint of the
        validation records. The best checkpoint gets a name of its own, after the next evaluation if it cannot be written."""
        best, log = self.follow() / checkpoint.BEST, self.state.run.log
        if self.best.get('records', found['records']) != found['records']:
            log(f'warning: {best.name} is the best by other validation records: it becomes {best.name}.1')
            with contextlib.suppress(OSError):
                best.replace(f'{best}.1')
            self.best = {}
        if self.path and self.saved == self.state.step and merit(found) > merit(self.best):
            self.best, self.unmarked = {**found, 'step': self.state.step}, self.path.name
        if self.unmarked:
            path = best.with_name(self.unmarked)
            with only_warned(log, f'{best.name}, although {path} is the best so far'), self.state.during(SAVING):
                checkpoint.mark_best(path, self.best)
                self.unmarked = None
                log(f'best top-1 so far: {path.name} is also {best.name}')
