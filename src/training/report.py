"""A page on one training, or on several beside each other, made from their metrics.jsonl; also of one that still runs.

python -m src.training.report RUN [RUN ...] [--output page.html]

A RUN is the log directory of a training, or its metrics.jsonl.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from src import files
from src.errors import InputError, Parser, counted, entry_point, only_warned
from src.evaluation import plots
from src.evaluation.page import PAGE, table, text
from src.options import load_settings
from src.training import curves
from src.training.runs import Run, clock, number, shown

NAME = 'training.html'
STYLE = """<style>
.curves { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)) }
.curves figure { background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: 8px; margin: 0; min-width: 0 }
.curves figure img { width: 100%; height: auto; margin: 0 }
.curves b { display: block; font-size: 15px; color: #222 }
.dot { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em }
.line { display: inline-block; width: 0; height: 1.1em; margin: 0 .4em 0 .8em; vertical-align: text-bottom }
</style>
"""
LINES = {'resume': 'goes on from a checkpoint', 'fault': 'ended by a fault or a signal', 'slow': 'a rank is behind'}


def main_figures(run: Run) -> list[tuple[str, str, str]]:
    """(what, value, remark) of a run."""
    last = run.steps[-1] if run.steps else {}
    loss, speed, overflows = number(last, 'mean_loss'), run.speed(), number(last, 'overflows')
    found = [
        _top1(run),
        ('training loss', '–' if math.isnan(loss) else f'{loss:.3f}', f'mean of the last {counted(run.between(), "step")}'),
        ('speed', '–' if math.isnan(speed) else f'{speed:.1f}', 'images per second, of all devices'),
        (
            'epochs done',
            f'{run.epoch_of(run.records[-1]):.1f}',
            f'{run.records[-1]["step"]} of {run.start.get("stop", "?")} steps',
        ),
    ]
    if overflows > 0:
        found.append(('skipped steps', f'{overflows:.0f}', 'because gradients overflowed'))
    if run.damaged:
        found.append(('damaged', counted(run.damaged, 'line'), 'of metrics.jsonl, passed over'))
    return found


def _top1(run):
    """Of the best evaluation in the training, else by eval.py after it."""
    if best := run.best():
        top5 = f', top-5 {number(best, "top5"):.2f}\N{NO-BREAK SPACE}%' * run.top5
        return 'best top-1', f'{best["top1"]:.2f} %', f'epoch {run.epoch_of(best):.1f}{top5}'
    if after := run.evaluated():
        return 'top-1', f'{after["top1"]:.2f} %', f'by eval.py after the training, of {number(after, "images"):.0f} images'
    return 'best top-1', '–', 'no evaluation is recorded'


def parts(runs: list[Run]) -> Iterator[str]:
    """The page, piece by piece."""
    # Not the whole path: the page may go elsewhere.
    title = '/'.join(Path(runs[0].name).parts[-2:]) if len(runs) == 1 else counted(len(runs), 'run')
    yield PAGE.format(title=f'Training: {text(title)}') + STYLE
    if len(runs) == 1:
        yield '<div class="grid">\n'
        for what, value, remark in main_figures(runs[0]):
            yield f'<div class="figure">{what}<b>{_escaped(value)}</b><span class="small">{_escaped(remark)}</span></div>\n'
        yield f'</div>\n<p class="small">{_escaped(runs[0].state())}.</p>\n'
    else:
        yield from comparison(runs)
    yield from all_curves(runs)
    yield from recipe(runs)
    yield from machines(runs)
    for run in runs:
        yield from history(run, f': {text(run.name)}' if len(runs) > 1 else '')
    yield '</body></html>\n'


def _escaped(value):
    return html.escape(''.join(c if c.isprintable() or c == '\N{NO-BREAK SPACE}' else ' ' for c in str(value)))


def _heads(runs):
    """Heads of the columns of `runs`, with their colours where there are several."""
    if len(runs) == 1:
        return ['value']
    return [f'{_dot(place)}{text(run.name)}' for place, run in enumerate(runs)]


def _dot(place):
    return f'<span class="dot" style="background: {curves.COLOURS[place % len(curves.COLOURS)]}"></span>'


def comparison(runs: list[Run]) -> Iterator[str]:
    """The main figures of each run, and in what their options, machines and versions differ."""
    columns = [{what: f'{value}, {remark}' for what, value, remark in main_figures(run)} for run in runs]
    for column, run in zip(columns, runs):
        column['state'] = run.state()
    names = list(dict.fromkeys(name for column in columns for name in column))
    yield table(['', *_heads(runs)], [[name, *(_escaped(c.get(name, '–')) for c in columns)] for name in names], set())
    yield '<h2>What differs</h2>\n'
    rows = [
        row
        for row in _rows([{**options, **machine(run)} for options, run in zip(_options(runs), runs)])
        if len(set(row[1:])) > 1
    ]
    yield table(['', *_heads(runs)], rows, set()) if rows else '<p>Nothing that is recorded.</p>\n'


def _options(runs):
    """All options of each of `runs`; those that are newer than a run stand at their defaults."""
    defaults = load_settings([])
    return [{**defaults, **run.config} for run in runs]


def _rows(columns):
    """Rows [name, value in each of `columns` (dict)] of HTML."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [
        [_escaped(name).replace('_', '_<wbr>'), *(_escaped(shown(column.get(name))) for column in columns)] for name in names
    ]


