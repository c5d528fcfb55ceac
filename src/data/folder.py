"""Folders of images: <split>/<class>/*.jpg."""

from __future__ import annotations

import collections
import os
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from src.errors import InputError

SIZES = 10000  # files of a folder whose sizes are looked up: at worst a millisecond each, on a network's file system
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.gif')  # capital letters count as well


class LeftOut(NamedTuple):
    """Something in a class folder that is not read."""

    what: str
    first: str  # path of the first such
    count: int


@dataclass
class Folder:
    """One entry per image, by class and then by file name."""

    path: str
    label: np.ndarray  # int64 [images]
    folder: np.ndarray  # int32 [images], position in `folders`
    file: np.ndarray  # bytes [images]; one array, so that processes share the names of a million files
    folders: list[str]  # class directories
    class_names: list[str]  # by label; "background" for 0 if the labels start at 1
    not_read: list[LeftOut] = field(default_factory=list)  # for each class folder and kind
    label_base: int = 0  # lowest label; 1 only if labels.txt counts so
    upright = True  # images are turned as their EXIF orientation says

    def __len__(self):
        return len(self.label)

    @property
    def empty(self) -> list[str]:
        """Paths of the class folders that hold no image."""
        used = set(np.unique(self.folder).tolist())
        return [os.path.join(self.path, name) for n, name in enumerate(self.folders) if n not in used]

    @property
    def left_out(self) -> str:
        """What was not read and why, in a line; '' if everything was."""
        kinds = {}
        for what, first, count in self.not_read + [LeftOut('class folder without an image', p, 1) for p in self.empty]:
            kinds.setdefault(what, [first, 0])[1] += count
        return '; '.join(f'{count} x {what}, the first is {first}' for what, (first, count) in kinds.items())

    def where(self, i: int) -> str:
        """The path of image `i`."""
        return os.path.join(self.path, self.folders[self.folder[i]], self.name(i))

    def name(self, i: int) -> str:
        """The file name of image `i`."""
        return os.fsdecode(bytes(self.file[i]))

    def size(self, i: int) -> int:
        """Bytes of image `i`; InputError if it cannot be looked at."""
        try:
            return os.stat(self.where(i)).st_size
        except OSError as error:
            raise InputError(f'{self.where(i)}: {error.strerror}; check that it can be read') from None

    def files_checksum(self) -> int:
        """A checksum by which other images are noticed: of all names, and of the sizes of up to `SIZES` files."""
        names = b'/'.join(map(os.fsencode, self.folders)) + self.folder.tobytes() + self.file.tobytes()
        sizes = np.array([self.size(i) for i in np.linspace(0, len(self) - 1, min(len(self), SIZES), dtype=int)], np.int64)
        return zlib.crc32(sizes.tobytes(), zlib.crc32(names))

    def read(self, i: int) -> bytes:
        """The bytes of image `i`; InputError if it cannot be read."""
        try:
            with open(self.where(i), 'rb') as file:
                return file.read()
        except OSError as error:
            raise InputError(f'{self.where(i)}: {error.strerror}; check that it can be read') from None


def class_folders(path) -> list[str]:
    """Sorted names of the directories in `path`, hidden ones left out."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith('.'))


def _scan(folder, inside):
    """Sorted image names (bytes) of a directory, and a list of `LeftOut`; hidden files and directories are in neither.

    With `inside` the directory is a class folder, where images are expected; else it is that of the class folders.
    """
    found, others = [], collections.defaultdict(list)
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.lower()
            if name.startswith('.') or not inside and entry.is_dir():
                continue
            if not inside:
                others['file beside the class folders'].append(entry.name)
            elif name.endswith(IMAGE_SUFFIXES):
                found.append(os.fsencode(entry.name))
            elif entry.is_dir():
                others['folder inside a class folder'].append(entry.name)
            else:
                others[f'file {os.path.splitext(name)[1] or "without an ending"}'].append(entry.name)
    return sorted(found), [LeftOut(what, os.path.join(folder, min(names)), len(names)) for what, names in others.items()]


def open_folder(path, train_path, class_names: list[str] | None = None) -> Folder:
    """The images of a split's directory `path`; InputError if there are none or classes do not match.

    A class's label is its place in `class_names`, or else among the sorted directories of `train_path`, from
    0: a class that the validation images lack must not shift the labels of the others.
    """
    listed = class_names if class_names is not None else class_folders(train_path)
    number = {name: label for label, name in enumerate(listed)}
    folders, files, counts, not_read = class_folders(path), [], [], _scan(path, False)[1]
    unknown = [name for name in folders if name not in number]
    if unknown:
        source = 'labels.txt' if class_names is not None else train_path
        raise InputError(
            f'class directory {os.path.join(path, unknown[0])!r} is not in {source} '
            f'({", ".join(listed[:3])} ...; {len(unknown)} of {len(folders)} are not); '
            f'name the same classes in both{" or remove labels.txt" if class_names else ""}'
        )
    for folder in folders:
        found, others = _scan(os.path.join(path, folder), True)
        files += found
        counts.append(len(found))
        not_read += others
    if not files:
        there = ''.join(f', but {count} x {what} ({first})' for what, first, count in not_read[:1])
        raise InputError(f'no image in {path}/<class>/ ({", ".join(IMAGE_SUFFIXES)}){there}; give the right directory')
    label_base = int(listed[0] == 'background' and all(number.get(name) != 0 for name in class_folders(train_path)))
    folder = np.repeat(np.arange(len(folders), dtype=np.int32), counts)
    label = np.array([number[name] for name in folders], np.int64)[folder]
    return Folder(path, label, folder, np.array(files, 'S'), folders, listed, not_read, label_base)
