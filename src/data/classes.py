"""Classes: their names in files and in ImageNet, where the labels of records start, how many there are, and what another
training called them.

Files of names have lines `number:name`, or names alone, which count from 0. A name with spaces at its ends stands in quotes,
as in JSON: without them these spaces are not part of the name. imagenet_classes.txt has lines `id words` in the order of the
WordNet ids, which is that of every program's class numbers (Princeton University, wordnet.princeton.edu).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from src.errors import InputError, reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from src.data.records import Records

BACKGROUND_CLASSES = 1001  # ImageNet's 1000 classes and, as class 0, TF-slim's background
LARGEST = 999999  # number of a class; lists of names are as long as the largest number
_NUMBERED = re.compile(r'\s*([0-9]{1,6}):\s*(\S.*)')


@functools.lru_cache(None)
def imagenet_classes() -> dict[str, str]:
    """{WordNet id: words} of ImageNet's classes 0 to 999, in their order."""
    text = Path(__file__).with_name('imagenet_classes.txt').read_text(encoding='ascii')
    return dict(line.split(' ', 1) for line in text.splitlines())


def imagenet_words(name: str) -> str:
    """The words of the class whose WordNet id is `name`; any other `name` as it is."""
    return imagenet_classes().get(name, name)


def imagenet_names(count: int = 1000) -> list[str] | None:
    """Names of the classes of a network with 1000 classes, or 1001 with a background; None for another `count`."""
    names = list(imagenet_classes().values())
    return {1000: names, BACKGROUND_CLASSES: ['background', *names]}.get(count)


def names_by_wordnet_ids(noted: list[tuple[int, bytes]]) -> list[str] | None:
    """Names by label of records of which some have the labels and WordNet ids `noted` (pairs): with a background class in
    front, as TF-slim counts, or without. None if they do not fit ImageNet's classes."""
    ids = list(imagenet_classes())
    for first in (1, 0):
        if noted and all(first <= n < len(ids) + first and ids[n - first].encode() == found for n, found in noted):
            return imagenet_names(len(ids) + first)
    return None


def normal(name: str) -> str:
    """The `name` of a class as it is compared: in Unicode's composed form, since macOS stores an accent of a file name as a
    character of its own."""
    return unicodedata.normalize('NFC', name)


def load_names(path: str | Path) -> tuple[dict[int, str], bool]:
    """({number: name}, whether its lines have numbers) of the file `path`.

    ValueError for a file that is no such list or has a number twice; OSError if it cannot be read.
    """
    with open(path, encoding='utf-8-sig', errors='surrogateescape') as file:
        lines = [line.rstrip('\n') for line in file if line.strip()]
    pairs = [_NUMBERED.fullmatch(line) for line in lines]
    if any(pairs) and not all(pairs):
        raise ValueError(f'expected `label:name` as on the other lines, not {lines[pairs.index(None)].strip()!r:.80}')
    written = [pair[2] for pair in pairs] if all(pairs) else lines
    # Spaces around names are an accident, unless they make a difference or are quoted.
    stripped = [name.strip() for name in written]
    written = stripped if len({*stripped}) == len({*written}) else [name.lstrip() for name in written]
    names = {}
    for number, name in zip((int(pair[1]) for pair in pairs) if all(pairs) else range(len(lines)), written):
        if number in names:
            raise ValueError(f'names label {number} twice, {names[number]!r:.80} and {name!r:.80}')
        if name[:1] == name[-1:] == '"':
            try:
                name = json.loads(name)
            except ValueError:
                pass
        names[number] = normal(name)
    return names, bool(lines) and all(pairs)


def names_as_text(names: dict[int, str]) -> str:
    """The content of a file that `load_names` reads, with numbers."""
    lines = []
    for number, name in names.items():
        name = ' '.join(re.split(r'[\r\n]+', name.strip('\r\n')))
        plain = name == name.strip() and name[:1] != '"'
        lines.append(f'{number}:{name if plain else json.dumps(name, ensure_ascii=False)}\n')
    return ''.join(lines)


def by_number(names: dict[int, str]) -> list[str]:
    """Names as a list from {number: name}, '' where there is none."""
    return [names.get(number, '') for number in range(max(names, default=-1) + 1)]


