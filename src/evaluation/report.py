"""The report of an evaluation: a page that needs no network, `index.html`, with `report.json` and `images.csv` beside it."""

from __future__ import annotations

import contextlib
import csv
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from src import files
from src.data import imagenet
from src.data.classes import named
from src.data.records import Records
from src.errors import DiskFullError, InputError, only_warned, reading
from src.evaluation import outcomes as found
from src.evaluation import page, plots
from src.evaluation.evaluation import Evaluation
from src.evaluation.outcomes import Outcomes

SHOWN = 12  # images of each group that are shown


def prepare(directory: str | Path) -> None:
    """Make `directory`; InputError if that cannot be done, or if what a report needs is not installed."""
    plots.require()
    with reading(f'report {directory}', 'choose another directory'):
        Path(directory).mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(13, 'no permission to write')


def class_labels(records: Records, offset: int, num_classes: int, recorded: list[str] | None = None) -> list[str]:
    """What the classes are called: by `records`, whose labels start at `offset`, or else as the checkpoint has `recorded`,
    which may begin with a background. WordNet ids become ImageNet's words. A name that is missing or stands twice gets the
    class number."""
    own = records.class_names and (named(records) or not recorded)
    names = records.class_names[max(offset, 0) :][:num_classes] if own else (recorded or [])[-num_classes:]
    labels = [imagenet.words(name) for name in [*names, *[''] * (num_classes - len(names))]]
    times = Counter(labels)
    return [
        f'class {number}' if not label else label if times[label] == 1 else f'{label} ({number})'
        for number, label in enumerate(labels)
    ]


def at_end(directory: str, log_directory: Path, evaluation: Evaluation, log: Callable[[str], None]) -> Callable[[int], None]:
    """What a training calls with its last step after the last evaluation, on every rank: the report on its best evaluation
    goes to `directory` or, if that is '', to `report` in `log_directory`. One that fails does not make the training fail.

    InputError if a `directory` was given and no report can be written there.
    """
    if directory and evaluation.rank == 0:
        with contextlib.suppress(DiskFullError):  # there may be room at the end
            prepare(directory)
    place = files.Place(log_directory)

    def write_after(_):
        path = Path(directory or place.find() / 'report')
        with only_warned(log, 'report on the evaluation'):
            write(path, evaluation, f'training after step {evaluation.best["step"]}', evaluation.best, log)

    return write_after


def write(
    directory: str | Path,
    evaluation: Evaluation,
    title: str,
    about: dict,
    log: Callable[[str], None],
    recorded: list[str] | None = None,
) -> None:
    """Write the report on what `evaluation` keeps; to be called by every rank, rank 0 writes.

    Args:
        title (str): what was evaluated.
        about (dict): further facts for report.json.
        recorded (list of str): class names in the checkpoint.

    InputError if it cannot be written.
    """
    outcomes = evaluation.outcomes()
    if evaluation.rank == 0:
        prepare(directory)
        labels = class_labels(evaluation.records, evaluation.offset, evaluation.num_classes, recorded)
        write_files(directory, title, outcomes, evaluation.records, labels, about)
        log(f'report: {Path(directory, "index.html")}')


def write_files(
    directory: str | Path, title: str, outcomes: Outcomes, records: Records, labels: list[str], about: dict
) -> None:
    """Write the report on the `outcomes` of the images `records`; `labels` by class. Each file is whole or not there.

    InputError if one cannot be written.
    """
    figures = found.figures(outcomes, len(labels))
    groups = {
        'confident_mistakes': found.confident_mistakes(outcomes),
        'suspected_label_errors': found.suspected_label_errors(outcomes, len(labels)),
        'unsure_hits': found.unsure_hits(outcomes),
    }
    listed = {
        name: {'count': len(numbers), 'first': [_image(int(i), outcomes, records, labels) for i in numbers[:SHOWN]]}
        for name, numbers in groups.items()
    }
    for one in figures['per_class']:
        one['name'] = labels[one['class']]
    try:
        write_table(Path(directory, 'images.csv'), outcomes, records, labels, groups['suspected_label_errors'])
        with files.replacing(Path(directory, 'report.json')) as temporary:
            temporary.write_text(files.as_json({**about, **figures, **listed}, 1) + '\n')
        with files.replacing(Path(directory, 'index.html')) as temporary:
            with open(temporary, 'w', encoding='utf-8', errors='backslashreplace') as file:
                file.writelines(page.parts(title, figures, listed, records))
    except OSError as error:
        raise InputError(f'report {directory}: cannot be written ({error.strerror}); choose another directory') from None


def write_table(path: Path, outcomes: Outcomes, records: Records, labels: list[str], suspected: np.ndarray) -> None:
    """images.csv: a line for each image, in the order of the records. OSError if it cannot be written."""
    marked = np.zeros(len(outcomes.label), int)
    marked[suspected] = 1
    header = ['name', 'true', 'predicted', 'probability', 'probability_true', 'loss', 'place_true', 'suspected_label_error']
    with files.replacing(path) as temporary:
        with open(temporary, 'w', encoding='utf-8', errors='backslashreplace', newline='') as file:
            rows = csv.writer(file)
            rows.writerow(header)
            for i, (label, predicted, p, p_true, loss, place) in enumerate(zip(*outcomes)):
                numbers = [f'{p:.6f}', f'{p_true:.6f}', f'{abs(loss):.6f}', place, marked[i]]
                rows.writerow([*map(files.as_cell, (records.name(i), labels[label], labels[predicted])), *numbers])


def _image(i, outcomes, records, labels):
    return {
        'number': i,
        'name': records.name(i),
        'true': labels[outcomes.label[i]],
        'predicted': labels[outcomes.predicted[i]],
        'probability': float(outcomes.probability[i]),
        'probability_true': float(outcomes.probability_true[i]),
    }
