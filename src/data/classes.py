"""Classes: names in files and in ImageNet, where labels start, how many there are, and what another training called them.

Files of names have lines `number:name`, or names alone, which count from 0. A name with spaces at its ends stands in quotes,
as in JSON; without them spaces are an accident. imagenet_classes.txt has lines `id words` in the order of the
WordNet ids, which is that of every program's class numbers (Princeton University, wordnet.princeton.edu).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.errors import InputError, reading

if TYPE_CHECKING:
    from src.data.records import Records

BACKGROUND_CLASSES = 1001  # ImageNet's 1000 classes and, as class 0, TF-slim's background
# Names are compared in Unicode's composed form: macOS stores an accent of a file name as a character of its own.
normal = functools.partial(unicodedata.normalize, 'NFC')
_NUMBERED = re.compile(r'([0-9]{1,6}):\s*(\S.*)')  # lists of names are as long as the largest number


@functools.lru_cache(None)
def imagenet_classes() -> dict[str, str]:
    """{WordNet id: words} of ImageNet's classes 0 to 999, in their order."""
    text = Path(__file__).with_name('imagenet_classes.txt').read_text(encoding='ascii')
    return dict(line.split(' ', 1) for line in text.splitlines())


def imagenet_names(count: int = 1000) -> list[str] | None:
    """Names of the classes of a network with 1000 classes, or 1001 with a background; None for another `count`."""
    names = list(imagenet_classes().values())
    return {1000: names, BACKGROUND_CLASSES: ['background', *names]}.get(count)


def names_by_wordnet_ids(noted: list[tuple[int, str]]) -> list[str] | None:
    """ImageNet's names by label if records have the labels and WordNet ids `noted`: with a background class in front, as
    TF-slim counts, or without. None if they have others."""
    ids = list(imagenet_classes())
    for first in (1, 0):
        if noted and all(first <= label and [one] == ids[label - first :][:1] for label, one in noted):
            return imagenet_names(len(ids) + first)
    return None


def load_names(path: str | Path) -> tuple[list[str], bool]:
    """(names by number, '' where there is none; whether its lines have numbers) of the file `path`. ValueError for a file
    that is no such list or has a number twice; OSError if it cannot be read."""
    with open(path, encoding='utf-8-sig', errors='surrogateescape') as file:
        lines = [line.strip() for line in file if line.strip()]
    pairs, names = [_NUMBERED.fullmatch(line) for line in lines], {}
    if any(pairs) and not all(pairs):
        raise ValueError(f'expected `label:name` as on the other lines, not {lines[pairs.index(None)]!r:.80}')
    for number, name in [(int(pair[1]), pair[2]) for pair in pairs] if any(pairs) else enumerate(lines):
        if number in names:
            raise ValueError(f'names label {number} twice')
        with contextlib.suppress(ValueError):
            name = json.loads(name) if name[:1] == name[-1:] == '"' else name
        names[number] = normal(name)
    return [names.get(number, '') for number in range(max(names, default=-1) + 1)], any(pairs)


def names_as_text(names: Sequence[str]) -> str:
    """The content of a file that `load_names` reads, with numbers, from the names by number."""
    plain = re.compile(r'[^\s"]([^\r\n]*\S)?')
    texts = [name if plain.fullmatch(name) else json.dumps(name, ensure_ascii=False) for name in names]
    return ''.join(f'{number}:{text}\n' for number, text in enumerate(texts) if names[number])


def read_labels(data_dir: str | Path, numbered: bool = True) -> list[str] | None:
    """Names by label from the file labels.txt in `data_dir`, lines `label:name`; None without the file. With `numbered`,
    lines of names alone give None, since shards may start at 0 or 1; without it, as for folders, they count from 0.
    InputError for a file that is no such list."""
    path = os.path.join(data_dir, 'labels.txt')
    if not os.path.exists(path):
        return None
    with reading(path, 'fix it'):
        names, has_numbers = load_names(path)
    if numbered and not has_numbers:
        return None
    return ['background', *names[1:]] if names and not names[0] else names


def label_offset(option: str, records: Records) -> tuple[int, str]:
    """(what is subtracted from the labels of `records`, in brackets what is assumed for it): `option`, or for "auto" the
    lowest label of a class. TF-slim's ImageNet counts from 1 and leaves 0 to a background class; folders count from 0."""
    if option != 'auto':
        return int(option), ''
    remark = ' (assumed, as none is 0; if only the images of a class 0 are missing, use --label_offset 0)'
    return records.label_base, remark * (records.label_base > 0 and not named(records))


def named(records: Records) -> bool:
    """Whether `records` name a class other than a background."""
    return any(name not in ('', 'background') for name in records.class_names or ())


