"""When checkpoints are written, and which are kept: the newest ones, and the best one by its evaluations."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mindspore import nn

from src import files
from src.errors import InputError, TrainingError
from src.evaluation.outcomes import merit
from src.heartbeat import SAVING
from src.options import Settings
from src.training.state import State
from src.weights import checkpoint

SHARE = 0.01  # of the time between two checkpoints: a training run does not stand still for longer to write one


class Checkpoints:
    """Saves the state of a training run. One that cannot be written is tried again; the training run continues without it.

    If writing the last one took more than SHARE of the time between two, a thread writes the next one from a copy, while the
    training run continues. When their directory is renamed, the checkpoints follow it. Every rank has a `Checkpoints`; on
    schedule only rank 0 saves.

    Args:
        cell: whose parameters are saved.
        info: goes into each checkpoint, see `checkpoint.INFO`.
        settings: `save_checkpoint_steps`, `keep_checkpoint_max`.
        replaced: files of an earlier training run, which are removed with the first new checkpoint.
        resumed: the checkpoint that is resumed. Those of later steps become <name>.1, so that the new one is the newest.
    """

    def __init__(
        self,
        state: State,
        cell: nn.Cell,
        info: dict,
        settings: Settings,
        replaced: Sequence[Path] = (),
        resumed: Path | None = None,
    ):
        self.state, self.cell, self.info, self.keep = state, cell, info, settings.keep_checkpoint_max
        plan, directory = state.plan, state.directory
        self.every, self.due, self.saved = settings.save_checkpoint_steps or plan.steps_per_epoch, plan.start, plan.start
        begun = checkpoint.numbered(directory, plan.start, plan.position(plan.start)[0])
        self.path, self.place = begun if begun.exists() else None, files.Place(directory)
        self.begun, self.seconds, self.writer = time.monotonic(), 0.0, None  # of the last save
        self.lock, self.missed, self.replaced = threading.Lock(), False, [path.name for path in replaced]
        written = checkpoint.written_by(directory, info['training']) if info.get('training') else []
        begin = checkpoint.progress(resumed) if resumed else None
        self.names = [path.name for path in written]  # in the order of writing
        self.later = [path.name for path in written if begin and checkpoint.progress(path) > begin]
        for name in self.later:
            state.run.log(f'{name} has more steps than {resumed}: it becomes {name}.1 when the next one is written')
        self.best = {} if replaced else checkpoint.best_evaluation(directory)
        self.unmarked = None  # name of a checkpoint that is the best, but is not marked yet; it stays, however old it is

    def after_step(self) -> None:
        """Save after every `save_checkpoint_steps` steps and after the last one; again what failed, if there is room now."""
        step, stop = self.state.step, self.state.plan.stop
        if self.state.run.rank:
            return
        # Not `step % every`: a sink may step over the multiple.
        if step // self.every > self.due // self.every or step >= stop > self.due:
            self.due = step
            self.save(wait=step >= stop or self.seconds <= SHARE * (time.monotonic() - self.begun))
        elif self.state.stopping or self.missed and self._free() > self._needed():
            self.save()
        if self.unmarked and self.state.step > self.best['step'] and self._free() > self._needed():
            self._mark()

    def save(self, wait: bool = True) -> Path | None:
        """Save the present state if that was not done yet. Path of the checkpoint, None if it cannot be written, or if a
        thread still writes it, which happens without `wait` only.

        TrainingError if it cannot be written and there is no later step to try again.
        """
        with self.lock, self.state.during(SAVING):  # `stopping.Guard` saves from its own thread when the main one hangs
            self._join()
            step = self.state.step
            epoch, position = self.state.plan.position(step)
            if self.saved == step:
                return self.path
            there = checkpoint.numbered(self.state.directory, step, epoch)
            if self.state.run.rank and there.exists():
                return there
            self.begun, about = time.monotonic(), {'step': step, 'epoch': epoch, 'position': position}
            if wait:
                return self._write(checkpoint.values(self.cell), about)
            self.writer = threading.Thread(target=self._write, args=(checkpoint.snapshot(self.cell), about))
            self.writer.start()  # no daemon: the process does not end before it
            return None

    def settle(self) -> Path:
        """Wait until nothing is being written. Returns the directory, where it is now."""
        with self.lock:
            self._join()
            return self._follow()

    def _join(self):
        if self.writer:
            self.writer.join()
            self.writer = None

    def _follow(self):
        """The directory of the checkpoints, where it is now, with a line if it was renamed."""
        place, state = self.place.find(), self.state
        if place != state.directory:
            state.again = f'--log_dir {place} --resume auto'
            state.run.log(f'warning: {state.directory} was renamed, and all goes to {place}; resume with {state.again}')
            state.directory = place
        return place

    def _write(self, values, about):
        step, state = about['step'], self.state
        try:
            if self.place.replaced():
                raise OSError(errno.ENOENT, 'the directory was removed, and another one has its name')
            if not self._follow().exists():
                state.directory.mkdir(parents=True, exist_ok=True)  # rank 0's, on the server of another one
                state.run.log(f'warning: {state.directory} did not exist and was created')
                self.place = files.Place(state.directory)
            try:
                path = checkpoint.save(state.directory, values, **about, **self.info)
            except FileNotFoundError:  # it was renamed meanwhile
                path = checkpoint.save(self._follow(), values, **about, **self.info)
            size = path.stat().st_size
        except OSError as error:
            self._fail(error, step)
            return None
        self.path, self.saved, self.missed, self.seconds = path, step, False, time.monotonic() - self.begun
        state.heartbeat(saved=1)
        epoch = step / state.plan.steps_per_epoch
        state.metrics('checkpoint', step, epoch=epoch, file=path.name, bytes=size, seconds=self.seconds)
        self._remove_older(path)
        return path

    def _fail(self, error, step):
        problem = (
            f'checkpoint of step {step} not saved: {error.strerror or error}; it needs '
            f'{self._needed() / 1e6:.1f} MB, {self._free() / 1e6:.1f} MB are free in {self.state.directory}'
        )
        if self.writer is None and (self.state.stopping or step >= self.state.plan.stop):
            raise TrainingError(f'{problem}; the checkpoints before it are whole') from None
        self.state.run.log(f'warning: {problem}; training continues and tries again')
        self.missed = True

    def _needed(self):
        return sum(parameter.nbytes for parameter in self.cell.get_parameters())

    def _free(self):
        try:
            return shutil.disk_usage(self.place.find()).free
        except OSError:
            return 0

    def _remove_older(self, path):
        """Make room for `path`, which is written; a warning where that cannot be done."""
        try:
            for other in {*self.later} - {path.name}:
                path.with_name(other).replace(path.with_name(f'{other}.1'))
            self.names = [other for other in self.names if other not in (path.name, *self.later)] + [path.name]
            removed = {*self.names[: -self.keep], *self.replaced} - {path.name, self.unmarked}
            for other in removed:
                path.with_name(other).unlink(missing_ok=True)
            self.names, self.later, self.replaced = [other for other in self.names if other not in removed], [], []
        except OSError as error:
            self.state.run.log(f'warning: older checkpoints stay for now: {error}')

    def mark_if_best(self, found: dict) -> None:
        """Take what an evaluation of the present weights has `found`: top1, loss, and `records`, the fingerprint of the
        validation records. The best checkpoint gets a name of its own; a mark that cannot be written is tried again."""
        before = self.best.get('records', found['records'])
        if before != found['records']:
            kept = f'{checkpoint.BEST}.1'
            self.state.run.log(
                f'warning: other validation records than those by which {checkpoint.BEST} is the best ({before} -> '
                f'{found["records"]}): this evaluation makes a new one, and the old one stays as {kept}'
            )
            with contextlib.suppress(OSError):
                os.replace(self.settle() / checkpoint.BEST, self.state.directory / kept)
            self.best = {}
        if self.path and self.saved == self.state.step and merit(found) > merit(self.best):
            self.best, self.unmarked = {**found, 'step': self.state.step}, self.path.name
        if self.unmarked:
            self._mark()

    def _mark(self):
        """Mark the best; a warning if that cannot be done."""
        path = self.settle() / self.unmarked
        try:
            with self.state.during(SAVING):
                checkpoint.mark_best(path, self.best)
        except (OSError, InputError) as error:
            after = 'tried again' if self.state.step < self.state.plan.stop else f'{path} holds it'
            reason = getattr(error, 'strerror', None) or error
            self.state.run.log(f'warning: the best top-1 so far, but {checkpoint.BEST} cannot be written: {reason}; {after}')
            return
        self.unmarked = None
        self.state.run.log(f'best top-1 so far: {path.name} is also {checkpoint.BEST}')
