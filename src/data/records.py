"""One way to open a data set, whatever its layout: TFRecord or MindRecord shards, folders of images, ImageNet's archives."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import Union

import numpy as np

from src.data import foreign, imagenet, labels, tfrecord
from src.data.archives import ARCHIVES, open_archive
from src.data.folder import PARTS, Folder, class_folders, open_folder, scan
from src.data.index import Index
from src.data.mindrecord import find_mindrecords, index_mindrecords, list_shards
from src.data.shards import NUMBERS, find_shards, first_names, list_directory
from src.data.tfrecord import index_shards
from src.errors import InputError

FORMATS = ('tfrecord', 'mindrecord', 'folder', 'archives')
Records = Union[Index, Folder]
SPLITS = {split: PARTS[split] for split in ('train', 'validation')}  # and the names that files may use, in any case
_TFRECORD = re.compile(f'({"|".join(SPLITS)}){NUMBERS}')


def open_records(data_dir: str | Path, split: str, dataset_format: str = 'auto', progress: bool = False) -> Records:
    """Records of `split` ("train" or "validation"), of a layout that is given or found by looking.

    Records have `len()`, `label` (int64 [n], as stored; for folders from 0 in the order of the sorted names, or as in
    labels.txt), `read(i)` (the encoded image, bytes), `where(i)` (for messages), `name(i)` (a file name), `size(i)` (bytes),
    `place(i)` (path, first byte, number of bytes) and `class_names` (list by stored label, or None; ImageNet's where there
    is no labels.txt and TFRecords have its WordNet ids). They can be pickled and used in forked processes.

    InputError tells what is missing or damaged, and where.
    """
    if split not in SPLITS:
        raise ValueError(f'split {split!r} is none of {", ".join(SPLITS)}')
    try:
        return _open(os.fspath(data_dir or ''), split, dataset_format, progress)
    except OSError as error:
        raise InputError(f'{error.filename}: {error.strerror}; check that it can be read') from None


def _open(data_dir, split, dataset_format, progress):
    layout = find_format(data_dir, dataset_format)
    if layout == 'folder':
        labelling = split_folder(data_dir, next(iter(splits(data_dir, layout)), split))
        return open_folder(split_folder(data_dir, split), labelling, read_labels(data_dir, False))
    if layout == 'archives':
        return open_archive(data_dir, split, progress)
    if layout == 'tfrecord':
        records = index_shards(find_shards(data_dir, split), progress)
    else:
        records = index_mindrecords(find_mindrecords(data_dir, split, SPLITS[split]), progress)
    if not len(records):
        raise InputError(f'data_dir {data_dir}: the {split} shards hold no record; make them again')
    records.class_names = read_labels(data_dir)
    if records.class_names is None and layout == 'tfrecord':
        records.class_names = imagenet.names_by_label(tfrecord.noted_synsets(records.paths[0]))
    return records


def _listing(data_dir):
    return list_directory(data_dir, 'give the directory of a data set')


def find_format(data_dir: str | Path, dataset_format: str = 'auto') -> str:
    """Which of `FORMATS` the directory holds, for "auto"; else `dataset_format`.

    InputError if it holds none or two of them, or if `dataset_format` is unknown.
    """
    names, found = _listing(data_dir), {}
    if dataset_format != 'auto':
        if dataset_format not in FORMATS:
            raise InputError(f'dataset_format is {dataset_format!r}; give auto, {", ".join(FORMATS)}')
        return dataset_format
    for name in filter(_TFRECORD.fullmatch, names):
        found.setdefault('tfrecord', name)
    for name in set(ARCHIVES.values()) & set(names):
        found.setdefault('archives', name)
    for split, aliases in SPLITS.items():
        for path in list_shards(data_dir, aliases):
            found.setdefault('mindrecord', os.path.relpath(path, data_dir))
        for folder in split_folders(data_dir, split):
            if class_folders(folder):
                found.setdefault('folder', os.path.join(os.path.basename(folder), class_folders(folder)[0]))
    if len(found) > 1:
        both = ' and '.join(f'{layout} ({name})' for layout, name in found.items())
        raise InputError(f'data directory {data_dir!r} holds {both}; give dataset_format')
    if not found:
        raise InputError(
            f'data directory {data_dir!r} holds no train-?????-of-????? (tfrecord), no '
            'train*.mindrecord* (mindrecord) and no train/<class>/*.jpg (folder), nor any of '
            f"these for validation, nor ImageNet's archives, only {first_names(names)}; {_near_miss(data_dir, names)}"
        )
    return next(iter(found))


def _near_miss(data_dir, names):
    """A remedy that fits the `names` which are in the directory."""
    if found := foreign.first_in(data_dir, names):
        return found
    for folder in (data_dir, *(folder for split in SPLITS for folder in split_folders(data_dir, split))):
        if images := scan(folder, True)[0]:
            return (
                f'{os.path.join(folder, os.fsdecode(images[0]))} is in no class folder; put the images into one folder for '
                'each class, train/<class>/*.jpg and validation/<class>/*.jpg'
            )
    for name in names:
        path = os.path.join(data_dir, name)
        shard = re.search('([0-9]+)-of-([0-9]+)', name)
        if shard:
            split = 'validation' if 'val' in name else 'train'
            numbers = '-of-'.join(n.zfill(5) for n in shard.groups())
            return f'TFRecord shards must be named like {split}-{numbers}: rename or link {name} and the others'
        if re.search(r'\.mindrecord[0-9]*$', name):
            return 'put the MindRecord files of a split into train/ or validation/, or start their names so'
        if os.path.isfile(path) and foreign.is_tfrecord(path):
            return f'{name} is a TFRecord file: rename or link it, a single one as train-00000-of-00001'
    return 'give the directory above train/ and validation/, or that of the shards'


def splits(data_dir: str | Path, dataset_format: str) -> list[str]:
    """Which splits a directory of that layout has, in the order of `SPLITS`; InputError if it cannot be read."""
    names = _listing(data_dir)
    there = {
        'tfrecord': lambda split: any(n.startswith(split) and _TFRECORD.fullmatch(n) for n in names),
        'mindrecord': lambda split: list_shards(data_dir, SPLITS[split]),
        'folder': lambda split: bool(split_folders(data_dir, split)),
        'archives': lambda split: ARCHIVES[split] in names,
    }
    return [split for split in SPLITS if there[dataset_format](split)]


def split_folders(data_dir, split: str) -> list[str]:
    """The directories in `data_dir` that may have a split's class folders, in the order of `SPLITS`."""
    names = {name: SPLITS[split].index(name.lower()) for name in os.listdir(data_dir) if name.lower() in SPLITS[split]}
    return [p for p in (os.path.join(data_dir, n) for n in sorted(names, key=names.get)) if os.path.isdir(p)]


