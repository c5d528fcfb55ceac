"""Split a folder of photos into training and validation sets: python -m src.data.split PHOTOS LIST [--seed N]

PHOTOS holds one folder for each class, and a fifth of each class is kept for validation. The seed decides which; copies of
the same file stay on one side. A PHOTOS with `train` and `validation` (or `val`, `valid`, `dev`) is listed as it is. Files
that are no image or cannot be decoded are named and left out. LIST is a CSV file with the columns part, class and path,
which `python -m src.data.convert --list LIST` takes. The photos stay where they are.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src import files
from src.data.classes import normal, refuse_empty_folders
from src.data.examine import UNREADABLE, examine_all
from src.data.folder import SPLITS, class_folders, find_layout, is_split_name, split_folders
from src.data.records import Records, open_folder, open_records
from src.errors import InputError, Parser, counted, entry_point, reading

SHARE = 0.2  # of a class's photos that are for validation
COLUMNS = ['part', 'class', 'path']


class Entry(NamedTuple):
    """A line of a list."""

    part: str  # train or validation
    class_name: str
    path: str  # absolute, or relative to the directory of the list


def open_photos(photos: str | Path) -> dict[str, Records]:
    """{part: its photos} if the directory has parts, else {'': all photos}.

    InputError if there are no photos, or class folders without one.
    """
    with reading(photos, 'give a directory with one folder of photos for each class, or one with train and validation'):
        there = {part for part in SPLITS for folder in split_folders(photos, part) if class_folders(folder)}
        if there == {'validation'} or there == {'train'} and all(map(is_split_name, class_folders(photos))):
            raise ValueError(f'has only a {min(there)} part')
        if there == set(SPLITS):
            found = {part: open_records(photos, part, 'folder') for part in SPLITS}
        else:
            found = {'': open_folder(os.fspath(photos), os.fspath(photos))}
        for records in found.values():
            refuse_empty_folders(records)
        if len(next(iter(found.values())).class_names) < 2:
            raise ValueError('has one class folder; a classifier needs two or more')
    return found


def split(
    photos: str | Path, seed: int = 1, workers: int | None = None, progress: bool = False
) -> tuple[list[Entry], list[str]]:
    """The photos of a directory in parts.

    Returns:
        (entries, left out): photos by class and file name; lines on what is no image, or cannot be decoded and why.

    Raises:
        InputError: there are no photos, or a class has too few of them.
    """
    found = open_photos(photos)
    entries, digests, left_out = [], [], [records.left_out for records in found.values() if records.left_out]
    used = {os.path.basename(os.path.dirname(records.paths[0])) for records in found.values()}
    left_out += [
        f'{os.path.join(photos, name)}: not part of a training run'
        for name in class_folders(photos)
        if '' not in found and name not in used
    ]
    results = examine_all([*found.values()], workers, progress)
    for (part, records), (unusual, sums) in zip(found.items(), results):
        unreadable = {k: detail for kind, k, detail in unusual if kind in (*UNREADABLE, 'damaged')}
        for k in range(len(records)):
            path = os.path.abspath(records.where(k))
            if k in unreadable:
                left_out.append(f'{path}: {unreadable[k]}')
            else:
                entries.append(Entry(part, records.class_names[records.label[k]], path))
                digests.append(sums[16 * k : 16 * (k + 1)])
    names = next(iter(found.values())).class_names
    with reading(photos, 'add photos to that class, or remove its folder'):
        if '' in found:
            entries = _assigned(entries, digests, names, seed)
        elif missing := set(names) - {entry.class_name for entry in entries if entry.part == 'train'}:
            raise ValueError(f'class {min(missing)!r} has no training photo that can be decoded')
    return entries, left_out


def _assigned(entries, digests, names, seed):
    """`entries` with their parts; `digests` (16 bytes each) tell which photos are the same."""
    number = {name: k for k, name in enumerate(names)}
    label = np.array([number[entry.class_name] for entry in entries], np.int64)
    digests = np.frombuffer(b''.join(digests), np.uint64).reshape(-1, 2)
    group = np.unique(digests, axis=0, return_inverse=True)[1].reshape(-1)
    held_back = held_out(label, group, seed)
    for k, name in enumerate(names):
        here = np.flatnonzero(label == k)
        if len(set(held_back[here])) == 2:
            continue
        what = (
            'no photo that can be decoded'
            if not len(here)
            else f'only one photo, {entries[here[0]].path}'
            if len(here) == 1
            else f'{len(here)} photos, but {entries[here[0]].path} and the others are copies of one'
            if len(set(group[here])) == 1
            else f'{len(here)} photos, but copies of all of them are in other classes'
        )
        raise ValueError(f'class {name!r} has {what}; a class needs two, one to train with and one to validate with')
    return [entry._replace(part='validation' if chosen else 'train') for entry, chosen in zip(entries, held_back)]


def held_out(label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Which images are for validation, bool [n]: of each class `SHARE`, at least one where it has two groups.

    Args:
        label: int64 [n].
        group: int64 [n], the same number for copies of an image, which stay together. Copies in several classes are for
            training.
    """
    lowest, highest = np.full(len(group), len(label)), np.zeros(len(group), np.int64)
    np.minimum.at(lowest, group, label)
    np.maximum.at(highest, group, label)
    of_one_class, chosen = (lowest == highest)[group], []
    for number in np.unique(label).tolist():
        here = label == number
        own, size = np.unique(group[here & of_one_class], return_counts=True)
        if len(np.unique(group[here])) < 2 or not len(own):
            continue
        left, picked = max(1, round(SHARE * int(here.sum()))), []
        order = np.random.default_rng([seed, number]).permutation(len(own))
        for k in order.tolist():
            if size[k] <= left:
                picked.append(k)
                left -= size[k]
        chosen += own[picked or order[[np.argmin(size[order])]]].tolist()
    return np.isin(group, chosen)


