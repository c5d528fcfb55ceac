"""Folders of images: <split>/<class>/*.jpg."""

from __future__ import annotations

import os
import re

import numpy as np

from src.data.classes import normal

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.webp', '.gif')  # capital letters count as well
_UNSUPPORTED_SUFFIXES = ('.heic', '.heif', '.avif', '.jp2', '.jxl')
# Of file managers and archives: trash, thumbnails and what belongs to a file system; as hidden ones, no folders of images.
_TRASH = ('@eadir', '#recycle', '$recycle.bin', '__macosx', 'lost+found', 'system volume information')
NESTED = 'folder inside a class folder'
# What Hugging Face's datasets take for parts of a data set, https://huggingface.co/docs/datasets/repository_structure
SPLIT_NAMES = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid', 'dev'),
    'test': ('test', 'testing', 'eval', 'evaluation'),
}
_SPLIT = re.compile(f'({"|".join(name for names in SPLIT_NAMES.values() for name in names)})[-_ ]?[0-9]*', re.IGNORECASE)


def as_line(left_out: dict[str, list[str]]) -> str:
    """What is `left_out`, {reason: paths}, in a line with an example for each reason; '' for nothing."""
    return '; '.join(f'{len(paths)} x {why}, the first is {paths[0]}' for why, paths in left_out.items())


def class_folders(path: str | os.PathLike) -> list[str]:
    """Sorted names of the directories in `path` and of links to directories, without hidden ones and trash."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if not _is_aside(e.name) and e.is_dir())


def _is_aside(name):
    return name.startswith('.') or name.lower() in _TRASH


def is_split_name(name: str) -> bool:
    """Whether a folder's `name` is that of a part of a data set, such as train, Valid or test1."""
    return bool(_SPLIT.fullmatch(name))


def scan(folder: str | os.PathLike, left_out: dict[str, list[str]]) -> list[bytes]:
    """Sorted image names of a class folder. Paths of what is not read are added to `left_out`, {reason: paths}, but those of
    hidden and system files."""
    found = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name)):
            ending = os.path.splitext(entry.name)[1].lower()
            if _is_aside(entry.name):
                continue
            if entry.is_dir():
                why = NESTED
            elif not entry.is_file():
                why = 'pipe, socket, device or link to nothing'
            elif ending in IMAGE_SUFFIXES:
                found.append(os.fsencode(entry.name))
                continue
            else:
                remedy = ' (not supported: convert it to JPEG)' * (ending in _UNSUPPORTED_SUFFIXES)
                why = f'file {ending or "without an ending"}{remedy}'
            left_out.setdefault(why, []).append(entry.path)
    return found


def split_folders(data_dir: str, split: str) -> list[str]:
    """The directories in `data_dir` that may have a split's class folders, in the order of SPLIT_NAMES."""
    names = {
        name: SPLIT_NAMES[split].index(name.lower()) for name in os.listdir(data_dir) if name.lower() in SPLIT_NAMES[split]
    }
    return [p for p in (os.path.join(data_dir, n) for n in sorted(names, key=names.get)) if os.path.isdir(p)]


def index(path: str, train_path: str, class_names: list[str] | None = None) -> dict:
    """What `Records` hold of the images below a split's directory `path`, by class and then by file name; ValueError if
    there are none or classes do not match.

    A class's label is its place in `class_names`, or else among the sorted directories of `train_path`, from
    0: a class that the validation images lack must not shift the labels of the others.
    """
    trained = [*map(normal, class_folders(train_path))]
    if class_names is None and trained and all(map(is_split_name, trained)):
        raise ValueError(
            f'{" and ".join(trained[:3])} in it are names of parts of a data set, not of classes; put the images into one '
            'folder for each class, <class>/*.jpg, or where the parts are given train/<class>/*.jpg and '
            'validation/<class>/*.jpg'
        )
    listed = class_names if class_names is not None else sorted({*trained})
    number = {name: label for label, name in enumerate(listed)}
    folders, files, counts, left_out = class_folders(path), [], [], {}
    if unknown := [name for name in folders if normal(name) not in number]:
        raise ValueError(
            f'class directory {os.path.join(path, unknown[0])!r} is not in '
            f'{train_path if class_names is None else "labels.txt"} ({", ".join(listed[:3])} ...; {len(unknown)} of '
            f'{len(folders)} are not); name the same classes in both{" or remove labels.txt" if class_names else ""}'
        )
    with os.scandir(path) as entries:
        if beside := sorted(e.path for e in entries if not _is_aside(e.name) and not e.is_dir()):
            left_out['file beside the class folders'] = beside
    for folder in folders:
        found = scan(os.path.join(path, folder), left_out)
        files += found
        counts.append(len(found))
        if not found:
            left_out.setdefault('class folder without an image', []).append(os.path.join(path, folder))
    if not files:
        there = f' ({as_line(left_out)})' if left_out else ''
        raise ValueError(
            f'no image in {path}/<class>/{there}; put the images, *.jpg or *.png, into one folder for each class'
        )
    source = np.repeat(np.arange(len(folders), dtype=np.int32), counts)
    return {
        'paths': [os.path.join(path, name) for name in folders],
        'source': source,
        'label': np.array([number[normal(name)] for name in folders], np.int64)[source],
        'file': np.array(files, 'S'),
        'class_names': listed,
        'not_read': left_out,
        'label_base': int(listed[0] == 'background' and all(number.get(name) != 0 for name in trained)),
    }
