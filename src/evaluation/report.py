"""The report on an evaluation: a page that needs no network, `index.html`, with `report.json` and `images.csv` beside it.
The writer of pages serves predictions, too (src/deploy/predict.py)."""

from __future__ import annotations

import base64
import csv
import html
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from src import files
from src.data.classes import imagenet_classes, named
from src.data.image import as_jpeg, encode_jpeg
from src.data.records import Records
from src.errors import counted, reading
from src.evaluation.outcomes import FEW, Outcomes, all_figures, suspected_labels

if TYPE_CHECKING:
    from src.evaluation.evaluation import Evaluation

SHOWN, PAIRS, OPEN = 12, 20, 30  # mistakes; rows of the confusions; rows that are not folded away, classes of a matrix
THUMBNAIL = 240  # pixels of the longer side
HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1em; max-width: 1100px; color: #222;
  background: #fafafa; overflow-wrap: anywhere }
h1 { font-size: 1.5em; margin: .3em 0 } h2 { font-size: 1.15em; margin: 1.8em 0 .4em }
p { margin: .4em 0; max-width: 75ch } .small, figcaption { font-size: 13px; color: #555 } b { color: #222 }
.grid { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)) }
.grid > * { background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: 10px; margin: 0; min-width: 0 }
.figure b { display: block; font-size: 1.6em } img { max-width: 100% } .grid img { max-height: 150px }
.table { overflow-x: auto } table { border-collapse: collapse; background: #fff; font-size: 14px; width: 100% }
th, td { border: 1px solid #ddd; padding: 3px 8px; text-align: left; max-width: 20em; overflow-wrap: break-word }
td { white-space: pre-wrap } th { background: #f0f2f5 } summary { cursor: pointer; margin: .6em 0 }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.up { writing-mode: vertical-rl; max-height: 14em; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.field { display: block; margin: -3px -8px; padding: 3px 6px; min-width: 2em; min-height: 1.8em }
@media (max-width: 600px) { body { padding: .7em } h1 { font-size: 1.25em } table { font-size: 13px }
  th, td { padding: 3px 5px; max-width: 11em } .grid { grid-template-columns: 1fr 1fr } }
</style></head><body>
<h1>$title</h1>
"""


def prepare(directory: str | Path) -> None:
    """Make `directory`; InputError if it cannot be made."""
    with reading(directory, 'choose another directory'):
        Path(directory).mkdir(parents=True, exist_ok=True)


def write(directory: str | Path, evaluation: Evaluation, title: str, recorded: list[str] | None = None) -> None:
    """Write the report on the best evaluation of `evaluation`; `title` says what was evaluated, `recorded` are the class
    names in the checkpoint. Each file is whole or not there. InputError if one cannot be written."""
    prepare(directory)
    records, labels = evaluation.records, class_labels(evaluation, recorded)
    figures = {**evaluation.best, **all_figures(evaluation.outcomes, len(labels))}
    for one in figures['per_class']:
        one['name'] = labels[one['class']]
    figures['confident_mistakes'] = mistakes(evaluation.outcomes, records, labels)
    with reading(directory, 'choose another directory'):
        write_table(Path(directory, 'images.csv'), evaluation.outcomes, records, labels)
        with files.replacing(Path(directory, 'report.json')) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + '\n')
        write_page(Path(directory, 'index.html'), f'Evaluation: {title}', sections(figures, evaluation))
    evaluation.run.log(f'report: {Path(directory, "index.html")}')


def class_labels(evaluation: Evaluation, recorded: list[str] | None = None) -> list[str]:
    """Names of the classes: those of the records, whose labels start at the offset, or else those that the checkpoint has
    `recorded`."""
    records, classes = evaluation.records, evaluation.num_classes
    own = records.class_names and (named(records) or not recorded)
    return labels_of(records.class_names[max(evaluation.offset, 0) :][:classes] if own else recorded or [], classes)


def labels_of(names: list[str], classes: int) -> list[str]:
    """What so many `classes` of a network are called, by their `names`, which may begin with that of a background. WordNet
    ids become ImageNet's words. A name that is missing or is there twice gets the class number."""
    names = names[-classes:]
    names = [*names, *[''] * (classes - len(names))]
    labels = [imagenet_classes().get(name, name) or f'class {number}' for number, name in enumerate(names)]
    times = Counter(labels)
    return [label if times[label] == 1 else f'{label} ({number})' for number, label in enumerate(labels)]


def mistakes(outcomes: Outcomes, records: Records, labels: list[str]) -> dict:
    """How many images are predicted wrongly, the most confident ones `first`, and how many may be labelled wrongly."""
    wrong, suspected = np.flatnonzero(~outcomes.hit), suspected_labels(outcomes, len(labels))
    first = [
        {
            **{'number': int(i), 'name': records.name(int(i))},
            **{'true': labels[outcomes.label[i]], 'predicted': labels[outcomes.predicted[i]]},
            **{name: float(getattr(outcomes, name)[i]) for name in ('probability', 'probability_true')},
            'suspected': bool(suspected[i]),
        }
        for i in wrong[np.argsort(-outcomes.probability[wrong], kind='stable')][:SHOWN]
    ]
    return {'count': len(wrong), 'first': first, 'suspected': int(suspected.sum())}


def write_table(path: Path, outcomes: Outcomes, records: Records, labels: list[str]) -> None:
    """images.csv: a line for each image, in the order of the records. OSError if it cannot be written."""
    with files.replacing(path) as temporary:
        with open(temporary, 'w', encoding='utf-8', errors='backslashreplace', newline='') as file:
            rows = csv.writer(file)
            rows.writerow(['name', 'true', 'predicted', 'probability', 'probability_true', 'loss', 'place_true'])
            for i, (label, predicted, p, p_true, loss, place) in enumerate(zip(*outcomes[:6])):
                texts = map(files.as_cell, (records.name(i), labels[label], labels[predicted]))
                rows.writerow([*texts, f'{p:.6f}', f'{p_true:.6f}', f'{abs(loss):.6f}', place])


def write_page(path: str | Path, title: str, content: Iterable[str]) -> None:
    """Write a page of `content` (HTML) that needs no network, whole or not at all. OSError if it cannot be written."""
    with files.replacing(path) as temporary, open(temporary, 'w', encoding='utf-8', errors='backslashreplace') as file:
        file.writelines([HEAD.replace('$title', text(title)), *content, '</body></html>\n'])


def text(value: object) -> str:
    """A name as HTML."""
    return html.escape(str(value))


def percent(share: float | None) -> str:
    """A share from 0 to 1 as per cent; a dash for None."""
    return '–' if share is None else f'{100 * share:.1f}\xa0%'


def card(what: str, value: str, remark: str = '') -> str:
    """A main figure."""
    return f'<div class="figure">{what}<b>{text(value)}</b><span class="small">{text(remark)}</span></div>\n'


def table(head: list[str], rows: list[list], numbers: set[int] = frozenset()) -> str:
    """A table; cells are HTML, those of the columns `numbers` stand to the right. A sentence without `rows`."""
    if not rows:
        return '<p class="small">There are none.</p>\n'
    kind = [' class="n"' * (i in numbers) for i in range(len(head))]
    lines = [''.join(f'<th{kind[i]}>{cell}</th>' for i, cell in enumerate(head))]
    lines += [''.join(f'<td{kind[i]}>{cell}</td>' for i, cell in enumerate(row)) for row in rows]
    return f'<div class="table"><table>{"".join(f"<tr>{line}</tr>" + chr(10) for line in lines)}</table></div>\n'


def sections(figures: dict, evaluation: Evaluation) -> Iterator[str]:
    """The page on the `figures` of report.json, piece by piece; thumbnails are read from its records."""
    classes, (count, first, suspected) = figures['per_class'], figures['confident_mistakes'].values()
    names = [text(one['name']) for one in classes]
    wrong = [pair for pair in figures['confusion'] if pair[0] != pair[1]]
    yield f'<p>{counted(figures["images"], "image")}, each evaluated once; {len(classes)} classes.</p>\n<div class="grid">'
    for what, key, unit in (('top-1', 'top1', ' %'), ('top-5', 'top5', ' %'), ('mean loss', 'loss', '')):
        if key != 'top5' or len(classes) > FEW:
            value, low, high = ('–' if end is None else f'{end:.{1 if unit else 3}f}' for end in figures[key].values())
            yield card(what, value + unit, f'95 %: {low} to {high}{unit}')
    yield card('calibration error', percent(figures['calibration']['expected_calibration_error']), '0 is best')
    yield f'</div>\n<p class="small">{figures["intervals"]}.</p>\n<h2>Most frequent confusions</h2>\n'
    rows = [[names[i], names[j], n, percent(n / classes[i]['images'])] for i, j, n in wrong[:PAIRS]]
    yield table(['true', 'predicted as', 'images', 'of the class'], rows, {2, 3})
    if len(wrong) > PAIRS:
        yield f'<p class="small">{PAIRS} of {len(wrong)} pairs; all are in report.json.</p>\n'
    if len(classes) <= OPEN:
        yield matrix(figures['confusion'], names)
    yield f'<h2>Most confident mistakes</h2>\n<p class="small">{len(first)} of {count} images whose class is predicted '
    yield f'wrongly. {suspected} may be labelled wrongly: another class is as likely as for images that do have its '
    yield 'label. Many of them are simply mistakes of the network.'
    if evaluation.outcomes.activation[0].size > 1:
        yield ' Below a photo: what the network saw of it, bright where it found the class that it predicted.'
    yield '</p>\n<div class="grid">\n'
    yield from (mistake(one, evaluation) for one in first)
    yield '</div>\n<h2>Calibration</h2>\n<p class="small">How far the probabilities can be trusted: of images predicted '
    yield 'with a probability of 80 %, 80 % should be right. The calibration error (Guo et al. 2017) is the mean gap.</p>\n'
    bins = [one for one in figures['calibration']['bins'] if one['images']]
    rows = [[*(percent(one[key]) for key in ('low', 'high', 'confidence', 'accuracy')), one['images']] for one in bins]
    yield table(['probability from', 'to', 'mean', 'right', 'images'], rows, {0, 1, 2, 3, 4})
    yield '<h2>Classes</h2>\n<p class="small">Recall: share of the images of a class that are predicted as it. Precision: '
    yield 'share of the images predicted as a class that are of it. The lowest recall comes first.</p>\n'
    taken_for = {true: names[predicted] for true, predicted, _ in reversed(wrong)}  # most images last
    rows = [
        [i := one['class'], names[i], one['images'], percent(one['recall']), percent(one['precision']), taken_for.get(i, '')]
        for one in sorted(classes, key=lambda one: (one['recall'] is None, one['recall'] or 0, one['class']))
    ]
    head = ['no.', 'class', 'images', 'recall', 'precision', 'most often mistaken for']
    yield table(head, rows[:OPEN], {0, 2, 3, 4})
    if rest := rows[OPEN:]:
        yield f'<details><summary>The other {len(rest)} classes</summary>\n{table(head, rest, {0, 2, 3, 4})}</details>\n'
    yield '<p class="small">images.csv lists all images, report.json all figures.</p>\n'


def matrix(confusion: list[list[int]], names: list[str]) -> str:
    """The confusion matrix as a table; the colour of a field is its share of the row."""
    counts = np.zeros((len(names), len(names)), int)
    for true, predicted, images in confusion:
        counts[true, predicted] = images
    shares = 0.6 * counts / np.maximum(counts.sum(1, keepdims=True), 1)  # so that the number can be read on any
    field = '<span class="field" style="background: rgb(47 109 179 / {:.2f})">{}</span>'
    rows = [[name, *map(field.format, share, row)] for name, share, row in zip(names, shares, counts)]
    head = ['', *(f'<span class="up">{name}</span>' for name in names)]
    note = 'Images of each true class (row) by predicted class (column); the darker a field, the larger its share of the row'
    return f'<h2>Confusion matrix</h2>\n<p class="small">{note}.</p>\n{table(head, rows, {*range(1, len(head))})}'


def lit(image: np.ndarray, activation: np.ndarray) -> bytes:
    """An image uint8 (H, W, 3) as a JPEG, bright where the class activation map (h, w) is high, dark where it is not."""
    light = ((activation - activation.min()) / max(np.ptp(activation), 1e-30)).astype(np.float32)
    light = np.asarray(Image.fromarray(light).resize(image.shape[1::-1], Image.Resampling.BICUBIC)).clip(0, 1)
    return encode_jpeg((image * (0.15 + 0.85 * light[..., None])).astype(np.uint8), max(image.shape))


def mistake(one: dict, evaluation: Evaluation) -> str:
    """Thumbnails of a photo, read from the records once more, and of where the network looked, with its labels."""
    records, number = evaluation.records, one['number']
    thumbnails = [as_jpeg(records.read(number), records.upright, THUMBNAIL)]
    if (activation := evaluation.outcomes.activation[number]).size > 1:
        thumbnails.append(lit(evaluation.images.sample(number)[0].transpose(1, 2, 0), activation))
    shown = ''.join(f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(image).decode()}"> ' for image in thumbnails)
    predicted, true = (
        f'{what}: <b>{text(one[what])}</b>, {percent(one[probability])}<br>'
        for what, probability in (('predicted', 'probability'), ('true', 'probability_true'))
    )
    true += 'perhaps labelled wrongly<br>' * one['suspected']
    return f'<figure>{shown}<figcaption>{predicted}{true}{text(one["name"])}</figcaption></figure>\n'
