"""The records of a training as an event file for TensorBoard, by the optional package tensorboardX."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.util
import os
import time
from pathlib import Path

from src.errors import InputError

NAME = 'tensorboard'  # directory beside the log
# Kind of a record: the group in which TensorBoard shows its curves, and the fields that become curves.
CURVES = {
    'step': (
        'training',
        'loss mean_loss total_loss lr gradient_norm images_per_second data_wait overflows loss_scale image_size epoch',
    ),
    'evaluation': ('evaluation', 'top1 top5 loss'),
}


def require(wanted: bool = True) -> None:
    """InputError if tensorboardX is `wanted` and cannot be found. It is not imported: that must wait for MindSpore."""
    if wanted and importlib.util.find_spec('tensorboardX') is None:
        raise InputError('tensorboard true needs the package tensorboardX: pip install -r requirements-report.txt')


class TensorBoard:
    """Called with a record of `metrics.Metrics`, writes its curves to a new event file below `directory`.

    The file begins with a mark by which TensorBoard drops what earlier files there have of steps after `start`. A record
    that cannot be written is lost. InputError if the package is missing or the file cannot be made.

    MindSpore must be imported before: in the other order protobuf ends the process with a fatal error (seen with MindSpore
    2.8.0, tensorboardX 2.6.5). Not by the package's SummaryWriter, whose thread ends at the first full disk, after which
    the training would wait for it for ever.
    """

    def __init__(self, directory: Path, start: int):
        require()
        events = importlib.import_module('tensorboardX.event_file_writer')
        self.made, self.scalar = events.event_pb2, importlib.import_module('tensorboardX.summary').scalar
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
            self.writer = events.EventsWriter(str(Path(directory).resolve() / 'events'), f'.{os.getpid()}')
            begin = self.made.SessionLog(status=self.made.SessionLog.START)
            self.writer.write_event(self.made.Event(step=start + 1, wall_time=time.time(), session_log=begin))
        except OSError as error:
            raise InputError(f'{directory}: cannot be written ({error.strerror}); choose another --log_dir') from None

    def __call__(self, record: dict) -> None:
        group, names = CURVES.get(record['kind'], ('', ''))
        when = datetime.datetime.fromisoformat(record['time']).timestamp()
        with contextlib.suppress(OSError):
            for name in (name for name in names.split() if record.get(name) is not None):
                summary = self.scalar(f'{group}/{name}', record[name])
                self.writer.write_event(self.made.Event(step=record['step'], wall_time=when, summary=summary))
            self.writer.flush()
