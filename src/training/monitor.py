"""What is seen of every step: log lines, progress bar, and whether the training has gone wrong or must stop."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from mindspore.train import LossMonitor

from src.data.bad_records import BadRecords
from src.errors import ElsewhereError, InputError, Interrupted, TrainingError
from src.heartbeat import COMPILING, STEPS, Heartbeat
from src.training.bar import Bar
from src.training.interruption import Interruption
from src.training.metrics import Metrics
from src.training.pace import Pace, straggler
from src.training.plan import Plan
from src.training.step import StepOutputs, on_host
from src.weights import checkpoint


class TrainingMonitor(LossMonitor):
    """A log line in the original's format every `display_every` steps, and a progress bar on a terminal; ends a
    training that has gone wrong, or that was asked to stop.

    FPS are the images per second of all ranks since the last line, without the time for compilation, checkpoints and
    evaluations (`-` if there was nothing else). In sink mode a line can only come at the end of a sink.

    Args:
        log (callable): takes a line.
        rates (ndarray): learning rate of every step.
        plan (Plan): which steps are done.
        interruption (Interruption): knows of signals; None without them.
        any_rank (callable): takes whether this rank is asked to stop and returns whether any rank is, so that all stop at
            the same step; `collective.any_rank` where there are several.
        l2_term (callable): returns what the total loss has beside the loss.
        max_overflow_steps (int): steps in a row without an update after which training ends.
        directory (Path): where the checkpoints are.
        bad (BadRecords): its counts are logged at the ends of epochs, and may end the training; None without them.
        metrics (Metrics): takes a record with each log line.
        pace (Pace): takes the durations of steps and waits.

    `step` is the number of steps done. `moving` is locked while a step changes the weights, since `changed`; otherwise
    `changed` is when the last step was done (time.monotonic()), and `duration` how long it took, in seconds. `heartbeat`
    shows the launcher of this rank what it does.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        rates: np.ndarray,
        plan: Plan,
        display_every: int,
        *,
        interruption: Interruption | None = None,
        any_rank: Callable[[bool], bool] = bool,
        l2_term: Callable[[], float] = lambda: 0.0,
        max_overflow_steps: int = 50,
        directory: Path | str = '',
        bad: BadRecords | None = None,
        metrics: Metrics | None = None,
        pace: Pace | None = None,
    ):
        super().__init__(display_every)
        self.log, self.rates, self.plan, self.step = log, rates, plan, plan.start
        self.interruption, self.any_rank, self.l2_term = interruption, any_rank, l2_term
        self.max_overflow_steps, self.directory, self.bad = max_overflow_steps, directory, bad
        self.stopping, self.problem, self.overflows = False, '', None
        self.heartbeat, self.again = Heartbeat(), '--resume auto'  # options by which the training goes on
        self.moving, self.changed, self.duration = threading.Lock(), time.monotonic(), 0.0
        self.images, self.seconds, self.all_images, self.all_seconds = 0, 0.0, 0, 0.0
        self.metrics, self.pace = metrics or Metrics(), pace or Pace()
        self.fetched, self.losses, self.bar = 0.0, [], None
        self.settle = lambda: None  # waits for a checkpoint that is being written; `callbacks.Checkpoints` sets it

    def on_train_begin(self, run_context):
        """Called before the first step of a run, of each of its stages, and of a last sink of another length."""
        self.heartbeat(COMPILING, self.step)
        self.bar = Bar(self.plan, self.step)
        self.first, self.logged, self.compiled = self.step, self.step, False
        self.start_clock()

    def start_clock(self):
        """Call after anything that must not count in FPS."""
        self.clock = time.perf_counter()

    def on_train_step_begin(self, run_context):
        """Called before a step, or a sink of steps."""
        self.fetched = time.perf_counter() - self.clock
        if self.interruption:
            self.interruption.hold()
        self.moving.acquire()
        self.changed = time.monotonic()

    def on_train_step_end(self, run_context):
        """Called after a step, or a sink of steps."""
        cb_params = run_context.original_args()
        before, self.step = self.step, self.first + cb_params.cur_step_num
        ends = any(before < stage.stop <= self.step for stage in self.plan.stages)  # no line is on images of two sizes
        due = ends or self.step - self.logged >= self._per_print_times
        outputs = on_host(cb_params.net_outputs)
        self._check(outputs)
        self.changed, self.duration = time.monotonic(), time.monotonic() - self.changed
        self.heartbeat(STEPS, self.step)
        self.moving.release()  # not after an error: then the weights are not fit to be saved
        self.losses.append(outputs.loss)
        self._count(self.step - before)
        if due:
            self._write_line(outputs)
        if self.step // self.plan.steps_per_epoch > before // self.plan.steps_per_epoch:
            self._tell_ranks()
        if self.bad:
            self._tell_bad_records(before)
        if self.any_rank(bool(self.problem or self.interruption and self.interruption.number)):
            self.stopping = True
            run_context.request_stop()
        self.start_clock()

    def _count(self, done):
        """Take the time of the `done` last steps."""
        elapsed = time.perf_counter() - self.clock
        if self.compiled:
            self.images += done * self.plan.global_batch
            self.seconds += elapsed
            self.pace.took(done, elapsed, self.fetched)
        else:
            self.log(f'time to the first {"step" if done == 1 else f"{done} steps"}, compilation included: {elapsed:.1f} s')
            self.compiled = True
            if self.interruption:
                self.interruption.can_save = True
        self.bar.done(done, self.losses[-1], self.images / self.seconds if self.seconds else None)

    def _write_line(self, outputs: StepOutputs):
        fps, epoch, rate = self.images / self.seconds if self.seconds else None, self.epoch, self.rates[self.step - 1]
        total_loss = outputs.loss + self.l2_term()
        self.log(
            f'step: {self.step} epoch: {epoch:.1f} FPS: {"-" if fps is None else format(fps, ".1f")} '
            f'loss: {outputs.loss:.3f} total_loss: {total_loss:.3f} lr:{rate:.5f}'
        )
        self.metrics(
            'step',
            self.step,
            epoch=epoch,
            loss=outputs.loss,
            mean_loss=sum(self.losses) / len(self.losses),
            total_loss=total_loss,
            lr=float(rate),
            gradient_norm=outputs.norm,
            images_per_second=fps,
            data_wait=self.pace.share(),
            overflows=int(outputs.overflows),
            loss_scale=outputs.loss_scale,
            image_size=next(stage.size for stage in self.plan.stages if self.step <= stage.stop),
        )
        if outputs.overflows > self.overflows:
            self.log(
                f'{outputs.overflows - self.overflows:.0f} of these steps skipped because gradients overflowed, '
                f'{outputs.overflows:.0f} in all; loss scale {outputs.loss_scale:g}'
            )
        if slow := self.pace.explanation((self.step - 1) // self.plan.steps_per_epoch):
            self.log(slow)
        self.overflows, self.losses = outputs.overflows, []
        self.logged = self.step
        self.all_images, self.all_seconds = self.all_images + self.images, self.all_seconds + self.seconds
        self.images, self.seconds = 0, 0.0

    @property
    def epoch(self) -> float:
        """Epochs done, with the part of the present one."""
        return self.step / self.plan.steps_per_epoch

    def _tell_ranks(self):
        """Record how the ranks spent the epoch that has just ended, and name the one that the others wait for."""
        ranks = self.pace.end_epoch()
        if ranks:
            self.metrics('ranks', self.step, epoch=self.epoch, **ranks)
            if slowest := straggler(ranks):
                self.log(slowest)

    def _tell_bad_records(self, before):
        """Log the counts of the epochs that ended since the step `before`, and judge those that were trained in."""
        per_epoch = self.plan.steps_per_epoch
        for epoch in range(before // per_epoch, self.step // per_epoch):
            if self.bad.count(epoch):
                self.log(
                    f'epoch {epoch + 1}: {self.bad.count(epoch)} records of this rank cannot be read or decoded, '
                    f'others took their places; first of all: {self.bad.first}'
                )
        self.problem = self.bad.problem(range(before // per_epoch, (self.step - 1) // per_epoch + 1))

    def _check(self, outputs: StepOutputs):
        """TrainingError if the training has gone wrong."""
        if self.overflows is None:
            self.overflows = outputs.overflows - (outputs.overflow_run > 0)
        if not np.isfinite(outputs.loss):
            problem = f'loss is {outputs.loss}'
        elif not np.isfinite(outputs.norm) and not outputs.overflow_run:  # so they have reached the weights
            problem = 'gradients are not finite'
        elif outputs.overflow_run >= self.max_overflow_steps:
            problem = f'gradients overflowed in {outputs.overflow_run:.0f} steps running (max_overflow_steps)'
        else:
            return
        self.settle()
        found = checkpoint.by_age(self.directory) if self.directory else []
        raise TrainingError(
            f'{problem} at step {self.step}, loss scale {outputs.loss_scale:g}; newest good checkpoint: '
            f'{found[-1] if found else "none"}; try a smaller --lr, --warmup_epochs or --loss_scale '
            'dynamic, and --resume_override true with --resume'
        )

    def on_train_end(self, run_context):
        """Called after the last step of a run, or of a part of it."""
        self.bar.leave = self.stopping or self.step >= self.plan.stop  # the next part has a bar of its own
        self.bar.close()

    @contextlib.contextmanager
    def during(self, name: str) -> Iterator[None]:
        """While the block runs, `name` is what this rank does: on the terminal, and for the launcher."""
        with self.heartbeat.during(name), self.bar.during(name) if self.bar else contextlib.nullcontext():
            yield

    def asked_to_stop(self) -> int:
        """A beat; gives the signal that asks the training to stop, or 0; for what takes longer than a step."""
        self.heartbeat()
        return self.interruption.number

    def error_of_stop(self) -> InputError:
        """The error that ends a training which was stopped before its last step."""
        how = f'stopped after step {self.step} of {self.plan.stop}; checkpoints in {self.directory}, go on with {self.again}'
        if self.problem:
            return InputError(f'{self.problem}; {how}')
        if self.interruption.number:
            return Interrupted(f'{self.interruption.name}: {how}', self.interruption.number)
        return ElsewhereError(f'another rank, whose log says why, ended the training: {how}')

    @property
    def fps(self) -> float | None:
        """Images per second of the whole run; None if there was no step beside the one with the compilation."""
        return self.all_images / self.all_seconds if self.all_seconds else None
