"""What happens every so many steps of a training: checkpoints and evaluations."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mindspore import nn
from mindspore.train import Callback

from src import files
from src.errors import TrainingError
from src.evaluation import outcomes
from src.heartbeat import EVALUATING, SAVING
from src.training.kept import Best, Newest
from src.training.monitor import TrainingMonitor
from src.weights import checkpoint

SHARE = 0.01  # of the time between two checkpoints: a training does not stand still for longer to write one


class Every(Callback):
    """Calls `act()` after every `every` steps and after the last one; the monitor's clock does not count it."""

    def __init__(self, monitor: TrainingMonitor, every: int):
        self.monitor, self.every, self.last = monitor, every, monitor.plan.start

    def act(self):
        """What is done; for the subclasses to say."""
        raise NotImplementedError

    def on_train_step_end(self, run_context):
        """Called after a step, or a sink of steps."""
        self.when_due()

    def when_due(self) -> None:
        """Act if it is due."""
        step = self.monitor.step
        # Not `step % every`: a sink may step over the multiple.
        if step // self.every > self.last // self.every or step >= self.monitor.plan.stop > self.last:
            self.last = step
            self.act()
            self.monitor.start_clock()


class Checkpoints(Every):
    """Saves checkpoints. One that cannot be written is tried again; the training goes on without it.

    If writing the last one took more than SHARE of the time between two, a thread writes the next one from a copy, while the
    training goes on.

    Args:
        every (int): steps between two.
        directory (Path): where they go.
        cell (nn.Cell): whose parameters are saved.
        info (dict): goes into each checkpoint, see `checkpoint.INFO`.
        keep, replaced, resumed: see `Newest`.
        spare (bool): this is not rank 0, and saves only what rank 0 did not.

    When the directory is renamed, the checkpoints follow it.
    """

    def __init__(
        self,
        monitor: TrainingMonitor,
        every: int,
        directory: str | Path,
        cell: nn.Cell,
        info: dict,
        keep: int,
        replaced: Sequence[Path] = (),
        spare: bool = False,
        resumed: Path | None = None,
    ):
        super().__init__(monitor, every)
        self.directory, self.place, self.cell, self.info = Path(directory), files.Place(directory), cell, info
        begun = checkpoint.numbered(directory, monitor.plan.start, monitor.plan.position(monitor.plan.start)[0])
        self.path = begun if begun.exists() else None
        self.saved, self.missed, self.spare, self.lock = monitor.plan.start, False, spare, threading.Lock()
        self.newest = Newest(monitor.log, self.directory, info.get('training'), keep, replaced, resumed)
        self.begun, self.seconds, self.writer = time.monotonic(), 0.0, None  # of the last save
        monitor.settle = self.settle

    def on_train_step_end(self, run_context):
        """Called after a step, or a sink of steps."""
        if self.missed and self.has_room():
            self.act()
        super().on_train_step_end(run_context)
        if self.monitor.stopping:
            self.save()

    def on_train_end(self, run_context):
        """Called after the last step; what follows may start data workers, and a fork in the midst of a write could hang."""
        self.settle()

    def act(self):
        """Save the present state, in a thread where the last save took long."""
        now, last = time.monotonic(), self.monitor.step >= self.monitor.plan.stop
        self.save(wait=last or self.seconds <= SHARE * (now - self.begun))

    def save(self, wait: bool = True) -> Path | None:
        """Save the present state if that was not done yet. Path of the checkpoint, None if it cannot be written, or if a
        thread still writes it, which happens without `wait` only.

        TrainingError if it cannot be written and there is no later step to try again.
        """
        with self.lock, self.monitor.during(SAVING):  # `watch.Watch` saves from its own thread when the main one hangs
            self._settle()
            step = self.monitor.step
            epoch, position = self.monitor.plan.position(step)
            if self.saved == step:
                return self.path
            if self.spare and (there := checkpoint.numbered(self.directory, step, epoch)).exists():
                return there
            self.begun, about = time.monotonic(), {'step': step, 'epoch': epoch, 'position': position}
            if wait:
                return self._write(checkpoint.values(self.cell), about)
            self.writer = threading.Thread(target=self._write, args=(checkpoint.snapshot(self.cell), about))
            self.writer.start()  # no daemon: the process does not end before it
            return None

    def has_room(self) -> bool:
        """Whether the disk has room for a checkpoint."""
        return self._free() > self._needed()

    def follow(self) -> Path:
        """The directory of the checkpoints, where it is now, with a line if it was renamed."""
        place = self.place.find()
        if place != self.directory:
            self.monitor.again = f'--log_dir {place} --resume auto'
            self.monitor.log(
                f'warning: {self.directory} was renamed, and all goes to {place}; go on with {self.monitor.again}'
            )
            self.directory = self.monitor.directory = place
        return place

    def settle(self):
        """Wait until nothing is being written, and see where the directory is."""
        with self.lock:
            self._settle()
            self.follow()

    def _settle(self):
        if self.writer:
            self.writer.join()
            self.writer = None

    def _write(self, values, about):
        try:
            if self.place.replaced():
                raise OSError(errno.ENOENT, 'the directory was removed, and another one has its name')
            if not self.follow().exists():
                self.directory.mkdir(parents=True, exist_ok=True)  # rank 0's, on the server of another one
                self.monitor.log(f'warning: {self.directory} was not there, and is made')
                self.place = files.Place(self.directory)
            try:
                path = checkpoint.save(self.directory, values, **about, **self.info)
            except FileNotFoundError:  # it was renamed meanwhile
                path = checkpoint.save(self.follow(), values, **about, **self.info)
            size = path.stat().st_size
        except OSError as error:
            self._fail(error, about['step'])
            return None
        self.path, self.saved, self.missed, self.seconds = path, about['step'], False, time.monotonic() - self.begun
        self.monitor.heartbeat(saved=1)
        epoch = about['step'] / self.monitor.plan.steps_per_epoch
        self.monitor.metrics('checkpoint', about['step'], epoch=epoch, file=path.name, bytes=size, seconds=self.seconds)
        self.newest.add(path)
        return path

    def _fail(self, error, step):
        problem = (
            f'checkpoint of step {step} not saved: {error.strerror or error}; it needs '
            f'{self._needed() / 1e6:.1f} MB, {self._free() / 1e6:.1f} MB are free in {self.directory}'
        )
        if self.writer is None and (self.monitor.stopping or step >= self.monitor.plan.stop):
            raise TrainingError(f'{problem}; the checkpoints before it are whole') from None
        self.monitor.log(f'warning: {problem}; training goes on and tries again')
        self.missed = True

    def _needed(self):
        return sum(parameter.nbytes for parameter in self.cell.get_parameters())

    def _free(self):
        try:
            return shutil.disk_usage(self.place.find()).free
        except OSError:
            return 0


