"""A page on one training run, or on several beside each other, made from their metrics.jsonl; also of one that still runs.

python -m src.training.curves RUN [RUN ...] [--output page.html]

A RUN is the log directory of a training run, or its metrics.jsonl.
"""

from __future__ import annotations

import base64
import importlib
import io
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from src.errors import Parser, counted, entry_point, only_warned, reading
from src.evaluation.outcomes import merit
from src.evaluation.report import card, table, text, write_page
from src.options import load_settings
from src.training import metrics

PAGE = 'training.html'
COLOURS = ('#2f6db3', '#c2410c', '#15803d', '#7e22ce', '#0e7490', '#be185d', '#4d7c0f', '#444444')
# {title: (unit, caption, {kind and field of a record: style of its line})}
PLOTS = {
    'Loss': ('loss', 'Line: training. Circles: evaluation.', {'step mean_loss': '-', 'evaluation loss': 'o'}),
    'Accuracy': ('%', 'Circles: top-1. Squares: top-5.', {'evaluation top1': 'o-', 'evaluation top5': 's:'}),
    'Learning rate': ('learning rate', 'Of the step at each log line.', {'step lr': '-'}),
    'Throughput': ('images per second', 'Of all devices, while they train.', {'step images_per_second': '-'}),
    'Wait for data': ('share of the time', 'Above 0.1 the data holds up the device.', {'step data_wait': '-'}),
    'Gradient norm': ('norm', 'Of all gradients together, before clipping.', {'step gradient_norm': '-'}),
}


class TrainingRun:
    """What the records in the directory or file `place` say of a training run; InputError if there are none."""

    def __init__(self, place: str | Path):
        path = Path(place, metrics.NAME) if Path(place).is_dir() else Path(place)
        with reading(path, 'name the log directory of a training run, such as results/1p/0/ckpt'):
            self.records = metrics.read(path)
            starts = [record for record in self.records if record.get('kind') == 'start']
            if not starts:
                raise ValueError('holds no records of a training run')
        self.name = str(place).removeprefix(f'{os.getcwd()}/')
        self.start, self.last, self.config = starts[-1], self.records[-1], starts[-1]['config']
        facts = {name: value for name, value in self.start.items() if not isinstance(value, dict)}
        self.machine = {**facts, **self.start['versions']}

    def values(self, kind: str, field: str) -> list[tuple[float, float]]:
        """[(epoch, value)] of a field in the records of a kind, where it is known."""
        return [(one['epoch'], one[field]) for one in self.records if one['kind'] == kind and one.get(field) is not None]

    def summary(self) -> str:
        """'36 steps, 5.2 images/s' of the last run; all log lines count equally in the mean."""
        steps = counted(self.last['step'] - self.start['step'], 'step')
        speeds = [value for _, value in self.values('step', 'images_per_second')]
        return f'{steps}, {statistics.harmonic_mean(speeds):.1f} images/s' if speeds else steps

    def history(self) -> list[list[str]]:
        """[[time, step, what happened]] of starts and ends."""
        found = []
        for record in self.records:
            if record['kind'] == 'start':
                found.append((record, f'resumed from {record["resumed"]}' if record.get('resumed') else 'a new run'))
            elif record['kind'] == 'end':
                found.append((record, f'ended: {record["cause"]} (status {record["status"]})'))
        if self.last['kind'] != 'end':
            found.append((self.last, 'the last record; it still trains or was killed'))
        return [[one['time'][:19].replace('T', ' '), one['step'], text(what)] for one, what in found]

    def cards(self) -> str:
        """The main figures."""
        loss, step = self.values('step', 'mean_loss'), self.last['step']
        steps, _, speed = self.summary().partition(', ')
        best = max((record for record in self.records if record['kind'] == 'evaluation'), key=merit, default=None)
        top1 = (f'{best["top1"]:.2f} %', f'epoch {best["epoch"]:.1f}') if best else ('–', 'no evaluation is recorded')
        found = card('best top-1', *top1)
        found += card('training loss', f'{loss[-1][1]:.3f}' if loss else '–', 'mean since the last log line but one')
        found += card('speed', speed or '–', f'of all devices, in {steps}')
        found += card('epochs done', f'{step / self.start["steps_per_epoch"]:.1f}', f'{step} of {self.start["stop"]} steps')
        return f'<div class="grid">{found}</div>\n'


def draw(title: str, runs: list[TrainingRun]) -> str:
    """The plot `title` with the lines of all `runs` as HTML; '' if no values are recorded."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    unit, caption, series = PLOTS[title]
    figure = Figure((4.0, 2.7), layout='constrained')  # not by pyplot, which would choose a backend for the process
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for run, colour in zip(runs, COLOURS * len(runs)):
        for name, style in series.items():
            if points := run.values(*name.split()):
                axes.plot(*zip(*points), style if len(points) > 1 else 'o', color=colour, linewidth=1.3, markersize=3.5)
    if not axes.lines:
        return ''
    axes.set(xlabel='epoch', ylabel=unit)
    axes.set_xlim(left=0)  # the same in all plots, also where there is a single evaluation
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=160)
    source = f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'
    return f'<figure><b>{title}</b><img alt="" src="{source}"><figcaption>{caption}</figcaption></figure>\n'


def sections(runs: list[TrainingRun]) -> Iterator[str]:
    """The page, piece by piece."""
    names = [f'<b style="color: {colour}">●</b> {text(run.name)}' for colour, run in zip(COLOURS * len(runs), runs)]
    for name, run in zip(names, runs):
        yield f'<h2>{name}</h2>\n{run.cards()}'
    yield f'<h2>Curves</h2>\n<div class="grid wide">{"".join(draw(title, runs) for title in PLOTS)}</div>\n'
    options, heads = rows([*(run.config for run in runs), load_settings([])]), ['option', *names, 'default']
    yield '<h2>Recipe</h2>\n' + table(heads, [row for row in options if len(set(row[1:])) > 1])
    yield f'<details><summary>All options</summary>\n{table(heads, options)}</details>\n'
    yield '<h2>Last start: machine and versions</h2>\n' + table(['', *names], rows([run.machine for run in runs]))
    for name, run in zip(names, runs):
        yield f'<h2>History of {name}</h2>\n' + table(['time (UTC)', 'step', ''], run.history(), {1})


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
    with reading(output, 'choose another --output'):
        write_page(output, f'Training: {counted(len(runs), "run")}', sections(runs))


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
