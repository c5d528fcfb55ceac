"""The page of a report: one HTML file with its plots and thumbnails in it."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator

from src.data.image import as_jpeg
from src.data.records import Records
from src.errors import InputError, counted
from src.evaluation import plots
from src.evaluation.outcomes import FEW

PAIRS = 20  # rows of the table of confusions
OPEN = 30  # rows of the table of classes that are not folded away; classes of a matrix that can still be read
THUMBNAIL = 240  # pixels, longer side
LONGEST = 90  # characters of a name
GROUPS = {
    'confident_mistakes': ('Most confident mistakes', 'Images whose predicted class is not their label.'),
    'suspected_label_errors': (
        'Suspected label errors',
        'Images that may be labelled wrongly: another class is the likeliest, and at least as likely as it is on average '
        'for images that do have its label (confident learning, Northcutt et al. 2021). Many are simply mistakes of the '
        'network: look before you change a label.',
    ),
    'unsure_hits': ('Least confident hits', 'Images whose predicted class is their label.'),
}
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
* {{ box-sizing: border-box }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1em; max-width: 1100px; color: #222;
  background: #fafafa; overflow-wrap: anywhere }}
h1 {{ font-size: 1.5em; margin: .3em 0 }} h2 {{ font-size: 1.15em; margin: 1.8em 0 .4em }}
p {{ margin: .4em 0; max-width: 75ch }} .small, figcaption {{ font-size: 13px; color: #555 }}
.grid {{ display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)) }}
.grid > *, .plot {{ background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: 10px; margin: 0 }}
.figure b {{ display: block; font-size: 1.6em }}
figure img {{ display: block; height: 150px; max-width: 100%; margin: 0 auto 6px; object-fit: contain }}
figcaption b {{ color: #222 }} figcaption div {{ margin-top: 2px }} figcaption .file {{ font-size: 12px; color: #777 }}
.plot {{ overflow-x: auto; width: fit-content; max-width: 100%; padding: 6px }} .plot img {{ display: block }}
.table {{ overflow-x: auto }} table {{ border-collapse: collapse; background: #fff; font-size: 14px; width: 100% }}
td, figcaption b {{ white-space: pre-wrap }}
th, td {{ border: 1px solid #ddd; padding: 3px 8px; text-align: left; max-width: 20em; overflow-wrap: break-word }}
.n {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; overflow-wrap: normal }}
th {{ background: #f0f2f5 }} summary {{ cursor: pointer; margin: .6em 0 }}
@media (max-width: 600px) {{ body {{ padding: .7em }} h1 {{ font-size: 1.25em }} table {{ font-size: 13px }}
  th, td {{ padding: 3px 5px; max-width: 11em }} .grid {{ grid-template-columns: 1fr 1fr }} }}
</style></head><body>
<h1>{title}</h1>
"""


def parts(title: str, figures: dict, groups: dict[str, dict], records: Records) -> Iterator[str]:
    """The page, piece by piece.

    Args:
        figures: of `outcomes.figures`, each class with its `name`.
        groups: {name as in GROUPS: {'count': images in it, 'first': [images that are shown, as in report.json]}}.
        records: where the thumbnails are read from.
    """
    names = [one['name'] for one in figures['per_class']]
    yield PAGE.format(title=f'Evaluation: {text(title)}')
    yield f'<p>{counted(figures["images"], "image")}, each evaluated once; {len(names)} classes.</p>\n<div class="grid">'
    yield from cards(figures, len(names))
    intervals = figures['intervals'].replace(' and top-5', '' if len(names) <= FEW else ' and top-5')
    yield f'</div>\n<p class="small">{intervals}.</p>\n'
    yield from confusions(figures, names)
    for group, (heading, explanation) in GROUPS.items():
        count, first = groups[group]['count'], groups[group]['first']
        if not count:
            yield f'<h2>{heading}</h2>\n<p class="small">There are none.</p>\n'
            continue
        which = f'There are {count}; the first {len(first)} are shown' if count > len(first) else f'{count} in all'
        yield f'<h2>{heading}</h2>\n<p class="small">{explanation} {which}.</p>\n'
        yield '<div class="grid">\n'
        yield from (figure(image, records) for image in first)
        yield '</div>\n'
    yield from calibration(figures['calibration'])
    yield from classes(figures)
    yield '<p class="small">images.csv lists all images, report.json all figures.</p>\n</body></html>\n'


def text(value: str) -> str:
    """A name of any bytes and any length as HTML that shows it in one line, without the middle of a long one."""
    shown = ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in value)
    return html.escape(shown if len(shown) <= LONGEST else f'{shown[: LONGEST - 30]}…{shown[-29:]}')


def percent(share: float | None) -> str:
    """A share from 0 to 1 as per cent; a dash for None."""
    return '–' if share is None else f'{100 * share:.1f}\N{NO-BREAK SPACE}%'


