"""A picture of the curves of one training run, or of several, made from their metrics.jsonl; also of one that still runs.

python -m src.training.curves RUN [RUN ...] [--output curves.png]

A RUN is the log directory of a training run.
"""

from __future__ import annotations

import importlib
import os
import statistics
from collections.abc import Callable
from pathlib import Path

from src import files
from src.errors import Parser, counted, entry_point, only_warned, reading
from src.evaluation.outcomes import merit
from src.training import metrics

PICTURE = 'training.png'
# {title: {kind and field of a record: style of its line}}
PLOTS = {
    'loss; circles: evaluation': {'step mean_loss': '-', 'evaluation loss': 'o'},
    'top-1; squares: top-5 (%)': {'evaluation top1': 'o-', 'evaluation top5': 's:'},
    'learning rate': {'step lr': '-'},
    'images per second of all devices': {'step images_per_second': '-'},
    'share of the time waiting for data': {'step data_wait': '-'},
    'norm of all gradients before clipping': {'step gradient_norm': '-'},
}


def records_of(place: str | Path) -> list[dict]:
    """The records in the directory `place`; InputError if they are not those of a training run."""
    with reading(place, 'name the log directory of a training run, such as results/1p/0/ckpt'):
        if not (records := metrics.read(Path(place, metrics.NAME))) or records[0].get('kind') != 'start':
            raise ValueError('holds no records of a training run')
    return records


def values(records: list[dict], kind: str, field: str) -> list[tuple[float, float]]:
    """[(epoch, value)] of a field in the records of a kind, where it is known."""
    return [(one['epoch'], one[field]) for one in records if one['kind'] == kind and one.get(field) is not None]


def last_start(records: list[dict]) -> dict:
    """The record of the start of the last run."""
    return [one for one in records if one['kind'] == 'start'][-1]


def summary(records: list[dict]) -> str:
    """'36 steps, 5.2 images/s' of the last run; all log lines count equally in the mean."""
    steps = counted(records[-1]['step'] - last_start(records)['step'], 'step')
    speeds = [value for _, value in values(records, 'step', 'images_per_second')]
    return f'{steps}, {statistics.harmonic_mean(speeds):.1f} images/s' if speeds else steps


def labels(runs: dict[str, list[dict]]) -> list[str]:
    """A line on each of `runs` ({name: records}): its best top-1, how it ended, options in which the runs differ."""
    configs, lines = [last_start(records)['config'] for records in runs.values()], []
    differing = [name for name in configs[0] if any(config.get(name) != configs[0][name] for config in configs)]
    for (name, records), config in zip(runs.items(), configs):
        best = max((one for one in records if one['kind'] == 'evaluation'), key=merit, default=None)
        top1 = f', best top-1 {best["top1"]:.2f} % in epoch {best["epoch"]:.1f}' if best else ''
        end = records[-1].get('cause', 'not ended, or killed')
        options = ''.join(f', {option} {config.get(option)}' for option in differing)
        lines.append(f'{name}: {summary(records)}{top1}, {end:.60}{options}')
    return lines


def write(places: list[str | Path], output: str | Path) -> None:
    """Write the picture of the training runs in `places` to `output`, whole or not at all. InputError if matplotlib is
    missing, a place holds no training run, or the picture cannot be written."""
    with reading('the curves need matplotlib', 'pip install -r requirements-report.txt', (ImportError,)):
        module = importlib.import_module('matplotlib.figure')
    runs = {str(place).removeprefix(f'{os.getcwd()}/'): records_of(place) for place in places}
    figure = module.Figure((13, 7 + 0.2 * len(runs)), layout='constrained')  # not by pyplot, which would choose a backend
    for axes, (title, series) in zip(figure.subplots(2, 3).flat, PLOTS.items()):
        for number, records in enumerate(runs.values()):
            for name, style in series.items():
                points = values(records, *name.split()) or [(0, float('nan'))]  # an empty line for the legend
                style = style if len(points) > 1 else 'o'
                axes.plot(*zip(*points), style, color=f'C{number}', linewidth=1.3, markersize=3.5)
        axes.set(title=title, xlabel='epoch', xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.25)
    legend = figure.legend(figure.axes[2].lines, map(files.printable, labels(runs)), loc='outside lower left')
    for label in legend.get_texts():
        label.set_parse_math(False)  # there may be a $ in a name
    with reading(output, 'choose another --output'), files.replacing(output) as temporary:
        figure.savefig(temporary, format='png', dpi=110)


def at_end(directory: Path, log: Callable[[str], None]) -> None:
    """Draw the training run in `directory` into it; one line on it, or on why there is no picture."""
    with only_warned(log, 'curves'):
        write([directory], directory / PICTURE)
        log(f'curves: {directory / PICTURE}')


@entry_point
def main():
    """The command line."""
    parser = Parser(prog='python -m src.training.curves', description=__doc__.partition('\n')[0])
    parser.add_argument('runs', metavar='RUN', nargs='+', help='log directory of a training run')
    parser.add_argument('--output', help=f'the picture; default: {PICTURE} in the directory of a single RUN, else here')
    options = parser.parse_args()
    output = options.output or Path(options.runs[0] if len(options.runs) == 1 else '', PICTURE)
    write(options.runs, output)
    print(output)


if __name__ == '__main__':
    main()
