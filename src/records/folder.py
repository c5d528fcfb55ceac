"""Folders of pictures: <split>/<class>/*.jpg."""
import os
from dataclasses import dataclass

import numpy as np

from src.errors import InputError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")  # capital letters count as well


@dataclass
class Folder:
    """One entry per picture, by class and then by file name."""
    path: str
    label: np.ndarray      # int64 [pictures]
    folder: np.ndarray     # int32 [pictures], position in `folders`
    file: np.ndarray       # bytes [pictures]; one array, so that processes share the names of a million files
    folders: list[str]     # class directories
    class_names: list[str]  # by label; "background" for 0 if the labels start at 1
    upright = True  # cameras' photos are turned as their EXIF orientation says

    def __len__(self):
        return len(self.label)

    def where(self, i):
        """The path of picture `i`."""
        return os.path.join(self.path, self.folders[self.folder[i]], self.name(i))

    def name(self, i):
        """The file name of picture `i`."""
        return os.fsdecode(bytes(self.file[i]))

    def size(self, i):
        """Bytes of picture `i`."""
        return os.stat(self.where(i)).st_size

    def read(self, i):
        """The bytes of picture `i`; InputError if it cannot be read."""
        try:
            with open(self.where(i), "rb") as file:
                return file.read()
        except OSError as error:
            raise InputError(f"{self.where(i)}: {error.strerror}; check that it can be read") from None


def class_folders(path):
    """Sorted names of the directories in `path`, hidden ones left out."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def open_folder(path, train_path, class_names=None):
    """The pictures of a split's directory `path`; InputError if there are none or classes do not match.

    A class's label is its place in `class_names`, or else among the sorted directories of `train_path`, from
    0: a class that the validation pictures lack must not shift the labels of the others.
    """
    listed = class_names if class_names is not None else class_folders(train_path)
    number = {name: label for label, name in enumerate(listed)}
    folders, files, counts = class_folders(path), [], []
    unknown = [name for name in folders if name not in number]
    if unknown:
        source = "labels.txt" if class_names is not None else train_path
        raise InputError(f"class directory {os.path.join(path, unknown[0])!r} is not in {source} "
                         f"({', '.join(listed[:3])} ...; {len(unknown)} of {len(folders)} are not); "
                         f"name the same classes in both{' or remove labels.txt' if class_names else ''}")
    for folder in folders:
        with os.scandir(os.path.join(path, folder)) as entries:
            found = sorted(os.fsencode(e.name) for e in entries
                           if e.name.lower().endswith(PICTURES) and not e.name.startswith("."))
        files += found
        counts.append(len(found))
    if not files:
        raise InputError(f"no picture in {path}/<class>/ ({', '.join(PICTURES)}); give the right directory")
    folder = np.repeat(np.arange(len(folders), dtype=np.int32), counts)
    label = np.array([number[name] for name in folders], np.int64)[folder]
    return Folder(path, label, folder, np.array(files, "S"), folders, listed)