def split_folder(data_dir, split: str) -> str:
    """The directory of a split's class folders; InputError if it is missing or there are two."""
    found = split_folders(data_dir, split)
    if len(found) != 1:
        names = ' and '.join(map(os.path.basename, found))
        what = f'both {names}' if found else f'no {split} folder ({", ".join(SPLITS[split][1:])})'
        raise InputError(
            f'data directory {data_dir!r} has {what}, only {first_names(_listing(data_dir))}; '
            f'give one directory {split}/<class>/*.jpg'
        )
    return found[0]


def read_labels(data_dir: str | Path, numbered: bool = True) -> list[str] | None:
    """Names by label from the file labels.txt in `data_dir`, lines `label:name`; None without the file.

    With `numbered`, lines of names alone give None, because labels of shards may start at 0 or at 1; without it, as for
    folders, they count from 0.

    InputError for a file that is no such list, that names a label twice, or without `numbered` a class twice.
    """
    path = os.path.join(data_dir, 'labels.txt')
    try:
        found, has_numbers = labels.parse(path)
    except FileNotFoundError:
        return None
    if numbered and not has_numbers:
        return None
    if not numbered and len(set(found.values())) < len(found):
        raise InputError(f'{path!r} names a class twice; mend it')
    names = labels.by_number(found)
    if names and not names[0]:
        names[0] = 'background'
    return names


def fingerprint(records: Records) -> str:
    """By what a resumed training knows its records again: their number, and checksums of the order of their labels and of
    what is known of their images without reading them. Older checkpoints have the part before "and"."""
    labels = zlib.crc32(np.asarray(records.label, np.int64).tobytes())
    return f'{len(records)} with label checksum {labels:08x} and file checksum {records.files_checksum():08x}'
