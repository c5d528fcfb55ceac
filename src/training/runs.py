"""A training as its metrics.jsonl tells it, for reports. Needs no MindSpore."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import yaml

from src.errors import InputError, counted
from src.evaluation.outcomes import FEW, merit
from src.training import metrics
from src.training.pace import straggler


class Event(NamedTuple):
    """Something that happened to a training."""

    time: datetime.datetime | None
    step: int
    epoch: float
    kind: str  # 'start', 'resume', 'fault', 'end' or 'slow'
    text: str


class Run:
    """What the records in the directory or file `place` tell of a training, however damaged or unfinished.

    InputError if there are none.
    """

    def __init__(self, place: str | Path):
        path = Path(place)
        path = path / metrics.NAME if path.is_dir() else path
        try:
            self.records, self.damaged = metrics.read(path)
        except OSError as error:
            raise InputError(
                f'{path}: cannot be read ({error.strerror}); give the log directory of a training, such as results/1p/0/ckpt'
            ) from None
        if not self.records:
            raise InputError(f'{path}: holds no records of a training')
        self.directory, self.name = path.parent, str(place).removeprefix(f'{os.getcwd()}/')
        self.steps, self.evaluations, self.checkpoints, self.starts = (
            self.of_kind(kind) for kind in ('step', 'evaluation', 'checkpoint', 'start')
        )
        self.start = self.starts[-1] if self.starts else {}
        per_epoch = number(self.start, 'steps_per_epoch')
        self.per_epoch = per_epoch if per_epoch > 0 else math.nan
        self.config = self._config()
        self.top5 = not number(self.config, 'num_classes') <= FEW  # says nothing among so few

    def of_kind(self, kind: str) -> list[dict]:
        """The records of a kind."""
        return [record for record in self.records if record['kind'] == kind]

    def _config(self):
        if isinstance(self.start.get('config'), dict):
            return self.start['config']
        with contextlib.suppress(OSError, yaml.YAMLError, UnicodeDecodeError):
            found = yaml.safe_load((self.directory / 'config.yaml').read_text())
            return found if isinstance(found, dict) else {}
        return {}

    def best(self) -> dict | None:
        """The evaluation with the highest top-1, of equals that with the lowest loss; None if there is none."""
        found = [one for one in self.evaluations if not math.isnan(number(one, 'top1'))]
        return max(found, key=merit, default=None)

    def evaluated(self) -> dict | None:
        """The highest top-1 that eval.py has left beside the checkpoints since the training began; None if there is none."""
        path, began = self.directory / 'evaluation.json', when_of(self.start)
        with contextlib.suppress(OSError, ValueError, TypeError):
            if began and path.stat().st_mtime < began.timestamp():
                return None
            found = [one for one in json.loads(path.read_text()) if not math.isnan(number(one, 'top1'))]
            return max(found, key=merit, default=None)
        return None

    def speed(self) -> float:
        """Images per second over the steps of all lines, which count equally; NaN if it is not known."""
        found = [value for one in self.steps if (value := number(one, 'images_per_second')) > 0]
        return len(found) / sum(1 / value for value in found) if found else math.nan

    def between(self) -> int:
        """Steps from the last line but one to the last."""
        before = [record['step'] for record in self.steps[-2:-1] or self.starts[-1:]]
        return self.steps[-1]['step'] - before[0] if self.steps and before else 0

    def summary(self) -> str:
        """'36 steps, 5.2 images/s' of the last run."""
        steps, speed = counted(self.records[-1]['step'] - self.start.get('step', 0), 'step'), self.speed()
        return steps if math.isnan(speed) else f'{steps}, {speed:.1f} images/s'

    def state(self) -> str:
        """One sentence on whether it still runs, or how it ended."""
        last = self.records[-1]
        if last['kind'] != 'end':
            return f'Last record at {clock(when_of(last))}; no end is recorded, so it still trains or was killed'
        how = 'Done' if last.get('status') == 0 else f'Ended with status {last.get("status")}'
        return f'{how} at {clock(when_of(last))}' + ('' if last.get('status') == 0 else f': {last.get("cause")}')

    def epoch_of(self, record: dict) -> float:
        """Epochs done at a record; steps where the record of the start is missing."""
        epoch = number(record, 'epoch')
        if math.isnan(epoch):
            epoch = record['step'] / self.per_epoch
        return record['step'] if math.isnan(epoch) else epoch

    def events(self) -> list[Event]:
        """Starts, resumes, faults and ends, in their order."""
        found, before = [], None
        for record in self.records:
            if record['kind'] == 'start':
                if before and before['kind'] != 'end':
                    found.append(self._event(before, 'fault', 'the run ended here or later without a word: it was killed'))
                resumed = record.get('resumed')
                text = f'goes on from {resumed}' if resumed else 'a new training'
                found.append(self._event(record, 'resume' if resumed else 'start', text))
            elif record['kind'] == 'end':
                kind = 'end' if record.get('status') == 0 else 'fault'
                found.append(self._event(record, kind, f'{record.get("cause")} (status {record.get("status")})'))
            elif record['kind'] == 'ranks':
                with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
                    found += [self._event(record, 'slow', text) for text in [straggler(record)] if text]
            before = record
        return found

    def _event(self, record, kind, text):
        return Event(when_of(record), record['step'], self.epoch_of(record), kind, text)

    def best_checkpoint(self) -> tuple[str, int] | None:
        """(name, bytes) of the checkpoint that is kept as the best; None if there is none."""
        path = self.directory / 'inceptionv4-best.ckpt'
        return (path.name, os.path.getsize(path)) if path.exists() else None


def number(record: dict, name: str) -> float:
    """A field as a float; NaN if it is missing or no number."""
    value = record.get(name) if isinstance(record, dict) else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan


def when_of(record: dict) -> datetime.datetime | None:
    """When a record was written; None if that cannot be read."""
    try:
        return datetime.datetime.fromisoformat(record['time']).astimezone(datetime.timezone.utc)
    except (KeyError, TypeError, ValueError):
        return None


def clock(when: datetime.datetime | None) -> str:
    """A time for people."""
    return f'{when:%Y-%m-%d %H:%M:%S} UTC' if when else 'an unknown time'


def shown(value: object) -> str:
    """An option's value as in YAML, on one line."""
    return json.dumps(value) if isinstance(value, (list, dict, bool)) else '–' if value is None else str(value)
