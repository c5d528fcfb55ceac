"""The records of a training run: `metrics.jsonl` beside its log, a JSON object in each line, and an event file for
TensorBoard. Needs no MindSpore. A record has a `time`, the `step` after which it was written, and a `kind`: start (of a run,
with configuration and machine), step (at each log line), evaluation, checkpoint, ranks (how they spent an epoch), end (not
after a kill)."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from src import files
from src.errors import InputError, only_warned
from src.training.plan import Plan

NAME = 'metrics.jsonl'
OF_STEPS = ('step', 'evaluation', 'checkpoint', 'ranks')  # kinds that a resumed run records again
# Fields that TensorBoard shows, and under which heading.
TRAINING = 'loss mean_loss total_loss lr gradient_norm images_per_second data_wait overflows loss_scale image_size epoch'
CURVES = {'step': f'training {TRAINING}', 'evaluation': 'evaluation top1 top5 loss'}


class Metrics:
    """Called with a kind, a step and fields, appends a record to the file `path` (None on the ranks that write none) and
    passes it to each of `readers`. Records of steps after `start`, by an earlier run in this file, are removed. A record is
    one write to the end of the file. A disk that is full costs records, not the training run."""

    def __init__(self, path: Path | None = None, start: int = 0, readers: list = (), log: Callable[[str], None] = print):
        self.readers, self.file = readers, None
        if path:
            with only_warned(log, NAME):
                _forget_after(Path(path), start)
                self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def __call__(self, kind: str, step: int, **fields: object) -> None:
        """See the class."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='milliseconds')
        record = {'kind': kind, 'step': step, 'time': now, **_plain(fields)}
        with contextlib.suppress(OSError):
            if self.file is not None:
                os.write(self.file, f'{files.as_json(record)}\n'.encode('ascii'))
        for take in self.readers:
            take(record)

    def end(self, step: int, error: BaseException | None = None) -> None:
        """Record that the run ended after `step`, because of `error` or because all was done."""
        kind = '' if hasattr(error, 'exit_status') else f'{type(error).__name__}: '
        cause = kind + ' '.join(str(error).split())[:500] if error is not None else 'done'
        self('end', step, cause=cause, status=getattr(error, 'exit_status', 1) if error is not None else 0)

    @contextlib.contextmanager
    def until_end(self, step: Callable[[], int]) -> Iterator[None]:
        """Record the end of the block, and the exception that ends it; `step()` returns the last step."""
        try:
            yield
        except BaseException as error:
            self.end(step(), error)
            raise
        self.end(step())


def begin(directory: Path | None, plan: Plan, config: dict, about: dict, log: Callable[[str], None] = print) -> Metrics:
    """The `Metrics` in `directory` (None on the ranks that write none) of a run of `plan` with `config`, with its first
    record, which also has the fields `about`. What cannot be written costs a warning to `log`."""
    readers = []
    if directory and config.get('tensorboard'):
        with only_warned(log, 'event file'):
            readers.append(event_file(Path(directory).resolve() / 'tensorboard', plan.start))
    made = Metrics(directory and Path(directory) / NAME, plan.start, readers, log)
    first = {'epoch': plan.start / plan.steps_per_epoch, 'stop': plan.stop, 'steps_per_epoch': plan.steps_per_epoch}
    path = str(directory and Path(directory).resolve() / 'config.yaml')
    made('start', plan.start, **first, global_batch=plan.global_batch, **about, config_path=path, config=dict(config))
    return made


def need_tensorboard() -> None:
    """InputError if tensorboardX cannot be found. It is not imported: that must wait for MindSpore."""
    if importlib.util.find_spec('tensorboardX') is None:
        raise InputError('tensorboard true needs the package tensorboardX: pip install -r requirements-report.txt')


def event_file(directory: Path, start: int) -> Callable[[dict], None]:
    """A function that writes the curves of a record to a new event file in `directory`, where TensorBoard then drops what
    earlier files have of steps after `start`. MindSpore must be imported before: otherwise protobuf ends the process (2.8.0,
    tensorboardX 2.6.5). Not by SummaryWriter, whose thread ends at a full disk: the run would wait for it for ever."""
    events, summary = (importlib.import_module(f'tensorboardX.{name}') for name in ('event_file_writer', 'summary'))
    event, session = events.event_pb2.Event, events.event_pb2.SessionLog
    directory.mkdir(parents=True, exist_ok=True)
    writer = events.EventsWriter(str(directory / 'events'), f'.{os.getpid()}')
    writer.write_event(event(step=start + 1, wall_time=time.time(), session_log=session(status=session.START)))

    def write(record):
        heading, *names = CURVES.get(record['kind'], 'none').split()
        with contextlib.suppress(OSError):
            for name in (name for name in names if record.get(name) is not None):
                value = summary.scalar(f'{heading}/{name}', record[name])
                writer.write_event(event(step=record['step'], wall_time=time.time(), summary=value))
            writer.flush()

    return write


def read(path: str | Path) -> list[dict]:
    """The records in the file, without a line that is not whole (yet). OSError if it cannot be read."""
    records = []
    for line in Path(path).read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def number(record: dict, name: str) -> float:
    """A field as a float; NaN if it is missing or no number."""
    value = record.get(name)
    return float(value) if isinstance(value, (int, float)) else math.nan


def clock(record: dict) -> str:
    """When a record was written, for people."""
    return f'{datetime.datetime.fromisoformat(record["time"]):%Y-%m-%d %H:%M:%S} UTC'


def last_evaluation(directory: Path, start: int) -> int:
    """The step of the last evaluation that is recorded in `directory` up to the step `start`, 0 if there was none; `start`
    itself where nothing is recorded."""
    if not (directory / NAME).exists():
        return start
    evaluations = (one['step'] for one in read(directory / NAME) if one['kind'] == 'evaluation')
    return max((step for step in evaluations if step <= start), default=0)


def straggler(ranks: dict[str, list]) -> str | None:
    """A line that names the rank which the others wait for, if its mean wait for data exceeds the median of the ranks by
    more than a tenth of a step; None if there is none. `ranks` is a record of this kind."""
    if ranks['data_wait_seconds'] is None:
        return None
    waits = np.asarray(ranks['data_wait_seconds'])
    step, worst = float(np.median(waits + ranks['step_seconds'])), int(waits.argmax())
    behind = float(waits[worst] - np.median(waits))
    if not step or behind <= 0.1 * step:
        return None
    return (
        f'rank {worst} is slower than the others: it begins its steps {behind:.3f} s later than the median rank, '
        f'{100 * behind / step:.0f} % of a step, for which all ranks wait; look at the storage and the load of its server'
    )


def _forget_after(path, start):
    """Remove the records of steps after `start`."""
    records = read(path) if path.exists() else []
    kept = [record for record in records if record['kind'] not in OF_STEPS or record['step'] <= start]
    if len(kept) < len(records):
        with files.replacing(path) as temporary:  # the old file or the new one, whenever this process is killed
            temporary.write_text(''.join(files.as_json(record) + '\n' for record in kept))


def _plain(value):
    """`value` for JSON: floats with the digits of a float32, None for those that are not finite."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if not isinstance(value, float) else float(str(np.float32(value))) if math.isfinite(value) else None
