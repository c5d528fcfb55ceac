"""Where a training run is, and whether and why it stops."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

from src.data.pipeline import BadRecords
from src.errors import ElsewhereError, InputError, Interrupted
from src.heartbeat import Heartbeat
from src.runtime import Run
from src.training.metrics import Metrics
from src.training.plan import Plan
from src.training.signals import Signals


class State:
    """Where a training run is, and whether and why it stops.

    `step` steps are done. `changing` is locked while a step changes the weights; `since` is when that began or ended
    (time.monotonic()), `seconds` the duration of the last step or sink. With `stopping` all ranks end after this step: for
    `problem`, a signal, or because of another rank; with `finished` as after the last step. `directory` has the checkpoints.
    """

    def __init__(self, plan: Plan, run: Run, signals: Signals, bad: BadRecords, metrics: Metrics):
        self.plan, self.run, self.signals, self.bad, self.metrics = plan, run, signals, bad, metrics
        self.step, self.stopping, self.finished, self.problem = plan.start, False, False, ''
        self.directory = run.checkpoints
        self.changing, self.since, self.seconds = threading.Lock(), time.monotonic(), 0.0
        progress = {'total': plan.stop, 'initial': plan.start, 'unit': 'step'}
        self.heartbeat, self.bar = Heartbeat(), tqdm(**progress, disable=None, dynamic_ncols=True)

    @property
    def epoch(self) -> float:
        """Epochs done, with the part of the present one."""
        return self.step / self.plan.steps_per_epoch

    @contextlib.contextmanager
    def during(self, name: str) -> Iterator[None]:
        """While the block runs, `name` is what this rank does: on the terminal, and for the launcher."""
        before = self.heartbeat.doing
        self.heartbeat(name)
        self.bar.set_description(name)
        try:
            yield
        finally:
            self.heartbeat(before)
            self.bar.set_description()

    def should_stop(self) -> bool:
        """Whether this rank has a reason to stop. Also a heartbeat, for what takes longer than a step."""
        self.heartbeat()
        return bool(self.problem or self.signals.number)

    def error(self) -> InputError:
        """The error that ends a training run which stops before its last step."""
        where = f'stopped after step {self.step} of {self.plan.stop}; checkpoints in {self.directory}, '
        where += 'resume with --resume auto'
        if self.problem:
            return InputError(f'{self.problem}; {where}')
        if self.signals.number:
            return Interrupted(f'{self.signals.name}: {where}', self.signals.number)
        return ElsewhereError(f'another rank failed (see its log): {where}')
