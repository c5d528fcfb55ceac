"""Which checkpoints of a training are kept: the newest ones, and the best one by its evaluations."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from src.errors import InputError
from src.evaluation.outcomes import merit
from src.heartbeat import SAVING
from src.weights import checkpoint


class Newest:
    """Removes older checkpoints of a training in `directory` when a new one is written.

    Args:
        training (str): its id, which its checkpoints carry.
        keep (int): number of its newest that are kept.
        replaced (list of Path): files of an earlier training, which are removed with the first new checkpoint.
        resumed (Path): the checkpoint that it goes on from. Those of later steps then become <name>.1, so that the new one
            is the newest.

    `pinned` is the name of a checkpoint that stays, however old it is.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        directory: Path,
        training: str | None,
        keep: int,
        replaced: Sequence[Path] = (),
        resumed: Path | None = None,
    ):
        self.log, self.keep, self.replaced, self.pinned = log, keep, [path.name for path in replaced], None
        written = checkpoint.written_by(directory, training) if training else []
        begin = checkpoint.progress(resumed) if resumed else None
        self.names = [path.name for path in written]
        self.later = [path.name for path in written if begin and checkpoint.progress(path) > begin]
        for name in self.later:
            log(f'{name} has more steps than {resumed}: it becomes {name}.1 when the next one is written')

    def add(self, path: Path) -> None:
        """Make room for `path`, which is written; a warning where that cannot be done."""
        name = path.name
        try:
            for other in {*self.later} - {name}:
                path.with_name(other).replace(path.with_name(f'{other}.1'))
            # In the order of writing.
            self.names = [other for other in self.names if other not in (name, *self.later)] + [name]
            removed = {*self.names[: -self.keep], *self.replaced} - {name, self.pinned}
            for other in removed:
                path.with_name(other).unlink(missing_ok=True)
            self.names, self.later, self.replaced = [other for other in self.names if other not in removed], [], []
        except OSError as error:
            self.log(f'warning: older checkpoints stay for now: {error}')


class Best:
    """Keeps the best of `checkpoints` (`callbacks.Checkpoints`) under a name of its own. A mark that cannot be written is
    tried again; the training goes on without it.

    `records` is the fingerprint of the validation records. Where the best one so far was found by others, it is no longer
    compared with: a line says so, and it stays as `inceptionv4-best.ckpt.1` when there is a new one.
    """

    def __init__(self, checkpoints, records: str = ''):
        self.checkpoints, self.records, self.missed, self.full = checkpoints, records, False, False
        self.found = {} if checkpoints.newest.replaced else checkpoint.best_evaluation(checkpoints.directory)
        before = self.found.get('records') or records
        self.incomparable = before != records
        if self.incomparable:
            self.found = {}
            checkpoints.monitor.log(
                f'warning: other validation records than those by which {checkpoint.BEST} is the best ({before} -> '
                f'{records}): the next evaluation makes a new one, and this one stays as {checkpoint.BEST}.1'
            )

    def offer(self, found: dict) -> None:
        """Take what an evaluation of the present weights has `found` (at least top1 and loss): if it is the best, their
        checkpoint is marked. An earlier mark that could not be written is tried again."""
        saved = self.checkpoints.path and self.checkpoints.saved == self.checkpoints.monitor.step
        if saved and merit(found) > merit(self.found):
            self.found, self.missed = {**found, 'records': self.records}, True
            self.checkpoints.newest.pinned = self.checkpoints.path.name
        if self.missed:
            self.mark()

    def retry(self) -> None:
        """Mark the best if that could not be done on a full disk, and there is room now."""
        if self.missed and self.full and self.checkpoints.has_room():
            self.mark()

    def mark(self) -> None:
        """Mark the best; a warning if that cannot be done."""
        self.checkpoints.settle()
        monitor, path = self.checkpoints.monitor, self.checkpoints.directory / self.checkpoints.newest.pinned
        try:
            if self.incomparable:
                self.incomparable = False
                os.replace(path.with_name(checkpoint.BEST), path.with_name(f'{checkpoint.BEST}.1'))
            with monitor.during(SAVING):
                checkpoint.mark_best(path, self.found)
        except (OSError, InputError) as error:
            self.full, reason = getattr(error, 'errno', None) == errno.ENOSPC, getattr(error, 'strerror', None) or error
            after = 'tried again' if monitor.step < monitor.plan.stop else f'{path} holds it'
            monitor.log(f'warning: the best top-1 so far, but {checkpoint.BEST} cannot be written: {reason}; {after}')
            return
        self.missed, self.checkpoints.newest.pinned = False, None
        monitor.log(f'best top-1 so far: {path.name} is also {checkpoint.BEST}')
