"""train.py whose log also has the cost of the steps so far: `python -m benchmarks.timed_training`, options as train.py.

Wall-clock and CPU seconds of the steps and of the data they waited for, without the step that compiles, checkpoints and
evaluations. CPU seconds are those of the whole process, so `--num_workers 1` (no worker processes) makes them complete.
"""

import re
import time

import train
from src.errors import entry_point
from src.training.monitor import TrainingMonitor

ROW = r' +(\d+) +[\d.]+ +([\d.]+) +\S+ +([\d.]+)  \d{4}-'  # step, top-1 and loss of an evaluation
# Timed steps, their wall-clock and CPU seconds; then the row.
EVALUATED = re.compile(r'timed: (\d+) steps, ([\d.]+) s, ([\d.]+) CPU s\n' + ROW)


class TimedMonitor(TrainingMonitor):
    """A `TrainingMonitor` whose log has a line `timed: ...` before each evaluation's row."""

    def __init__(self, log, *args, **kwargs):
        super().__init__(self.log_with_times, *args, **kwargs)
        self.write, self.timed_steps, self.wall, self.cpu = log, 0, 0.0, 0.0

    def log_with_times(self, line):
        """Write `line`, and before an evaluation's row the times so far."""
        if re.match(ROW, line):
            self.write(f'timed: {self.timed_steps} steps, {self.wall:.3f} s, {self.cpu:.3f} CPU s')
        self.write(line)

    def start_clock(self):
        super().start_clock()
        self.cpu_clock = time.process_time()

    def _count(self, done):
        if self.compiled:
            self.timed_steps += done
            self.wall += time.perf_counter() - self.clock
            self.cpu += time.process_time() - self.cpu_clock
        super()._count(done)


@entry_point
def main(argv=None):
    train.TrainingMonitor = TimedMonitor
    train.main(argv)


if __name__ == '__main__':
    main()
