"""A page on one training run, or on several beside each other, made from their metrics.jsonl; also of one that still runs.

python -m src.training.curves RUN [RUN ...] [--output page.html]

A RUN is the log directory of a training run, or its metrics.jsonl.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import importlib
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from src.errors import Parser, counted, entry_point, only_warned, reading
from src.evaluation.outcomes import FEW, merit
from src.evaluation.report import card, table, text, write_page
from src.options import load_settings
from src.training import metrics
from src.training.metrics import clock, number

PAGE = 'training.html'
COLOURS = ('#2f6db3', '#c2410c', '#15803d', '#7e22ce', '#0e7490', '#be185d', '#4d7c0f', '#444444')
MARKS = {  # kinds of events: colour, style and meaning of vertical lines
    'resume': ('#15803d', '--', 'resumed'),
    'fault': ('#dc2626', '-', 'ended by a fault or a signal'),
}
SPREAD = 30  # from this ratio of the largest to the smallest value on, the axis is logarithmic


class Plot(NamedTuple):
    """A plot over the epochs; each of `series`: kind of record, field, style of the line, name."""

    title: str
    unit: str
    caption: str
    series: tuple[str, ...]
    logarithmic: bool = False  # where the values spread far; otherwise the axis begins at 0
    least: float = 0  # end of the axis, at least


LOSSES = ('step mean_loss - training', 'evaluation loss o evaluation')
ACCURACIES = ('evaluation top1 o- top-1', 'evaluation top5 s: top-5')
PLOTS = (
    Plot('Loss', 'loss', 'Line: training, mean since the previous log line. Circles: evaluation.', LOSSES, True),
    Plot('Accuracy', '%', 'On the validation images; dotted: label among the five likeliest.', ACCURACIES),
    Plot('Learning rate', 'learning rate', 'Of the step at each log line.', ('step lr -',)),
    Plot('Throughput', 'images per second', 'Of all devices, while they train.', ('step images_per_second -',)),
    Plot('Wait for data', 'share of the time', 'Above 0.1 the data holds up the device.', ('step data_wait -',), least=0.12),
    Plot('Gradient norm', 'norm', 'Of all gradients together, before clipping.', ('step gradient_norm -',), True),
)


class TrainingRun:
    """What the records in the directory or file `place` say of a training run; InputError if there are none."""

    def __init__(self, place: str | Path):
        path = Path(place, metrics.NAME) if Path(place).is_dir() else Path(place)
        with reading(path, 'name the log directory of a training run, such as results/1p/0/ckpt'):
            self.records = metrics.read(path)
            if not self.records or 'kind' not in self.records[0]:
                raise ValueError('holds no records of a training run')
        self.directory, self.name = path.parent, str(place).removeprefix(f'{os.getcwd()}/')
        self.steps, self.evaluations = self.of_kind('step'), self.of_kind('evaluation')
        self.start = ([{}] + self.of_kind('start'))[-1]
        self.config = self.start.get('config', {})
        self.top5 = not number(self.config, 'num_classes') <= FEW  # says nothing among so few

    def of_kind(self, kind: str) -> list[dict]:
        """The records of a kind."""
        return [record for record in self.records if record['kind'] == kind]

    def best(self) -> tuple[dict | None, str]:
        """(the best evaluation, where it comes from), in the training run or else by eval.py after it; None without one."""
        if self.evaluations:
            best = max(self.evaluations, key=merit)
            return best, f'epoch {self.epoch_of(best):.1f}' + f', top-5 {number(best, "top5"):.2f} %' * self.top5
        with contextlib.suppress(OSError, ValueError):
            path, begun = self.directory / 'evaluation.json', datetime.datetime.fromisoformat(self.records[0]['time'])
            if path.stat().st_mtime >= begun.timestamp():  # not left by an earlier training run
                best = max(json.loads(path.read_text()), key=merit)
                return best, f'by eval.py after the training, of {best["images"]} images'
        return None, 'no evaluation is recorded'

    def speed(self) -> float:
        """Images per second over the steps of all lines, which count equally; NaN if it is not known."""
        found = [value for one in self.steps if (value := number(one, 'images_per_second')) > 0]
        return len(found) / sum(1 / value for value in found) if found else math.nan

    def summary(self) -> str:
        """'36 steps, 5.2 images/s' of the last run."""
        steps, speed = counted(self.records[-1]['step'] - self.start.get('step', 0), 'step'), self.speed()
        return steps if math.isnan(speed) else f'{steps}, {speed:.1f} images/s'

    def state(self) -> str:
        """One sentence on whether it still runs, or how it ended."""
        last = self.records[-1]
        if last['kind'] != 'end':
            return f'Last record at {clock(last)}; no end is recorded: it still trains or was killed'
        return f'Ended at {clock(last)}: {last["cause"]}' + f' (status {last["status"]})' * bool(last['status'])

    def epoch_of(self, record: dict) -> float:
        """Epochs done at a record."""
        return record.get('epoch', record['step'] / self.start.get('steps_per_epoch', 1))

    def events(self) -> list[tuple[dict, str, str]]:
        """(record, kind, text) of starts, resumes, faults and ends, in their order."""
        found, before = [], None
        for record in self.records:
            if record['kind'] == 'start':
                if before and before['kind'] != 'end':
                    found.append((before, 'fault', 'the process was killed here or later'))
                resumed = record.get('resumed')
                found.append((record, *(('resume', f'resumed from {resumed}') if resumed else ('start', 'a new run'))))
            elif record['kind'] == 'end':
                kind = 'fault' if record['status'] else 'end'
                found.append((record, kind, f'{record["cause"]} (status {record["status"]})'))
            before = record
        return found

    def main_figures(self) -> list[tuple[str, str, str]]:
        """(what, value, remark)."""
        last, (best, remark), step = ([{}] + self.steps)[-1], self.best(), self.records[-1]['step']
        loss, speed, overflows = number(last, 'mean_loss'), self.speed(), number(last, 'overflows')
        found = [
            ('best top-1', f'{best["top1"]:.2f} %' if best else '–', remark),
            ('training loss', '–' if math.isnan(loss) else f'{loss:.3f}', 'mean since the last log line but one'),
            ('speed', '–' if math.isnan(speed) else f'{speed:.1f}', 'images per second, of all devices'),
            ('epochs done', f'{self.epoch_of(self.records[-1]):.1f}', f'{step} of {self.start.get("stop", "?")} steps'),
        ]
        return found + [('skipped steps', f'{overflows:.0f}', 'because gradients overflowed')] * (overflows > 0)

    def machine(self) -> dict[str, object]:
        """{what: value} of the machine and the versions at the last start."""
        names = 'host processor cores device ranks precision global_batch steps_per_epoch'.split()
        found = {**{name: self.start.get(name) for name in names}, **self.start.get('versions', {})}
        return {name: value for name, value in found.items() if value is not None}


def draw(plot: Plot, runs: list[TrainingRun]) -> str:
    """`plot` with the lines of all `runs` as HTML; '' if no values are recorded."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((4.0, 2.7), layout='constrained')  # not by pyplot, which would choose a backend for the process
    FigureCanvasAgg(figure)
    axes, values = figure.subplots(), []
    for (place, run), (order, series) in itertools.product(enumerate(runs), enumerate(plot.series)):
        kind, field, style, *name = series.split()
        records = run.of_kind(kind) if field != 'top5' or run.top5 else []
        points = [(run.epoch_of(one), value) for one in records if not math.isnan(value := number(one, field))]
        if points:
            values += [value for _, value in points]
            colour = COLOURS[(place if len(runs) > 1 else order) % len(COLOURS)]
            label = name[0] if name and len(runs) == 1 else None
            axes.plot(*zip(*points), style if len(points) > 1 else 'o', color=colour, lw=1.3, ms=3.5, label=label)
    if not values:
        return ''
    for record, kind, _ in (event for run in runs for event in run.events()):
        colour, style, _ = MARKS.get(kind, ('none', '-', ''))
        axes.axvline(runs[0].epoch_of(record), color=colour, linestyle=style, linewidth=0.9, alpha=0.7, zorder=0)
    if not plot.logarithmic:
        axes.set_ylim(0, max(1.08 * max(values), plot.least) or 1)
    elif 0 < SPREAD * min(values) < max(values):
        axes.set_yscale('log')
    axes.set(xlabel='epoch', ylabel=plot.unit)
    axes.set_xlim(left=0)  # the same in all plots, also where there is a single evaluation
    axes.grid(alpha=0.25)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize=9, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=160)
    source = f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'
    return f'<figure><b>{plot.title}</b><img alt="" src="{source}"><figcaption>{plot.caption}</figcaption></figure>\n'


