"""Folders of images: <split>/<class>/*.jpg."""

from __future__ import annotations

import collections
import itertools
import os
import re
import stat
from typing import NamedTuple

import numpy as np

from src.data.classes import normal

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.webp', '.gif')  # capital letters count as well
UNSUPPORTED_SUFFIXES = ('.heic', '.heif', '.avif', '.jp2', '.j2k', '.jpx', '.jxl', '.jxr')
# Of file managers and archives: trash, thumbnails and what belongs to a file system; as hidden ones, no folders of images.
_TRASH = ('@eadir', '#recycle', '$recycle.bin', '__macosx', 'lost+found', 'system volume information')
_WALKED = 20  # directories of a hidden folder that are searched for an image
NESTED = 'folder inside a class folder'
# What Hugging Face's datasets take for parts of a data set, https://huggingface.co/docs/datasets/repository_structure
PARTS = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid', 'dev'),
    'test': ('test', 'testing', 'eval', 'evaluation'),
}
_MOST_BYTES = 1 << 31  # of an image; one read returns no more
_PART = re.compile(f'({"|".join(name for names in PARTS.values() for name in names)})[-_ ]?[0-9]*', re.IGNORECASE)


class LeftOut(NamedTuple):
    """Something in a class folder that is not read."""

    what: str
    first: str  # path of the first such
    count: int


def as_line(left_out: list[LeftOut]) -> str:
    """What is `left_out`, in a line; '' for nothing."""
    kinds = {}
    for what, first, count in left_out:
        kinds.setdefault(what, [first, 0])[1] += count
    return '; '.join(f'{count} x {what}, the first is {first}' for what, (first, count) in kinds.items())


def class_folders(path: str | os.PathLike) -> list[str]:
    """Sorted names of the directories in `path` and of links to directories, without hidden ones and trash."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if not _is_aside(e.name) and e.is_dir())


def _is_aside(name):
    return name.startswith('.') or name.lower() in _TRASH


def is_part(name: str) -> bool:
    """Whether a folder's `name` is that of a part of a data set, such as train, Valid or test1."""
    return bool(_PART.fullmatch(name))


def _is_image(name):
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('._')  # which macOS writes beside each file


def _aside(entry):
    """What a hidden entry or trash is called among what is left out; '' if it holds no image that anybody could miss."""
    if _is_image(entry.name) and not entry.is_dir():
        return 'hidden file'
    inside = itertools.islice(os.walk(entry.path), _WALKED) if entry.is_dir(follow_symlinks=False) else ()
    return 'hidden or trash folder' * any(_is_image(name) for *_, names in inside for name in names)


def scan(folder: str | os.PathLike, inside: bool) -> tuple[list[bytes], list[LeftOut]]:
    """Sorted image names of a directory, and what is left out.

    With `inside` the directory is a class folder, where images are expected; else it is that of the class folders.
    """
    found, others = [], collections.defaultdict(list)
    with os.scandir(folder) as entries:
        for entry in entries:
            what = _aside(entry) if _is_aside(entry.name) else _kind(entry, inside)
            if what == 'image':
                found.append(os.fsencode(entry.name))
            elif what:
                others[what].append(entry.name)
    return sorted(found), [LeftOut(what, os.path.join(folder, min(names)), len(names)) for what, names in others.items()]


def _kind(entry, inside):
    """'image', what an entry is called among what is left out, or '' for a class folder."""
    if not inside:
        return '' if entry.is_dir() else 'file beside the class folders'
    if entry.is_dir():
        return NESTED
    if not entry.is_file():
        return 'pipe, socket, device or link to nothing'
    ending = os.path.splitext(entry.name)[1].lower()
    if ending in UNSUPPORTED_SUFFIXES:
        return f'file {ending} (not supported: convert it to JPEG)'
    return 'image' if ending in IMAGE_SUFFIXES else f'file {ending or "without an ending"}'


def read_file(path: str, start: int = 0, count: int | None = None) -> bytes:
    """`count` bytes (None: all) of a regular file from `start`. OSError or ValueError if they cannot be read, or if it is
    another kind of file, of which the end might never come."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(file)
        if not stat.S_ISREG(info.st_mode):
            raise ValueError('no regular file')
        count = info.st_size if count is None else count
        if count >= _MOST_BYTES:
            raise ValueError(f'larger than {_MOST_BYTES >> 30} GiB')
        data = os.pread(file, count, start)
    finally:
        os.close(file)
    if len(data) != count:
        raise ValueError(f'{len(data)} bytes read instead of {count}; the file became shorter, start again')
    return data


def split_folders(data_dir, split: str) -> list[str]:
    """The directories in `data_dir` that may have a split's class folders, in the order of PARTS."""
    names = {name: PARTS[split].index(name.lower()) for name in os.listdir(data_dir) if name.lower() in PARTS[split]}
    return [p for p in (os.path.join(data_dir, n) for n in sorted(names, key=names.get)) if os.path.isdir(p)]


def index(path: str, train_path: str, class_names: list[str] | None = None) -> dict:
    """What `Records` hold of the images below a split's directory `path`, by class and then by file name; ValueError if
    there are none or classes do not match.

    A class's label is its place in `class_names`, or else among the sorted directories of `train_path`, from
    0: a class that the validation images lack must not shift the labels of the others.
    """
    trained = [*map(normal, class_folders(train_path))]
    if class_names is None and trained and all(map(is_part, trained)):
        raise ValueError(
            f'{" and ".join(trained[:3])} in it are names of parts of a data set, not of classes; put the images into one '
            'folder for each class, <class>/*.jpg, or where the parts are given train/<class>/*.jpg and '
            'validation/<class>/*.jpg'
        )
    listed = class_names if class_names is not None else sorted({*trained})
    number = {name: label for label, name in enumerate(listed)}
    folders, files, counts, not_read = class_folders(path), [], [], scan(path, False)[1]
    if unknown := [name for name in folders if normal(name) not in number]:
        raise ValueError(
            f'class directory {os.path.join(path, unknown[0])!r} is not in '
            f'{train_path if class_names is None else "labels.txt"} ({", ".join(listed[:3])} ...; {len(unknown)} of '
            f'{len(folders)} are not); name the same classes in both{" or remove labels.txt" if class_names else ""}'
        )
    for folder in folders:
        found, others = scan(os.path.join(path, folder), True)
        files += found
        counts.append(len(found))
        not_read += others
    if not files:
        there = f', but {as_line(not_read)}' if not_read else ''
        raise ValueError(
            f'no image in {path}/<class>/ ({", ".join(IMAGE_SUFFIXES)}){there}; '
            + ('give the right directory' if folders else 'put the images into one folder for each class')
        )
    source = np.repeat(np.arange(len(folders), dtype=np.int32), counts)
    return {
        'paths': [os.path.join(path, name) for name in folders],
        'source': source,
        'label': np.array([number[normal(name)] for name in folders], np.int64)[source],
        'file': np.array(files, 'S'),
        'class_names': listed,
        'not_read': not_read,
        'label_base': int(listed[0] == 'background' and all(number.get(name) != 0 for name in trained)),
    }
