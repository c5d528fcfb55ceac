"""The records of a training run: `metrics.jsonl` beside its log, a JSON object in each line. Needs no MindSpore.

A record has a `time`, the `step` after which it was written, and a `kind`: start (of a run, with configuration and machine),
step (at each log line), evaluation, checkpoint, end (not after a kill).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

from src import files
from src.errors import only_warned
from src.training.plan import Plan

NAME = 'metrics.jsonl'


class Metrics:
    """Called with a kind, a step and fields, appends a record to the file `path` (None on the ranks that write none).

    Records of steps after `start`, by an earlier run in this file, are removed. A record is one write to the end of the
    file. A disk that is full costs records, not the training run.
    """

    def __init__(self, path: Path | None = None, start: int = 0, log: Callable[[str], None] = print):
        self.file = None
        if path:
            with only_warned(log, NAME):
                _forget_after(path, start)
                self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def __call__(self, kind: str, step: int, **fields: object) -> None:
        """See the class."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='milliseconds')
        record = {'kind': kind, 'step': step, 'time': now, **{name: _plain(value) for name, value in fields.items()}}
        with contextlib.suppress(OSError):
            if self.file is not None:
                os.write(self.file, f'{json.dumps(record)}\n'.encode('ascii'))

    def end(self, step: int, error: BaseException | None = None) -> None:
        """Record that the run ended after `step`, because of `error` or because all was done."""
        kind = '' if hasattr(error, 'exit_status') else f'{type(error).__name__}: '
        cause = kind + ' '.join(str(error).split())[:500] if error is not None else 'done'
        self('end', step, cause=cause, status=getattr(error, 'exit_status', 1) if error is not None else 0)


def begin(directory: Path | None, plan: Plan, config: dict, about: dict, log: Callable[[str], None] = print) -> Metrics:
    """The `Metrics` in `directory` (None on the ranks that write none) of a run of `plan` with `config`, with its first
    record, which also has the fields `about`. What cannot be written costs a warning to `log`."""
    made = Metrics(directory and directory / NAME, plan.start, log)
    numbers = {'stop': plan.stop, 'steps_per_epoch': plan.steps_per_epoch, 'global_batch': plan.global_batch}
    made('start', plan.start, epoch=plan.start / plan.steps_per_epoch, **numbers, **about, config=dict(config))
    return made


def read(path: str | Path) -> list[dict]:
    """The records in the file, without a line that is not whole (yet). OSError if it cannot be read."""
    records = []
    for line in Path(path).read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def last_evaluation(directory: Path, start: int) -> int:
    """The step of the last evaluation that is recorded in `directory` up to the step `start`, 0 if there was none; `start`
    itself where nothing is recorded."""
    if not (directory / NAME).exists():
        return start
    evaluations = (one['step'] for one in read(directory / NAME) if one['kind'] == 'evaluation')
    return max((step for step in evaluations if step <= start), default=0)


def _forget_after(path, start):
    """Remove the records of steps after `start`."""
    records = read(path) if path.exists() else []
    kept = [record for record in records if record['kind'] in ('start', 'end') or record['step'] <= start]
    if len(kept) < len(records):
        with files.replacing(path) as temporary:  # the old file or the new one, whenever this process is killed
            temporary.write_text(''.join(json.dumps(record) + '\n' for record in kept))


def _plain(value):
    """A float for JSON: with the digits that a float32 has, None if it is not finite."""
    if not isinstance(value, float):
        return value
    return float(f'{value:.7g}') if math.isfinite(value) else None
