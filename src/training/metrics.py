"""The records of a training: `metrics.jsonl` beside its log, a JSON object in each line. Needs no MindSpore.

Every record has a `kind`, the `step` after which it was written, and the `time` (UTC):

    start       a run begins or goes on after `step`: configuration, machine, versions
    step        loss, learning rate, speed and so on, at each log line
    evaluation  top-1, top-5 and loss on the validation images
    checkpoint  its file and size
    ranks       how each rank spent the time of an epoch
    end         why the run ended; it is missing where the process was killed

docs/monitoring.md lists the fields.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from src import files
from src.errors import InputError, only_warned, reading
from src.training import tensorboard
from src.training.plan import Plan
from src.training.tensorboard import TensorBoard

NAME = 'metrics.jsonl'
OF_STEPS = ('step', 'evaluation', 'checkpoint', 'ranks')  # kinds of which a run that goes on makes its own


class Metrics:
    """Called with a kind, a step and fields, appends a record to the file and gives it to each of `readers`.

    A record is one write to the end of the file, so that whoever reads it meanwhile finds whole lines, whenever the process
    is killed. A disk that is full costs whole records, not the training. A float that is not finite becomes null.

    Args:
        path (Path): the file; None on the ranks that write none.
        start (int): step that the run goes on after. Records of later steps, by an earlier run in this file, are removed;
            the starts and ends of earlier runs stay.
        readers (list of callable): take each record as a dict.

        say (callable): takes a warning if the file cannot be made, which is tried again with each record. None: InputError.
    """

    def __init__(
        self,
        path: Path | None = None,
        start: int = 0,
        readers: list[Callable[[dict], None]] = (),
        say: Callable[[str], None] | None = None,
    ):
        self.path, self.start, self.readers, self.file, self.torn = path and Path(path), start, readers, None, False
        try:
            with reading(path, 'choose another --log_dir'):
                self._open()
        except InputError as error:
            if say is None:
                raise
            say(f'warning: {error}: tried again with each record')

    def _open(self):
        if self.path and self.file is None:
            self.torn = _forget_after(self.path, self.start)
            self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def __call__(self, kind: str, step: int, **fields: object) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='milliseconds')
        record = {'kind': kind, 'step': step, 'time': now, **{name: _plain(value) for name, value in fields.items()}}
        with contextlib.suppress(OSError):
            self._open()
        if self.file is not None:
            line = (b'\n' if self.torn else b'') + files.as_json(record).encode('ascii') + b'\n'
            with contextlib.suppress(OSError):
                written = os.write(self.file, line)
                if written == len(line):
                    self.torn = False
                else:  # no room for the rest
                    os.ftruncate(self.file, os.fstat(self.file).st_size - written)
        for take in self.readers:
            take(record)

    def end(self, step: int, error: BaseException | None = None) -> None:
        """Record that the run ended after `step`, because of `error` or because all was done."""
        kind = '' if error is None or hasattr(error, 'exit_status') else f'{type(error).__name__}: '
        cause = 'done' if error is None else kind + ' '.join(str(error).split())[:500]
        self('end', step, cause=cause, status=0 if error is None else getattr(error, 'exit_status', 1))

    @contextlib.contextmanager
    def until_end(self, step: Callable[[], int]) -> Iterator[None]:
        """Record the end of the block, and the exception that ends it; `step()` gives the last step."""
        try:
            yield
        except BaseException as error:
            self.end(step(), error)
            raise
        self.end(step())


def begin(directory: Path | None, plan: Plan, config: dict, about: dict, say: Callable[[str], None] = print) -> Metrics:
    """The `Metrics` in `directory` (None on the ranks that write none) of a run of `plan` with `config`, with its first
    record, which also has the fields `about`; with the option `tensorboard` an event file, too. A warning to `say` if one of
    them cannot be written."""
    readers = []
    if directory and config.get('tensorboard'):
        with only_warned(say, 'event file'):
            readers.append(TensorBoard(Path(directory) / tensorboard.NAME, plan.start))
    made = Metrics(directory and Path(directory) / NAME, plan.start, readers, say)
    made(
        'start',
        plan.start,
        epoch=plan.start / plan.steps_per_epoch,
        stop=plan.stop,
        steps_per_epoch=plan.steps_per_epoch,
        global_batch=plan.global_batch,
        **about,
        config_path=str(directory and Path(directory).resolve() / 'config.yaml'),
        config=dict(config),
    )
    return made


def read(path: str | Path) -> tuple[list[dict], int]:
    """(the records in the file, number of damaged lines that were passed over). The last line of a file that is being
    written is not counted as damaged. OSError if it cannot be read."""
    records, damaged = [], 0
    with open(path, 'rb') as file:
        for line in file:
            record = _parse(line)
            if record:
                records.append(record)
            else:
                damaged += line.endswith(b'\n') and bool(line.strip())
    return records, damaged


def last_evaluation(directory: Path, start: int) -> int:
    """The step of the last evaluation that is recorded in `directory` up to the step `start`, 0 if there was none; `start`
    itself where nothing is recorded."""
    try:
        records, _ = read(directory / NAME)
    except OSError:
        return start
    return max((one['step'] for one in records if one['kind'] == 'evaluation' and one['step'] <= start), default=0)


def _parse(line):
    """The record in a line, or None."""
    try:
        record = json.loads(line)
        return record if isinstance(record['kind'], str) and isinstance(record['step'], int) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _forget_after(path, start):
    """Remove the records of steps after `start`. Whether the file's last line is not whole."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return False
    kept = []
    for line in lines:
        record = _parse(line)
        if not record or record['kind'] not in OF_STEPS or record['step'] <= start:
            kept.append(line)
    if len(kept) < len(lines):
        with files.replacing(path) as temporary:  # the old file or the new one, whenever this process is killed
            temporary.write_bytes(b''.join(kept))
    return bool(kept) and not kept[-1].endswith(b'\n')


def _plain(value):
    """`value` for JSON: floats with the digits of a float32, None for those that are not finite."""
    if isinstance(value, float):
        return float(str(np.float32(value))) if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
