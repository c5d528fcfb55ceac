"""Plots of a report, as PNG. matplotlib is optional: nothing else needs it."""

from __future__ import annotations

import importlib
import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

from src.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL = 24  # characters of a class name beside the matrix
BLUE, GREY = '#2f6db3', '#9aa0a6'


def require() -> None:
    """InputError if matplotlib cannot be imported."""
    try:
        importlib.import_module('matplotlib.figure')
    except ImportError as error:
        remedy = 'pip install -r requirements-report.txt'
        raise InputError(f'a report needs the package matplotlib ({error}): {remedy}') from None


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches; not by pyplot, which would choose a backend for the whole process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():  # of letters that the font lacks
        warnings.simplefilter('ignore')
        figure.savefig(file, format='png', dpi=160)
    return file.getvalue()


def reliability(bins: list[dict]) -> bytes:
    """Reliability diagram of the `bins` of `outcomes.calibration`, and below it how many images are in each."""
    figure = new_figure(4.3, 4.3)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [one for one in bins if one['images']]
    middle = [(one['low'] + one['high']) / 2 for one in filled]
    width = 0.9 / len(bins)
    above.bar(middle, [one['accuracy'] for one in filled], width, color=BLUE, label='accuracy of the bin')
    above.plot([0, 1], [0, 1], '--', color='#555', linewidth=1, label='perfectly calibrated')
    confidence = [one['confidence'] for one in filled]
    above.plot(
        confidence, [one['accuracy'] for one in filled], 'o', color='#c2410c', markersize=4, label='at mean confidence'
    )
    above.set(ylabel='accuracy', ylim=(0, 1.02), xlim=(0, 1))
    above.legend(fontsize=8, loc='upper left', frameon=False)
    below.bar(middle, [one['images'] for one in filled], width, color=GREY)
    below.set(xlabel='confidence (probability of the predicted class)', ylabel='images')
    return as_png(figure)


def confusion(pairs: list[list[int]], labels: list[str]) -> bytes:
    """Confusion matrix of [true class, predicted class, images], true classes in rows; colours are shares of a row."""
    classes = len(labels)
    counts = np.zeros((classes, classes), int)
    for true, predicted, images in pairs:
        counts[true, predicted] = images
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.6 + 0.36 * classes
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    for true, predicted, images in pairs:
        colour = 'white' if shares[true, predicted] > 0.55 else '#222'
        axes.text(predicted, true, str(images), ha='center', va='center', fontsize=8, color=colour)
    shown = [_label(label, number) for number, label in enumerate(labels)]
    axes.set_xticks(range(classes), shown, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(classes), shown, fontsize=8, parse_math=False)
    axes.set(xlabel='predicted class', ylabel='true class')
    return as_png(figure)


def _label(label, number):
    """The beginning of a class name, or its number where matplotlib's font has not all of its letters."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont('DejaVu Sans'))
    if not label.isprintable() or not all(font.get_char_index(ord(letter)) for letter in label):
        return str(number)
    return label if len(label) <= LABEL else label[: LABEL - 1] + '…'
