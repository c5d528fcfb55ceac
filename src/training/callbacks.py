"""What happens beside the steps of a training: log lines, progress bar, checkpoints, evaluations."""

import contextlib
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
from mindspore.train import Callback, LossMonitor
from tqdm import tqdm

from src.errors import ElsewhereError, InputError, Interrupted, TrainingError
from src.evaluation import evaluation
from src.training.step import on_host
from src.weights import checkpoint


class Log:
    """Writes lines to the screen and, if `path` is given, to the end of that file; `lost` if one could go to neither."""

    def __init__(self, path=None):
        try:
            if path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, 'a', encoding='utf-8') if path else None
        except OSError as error:
            raise InputError(f'{path}: the log cannot be written ({error.strerror}); choose another --log_dir') from None
        self.lost = False

    def __call__(self, line):
        # A full disk or a closed pipe is no reason to end a training.
        written = False
        with contextlib.suppress(OSError):
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
            written = True
        if self.file:
            with contextlib.suppress(OSError):
                print(line, file=self.file, flush=True)
                written = True
        self.lost |= not written


class TrainingMonitor(LossMonitor):
    """A log line in the original's format every `display_every` steps, and a progress bar on a terminal; ends a
    training that has gone wrong, or that was asked to stop.

    FPS are the images per second of all ranks since the last line, without the time for compilation, checkpoints and
    evaluations (`-` if there was nothing else). In sink mode a line can only come at the end of a sink.

    Args:
        log (callable): takes a line.
        rates (ndarray): learning rate of every step.
        batch_size (int): images of all ranks in a step.
        start, stop (int): steps done before and to be done in the end.
        interruption (Interruption): knows of signals.
        agreed (callable): takes whether this rank is asked to stop and gives whether any is, so that all ranks stop at the
            same step; `collective.any_rank` where there are several.
        l2_term (callable): gives what the total loss has beside the loss.
        max_overflow_steps (int): steps in a row without an update after which training ends.
        directory (Path): where the checkpoints are.
        bad (dataset.BadRecords): its counts are logged at the ends of epochs, and may end the training.

    `moving` is held while a step changes the weights, since or until `changed`; `duration` is that of the last step.
    """

    def __init__(
        self,
        log,
        rates,
        batch_size,
        steps_per_epoch,
        display_every,
        start,
        stop,
        *,
        interruption=None,
        agreed=bool,
        l2_term=lambda: 0.0,
        max_overflow_steps=50,
        directory='',
        bad=None,
    ):
        super().__init__(display_every)
        self.log, self.rates, self.batch_size, self.steps_per_epoch = log, rates, batch_size, steps_per_epoch
        self.start, self.stop, self.step = start, stop, start
        self.interruption, self.agreed, self.l2_term = interruption, agreed, l2_term
        self.max_overflow_steps, self.directory, self.bad = max_overflow_steps, directory, bad
        self.stopping, self.problem, self.overflows = False, '', None
        self.moving, self.changed, self.duration = threading.Lock(), time.monotonic(), 0.0
        self.images, self.seconds, self.all_images, self.all_seconds = 0, 0.0, 0, 0.0

    def on_train_begin(self, run_context):
        self.log('compiling the training graph: seconds to minutes in which nothing moves')
        self.bar = tqdm(total=self.stop, initial=self.step, unit='step', disable=None, dynamic_ncols=True)
        self.first, self.logged, self.compiled = self.step, self.step, False
        self.start_clock()

    def start_clock(self):
        """Call after anything that must not count in FPS."""
        self.clock = time.perf_counter()

    def on_train_step_begin(self, run_context):
        self.moving.acquire()
        self.changed = time.monotonic()

    def on_train_step_end(self, run_context):
        cb_params = run_context.original_args()
        done = self.first + cb_params.cur_step_num - self.step
        self.step += done
        due = self.step - self.logged >= self._per_print_times or self.step >= self.stop
        outputs = on_host(cb_params.net_outputs)
        self._check(outputs)
        self.changed, self.duration = time.monotonic(), time.monotonic() - self.changed
        self.moving.release()  # not after an error: what is left then is nothing to be saved
        elapsed = time.perf_counter() - self.clock
        if self.compiled:
            self.images += done * self.batch_size
            self.seconds += elapsed
        else:
            self.log(f'time to the first {"step" if done == 1 else f"{done} steps"}, compilation included: {elapsed:.1f} s')
            self.compiled = True
            if self.interruption:
                self.interruption.can_save = True
        self.bar.update(done)
        if due:
            fps = f'{self.images / self.seconds:.1f}' if self.seconds else '-'
            self.log(
                f'step: {self.step} epoch: {self.step / self.steps_per_epoch:.1f} FPS: {fps} '
                f'loss: {outputs.loss:.3f} total_loss: {outputs.loss + self.l2_term():.3f} '
                f'lr:{self.rates[self.step - 1]:.5f}'
            )
            if outputs.overflows > self.overflows:
                self.log(
                    f'{outputs.overflows - self.overflows:.0f} of these steps skipped because gradients overflowed, '
                    f'{outputs.overflows:.0f} in all; loss scale {outputs.loss_scale:g}'
                )
            self.overflows = outputs.overflows
            self.logged = self.step
            self.all_images, self.all_seconds = self.all_images + self.images, self.all_seconds + self.seconds
            self.images, self.seconds = 0, 0.0
        for epoch in range((self.step - done) // self.steps_per_epoch, self.step // self.steps_per_epoch):
            if self.bad and self.bad.count(epoch):
                self.log(
                    f'epoch {epoch + 1}: {self.bad.count(epoch)} records of this rank cannot be read or decoded, '
                    f'others took their places; first of all: {self.bad.first}'
                )
        if self.bad:
            self.problem = self.bad.problem(
                range((self.step - done) // self.steps_per_epoch, (self.step - 1) // self.steps_per_epoch + 1)
            )
        if self.agreed(bool(self.problem or self.interruption and self.interruption.number)):
            self.stopping = True
            run_context.request_stop()
        self.start_clock()

    def _check(self, outputs):
        if self.overflows is None:
            self.overflows = outputs.overflows - (outputs.overflow_run > 0)
        if not np.isfinite(outputs.loss):
            problem = f'loss is {outputs.loss}'
        elif not np.isfinite(outputs.norm) and not outputs.overflow_run:  # nothing has kept them from the weights
            problem = 'gradients are not finite'
        elif outputs.overflow_run >= self.max_overflow_steps:
            problem = f'gradients overflowed in {outputs.overflow_run:.0f} steps running (max_overflow_steps)'
        else:
            return
        found = checkpoint.by_age(self.directory) if self.directory else []
        raise TrainingError(
            f'{problem} at step {self.step}, loss scale {outputs.loss_scale:g}; newest good checkpoint: '
            f'{found[-1] if found else "none"}; try a smaller --lr, --warmup_epochs or --loss_scale '
            'dynamic, and --resume_override true with --resume'
        )

    def on_train_end(self, run_context):
        self.bar.close()

    def end(self):
        """The error with which a training ends that was stopped before its last step."""
        how = f'stopped after step {self.step} of {self.stop}; checkpoints in {self.directory}, go on with --resume auto'
        if self.problem:
            return InputError(f'{self.problem}; {how}')
        if self.interruption.number:
            return Interrupted(f'{self.interruption.name}: {how}', self.interruption.number)
        return ElsewhereError(f'another rank, whose log says why, ended the training: {how}')

    @property
    def fps(self):
        """Images per second of the whole run, None if it was over with the compilation."""
        return self.all_images / self.all_seconds if self.all_seconds else None


class _Every(Callback):
    """Calls `act()` after every `every` steps and at the end, off the monitor's clock."""

    def __init__(self, monitor, every):
        self.monitor, self.every, self.last = monitor, every, monitor.start

    def on_train_step_end(self, run_context):
        step = self.monitor.step
        # Not `step % every`: a sink may step over the multiple.
        if step // self.every > self.last // self.every or step >= self.monitor.stop:
            self.last = step
            self.act()
            self.monitor.start_clock()


class Checkpoints(_Every):
    """Saves `cell` to `directory` and keeps the `keep` newest of this training; `info` (dict) goes into each (see
    `checkpoint.INFO`). The files `replaced`, of a training before, are removed once the first is written.

    Where a checkpoint cannot be written, training goes on without it and tries again. With `spare` it is another rank's,
    which saves only what rank 0 did not.
    """

    def __init__(self, monitor, every, directory, cell, info, keep, replaced=(), spare=False):
        super().__init__(monitor, every)
        self.directory, self.cell, self.info, self.keep, self.replaced = directory, cell, info, keep, replaced
        self.path, self.saved, self.missed, self.spare, self.lock = None, monitor.start, False, spare, threading.Lock()
        self.written = checkpoint.written_by(directory, info['training']) if 'training' in info else []

    def on_train_step_end(self, run_context):
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
        """Save the state of now if that was not done yet; path of the checkpoint, None if it cannot be written."""
        with self.lock:  # `watch.Watch` may save where the main thread does not get on
            return self._act()

    def _act(self):
        step, per_epoch = self.monitor.step, self.monitor.steps_per_epoch
        if self.saved == step:
            return self.path
        if self.spare and (there := checkpoint.numbered(self.directory, step, step // per_epoch)).exists():
            return there
        try:
            Path(self.directory).mkdir(parents=True, exist_ok=True)  # rank 0's, on the server of another one
            self.path = checkpoint.save(
                self.directory,
                self.cell,
                step=step,
                epoch=step // per_epoch,
                position=step % per_epoch * self.monitor.batch_size,
                **self.info,
            )
        except OSError as error:
            problem = (
                f'checkpoint of step {step} not saved: {error.strerror or error}; it needs '
                f'{self._needed() / 1e6:.1f} MB, {self._free() / 1e6:.1f} MB are free in {self.directory}'
            )
            if self.monitor.stopping or step >= self.monitor.stop:
                raise TrainingError(f'{problem}; the checkpoints before it are whole') from None
            self.monitor.log(f'warning: {problem}; training goes on and tries again')
            self.missed = True
            return None
        self.saved, self.missed = step, False
        # In the order of writing, not of steps: a training may have gone on from an older checkpoint than its last.
        self.written = [path for path in self.written if path != self.path] + [self.path]
        for path in [*self.written[: -self.keep], *(path for path in self.replaced if path != self.path)]:
            path.unlink(missing_ok=True)
        self.written, self.replaced = self.written[-self.keep :], ()
        return self.path


class Evaluations(_Every):
    """Calls `evaluate()`, which gives an `evaluation.Result`, or None if it was asked to stop, and logs it;
    `checkpoints` (a `Checkpoints`, or None) keeps the best."""

    def __init__(self, monitor, every, evaluate, checkpoints=None):
        super().__init__(monitor, every)
        self.evaluate, self.checkpoints = evaluate, checkpoints

    def on_train_step_end(self, run_context):
        if not self.monitor.stopping:
            super().on_train_step_end(run_context)
            if self.monitor.stopping:
                run_context.request_stop()

    def act(self):
        step = self.monitor.step
        path = self.checkpoints.act() if self.checkpoints else None  # first, so that nothing is lost in between
        result = self.evaluate()
        if result is None:
            self.monitor.stopping = True
            return
        self.monitor.log(evaluation.HEADER)
        self.monitor.log(evaluation.row(result, step, step / self.monitor.steps_per_epoch))
        if path and checkpoint.mark_best(path, result.top1):
            self.monitor.log(f'best top-1 so far: {path.name} is also {checkpoint.BEST}')
