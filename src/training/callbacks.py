"""What happens every so many steps of a training: checkpoints and evaluations."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mindspore import nn
from mindspore.train import Callback

from src.errors import TrainingError
from src.evaluation import evaluation
from src.graphs import Graphs
from src.training.monitor import TrainingMonitor
from src.weights import checkpoint


class Compiling(Callback):
    """The first step, or sink, of a run compiles its graph through `graphs`."""

    def __init__(self, graphs: Graphs):
        super().__init__()
        self.graphs, self.compiling = graphs, None

    def on_train_begin(self, run_context):
        """Called before the first step of a run, or of its first and its last sinks."""
        self.compiling = None

    def on_train_step_begin(self, run_context):
        """Called before a step, or a sink of steps."""
        if self.compiling is None:
            about = run_context.original_args()
            about.train_network.set_train()  # as Model does after this
            sink = about.batch_num if about.dataset_sink_mode else None
            self.compiling = contextlib.ExitStack()
            self.compiling.enter_context(
                self.graphs.compiling(about.train_network, about.train_dataset_element, 'training graph', sink)
            )

    def on_train_step_end(self, run_context):
        """Called after a step, or a sink of steps."""
        self.compiling.close()

    def __exit__(self, *error):
        if self.compiling is not None:
            self.compiling.__exit__(*error)


class Every(Callback):
    """Calls `act()` after every `every` steps and after the last one; the monitor's clock does not count it."""

    def __init__(self, monitor: TrainingMonitor, every: int):
        self.monitor, self.every, self.last = monitor, every, monitor.plan.start

    def act(self):
        """What is done; for the subclasses to say."""
        raise NotImplementedError

    def on_train_step_end(self, run_context):
        """Called after a step, or a sink of steps."""
        step = self.monitor.step
        # Not `step % every`: a sink may step over the multiple.
        if step // self.every > self.last // self.every or step >= self.monitor.plan.stop:
            self.last = step
            self.act()
            self.monitor.start_clock()


class Checkpoints(Every):
    """Saves checkpoints. One that cannot be written is tried again; the training goes on without it.

    Args:
        every (int): steps between two.
        directory (Path): where they go.
        cell (nn.Cell): whose parameters are saved.
        info (dict): goes into each checkpoint, see `checkpoint.INFO`.
        keep (int): number of this training's newest that are kept.
        replaced (list of Path): files of an earlier training, which are removed when the first checkpoint is written.
        spare (bool): this is not rank 0, and saves only what rank 0 did not.
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
    ):
        super().__init__(monitor, every)
        self.directory, self.cell, self.info, self.keep, self.replaced = directory, cell, info, keep, replaced
        self.path, self.saved, self.missed, self.spare, self.lock = None, monitor.plan.start, False, spare, threading.Lock()
        self.written = checkpoint.written_by(directory, info['training']) if 'training' in info else []

    def on_train_step_end(self, run_context):
        """Called after a step, or a sink of steps."""
        if self.missed and self._free() > self._needed():
            self.act()
        super().on_train_step_end(run_context)
        if self.monitor.stopping:
            self.act()

    def _needed(self):
        return sum(parameter.nbytes for parameter in self.cell.get_parameters())

    def _free(self):
        try:
            return shutil.disk_usage(self.directory).free
        except OSError:
            return 0

    def act(self):
        """Save the present state if that was not done yet. Path of the checkpoint, None if it cannot be written.

        TrainingError if it cannot be written and there is no later step to try again.
        """
        with self.lock, self.monitor.during('saving'):  # `watch.Watch` saves from its own thread when the main one hangs
            return self._act()

    def _act(self):
        step = self.monitor.step
        epoch, position = self.monitor.plan.position(step)
        if self.saved == step:
            return self.path
        if self.spare and (there := checkpoint.numbered(self.directory, step, epoch)).exists():
            return there
        begun = time.perf_counter()
        try:
            Path(self.directory).mkdir(parents=True, exist_ok=True)  # rank 0's, on the server of another one
            self.path = checkpoint.save(self.directory, self.cell, step=step, epoch=epoch, position=position, **self.info)
        except OSError as error:
            problem = (
                f'checkpoint of step {step} not saved: {error.strerror or error}; it needs '
                f'{self._needed() / 1e6:.1f} MB, {self._free() / 1e6:.1f} MB are free in {self.directory}'
            )
            if self.monitor.stopping or step >= self.monitor.plan.stop:
                raise TrainingError(f'{problem}; the checkpoints before it are whole') from None
            self.monitor.log(f'warning: {problem}; training goes on and tries again')
            self.missed = True
            return None
        self.saved, self.missed = step, False
        seconds, size = time.perf_counter() - begun, self.path.stat().st_size
        self.monitor.metrics('checkpoint', step, epoch=self.monitor.epoch, file=self.path.name, bytes=size, seconds=seconds)
        # In the order of writing, not of steps: a training may have gone on from an older checkpoint than its last.
        self.written = [path for path in self.written if path != self.path] + [self.path]
        for path in [*self.written[: -self.keep], *(path for path in self.replaced if path != self.path)]:
            path.unlink(missing_ok=True)
        self.written, self.replaced = self.written[-self.keep :], ()
        return self.path


class Evaluations(Every):
    """Evaluates and logs the result.

    Args:
        every (int): steps between two evaluations.
        evaluate (callable): returns an `evaluation.Result`, or None if it was asked to stop.
        checkpoints (Checkpoints): saves before each evaluation and marks the best; None on the other ranks than 0.
        report (callable): called with the last step after its evaluation, on every rank.
    """

    def __init__(
        self,
        monitor: TrainingMonitor,
        every: int,
        evaluate: Callable[[], evaluation.Result | None],
        checkpoints: Checkpoints | None = None,
        report: Callable[[int], None] | None = None,
    ):
        super().__init__(monitor, every)
        self.evaluate, self.checkpoints, self.report = evaluate, checkpoints, report

    def on_train_step_end(self, run_context):
        """Called after a step, or a sink of steps."""
        if not self.monitor.stopping:
            super().on_train_step_end(run_context)
            if self.monitor.stopping:
                run_context.request_stop()

    def act(self):
        """Evaluate the weights of now and log the result; the training stops if it was asked to meanwhile."""
        step = self.monitor.step
        path = self.checkpoints.act() if self.checkpoints else None  # first, so that nothing is lost in between
        begun = time.perf_counter()
        with self.monitor.during('evaluating'):
            result = self.evaluate()
        if result is None:
            self.monitor.stopping = True
            return
        seconds, epoch = time.perf_counter() - begun, self.monitor.epoch
        self.monitor.metrics('evaluation', step, epoch=epoch, **result._asdict(), seconds=seconds)
        self.monitor.log(evaluation.HEADER)
        self.monitor.log(evaluation.row(result, step, epoch))
        if path and checkpoint.mark_best(path, result.top1):
            self.monitor.log(f'best top-1 so far: {path.name} is also {checkpoint.BEST}')
        if self.report and step >= self.monitor.plan.stop:
            self.report(step)
