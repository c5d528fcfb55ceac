"""All that happens after each step of a training run: `Monitor.after_step`."""

from __future__ import annotations

import contextlib
import os
import time

import numpy as np
from mindspore.train import LossMonitor

from src import collective
from src.data import jpeg
from src.data.pipeline import workers
from src.errors import TrainingError
from src.evaluation.evaluation import Evaluation
from src.evaluation.outcomes import HEADER, row
from src.heartbeat import COMPILING, EVALUATING, STEPS
from src.options import Settings
from src.training.checkpoints import Checkpoints
from src.training.optimizer import decayed_parameters
from src.training.plan import no_gain
from src.training.step import StepOutputs, TrainStep, l2_term, on_host
from src.weights import checkpoint

MAX_OVERFLOWS = 50  # consecutive steps with overflowed gradients after which a training run ends
MUCH = 0.1  # share of the time from which on a wait is worth a line
SEEN = 20  # steps, and seconds, of an epoch before that: the first waits are those of a pipeline that fills


class Monitor(LossMonitor):
    """The only callback of a training run, on the CPU and where the device runs sinks of steps.

    Args:
        settings: `display_every`, `weight_decay`, `epochs_between_evals`.
        rates: the learning rate of every step.
        evaluation: None without evaluations.
    """

    def __init__(
        self, settings: Settings, step: TrainStep, rates: np.ndarray, checkpoints: Checkpoints, evaluation: Evaluation | None
    ):
        super().__init__(settings.display_every)
        self.settings, self.train_step, self.rates, self.checkpoints = settings, step, rates, checkpoints
        self.state, self.decayed = checkpoints.state, decayed_parameters(step)
        self.evaluation, self.evaluated = evaluation, self.state.plan.evaluated
        self.overflows, self.losses = None, []
        # Steps, their seconds, and seconds of waiting for data: since the last line, of this epoch.
        self.line, self.of_epoch = np.zeros(3), np.zeros(3)

    def on_train_begin(self, run_context):
        """Called before the first step of a run, of each of its stages, and of a last sink of another length."""
        state, plan = self.state, self.state.plan
        self.stage, stages = plan.stage_at(state.step), plan.stages
        size, first, last = self.stage
        if len(stages) > 1:
            state.run.log(
                f'stage {stages.index(self.stage) + 1} of {len(stages)}: images of {size} x {size} pixels, epochs '
                f'{first / plan.steps_per_epoch:g} to {last / plan.steps_per_epoch:g}, steps {first + 1} to {last}; '
                'the graph is compiled anew'
            )
        state.heartbeat(COMPILING, state.step)
        state.bar.set_description(COMPILING)
        self.first = self.logged = state.step
        self.compiling, self.compiled = contextlib.ExitStack(), False
        self.clock = time.perf_counter()

    def on_train_step_begin(self, run_context):
        """Called when the data of a step, or of a sink of steps, are there."""
        self.waited = time.perf_counter() - self.clock
        self.state.signals.install()
        if not self.compiled:
            about = run_context.original_args()
            about.train_network.set_train()  # as Model does after this
            sink = about.batch_num if about.dataset_sink_mode else None
            graph = about.train_network, about.train_dataset_element, 'training graph', sink
            self.compiling.enter_context(self.state.run.graphs.compiling(*graph))
        self.state.changing.acquire()
        self.state.since = time.monotonic()

    def on_train_step_end(self, run_context):
        """Called after a step, or a sink of steps."""
        about = run_context.original_args()
        outputs = on_host(about.net_outputs)  # waits for the device
        self.compiling.close()
        self.after_step(self.first + about.cur_step_num - self.state.step, outputs)
        if self.state.stopping or self.state.finished:
            run_context.request_stop()

    def after_step(self, steps: int, outputs: StepOutputs) -> None:
        """What follows on `steps` steps, one or a sink, from top to bottom. `outputs` are those of the last one."""
        state, plan = self.state, self.state.plan
        before, state.step = state.step, state.step + steps
        self.require_finite(outputs)
        state.since, state.seconds = time.monotonic(), time.monotonic() - state.since
        state.changing.release()  # not after an error: then the weights are not fit to be saved
        state.heartbeat(STEPS, state.step)
        self.count(steps, outputs.loss)
        if state.step - self.logged >= self._per_print_times or state.step == self.stage.stop:
            self.write_line(outputs)
        epoch = before // plan.steps_per_epoch
        if state.step // plan.steps_per_epoch > epoch:
            self.end_epoch(epoch)
        # Workers are ahead of the steps; an epoch is judged while it is trained.
        state.problem = state.bad.problem(range(epoch, (state.step - 1) // plan.steps_per_epoch + 1))
        # All ranks stop after the same step, as they agree after each.
        state.stopping = collective.any_rank(state.should_stop()) if plan.world > 1 else state.should_stop()
        self.checkpoints.after_step()
        if not state.stopping:
            self.evaluate_if_due()
        self.clock = time.perf_counter()  # what was done in between does not count

    def require_finite(self, outputs: StepOutputs) -> None:
        """TrainingError if the training run has diverged."""
        if self.overflows is None:
            self.overflows = outputs.overflows - (outputs.overflow_run > 0)
        if not np.isfinite(outputs.loss):
            problem = f'loss is {outputs.loss}'
        elif not np.isfinite(outputs.norm) and not outputs.overflow_run:  # so they have reached the weights
            problem = 'gradients are not finite'
        elif outputs.overflow_run >= MAX_OVERFLOWS:
            problem = f'gradients overflowed in {outputs.overflow_run:.0f} consecutive steps'
        else:
            return
        found = checkpoint.by_age(self.state.directory)
        raise TrainingError(
            f'{problem} at step {self.state.step}, loss scale {outputs.loss_scale:g}; newest good checkpoint: '
            f'{found[-1] if found else "none"}; try a smaller --lr, --warmup_epochs or --loss_scale '
            'dynamic, and --resume_override true with --resume'
        )

    def count(self, steps: int, loss: float) -> None:
        """Take the time of the last steps; the first one of a graph compiles it and does not count."""
        seconds, state = time.perf_counter() - self.clock, self.state
        self.losses.append(loss)
        if self.compiled:
            for figures in (self.line, self.of_epoch):
                figures += steps, seconds, self.waited
        else:
            state.run.log(f'time to the first {"step" if steps == 1 else "steps"}, compilation included: {seconds:.1f} s')
            self.compiled = state.signals.can_save = True
            state.bar.set_description(refresh=False)
        state.bar.set_postfix(epoch=f'{state.epoch:.1f}', loss=f'{loss:.3f}', fps=self.fps(self.line) or '-', refresh=False)
        state.bar.update(steps)

    def fps(self, figures: np.ndarray) -> float | None:
        """Images per second of all ranks; None if there was no step beside one with a compilation."""
        return self.state.plan.global_batch * figures[0] / figures[1] if figures[1] else None

    def write_line(self, outputs: StepOutputs) -> None:
        """The original's log line, and a record of metrics."""
        state, fps, rate = self.state, self.fps(self.line), float(self.rates[self.state.step - 1])
        loss, norm, overflows, _, loss_scale = outputs
        total_loss = loss + l2_term(self.decayed, self.settings.weight_decay)
        state.run.log(
            f'step: {state.step} epoch: {state.epoch:.1f} FPS: {"-" if fps is None else format(fps, ".1f")} '
            f'loss: {loss:.3f} total_loss: {total_loss:.3f} lr:{rate:.5f}'
        )
        losses = {'loss': loss, 'mean_loss': sum(self.losses) / len(self.losses), 'total_loss': total_loss}
        # The host does not see whether a device in a sink waits.
        wait = self.line[2] / self.line[1] if fps and not state.run.sink else None
        speed = {'images_per_second': fps, 'data_wait': wait, 'image_size': self.stage.size}
        scaling = {'gradient_norm': norm, 'overflows': int(overflows), 'loss_scale': loss_scale}
        state.metrics('step', state.step, epoch=state.epoch, lr=rate, **losses, **speed, **scaling)
        if overflows > self.overflows:
            state.run.log(
                f'{overflows - self.overflows:.0f} of these steps skipped because gradients overflowed, '
                f'{overflows:.0f} in all; loss scale {loss_scale:g}'
            )
        self.overflows, self.losses, self.logged = overflows, [], state.step
        self.line[:] = 0

    def end_epoch(self, epoch: int) -> None:
        """Log what slowed the epoch (from 0) that has just ended: bad records, the wait for data."""
        state, (steps, seconds, waited) = self.state, self.of_epoch
        self.of_epoch = np.zeros(3)
        if count := state.bad.counts[epoch]:
            state.run.log(
                f'epoch {epoch + 1}: {count} records of this rank cannot be read or decoded, '
                f'others took their places; first of all: {state.bad.first}'
            )
        if not state.run.sink and steps >= SEEN and seconds >= SEEN and waited > MUCH * seconds:
            cores, used = len(os.sched_getaffinity(0)), workers(self.settings.num_workers, state.run.ranks_here)
            more = f'more --num_workers ({used} of {cores} cores decode)' if used < cores else 'more cores'
            more += ', libturbojpeg 3' * (jpeg.library() is None)
            state.run.log(
                f'{waited / seconds:.0%} of the time waits for data; remedies: {more}, faster storage for --data_dir'
            )

    def evaluate_if_due(self) -> None:
        """Evaluate and log the result, after every `epochs_between_evals` epochs and after the last step."""
        state, every = self.state, self.settings.epochs_between_evals * self.state.plan.steps_per_epoch
        # Not `step % every`: a sink may step over the multiple.
        due = state.step // every > self.evaluated // every or state.step >= state.plan.stop > self.evaluated
        if self.evaluation is None or not due:
            return
        self.evaluated = state.step
        if state.run.rank == 0:
            self.checkpoints.save()  # first, so that nothing is lost in between
        begun = time.perf_counter()
        with state.during(EVALUATING):
            result = self.evaluation.of_training(self.train_step, state.step, state.should_stop)
        if result is None:
            state.stopping = True
            return
        seconds = time.perf_counter() - begun
        state.metrics('evaluation', state.step, epoch=state.epoch, **result._asdict(), seconds=seconds)
        state.run.log(HEADER)
        state.run.log(row(result, state.step, state.epoch))
        if state.run.rank == 0:
            self.checkpoints.mark_if_best({**result._asdict(), 'records': self.evaluation.records.fingerprint})
        if self.settings.patience:
            self.finish_if_no_gain()

    def finish_if_no_gain(self) -> None:
        """End the training run, on all ranks, where the last `patience` evaluations were no better than the best one."""
        state, best = self.state, self.checkpoints.best.get('step', self.state.step)
        # On rank 0, which knows the best one.
        ends = state.run.rank == 0 and no_gain(self.settings, state.plan, best, self.evaluated)
        state.finished = collective.any_rank(ends) if state.plan.world > 1 else ends
        if state.finished:
            state.run.log(f'no gain in {self.settings.patience} evaluations: training ends, the best was at step {best}')

    def __exit__(self, *error):
        self.compiling.__exit__(*error)
