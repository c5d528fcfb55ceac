"""The progress bar of a training, on a terminal only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tqdm import tqdm

from src.training.plan import Plan

# What a narrow terminal cuts off comes last.
SHOWN = '{doing}{percentage:.0f}%, {left} left, epoch {epoch}{loss}{speed} |{bar}| {n_fmt}/{total_fmt} [{elapsed}]'


class Bar(tqdm):
    """A progress bar of steps with epoch, loss and images per second, which names what the training waits for and knows how
    long the steps of every stage of `plan` take. `step` is the number of steps done before."""

    def __init__(self, plan: Plan, step: int):
        self.plan, self.doing, self.loss, self.speed, self.begin = plan, 'compiling', None, None, None
        super().__init__(total=plan.stop, initial=step, unit='step', disable=None, dynamic_ncols=True, bar_format=SHOWN)

    def done(self, steps: int, loss: float, speed: float | None) -> None:
        """`steps` more steps are done; `loss` of the last one, images per second of late."""
        self.doing, self.loss, self.speed = '', loss, speed
        if self.begin is None:  # the first steps compiled, which tells nothing of the others
            self.begin = time.time(), self.n + steps
        self.update(steps)

    @contextlib.contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Show `name` while the block runs."""
        self.doing = name
        self.refresh()
        try:
            yield
        finally:
            self.doing = ''
            self.refresh()

    @property
    def format_dict(self):
        """What the line is made of; `left` is the time that is left."""
        values = super().format_dict
        since, first = self.begin or (0, self.n)
        rate = (self.n - first) / max(time.time() - since, 1e-9)
        epochs = -(-self.plan.stop // self.plan.steps_per_epoch)
        return {
            **values,
            'left': self.format_interval(self.plan.left(self.n) / rate) if rate else '?',
            'doing': f'{self.doing}, ' if self.doing else '',
            'epoch': f'{self.n / self.plan.steps_per_epoch:.1f}/{epochs}',
            'loss': '' if self.loss is None else f', loss {self.loss:.3f}',
            'speed': '' if self.speed is None else f', {self.speed:.1f} images/s',
        }
