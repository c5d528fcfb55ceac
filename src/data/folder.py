"""What a directory holds: a data set of which layout, and the images of class folders, <split>/<class>/*.jpg."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from src.data import archives, mindrecord, tfrecord
from src.data.classes import normal
from src.errors import InputError, reading

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.webp', '.gif')  # capital letters count as well
# Of file managers and archives: trash, thumbnails and what belongs to a file system; as hidden ones, no folders of images.
_TRASH = ('@eadir', '#recycle', '$recycle.bin', '__macosx', 'lost+found', 'system volume information')
NESTED, EMPTY = 'folder inside a class folder', 'class folder without an image'
SPLITS = ('train', 'validation')
# What Hugging Face's datasets take for splits, https://huggingface.co/docs/datasets/repository_structure
SPLIT_NAMES = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid', 'dev'),
    'test': ('test', 'testing', 'eval', 'evaluation'),
}
_SPLIT = re.compile(f'({"|".join(name for names in SPLIT_NAMES.values() for name in names)})[-_ ]?[0-9]*', re.IGNORECASE)


def find_layout(data_dir: str | Path, layout: str | None = None) -> tuple[str, dict[str, list[str]]]:
    """(layout, {split: its shards, archive or folders}) of what a directory holds, with `layout` only of that one.
    InputError if it cannot be read, or without `layout` if it holds none or two."""
    if not data_dir:
        raise InputError("data_dir is ''; give the directory of a data set")
    data_dir, found = os.fspath(data_dir), {}
    with reading(data_dir):
        names = sorted(os.listdir(data_dir))
        for split in SPLITS:
            of_mindrecord = rf'({"|".join(SPLIT_NAMES[split])})(?![a-z]).*\{mindrecord.SUFFIX}[0-9]*'
            for one, there in (
                ('tfrecord', [name for name in names if re.fullmatch(split + tfrecord.NUMBERS, name)]),
                ('mindrecord', [name for name in names if re.fullmatch(of_mindrecord, name, re.IGNORECASE | re.DOTALL)]),
                ('folder', [os.path.basename(path) for path in split_folders(data_dir, split) if class_folders(path)]),
                ('archives', [name for name in names if name == archives.ARCHIVES[split]]),
            ):
                if there and layout in (None, one):
                    found.setdefault(one, {})[split] = [os.path.join(data_dir, name) for name in there]
        if layout:
            return layout, found.get(layout, {})
        if not found:
            there = (', '.join(names[:4]) or 'nothing') + f' and {len(names) - 4} more' * (len(names) > 4)
            raise ValueError(
                'no train-?????-of-????? (tfrecord), train*.mindrecord* (mindrecord), train/<class>/*.jpg (folder) '
                f"nor ImageNet's archives, and none for validation, only {there}; give the directory above train/ and "
                'validation/, with a folder for each class in them, or that of shards with such names'
            )
    if len(found) > 1:
        first = [f'{layout} ({os.path.relpath(min(splits.items())[1][0], data_dir)})' for layout, splits in found.items()]
        raise InputError(f'{data_dir} holds a data set as {" and as ".join(first)}; keep one of them in it')
    return found.popitem()


def split_folders(data_dir: str, split: str) -> list[str]:
    """The directories in `data_dir` that may have a split's class folders, in the order of SPLIT_NAMES."""
    order = SPLIT_NAMES[split]
    names = sorted((order.index(name.lower()), name) for name in os.listdir(data_dir) if name.lower() in order)
    return [path for path in (os.path.join(data_dir, name) for _, name in names) if os.path.isdir(path)]


def class_folders(path: str | os.PathLike) -> list[str]:
    """Sorted names of the directories in `path` and of links to directories, without hidden ones and trash."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if not _is_aside(entry.name) and entry.is_dir())


def _is_aside(name):
    return name.startswith('.') or name.lower() in _TRASH


def scan(folder: str | os.PathLike, left_out: dict[str, list[str]]) -> list[bytes]:
    """Sorted image names of a class folder. Paths of what is not read are added to `left_out`, {reason: paths}, but those of
    hidden and system files."""
    found = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name)):
            ending = os.path.splitext(entry.name)[1].lower()
            if _is_aside(entry.name):
                continue
            if entry.is_file() and ending in IMAGE_SUFFIXES:
                found.append(os.fsencode(entry.name))
                continue
            why = NESTED if entry.is_dir() else 'pipe, socket, device or link to nothing'
            why = f'file {ending or "without an ending"}' if entry.is_file() else why
            left_out.setdefault(why, []).append(entry.path)
    return found


def as_line(left_out: dict[str, list[str]]) -> str:
    """What is `left_out`, {reason: paths}, in a line with an example for each reason; '' for nothing."""
    return '; '.join(f'{len(paths)} x {why}, the first is {paths[0]}' for why, paths in left_out.items())


def index(path: str, train_path: str, class_names: list[str] | None = None) -> dict:
    """What `Records` hold of the images below a split's directory `path`, by class and then by file name; ValueError if
    there are none or classes do not match.

    A class's label is its place in `class_names`, or else among the sorted directories of `train_path`: a class that the
    validation images lack must not shift the labels of the others.
    """
    trained = [*map(normal, class_folders(train_path))]
    if not class_names and trained and all(map(_SPLIT.fullmatch, trained)):
        raise ValueError(
            f'{" and ".join(trained[:3])} in it are names of splits, not of classes; put the images into one folder for '
            'each class, <class>/*.jpg, or where the splits are given train/<class>/*.jpg and validation/<class>/*.jpg'
        )
    listed, known = (class_names, 'labels.txt') if class_names else (sorted({*trained}), train_path)
    number = {name: label for label, name in enumerate(listed)}
    folders, files, counts, left_out = class_folders(path), [], [], {}
    if unknown := [name for name in folders if normal(name) not in number]:
        raise ValueError(
            f'class directory {os.path.join(path, unknown[0])!r} is not in {known} ({", ".join(listed[:3])} ...; '
            f'{len(unknown)} of {len(folders)} are not); name the same classes in both'
        )
    with os.scandir(path) as entries:
        if beside := sorted(entry.path for entry in entries if not _is_aside(entry.name) and not entry.is_dir()):
            left_out['file beside the class folders'] = beside
    for name in folders:
        found = scan(os.path.join(path, name), left_out)
        files += found
        counts.append(len(found))
        if not found:
            left_out.setdefault(EMPTY, []).append(os.path.join(path, name))
    if not files:
        raise ValueError(f'no image in {path}/<class>/, only {as_line(left_out) or "nothing"}; put *.jpg or *.png there')
    source = np.repeat(np.arange(len(folders), dtype=np.int32), counts)
    return {
        'paths': [os.path.join(path, name) for name in folders],
        'source': source,
        'label': np.array([number[normal(name)] for name in folders], np.int64)[source],
        'file': np.array(files, 'S'),
        'class_names': listed,
        'not_read': left_out,
    }
