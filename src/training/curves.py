"""The curves of trainings, as PNG; several trainings in one plot."""

from __future__ import annotations

import math
from typing import NamedTuple

from src.evaluation.plots import as_png, new_figure
from src.training.runs import Run, number, when_of

COLOURS = ('#2f6db3', '#c2410c', '#15803d', '#7e22ce', '#0e7490', '#be185d', '#4d7c0f', '#444444')
MARKS = {'resume': ('#15803d', '--'), 'fault': ('#dc2626', '-'), 'slow': ('#b45309', ':')}  # kinds of events
SIZE = 4.0, 2.7  # inches; their text can be read on a phone
SPREAD = 30  # from this ratio of the largest to the smallest value on, the axis is logarithmic
HOURS, DAYS = 2 * 3600, 3 * 24 * 3600  # seconds from which on a time axis has this unit


class Series(NamedTuple):
    """One line of a plot."""

    kind: str  # of the records
    field: str
    style: str  # of matplotlib
    name: str = ''
    caption: str = ''  # joins the plot's where the line is drawn


class Plot(NamedTuple):
    """A plot over the epochs."""

    title: str
    unit: str
    caption: str
    series: tuple[Series, ...]
    factor: float = 1
    logarithmic: bool = False  # where the values spread far; otherwise the axis begins at 0
    least: float = 0  # end of the axis, at least


PLOTS = (
    Plot(
        'Loss',
        'loss',
        '',
        (
            Series('step', 'mean_loss', '-', 'training', 'Training: mean since the previous log line.'),
            Series('evaluation', 'loss', 'o', 'evaluation', 'Circles: evaluation.'),
        ),
        logarithmic=True,
    ),
    Plot(
        'Accuracy',
        '%',
        'On the validation images.',
        (
            Series('evaluation', 'top1', 'o-', 'top-1', 'Circles: top-1.'),
            Series('evaluation', 'top5', 's:', 'top-5', 'Squares: top-5.'),
        ),
    ),
    Plot('Learning rate', 'learning rate', 'Of the step at each line.', (Series('step', 'lr', '-'),)),
    Plot('Speed', 'images per second', 'Of all devices, while they train.', (Series('step', 'images_per_second', '-'),)),
    Plot(
        'Wait for data',
        '% of the time',
        'Time in which the step waits for its batch; above 10 % the data holds up the device.',
        (Series('step', 'data_wait', '-'),),
        factor=100,
        least=12,
    ),
    Plot(
        'Gradient norm',
        'norm',
        'Of all gradients together, before clipping.',
        (Series('step', 'gradient_norm', '-'),),
        logarithmic=True,
    ),
)


def draw(plot: Plot, runs: list[Run]) -> tuple[bytes | None, str]:
    """(`plot` with the lines of all `runs`, a caption of what is in it); (None, '') if none of them has the values."""
    figure = new_figure(*SIZE)
    axes, values, captions = figure.subplots(), [], {plot.caption: None}
    for place, run in enumerate(runs):
        for order, series in enumerate(plot.series):
            found = run.of_kind(series.kind) if series.field != 'top5' or run.top5 else []
            points = [(run.epoch_of(one), plot.factor * number(one, series.field)) for one in found]
            points = [point for point in points if not math.isnan(point[1])]
            if points:
                values += [value for _, value in points]
                colour = _colour(place if len(runs) > 1 else order)
                captions[series.caption] = None
                style = series.style if len(points) > 1 or series.style != '-' else 'o'
                axes.plot(*zip(*points), style, color=colour, linewidth=1.3, markersize=3.5, label=series.name)
        for event in run.events():
            _mark(axes, event, event.epoch)
    if not values:
        return None, ''
    if plot.logarithmic and 0 < SPREAD * min(values) < max(values):
        axes.set_yscale('log')
    elif not plot.logarithmic:
        axes.set_ylim(0, max(1.08 * max(values), plot.least) or 1)
    axes.set(xlabel='epoch', ylabel=plot.unit)
    axes.set_xlim(left=0)  # the same in all plots, also where there is a single evaluation
    legend = len(runs) == 1 and len(axes.get_legend_handles_labels()[0]) > 1
    return _finished(figure, axes, legend), ' '.join(filter(None, captions))


def draw_progress(runs: list[Run]) -> bytes | None:
    """Epochs done over the time since the start of each run, pauses included; None if no times are known."""
    lines = []
    for run in runs:
        times = [(when, run.epoch_of(one)) for one in run.records if (when := when_of(one))]
        lines.append([((when - times[0][0]).total_seconds(), epoch) for when, epoch in times])
    longest = max((seconds for line in lines for seconds, _ in line), default=0)
    if not longest:
        return None
    scale, unit = (86400, 'days') if longest > DAYS else (3600, 'hours') if longest > HOURS else (60, 'minutes')
    figure = new_figure(*SIZE)
    axes = figure.subplots()
    for place, (run, line) in enumerate(zip(runs, lines)):
        if not line:
            continue
        axes.plot(*zip(*((seconds / scale, epoch) for seconds, epoch in line)), color=_colour(place), linewidth=1.3)
        begin = next(when for one in run.records if (when := when_of(one)))
        for event in run.events():
            if event.time:
                _mark(axes, event, (event.time - begin).total_seconds() / scale)
    axes.set(xlabel=f'{unit} since the start', ylabel='epoch')
    return _finished(figure, axes)


def _colour(place):
    return COLOURS[place % len(COLOURS)]


def _mark(axes, event, x):
    if event.kind in MARKS:
        colour, style = MARKS[event.kind]
        axes.axvline(x, color=colour, linestyle=style, linewidth=0.9, alpha=0.7, zorder=0)


def _finished(figure, axes, legend=False):
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=9)
    if legend:
        axes.legend(fontsize=9, frameon=False)
    return as_png(figure)