class Evaluations(Every):
    """Evaluates and logs the result.

    Args:
        every (int): steps between two evaluations.
        evaluate (callable): returns an `outcomes.Result`, or None if it was asked to stop.
        checkpoints (Checkpoints): saves before each evaluation and marks the best; None on the other ranks than 0.
        report (callable): called with the last step after its evaluation, on every rank.
        records (str): fingerprint of the validation records.
    """

    def __init__(
        self,
        monitor: TrainingMonitor,
        every: int,
        evaluate: Callable[[], outcomes.Result | None],
        checkpoints: Checkpoints | None = None,
        report: Callable[[int], None] | None = None,
        records: str = '',
    ):
        super().__init__(monitor, every)
        self.evaluate, self.checkpoints, self.report = evaluate, checkpoints, report
        self.last = monitor.plan.evaluated  # the end of an earlier run may have cut short one that was due since
        self.best = Best(checkpoints, records) if checkpoints else None

    def on_train_step_end(self, run_context):
        """Called after a step, or a sink of steps."""
        if self.best:
            self.best.retry()
        if not self.monitor.stopping:
            super().on_train_step_end(run_context)
            if self.monitor.stopping:
                run_context.request_stop()

    def act(self):
        """Evaluate the weights of now and log the result; the training stops if it was asked to meanwhile."""
        step = self.monitor.step
        if self.checkpoints:
            self.checkpoints.save()  # first, so that nothing is lost in between
        begun = time.perf_counter()
        with self.monitor.during(EVALUATING):
            result = self.evaluate()
        if result is None:
            self.monitor.stopping = True
            return
        seconds, epoch = time.perf_counter() - begun, self.monitor.epoch
        self.monitor.metrics('evaluation', step, epoch=epoch, **result._asdict(), seconds=seconds)
        self.monitor.log(outcomes.HEADER)
        self.monitor.log(outcomes.row(result, step, epoch))
        if self.best:
            self.best.offer(result._asdict())
        if self.report and step >= self.monitor.plan.stop:
            with self.monitor.during(EVALUATING):
                self.report(step)