def read_labels(data_dir: str | Path, numbered: bool = True) -> list[str] | None:
    """Names by label from the file labels.txt in `data_dir`, lines `label:name`; None without the file.

    With `numbered`, lines of names alone give None, because labels of shards may start at 0 or at 1; without it, as for
    folders, they count from 0.

    InputError for a file that is no such list, that names a label twice, or without `numbered` a class twice.
    """
    path = os.path.join(data_dir, 'labels.txt')
    with reading(path, 'fix it'):
        try:
            found, has_numbers = load_names(path)
        except FileNotFoundError:
            return None
        if not numbered and len(set(found.values())) < len(found):
            raise ValueError('names a class twice')
    if numbered and not has_numbers:
        return None
    names = by_number(found)
    if names and not names[0]:
        names[0] = 'background'
    return names


def label_offset(option: str, records: Records) -> int:
    """What is subtracted from the labels of `records`: `option` ("0" or "1"), or for "auto" the lowest label of a class.

    TF-slim's ImageNet records count from 1 and leave 0 to a background class; folders count from 0.
    """
    return records.label_base if option == 'auto' else int(option)


def assumption(option: str, records: Records) -> str:
    """What `label_offset` takes for granted, in brackets; '' where the option, a label 0 or names decide."""
    if option != 'auto' or records.label_base == 0 or named(records):
        return ''
    return ' (assumed, as none is 0; if only the images of a class 0 are missing, use --label_offset 0)'


def named(records: Records) -> bool:
    """Whether `records` name a class: `background` and the numbers that a conversion of nameless records writes are none."""
    return any(name not in ('', 'background', str(label)) for label, name in enumerate(records.class_names or ()))


class Offsets(NamedTuple):
    """What is to be subtracted from labels, so that they become the class numbers of weights."""

    possible: list[int]  # several where labels and names leave it open; then images tell
    assumed: int | None = None  # where images do not tell either

    def clear(self, hits: Sequence[float], deviations: float) -> bool:
        """Whether the `hits`, images that the weights recognise with each of `possible`, differ by three and by so many
        standard deviations of a difference by chance. A right one has most images for it, a wrong one hardly any."""
        second, first = sorted(hits)[-2:]
        return first - second >= 3 and (first - second) ** 2 >= deviations**2 * (first + second)

    def settled(self, hits: Sequence[float], images: int) -> tuple[int, str]:
        """(the right one of `possible`, a line on why or '') by the `hits` among so many `images`. InputError if it stays
        open."""
        if len(self.possible) == 1:
            return self.possible[0], ''
        shown = ', '.join(f'{_MEANING[offset]} makes {n:.0f} of {images} right' for offset, n in zip(self.possible, hits))
        chosen = self.possible[int(np.argmax(hits))]
        # Weights that recognise little give no reason to doubt what they record.
        if self.clear(hits, ENOUGH) and (self.assumed in (None, chosen) or 2 * max(hits) >= images):
            return chosen, f'label k is class {_MEANING[chosen]} (the labels leave it open; {shown})'
        if self.assumed is None:
            raise InputError(
                f'the labels may count from 0 or from 1, and the images do not tell (label k as class {shown}); use '
                '--label_offset 0 if they count from 0, 1 if they count from 1'
                + ('; with a background as class 0 import the weights with --drop_background first' * (-1 in self.possible))
            )
        line = (
            f'label k is taken as class {_MEANING[self.assumed]}, as the weights record it; the images do not tell ({shown})'
        )
        return self.assumed, line


_MEANING = {0: 'k', 1: 'k - 1', -1: 'k + 1'}
ENOUGH, SURE = 1.7, 3  # standard deviations for a choice after all images, and to look at no more of them


def possible_offsets(
    option: str, records: Records, num_classes: int, names: list[str] | None, recorded: str | None
) -> Offsets:
    """The `Offsets` of `records` for weights with `num_classes` classes that record the class `names` and the label_offset
    `recorded`, as far as they record any; `option` is that of the command line."""
    if option != 'auto':
        return Offsets([int(option)])
    background = num_classes == BACKGROUND_CLASSES or bool(names and len(names) == num_classes and names[0] == 'background')
    candidates = [records.label_base - background] if named(records) else [0, -1 if background else 1]
    if recorded is not None:
        candidates = [int(recorded), *candidates]
    low, high = int(records.label.min()), int(records.label.max())
    found = [offset for offset in dict.fromkeys(candidates) if offset <= low and high < num_classes + offset]
    if not found:  # no offset makes the labels fit, which `check_labels` says
        return Offsets(candidates[:1] if recorded is not None else [label_offset('auto', records)])
    return Offsets(found, int(recorded) if recorded is not None and int(recorded) in found else None)


def refuse_empty_folders(records: Records) -> None:
    """InputError naming the first class folder that holds no image."""
    if records.empty:
        raise InputError(
            f'class folder {records.empty[0]} holds no image ({len(records.empty)} of '
            f'{len(records.paths)} class folders do not); put its images directly into it, or remove it'
            + (f' (left out: {records.left_out})' if records.left_out else '')
        )