def all_curves(runs: list[Run]) -> Iterator[str]:
    """The plots, and what their vertical lines mean."""
    yield '<h2>Curves</h2>\n'
    if len(runs) > 1:
        yield f'<p class="small">{" &nbsp; ".join(_heads(runs))}</p>\n'
    kinds = {event.kind for run in runs for event in run.events()}
    marks = [
        f'<span class="line" style="border-left: 2px {"solid" if style == "-" else "dashed"} {colour}"></span>{LINES[kind]}'
        for kind, (colour, style) in curves.MARKS.items()
        if kind in kinds
    ]
    if marks:
        yield f'<p class="small">Vertical lines: {" ".join(marks)}</p>\n'
    drawn = [(plot.title, *curves.draw(plot, runs)) for plot in curves.PLOTS]
    drawn.append(('Progress', curves.draw_progress(runs), 'Epochs over all the time since the start.'))
    yield '<div class="curves">\n'
    for title, png, caption in drawn:
        if png:
            source = f'data:image/png;base64,{base64.b64encode(png).decode()}'
            yield f'<figure><b>{title}</b><img alt="{title}" src="{source}"><figcaption>{caption}</figcaption></figure>\n'
    yield '</div>\n'
    if missing := [title.lower() for title, png, _ in drawn if not png]:
        yield f'<p class="small">Without a curve, as nothing is recorded: {", ".join(missing)}.</p>\n'


def recipe(runs: list[Run]) -> Iterator[str]:
    """Options that differ from their defaults in a run, and all options folded away."""
    yield '<h2>Recipe</h2>\n'
    if not any(run.config for run in runs):
        yield '<p>No configuration is recorded.</p>\n'
        return
    rows = _rows([*_options(runs), load_settings([])])
    changed = [row for row in rows if len(set(row[1:])) > 1]
    head = ['option', *_heads(runs), 'default']
    yield f'<p class="small">{counted(len(changed), "option")} of {len(rows)} at other values than the defaults.</p>\n'
    yield table(head, changed, set())
    yield f'<details><summary>All options</summary>\n{table(head, rows, set())}</details>\n'


def machine(run: Run) -> dict[str, object]:
    """{what: value} of the machine and the versions at the last start of a run."""
    versions = run.start.get('versions')
    names = {'host': 'host', 'processor': 'processor', 'cores': 'cores', 'device': 'device', 'ranks': 'devices'}
    names.update(precision='precision', global_batch='images in a step', steps_per_epoch='steps in an epoch')
    found = {shown_as: run.start[name] for name, shown_as in names.items() if name in run.start}
    return {**found, **(versions if isinstance(versions, dict) else {})}


def machines(runs: list[Run]) -> Iterator[str]:
    """Machine and versions."""
    if rows := _rows([machine(run) for run in runs]):
        yield '<h2>Machine and versions</h2>\n'
        yield table(['', *_heads(runs)], rows, set())


def history(run: Run, name: str) -> Iterator[str]:
    """What happened to a run, and its checkpoints."""
    yield f'<h2>History{name}</h2>\n'
    rows = [[clock(event.time), event.step, event.kind, _escaped(event.text)] for event in run.events()]
    yield table(['time', 'step', 'event', ''], rows, {1}) if rows else '<p>Nothing is recorded.</p>\n'
    yield f'<h2>Checkpoints{name}</h2>\n'
    kept = [one for one in run.checkpoints if (run.directory / str(one.get('file'))).is_file()]
    rows = [
        [text(str(one['file'])), one['step'], _size(number(one, 'bytes')), f'{number(one, "seconds"):.1f} s', clock(None)]
        for one in kept
    ]
    for row, one in zip(rows, kept):
        date, _, of_day = str(one.get('time'))[:19].partition('T')
        row[-1] = f'<span class="n">{_escaped(date)}</span> {_escaped(of_day)}'
    if found := run.best_checkpoint():
        rows.append([text(found[0]), '', _size(found[1]), '', 'the best by top-1'])
    yield table(['file', 'step', 'size', 'saved in', 'time (UTC)'], rows, {1, 2, 3}) if rows else '<p>There are none.</p>\n'
    if gone := len(run.checkpoints) - len(kept):
        yield f'<p class="small">{counted(gone, "earlier one")} removed since.</p>\n'


def _size(count):
    return '–' if math.isnan(count) else f'{count / 1e6:.1f} MB'


def write(places: list[str | Path], output: str | Path) -> None:
    """Write the page on the trainings in `places` to `output`, whole or not at all. InputError if matplotlib is missing, a
    place holds no training, or the page cannot be written."""
    plots.require()
    runs = [Run(place) for place in places]
    try:
        with files.replacing(output) as temporary:
            with open(temporary, 'w', encoding='utf-8', errors='backslashreplace') as file:
                file.writelines(parts(runs))
    except OSError as error:
        raise InputError(f'{output}: cannot be written ({error.strerror}); choose another --output') from None


def at_end(directory: Path, log: Callable[[str], None]) -> None:
    """Write the page on the training in `directory` into it; one line on it, or on why there is none."""
    with only_warned(log, 'page on the training'):
        write([directory], directory / NAME)
        log(f'curves: {directory / NAME}')


@entry_point
def main():
    """The command line."""
    parser = Parser(prog='python -m src.training.report', description=__doc__.partition('\n')[0])
    parser.add_argument('runs', metavar='RUN', nargs='+', help='log directory of a training, or its metrics.jsonl')
    parser.add_argument('--output', help=f'the page; default: {NAME} in the directory of a single RUN, else here')
    options = parser.parse_args()
    only = Path(options.runs[0])
    output = options.output or (Path(NAME) if len(options.runs) > 1 else (only if only.is_dir() else only.parent) / NAME)
    write(options.runs, output)
    print(output)


if __name__ == '__main__':
    main()