def cards(figures: dict, classes: int) -> Iterator[str]:
    """The main figures; top-5 only where it says something."""
    for name, key, unit in (('top-1', 'top1', ' %'), ('top-5', 'top5', ' %'), ('mean loss', 'loss', '')):
        value, low, high = (figures[key][end] for end in ('value', 'low', 'high'))
        if key == 'top5' and classes <= FEW:
            continue
        digits = 1 if unit else 3
        main = 'not finite' if value is None else f'{value:.{digits}f}{unit}'
        interval = f'95 %: {low:.{digits}f} to {high:.{digits}f}{unit}' if low is not None else ''
        yield f'<div class="figure">{name}<b>{main}</b><span class="small">{interval}</span></div>\n'
    error = figures['calibration']['expected_calibration_error']
    yield f'<div class="figure">calibration error<b>{percent(error)}</b><span class="small">0 is best</span></div>\n'


def table(head: list[str], rows: list[list], numbers: set[int]) -> str:
    """A table; cells are HTML, those of the columns `numbers` stand to the right."""
    kind = [' class="n"' * (i in numbers) for i in range(len(head))]
    lines = [''.join(f'<th{kind[i]}>{cell}</th>' for i, cell in enumerate(head))]
    lines += [''.join(f'<td{kind[i]}>{cell}</td>' for i, cell in enumerate(row)) for row in rows]
    return f'<div class="table"><table>{"".join(f"<tr>{line}</tr>" + chr(10) for line in lines)}</table></div>\n'


def confusions(figures: dict, names: list[str]) -> Iterator[str]:
    """The worst pairs of classes and, where there are few enough classes, the whole matrix."""
    wrong = [(true, predicted, images) for true, predicted, images in figures['confusion'] if true != predicted]
    yield '<h2>Most frequent confusions</h2>\n'
    rows = [
        [text(names[true]), text(names[predicted]), images, percent(images / figures['per_class'][true]['images'])]
        for true, predicted, images in wrong[:PAIRS]
    ]
    yield table(['true', 'predicted as', 'images', 'of the class'], rows, {2, 3}) if rows else '<p>There are none.</p>\n'
    if len(wrong) > PAIRS:
        yield f'<p class="small">{PAIRS} of {len(wrong)} pairs; all are in report.json.</p>\n'
    if len(names) <= OPEN:
        yield '<h2>Confusion matrix</h2>\n<p class="small">Images of each true class (row) by predicted class (column); the '
        yield 'darker a field, the larger its share of the row.</p>\n'
        yield plot(plots.confusion(figures['confusion'], names), 'confusion matrix')


def plot(png: bytes, alt: str) -> str:
    """An image in the page; on a narrow screen it is scrolled rather than made so small that it cannot be read."""
    data, width = base64.b64encode(png).decode(), int.from_bytes(png[16:20], 'big')
    least = 0.45 if width < 800 else 0.6  # the former fits a phone
    style = f'width: {0.65 * width:.0f}px; min-width: {least * width:.0f}px; max-width: 100%'
    return f'<div class="plot"><img alt="{alt}" style="{style}" src="data:image/png;base64,{data}"></div>\n'


def figure(image: dict, records: Records) -> str:
    """A thumbnail, read from the records once more, with its labels."""
    try:
        small = as_jpeg(records.read(image['number']), records.upright, THUMBNAIL)
        shown = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(small).decode()}">'
    except (InputError, ValueError):  # gone since it was evaluated
        shown = '<p class="small">cannot be read any more</p>'
    predicted, p = text(image['predicted']), percent(image['probability'])
    other = f'<div>true: <b>{text(image["true"])}</b>, {percent(image["probability_true"])}</div>'
    return (
        f'<figure>{shown}<figcaption><div>predicted: <b>{predicted}</b>, {p}</div>'
        f'{other if image["true"] != image["predicted"] else ""}<div class="file">{text(image["name"])}</div>'
        '</figcaption></figure>\n'
    )


def calibration(found: dict) -> Iterator[str]:
    """The expected calibration error and its diagram."""
    bins, error = found['bins'], found['expected_calibration_error']
    yield '<h2>Calibration</h2>\n<p class="small">How far the probabilities can be trusted: of images predicted with a '
    yield 'probability of 80 %, 80 % should be right. The expected calibration error (Guo et al. 2017) is '
    yield f'{percent(error)}: the mean distance of accuracy and confidence over {len(bins)} bins, weighted by images.</p>\n'
    yield plot(plots.reliability(bins), 'reliability diagram')


def classes(figures: dict) -> Iterator[str]:
    """Recall and precision of every class, the lowest recall first, classes without images last."""
    found, taken = figures['per_class'], {}
    for true, predicted, _ in figures['confusion']:  # most images first
        if true != predicted:
            taken.setdefault(true, found[predicted]['name'])
    order = sorted(found, key=lambda one: (one['recall'] is None, one['recall'] or 0, one['class']))
    rows = [
        [
            one['class'],
            text(one['name']),
            one['images'],
            percent(one['recall']),
            percent(one['precision']),
            text(taken.get(one['class'], '')),
        ]
        for one in order
    ]
    head, numbers = ['no.', 'class', 'images', 'recall', 'precision', 'most often mistaken for'], {0, 2, 3, 4}
    yield '<h2>Classes</h2>\n<p class="small">Recall: share of the images of a class that are predicted as it. Precision: '
    yield 'share of the images predicted as a class that are of it. The lowest recall comes first.</p>\n'
    yield table(head, rows[:OPEN], numbers)
    if rows[OPEN:]:
        yield f'<details><summary>The other {len(rows) - OPEN} classes</summary>\n'
        yield table(head, rows[OPEN:], numbers) + '</details>\n'