def count_classes(option: int | str, records: Records, offset: int) -> tuple[int, str]:
    """(number of classes, where it comes from) of a training with `records`: `option` if it is a number; for 'auto' the
    number of names or, without names, what the largest label makes.

    InputError if the labels or the names do not fit the number, or if a class has no image.
    """
    refuse_empty_folders(records)
    named = len(records.class_names) - offset if records.class_names else 0
    if option != 'auto':
        classes, source = option, 'num_classes'
    elif named:
        classes, source = named, 'those with names'
    else:
        largest = int(records.label.argmax())
        classes, source = int(records.label[largest]) + 1 - offset, f'by the largest label {records.label[largest]}'
        if classes > max(len(records), BACKGROUND_CLASSES):
            raise InputError(
                f'{records.where(largest)} has the label {records.label[largest]}, which would make {classes} '
                f'classes of {len(records)} images; fix it, or set --num_classes'
            )
    check_labels(records, offset, max(classes, 1))
    if 0 < named < classes:
        raise InputError(
            f'num_classes {classes}, but the records name {named} classes (label_offset {offset}); leave '
            'num_classes at auto, or name the others'
        )
    if classes < 2:
        raise InputError(f'all {len(records)} training images are of one class; a training needs two or more')
    return classes, source


def check_labels(records: Records, offset: int, num_classes: int) -> None:
    """InputError naming the first record whose label is not one of `num_classes` after `offset` is subtracted."""
    bad = np.flatnonzero((records.label < offset) | (records.label >= num_classes + offset))
    if len(bad):
        label = records.label[bad[0]]
        likely = (
            'labels start at 1, as TF-slim writes them: use --label_offset 1'
            if label == num_classes and not offset and records.label.min() > 0
            else f'labels.txt names no class {label}: add it'
            if records.class_names and label >= len(records.class_names)
            else f'the records have labels {records.label.min()} to {records.label.max()}: '
            'set --num_classes and --label_offset to match'
        )
        raise InputError(
            f'label {label} of {records.where(bad[0])} is outside {offset}..{num_classes - 1 + offset} '
            f'(num_classes {num_classes}, label_offset {offset}); {likely}'
        )


def match_names(records: Records, recorded: list[str] | None, source: str | Path) -> Records:
    """`records` with the labels of another training: every class gets the label that its name has in `recorded`, that
    training's names by label. The same `records` if either has no names.

    InputError naming a class that `source`, a checkpoint or records, does not know.
    """
    names = records.class_names
    if not names or not recorded:
        return records
    names, recorded = [*map(normal, names)], [*map(normal, recorded)]
    labels = np.unique(records.label).tolist()
    # A name that is just the number says nothing: conversions of nameless records write such ones.
    name = {
        label: names[label]
        for label in labels
        if 0 <= label < len(names) and names[label] and (names[label] != str(label) or names[label] in recorded)
    }
    if not name:
        return records
    for spelled in (str, imagenet_words):  # ImageNet's classes go by WordNet ids in one place, by words in another
        number = _numbers(labels, {label: spelled(name[label]) for label in name}, [spelled(known) for known in recorded])
        if number:
            break
    else:
        known, words = [one for one in recorded if one], [*map(imagenet_words, recorded)]
        label = next(label for label in labels if label not in name or words.count(imagenet_words(name[label])) != 1)
        where = records.where(int(np.argmax(records.label == label)))
        raise InputError(
            f'class {repr(name[label]) if label in name else label} of {where} '
            f'{"has no name" if label not in name else "is not one class"} among those of {source}: '
            f'{", ".join(known[:3])}{" ..." if len(known) > 3 else ""} ({len(known)} classes); name the classes as its '
            'training did'
        )
    matched = np.array([number[label] for label in labels], np.int64)[np.searchsorted(labels, records.label)]
    return dataclasses.replace(records, label=matched, class_names=list(recorded))


def _numbers(labels, name, recorded):
    """{label: place of its name in `recorded`}; None unless every label has exactly one."""
    # First both lists as a whole, since a list may hold a name twice: two of ImageNet's classes are called crane.
    for shift in (0, 1, -1):
        if all(0 <= label + shift < len(recorded) and recorded[label + shift] == name[label] for label in name) and (
            not shift or len(name) == len(labels)
        ):
            return {label: label + shift for label in labels}
    if len(name) == len(labels) and all(recorded.count(one) == 1 for one in name.values()):
        return {label: recorded.index(name[label]) for label in labels}
    return None
