"""Split a folder of photos into training and validation sets: python -m src.data.split PHOTOS LIST [--seed N]

PHOTOS holds one folder for each class, and a fifth of each class is kept for validation. The seed decides which; copies of
the same file stay on one side. A PHOTOS with `train` and `validation` (or `val`, `valid`, `dev`) is listed as it is. Files
that are no image or cannot be decoded are named and left out. LIST is a CSV file with the columns part, class and path,
which `python -m src.data.convert --list LIST` takes. The photos stay where they are.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from src import files
from src.data.check import UNREADABLE, examine_all
from src.data.classes import normal
from src.data.folder import SPLITS, class_folders, split_folders
from src.data.records import Records, open_folder, open_records
from src.errors import InputError, Parser, entry_point, reading

COLUMNS = ['part', 'class', 'path']


def open_photos(photos: str | Path) -> dict[str, Records]:
    """{part: its photos} if the directory has parts, else {'': all photos}. InputError for empty class folders."""
    with reading(photos, 'give a directory with one folder of photos for each class, or one with train and validation'):
        there = {part for part in SPLITS for folder in split_folders(photos, part) if class_folders(folder)}
        if there == {*SPLITS}:
            found = {part: open_records(photos, part, 'folder') for part in SPLITS}
        else:
            found = {'': open_folder(os.fspath(photos), os.fspath(photos))}
        for records in found.values():
            records.refuse_empty_folders()
        if len(records.class_names) < 2:
            raise ValueError('has one class folder; a classifier needs two or more')
    return found


def split(photos: str | Path, seed: int = 1, workers: int | None = None) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The photos of a directory in parts: (part, class, path) by class and file name, and a line on each file that is left
    out, as it is no image or cannot be decoded. InputError if there are no photos, or a class has too few of them."""
    found = open_photos(photos)
    rows, digests, left_out = [], [], [records.left_out for records in found.values() if records.left_out]
    for part, k, kinds, digest in examine_all(found, workers):
        records = found[part]
        path = os.path.abspath(records.where(k))
        if bad := [detail for kind, detail in kinds.items() if kind in UNREADABLE]:
            left_out.append(f'{path}: {bad[0]}')
        else:
            rows.append((part, records.class_names[records.label[k]], path))
            digests.append(digest)
    if '' in found and rows:
        label, group = (np.unique(one, return_inverse=True)[1].reshape(-1) for one in ([row[1] for row in rows], digests))
        chosen = choose_validation(label, group, seed)
        rows = [('validation' if chosen[k] else 'train', *row[1:]) for k, row in enumerate(rows)]
    counts = Counter(row[:2] for row in rows)
    for name in records.class_names:
        if not counts['train', name] or '' in found and not counts['validation', name]:
            lack = f'{photos}: class {name!r} has too few photos that can be decoded and are no copies'
            raise InputError(f'{lack} ({counts["train", name]} to train with); add some, or remove its folder')
    return rows, left_out


def choose_validation(label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Which images are for validation, bool [n]: of each class (`label`, int64 [n]) a fifth, at least one where it has two
    groups. Copies of an image, with the same number in `group` (int64 [n]), stay together; those in several classes are for
    training."""
    classes_of, chosen = Counter(one for one, _ in {*zip(group.tolist(), label.tolist())}), []
    for number in np.unique(label).tolist():
        groups, sizes = np.unique(group[label == number], return_counts=True)
        own = np.array([k for k, one in enumerate(groups.tolist()) if classes_of[one] == 1], np.int64)
        if len(groups) > 1 and len(own):
            order = own[np.random.default_rng([seed, number]).permutation(len(own))]
            fits = np.cumsum(sizes[order]) <= max(1, round(0.2 * int(sizes.sum())))
            chosen += groups[order[fits] if fits[0] else order[[np.argmin(sizes[order])]]].tolist()
    return np.isin(group, chosen)


def write_list(rows: list[tuple[str, str, str]], path: str | Path) -> None:
    """Write `rows` to the file `path`. InputError if it cannot be written, or if a file is there that is no list."""
    if os.path.exists(path):
        open_list(path)
    with reading(path, 'give a file that can be written'), files.replacing(path) as temporary:
        with open(temporary, 'w', encoding='utf-8', errors='surrogateescape', newline='') as file:
            csv.writer(file).writerows([COLUMNS, *(map(files.as_cell, row) for row in rows)])


def open_list(path: str | Path) -> dict[str, Records]:
    """{part: its photos} of a list; labels count the sorted class names from 0. InputError if the file is no list."""
    with reading(path, 'make a list with python -m src.data.split', (csv.Error,)):
        with open(path, encoding='utf-8', errors='surrogateescape', newline='') as file:
            lines = csv.reader(file)
            if next(lines, None) != COLUMNS or not (rows := [[*map(files.from_cell, row)] for row in lines]):
                raise ValueError(f'no first line {",".join(COLUMNS)} with photos below')
        for number, row in enumerate(rows, 2):
            if len(row) != 3 or row[0] not in SPLITS or not all(row):
                raise ValueError(f'record {number}: {",".join(row)!r:.80} is not train or validation, class, path')
    names, above, found = sorted({normal(row[1]) for row in rows}), os.path.dirname(os.path.abspath(path)), {}
    for part in sorted({row[0] for row in rows}):
        here = [row for row in rows if row[0] == part]
        label = np.array([names.index(normal(name)) for _, name, _ in here], np.int64)
        file, source = np.array([os.fsencode(place) for *_, place in here], 'S'), np.zeros(len(here), np.int32)
        found[part] = Records('folder', [above], source, label, file=file, class_names=names)
    return found


@entry_point
def main():
    """The command line."""
    parser = Parser('python -m src.data.split', description=__doc__.partition(':')[0])
    parser.add_argument('photos', metavar='PHOTOS', help='a folder of photos for each class, or parts of such folders')
    parser.add_argument('list', metavar='LIST', help='CSV file to write')
    parser.add_argument('--seed', type=int, default=1, help='decides which photos are for validation (default: 1)')
    parser.add_argument('--workers', type=int, help='processes (default: as many as cores)')
    args = parser.parse_args()
    if args.seed < 0:
        raise InputError(f'seed is {args.seed}; give 0 or more')
    rows, left_out = split(args.photos, args.seed, args.workers)
    write_list(rows, args.list)
    print(*(f'left out: {line}\n' for line in left_out), sep='', end='', file=sys.stderr)
    counts, classes = Counter(part for part, *_ in rows), len({name for _, name, _ in rows})
    print(f'{args.list}: {classes} classes, {counts["train"]} photos to train with, {counts["validation"]} to validate with')


if __name__ == '__main__':
    main()