def validation_offset(option: str, records: Records, num_classes: int, names: list[str] | None, recorded: str | None) -> int:
    """What is subtracted from the labels of `records` for weights with `num_classes` classes that record the class `names`
    and the label_offset `recorded`, as far as they record any; `option` is that of the command line. InputError if the
    labels leave it open."""
    if option != 'auto':
        return int(option)
    background = num_classes == BACKGROUND_CLASSES or bool(names and len(names) == num_classes and names[0] == 'background')
    candidates = [records.label_base - background] if named(records) else [0, -1 if background else 1]
    low, high = records.label.min(), records.label.max()
    possible = [offset for offset in candidates if offset <= low and high < num_classes + offset]
    if recorded and int(recorded) in possible and not background:  # with it, records of others are as likely
        return int(recorded)
    if len(possible) > 1:
        remedy = '--label_offset 0 if they count from 0, 1 if they count from 1'
        remedy += '; with a background as class 0 import the weights with --drop_background first' * background
        raise InputError(f'labels {low} to {high} may count from 0 or 1, {num_classes} classes fit both; use {remedy}')
    return [*possible, *candidates][0]  # none may fit, as `check_labels` says


def count_classes(option: int | str, records: Records, offset: int) -> tuple[int, str]:
    """(number of classes, where it comes from) of a training run with `records`: `option`, for 'auto' the number of names or
    else what the largest label makes. InputError if labels or names do not fit it, or if a class has no image."""
    records.refuse_empty_folders()
    names, largest = len(records.class_names) - offset if records.class_names else 0, int(records.label.max())
    most = max(len(records), BACKGROUND_CLASSES)  # a label far above the number of images is an accident
    classes, source = min(largest + 1 - offset, most), f'by the largest label {largest}'
    if option != 'auto':
        classes, source = option, 'num_classes'
    elif names:
        classes, source = names, 'those with names'
    check_labels(records, offset, max(classes, 1))
    if 0 < names < classes:
        raise InputError(f'num_classes {classes}, but the records name {names} classes (label_offset {offset}); use auto')
    if classes < 2:
        raise InputError(f'all {len(records)} training images are of one class; a training needs two or more')
    return classes, source


def balanced(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Factors of the classes of training `labels` (N,), from 0: N / (num_classes * images of the class), float32
    (num_classes,), so that each class has the same part in the loss; 0 for a class without images."""
    counts = np.bincount(labels, minlength=num_classes)
    return (len(labels) / num_classes / np.maximum(counts, 1) * (counts > 0)).astype(np.float32)


def check_labels(records: Records, offset: int, num_classes: int) -> None:
    """InputError naming the first record whose label is not one of `num_classes` after `offset` is subtracted."""
    bad = np.flatnonzero((records.label < offset) | (records.label >= num_classes + offset))
    if len(bad):
        raise InputError(
            f'label {records.label[bad[0]]} of {records.where(bad[0])} is outside {offset}..{num_classes - 1 + offset} '
            f'(num_classes {num_classes}, label_offset {offset}); the records have labels {records.label.min()} to '
            f'{records.label.max()}: set --num_classes and --label_offset to match, or name all classes in labels.txt'
        )


def _comparable(names):
    """Names as they are compared: ImageNet's classes by their WordNet ids, as two of them have the words crane."""
    ids, words = list(imagenet_classes()), list(imagenet_classes().values())
    names = [*map(normal, names)]
    if names[-len(words) :] == words:
        return [*names[: -len(words)], *ids]
    id_of = {name: one for one, name in imagenet_classes().items() if words.count(name) == 1}
    return [id_of.get(name, name) for name in names]


def match_names(records: Records, recorded: list[str] | None, source: str | Path) -> Records:
    """`records` with the labels of another training run: every class gets the label that its name has in `recorded`, that
    run's names by label, where a class of the same label and name is the same. The same `records` if either has no names.
    InputError naming a class that `source`, a checkpoint or records, does not know."""
    if not named(records) or not any(recorded or ()):
        return records
    names, known, number = _comparable(records.class_names), _comparable(recorded), {}
    for label in np.unique(records.label).tolist():
        name = names[label] if 0 <= label < len(names) else ''
        if 0 <= label < len(known) and known[label] == name:
            number[label] = label
        elif name and known.count(name) == 1:
            number[label] = known.index(name)
        else:
            where, theirs = records.where(int(np.argmax(records.label == label))), [one for one in recorded if one]
            raise InputError(
                f'class {name or label} of {where} is not one class among the {len(theirs)} of {source} '
                f'({", ".join(theirs[:3])} ...); name the classes as there'
            )
    matched = np.array([*number.values()], np.int64)[np.searchsorted([*number], records.label)]
    return dataclasses.replace(records, label=matched, class_names=[*map(normal, recorded)])