def sections(runs: list[TrainingRun]) -> Iterator[str]:
    """The page, piece by piece."""
    dots = [f'<b style="color: {COLOURS[place % len(COLOURS)]}">●</b> ' for place in range(len(runs))]
    heads = [dot + text(run.name) for dot, run in zip(dots, runs)] if len(runs) > 1 else ['value']
    if len(runs) == 1:
        yield f'<div class="grid">{"".join(card(*figure) for figure in runs[0].main_figures())}</div>\n'
        yield f'<p class="small">{text(runs[0].state())}.</p>\n'
    else:
        columns = [{what: f'{value}, {remark}' for what, value, remark in run.main_figures()} for run in runs]
        yield table(['', *heads], rows([{**column, 'state': run.state()} for column, run in zip(columns, runs)]))
        differing = rows([{**run.config, **run.machine()} for run in runs])
        yield '<h2>What differs</h2>\n' + table(['', *heads], [row for row in differing if len(set(row[1:])) > 1])
    kinds = {kind for run in runs for _, kind, _ in run.events()}
    lines = [f'<b style="color: {colour}">┃</b> {what}' for kind, (colour, _, what) in MARKS.items() if kind in kinds]
    yield f'<h2>Curves</h2>\n<p class="small">{" &nbsp; ".join((heads if len(runs) > 1 else []) + lines)}</p>\n'
    yield f'<div class="grid wide">{"".join(draw(plot, runs) for plot in PLOTS)}</div>\n<h2>Recipe</h2>\n'
    options, head = rows([*(run.config for run in runs), load_settings([])]), ['option', *heads, 'default']
    yield table(head, [row for row in options if len(set(row[1:])) > 1])
    yield f'<details><summary>All options</summary>\n{table(head, options)}</details>\n<h2>Machine and versions</h2>\n'
    yield table(['', *heads], rows([run.machine() for run in runs]))
    for run in runs:
        events = [[clock(one), one['step'], kind, text(what)] for one, kind, what in run.events()]
        title = 'History' + f': {text(run.name)}' * (len(runs) > 1)
        yield f'<h2>{title}</h2>\n' + table(['time', 'step', 'event', ''], events, {1})