def write_list(entries: list[Entry], path: str | Path) -> None:
    """Write `entries` to the file `path`. InputError if it cannot be written, or if a file is there that is no list."""
    if os.path.exists(path):
        open_list(path)
    with reading(path, 'give a file that can be written'), files.replacing(path) as temporary:
        with open(temporary, 'w', encoding='utf-8', errors='surrogateescape', newline='') as file:
            csv.writer(file).writerows([COLUMNS, *(map(files.as_cell, entry) for entry in entries)])


def open_list(path: str | Path) -> dict[str, Records]:
    """{part: its photos} of a list; labels count the sorted class names from 0. InputError if the file is no list."""
    with reading(path, 'make a list with python -m src.data.split', (csv.Error,)):
        with open(path, encoding='utf-8', errors='surrogateescape', newline='') as file:
            rows = [[*map(files.from_cell, row)] for row in csv.reader(file)]
        if rows[:1] != [COLUMNS] or len(rows) < 2:
            raise ValueError(f'no first line {",".join(COLUMNS)} with photos below')
        for number, row in enumerate(rows[1:], 2):
            if len(row) != 3 or row[0] not in SPLITS or not all(row):
                raise ValueError(f'record {number}: {",".join(row)!r:.80} is not train or validation, class, path')
    rows[1:] = [[part, normal(name), path] for part, name, path in rows[1:]]
    names = sorted({row[1] for row in rows[1:]})
    number = {name: k for k, name in enumerate(names)}
    above = os.path.dirname(os.path.abspath(path))
    found = {}
    for part in SPLITS:
        of_part = [row for row in rows[1:] if row[0] == part]
        if not of_part:
            continue
        places = [os.path.split(os.path.join(above, row[2])) for row in of_part]
        folders, folder = np.unique([place for place, _ in places], return_inverse=True)
        label = np.array([number[row[1]] for row in of_part], np.int64)
        name = np.array([os.fsencode(name) for _, name in places], 'S')
        folder = folder.astype(np.int32)
        found[part] = Records('folder', folders.tolist(), folder, label, file=name, class_names=names, label_base=0)
    return found


def open_parts(source: str | Path, layout: str) -> dict[str, Records]:
    """{part: its records} of a list, which is a file, or of a data set of that layout, a directory."""
    if os.path.isfile(source):
        return open_list(source)
    return {part: open_records(source, part, layout) for part in find_layout(source, layout)[1]}


@entry_point
def main():
    """The command line."""
    parser = Parser(
        prog='python -m src.data.split', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('photos', metavar='PHOTOS', help='a folder of photos for each class, or parts of such folders')
    parser.add_argument('list', metavar='LIST', help='CSV file to write')
    parser.add_argument('--seed', type=int, default=1, help='decides which photos are for validation (default: 1)')
    parser.add_argument('--workers', type=int, help='processes (default: as many as cores)')
    args = parser.parse_args()
    if args.seed < 0:
        raise InputError(f'seed is {args.seed}; give 0 or more')
    entries, left_out = split(args.photos, args.seed, args.workers, True)
    write_list(entries, args.list)
    for line in left_out:
        print('left out:', line, file=sys.stderr)
    counts = Counter(entry.part for entry in entries)
    print(
        f'{args.list}: {len({entry.class_name for entry in entries})} classes, {counted(counts["train"], "photo")} to train '
        f'with, {counts["validation"]} to validate with'
    )


if __name__ == '__main__':
    main()
