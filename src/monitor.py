"""What happens beside the steps of a training: log lines, progress bar, checkpoints, evaluations."""
import sys
import time
from pathlib import Path

import numpy as np
from mindspore.train import Callback, LossMonitor
from tqdm import tqdm

from src import checkpoint, evaluation
from src.errors import InputError, TrainingError


class Log:
    """Writes lines to the screen and, if `path` is given, to the end of that file."""

    def __init__(self, path=None):
        try:
            if path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, 'a', encoding='utf-8') if path else None
        except OSError as error:
            raise InputError(f'{path}: the log cannot be written ({error.strerror}); choose another --log_dir') from None

    def __call__(self, line):
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        if self.file:
            print(line, file=self.file, flush=True)


class TrainingMonitor(LossMonitor):
    """A log line in the original's format every `display_every` steps, and a progress bar on a terminal.

    FPS are the images per second of all ranks since the last line, without the time for compilation, checkpoints and
    evaluations. In sink mode a line can only come at the end of a sink.

    Args:
        log (callable): takes a line.
        rates (ndarray): learning rate of every step.
        batch_size (int): images of all ranks in a step.
        start, stop (int): steps done before and to be done in the end.
    """

    def __init__(self, log, rates, batch_size, steps_per_epoch, display_every, start, stop):
        super().__init__(display_every)
        self.log, self.rates, self.batch_size, self.steps_per_epoch = log, rates, batch_size, steps_per_epoch
        self.start, self.stop, self.step = start, stop, start
        self.images, self.seconds, self.all_images, self.all_seconds = 0, 0.0, 0, 0.0

    def on_train_begin(self, run_context):
        self.log('compiling the training graph: seconds to minutes in which nothing moves')
        self.bar = tqdm(total=self.stop, initial=self.start, unit='step', disable=None, dynamic_ncols=True)
        self.logged, self.compiled = self.start, False
        self.start_clock()

    def start_clock(self):
        """Call after anything that must not count in FPS."""
        self.clock = time.perf_counter()

    def on_train_step_end(self, run_context):
        cb_params = run_context.original_args()
        done = self.start + cb_params.cur_step_num - self.step
        self.step += done
        due = self.step - self.logged >= self._per_print_times or self.step >= self.stop
        if due or not self.compiled:  # asking for the values waits for the device
            loss, total_loss = (float(value.asnumpy()) for value in cb_params.net_outputs)
            if not np.isfinite(loss):
                raise TrainingError(f'loss is {loss} at step {self.step}; try a smaller --lr or --loss_scale, or '
                                    '--warmup_epochs')
        elapsed = time.perf_counter() - self.clock
        if self.compiled:
            self.images += done * self.batch_size
            self.seconds += elapsed
        else:
            self.log(f'time to the first {"step" if done == 1 else f"{done} steps"}, compilation included: '
                     f'{elapsed:.1f} s')
            self.compiled = True
        self.bar.update(done)
        if due:
            fps = self.images / self.seconds if self.seconds else float('nan')
            self.log(f'step: {self.step} epoch: {self.step / self.steps_per_epoch:.1f} FPS: {fps:.1f} '
                     f'loss: {loss:.3f} total_loss: {total_loss:.3f} lr:{self.rates[self.step - 1]:.5f}')
            self.logged = self.step
            self.all_images, self.all_seconds = self.all_images + self.images, self.all_seconds + self.seconds
            self.images, self.seconds = 0, 0.0
        self.start_clock()

    def on_train_end(self, run_context):
        self.bar.close()

    @property
    def fps(self):
        """Images per second of the whole run."""
        return self.all_images / self.all_seconds if self.all_seconds else float('nan')


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
    """Saves `cell` to `directory` and keeps the `keep` newest."""

    def __init__(self, monitor, every, directory, cell, config, keep):
        super().__init__(monitor, every)
        self.directory, self.cell, self.config, self.keep = directory, cell, config, keep

    def act(self):
        step = self.monitor.step
        self.path = checkpoint.save(self.directory, self.cell, step=step, epoch=step // self.monitor.steps_per_epoch,
                                    config=self.config)
        checkpoint.prune(self.directory, self.keep)


class Evaluations(_Every):
    """Calls `evaluate()`, which gives an `evaluation.Result`, and logs it."""

    def __init__(self, monitor, every, evaluate):
        super().__init__(monitor, every)
        self.evaluate = evaluate

    def act(self):
        step = self.monitor.step
        result = self.evaluate()
        self.monitor.log(evaluation.HEADER)
        self.monitor.log(evaluation.row(result, step, step / self.monitor.steps_per_epoch))