def rows(columns: list[dict]) -> list[list[str]]:
    """Rows [name, value in each of `columns`] of HTML; an option that is newer than a run has no value there."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [[text(name).replace('_', '_<wbr>'), *(text(column.get(name, '–')) for column in columns)] for name in names]


def write(places: list[str | Path], output: str | Path) -> None:
    """Write the page on the training runs in `places` to `output`, whole or not at all. InputError if matplotlib is missing,
    a place holds no training run, or the page cannot be written."""
    with reading('the page needs matplotlib', 'pip install -r requirements-report.txt', (ImportError,)):
        importlib.import_module('matplotlib.figure')
    runs = [TrainingRun(place) for place in places]
    # Not the whole path: the page may go elsewhere.
    title = '/'.join(Path(runs[0].name).parts[-2:]) if len(runs) == 1 else counted(len(runs), 'run')
    with reading(output, 'choose another --output'):
        write_page(output, f'Training: {title}', sections(runs))


def at_end(directory: Path, log: Callable[[str], None]) -> None:
    """Write the page on the training run in `directory` into it; one line on it, or on why there is none."""
    with only_warned(log, 'page on the training'):
        write([directory], directory / PAGE)
        log(f'curves: {directory / PAGE}')


@entry_point
def main():
    """The command line."""
    parser = Parser(prog='python -m src.training.curves', description=__doc__.partition('\n')[0])
    parser.add_argument('runs', metavar='RUN', nargs='+', help='log directory of a training run, or its metrics.jsonl')
    parser.add_argument('--output', help=f'the page; default: {PAGE} in the directory of a single RUN, else here')
    options = parser.parse_args()
    (first, *others) = map(Path, options.runs)
    output = options.output or (Path() if others else first if first.is_dir() else first.parent) / PAGE
    write(options.runs, output)
    print(output)


if __name__ == '__main__':
    main()
