"""What slows a training, as far as the host can see: the wait for data, and a rank that begins its steps later."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from src.data import jpeg

MUCH = 0.1  # share of the time from which on it is said
STEPS, SECONDS = 20, 20.0  # of an epoch, before anything is said: the first waits are those of a pipeline that fills


class Pace:
    """Adds up how long steps take and how long each waited for its batch before.

    In a sink the device fetches the batches itself, and the host cannot see whether it waits: such waits are None. Nor can
    it see a device that is slower than the others, as all ranks of a step end together.

    Args:
        sink (bool): the host sees only the ends of sinks.
        workers (int): processes that decode.
        every_rank (callable): [values of this rank] -> array (ranks, values), see `collective.gathered`; None where there
            is one rank.
    """

    def __init__(self, sink: bool = False, workers: int = 1, every_rank: Callable[[list[float]], np.ndarray] | None = None):
        self.sink, self.workers, self.every_rank = sink, workers, every_rank
        self.seconds, self.waited, self.told = 0.0, 0.0, None
        self._begin_epoch()

    def _begin_epoch(self):
        self.epoch_steps, self.epoch_seconds, self.epoch_waited = 0, 0.0, 0.0

    def took(self, steps: int, seconds: float, waited: float) -> None:
        """`steps` took `seconds`, of which `waited` passed before their data was there."""
        self.seconds, self.waited = self.seconds + seconds, self.waited + waited
        self.epoch_steps += steps
        self.epoch_seconds, self.epoch_waited = self.epoch_seconds + seconds, self.epoch_waited + waited

    def share(self) -> float | None:
        """Share of the time since the last call in which this rank waited for data; None if it is not known."""
        seconds, waited = self.seconds, self.waited
        self.seconds, self.waited = 0.0, 0.0
        return None if self.sink or not seconds else waited / seconds

    def explanation(self, epoch: int) -> str | None:
        """A line on the wait for data in `epoch`, at most once in each; None if it is short, or too little was seen."""
        seen = self.epoch_steps >= STEPS and self.epoch_seconds >= SECONDS and not self.sink
        if not seen or epoch == self.told or self.epoch_waited <= MUCH * self.epoch_seconds:
            return None
        self.told, cores = epoch, len(os.sched_getaffinity(0))
        remedies = [
            f'more --num_workers ({self.workers} of {cores} cores decode)' if self.workers < cores else 'more cores',
            *(['libturbojpeg 3 instead of Pillow'] if jpeg.library() is None else []),
            'faster storage for --data_dir',
        ]
        share = 100 * self.epoch_waited / self.epoch_seconds
        return f'{share:.0f} % of the time waits for data; remedies: {", ".join(remedies)} (docs/monitoring.md)'

    def end_epoch(self) -> dict[str, list] | None:
        """{'step_seconds': mean duration of a step, 'data_wait_seconds': mean wait before it} by rank, of the epoch that has
        ended; None where there is one rank. To be called by all ranks after the same step."""
        steps, seconds, waited = max(self.epoch_steps, 1), self.epoch_seconds, self.epoch_waited
        self._begin_epoch()
        if self.every_rank is None:
            return None
        found = self.every_rank([(seconds - waited) / steps, waited / steps])
        return {'step_seconds': found[:, 0].tolist(), 'data_wait_seconds': None if self.sink else found[:, 1].tolist()}


def straggler(ranks: dict[str, list]) -> str | None:
    """A line that names the rank which the others wait for, if its mean wait for data exceeds the median of the ranks by
    more than a tenth of a step; None if there is none. `ranks` as of `Pace.end_epoch`."""
    if ranks['data_wait_seconds'] is None:
        return None
    waits = np.asarray(ranks['data_wait_seconds'])
    whole, worst = float(np.median(waits + ranks['step_seconds'])), int(waits.argmax())
    behind = float(waits[worst] - np.median(waits))
    if not whole or behind <= MUCH * whole:
        return None
    return (
        f'rank {worst} is slower than the others: it begins its steps {behind:.3f} s later than the median rank, '
        f'{100 * behind / whole:.0f} % of a step, for which all ranks wait; look at the storage and the load of its server'
    )
