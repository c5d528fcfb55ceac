"""Folders of images: <split>/<class>/*.jpg."""

from __future__ import annotations

import collections
import errno
import itertools
import os
import re
import stat
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from src.data.labels import normal
from src.errors import InputError

SIZES = 10000  # files of a folder whose sizes are looked up: at worst a millisecond each, on a network's file system
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
_PART = re.compile(f'({"|".join(name for names in PARTS.values() for name in names)})[-_ ]?[0-9]*', re.IGNORECASE)


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
        return as_line(self.not_read + [LeftOut('class folder without an image', p, 1) for p in self.empty])

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

    def place(self, i: int) -> tuple[str, int, None]:
        """Path of image `i`, and that it is the whole file: from byte 0, as many as there are."""
        return self.where(i), 0, None

    def read(self, i: int) -> bytes:
        """The bytes of image `i`; InputError if it cannot be read."""
        try:
            return read_file(self.where(i))
        except OSError as error:
            raise InputError(f'{self.where(i)}: {error.strerror}; check that it can be read') from None


def read_file(path: str) -> bytes:
    """The bytes of a regular file. OSError for any other, of which the end might never come."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), 'rb') as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, 'no regular file')
        try:
            return file.read()
        except MemoryError:
            raise OSError(errno.ENOMEM, 'larger than the memory') from None


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
            name = entry.name.lower()
            if _is_aside(name):
                if what := _aside(entry):
                    others[what].append(entry.name)
                continue
            if not inside and entry.is_dir():
                continue
            if not inside:
                others['file beside the class folders'].append(entry.name)
            elif entry.is_dir():
                others[NESTED].append(entry.name)
            elif not entry.is_file():
                others['pipe, socket, device or link to nothing'].append(entry.name)
            elif name.endswith(IMAGE_SUFFIXES):
                found.append(os.fsencode(entry.name))
            elif name.endswith(UNSUPPORTED_SUFFIXES):
                others[f'file {os.path.splitext(name)[1]} (not supported: convert it to JPEG)'].append(entry.name)
            else:
                others[f'file {os.path.splitext(name)[1] or "without an ending"}'].append(entry.name)
    return sorted(found), [LeftOut(what, os.path.join(folder, min(names)), len(names)) for what, names in others.items()]


def open_folder(path, train_path, class_names: list[str] | None = None) -> Folder:
    """The images of a split's directory `path`; InputError if there are none or classes do not match.

    A class's label is its place in `class_names`, or else among the sorted directories of `train_path`, from
    0: a class that the validation images lack must not shift the labels of the others.
    """
    trained = [*map(normal, class_folders(train_path))]
    listed = class_names if class_names is not None else sorted({*trained})
    number = {name: label for label, name in enumerate(listed)}
    folders, files, counts, not_read = class_folders(path), [], [], scan(path, False)[1]
    if class_names is None and (parts := [name for name in trained if is_part(name)]) == trained and parts:
        raise InputError(
            f'{train_path} holds {" and ".join(parts[:3])}: these are names of parts of a data set, not of classes; put the '
            'images into one folder for each class, <class>/*.jpg, or where the parts are given train/<class>/*.jpg and '
            'validation/<class>/*.jpg'
        )
    unknown = [name for name in folders if normal(name) not in number]
    if unknown:
        source = 'labels.txt' if class_names is not None else train_path
        raise InputError(
            f'class directory {os.path.join(path, unknown[0])!r} is not in {source} '
            f'({", ".join(listed[:3])} ...; {len(unknown)} of {len(folders)} are not); '
            f'name the same classes in both{" or remove labels.txt" if class_names else ""}'
        )
    for folder in folders:
        found, others = scan(os.path.join(path, folder), True)
        files += found
        counts.append(len(found))
        not_read += others
    if not files:
        there = ''.join(f', but {count} x {what} ({first})' for what, first, count in not_read[:1])
        raise InputError(
            f'no image in {path}/<class>/ ({", ".join(IMAGE_SUFFIXES)}){there}; '
            + ('give the right directory' if folders else 'put the images into one folder for each class')
        )
    label_base = int(listed[0] == 'background' and all(number.get(name) != 0 for name in trained))
    folder = np.repeat(np.arange(len(folders), dtype=np.int32), counts)
    label = np.array([number[normal(name)] for name in folders], np.int64)[folder]
    return Folder(path, label, folder, np.array(files, 'S'), folders, listed, not_read, label_base)
