"""What a directory holds: TFRecord or MindRecord shards, folders of images, or ImageNet's archives."""

from __future__ import annotations

import os
import re
from pathlib import Path

from src.data import archives, folder, mindrecord, tfrecord
from src.errors import InputError, reading

FORMATS = ('tfrecord', 'mindrecord', 'folder', 'archives')
SPLITS = ('train', 'validation')
FOLDERS = 'train/<class>/*.jpg and validation/<class>/*.jpg'


def contents(data_dir: str) -> dict[str, dict[str, list[str]]]:
    """{layout: {split: its shards, archive or folder}} of what a directory holds; OSError if it cannot be read."""
    names, found = sorted(os.listdir(data_dir)), {layout: {} for layout in FORMATS}
    for split in SPLITS:
        shards = [name for name in names if re.fullmatch(split + tfrecord.NUMBERS, name)]
        found['tfrecord'][split] = [os.path.join(data_dir, name) for name in shards]
        found['mindrecord'][split] = mindrecord.list_shards(data_dir, folder.PARTS[split])
        found['folder'][split] = [path for path in folder.split_folders(data_dir, split) if folder.class_folders(path)]
        found['archives'][split] = [os.path.join(data_dir, name) for name in names if name == archives.ARCHIVES[split]]
    found = {layout: {split: paths for split, paths in splits.items() if paths} for layout, splits in found.items()}
    return {layout: splits for layout, splits in found.items() if splits}


def find_format(data_dir: str | Path) -> str:
    """Which of FORMATS a directory holds; InputError if none or two of them."""
    if not data_dir:
        raise InputError("data_dir is ''; give the directory of a data set")
    data_dir = os.fspath(data_dir)
    with reading(data_dir):
        found = contents(data_dir) or _refuse(data_dir)
    if len(found) > 1:
        first = [f'{layout} ({os.path.relpath(min(splits.items())[1][0], data_dir)})' for layout, splits in found.items()]
        raise InputError(f'{data_dir} holds a data set as {" and as ".join(first)}; keep one of them in it')
    return next(iter(found))


def _refuse(data_dir):
    """Raise a ValueError on a directory without a data set, with a remedy that fits what is in it."""
    names, remedy = sorted(os.listdir(data_dir)), 'give the directory above train/ and validation/, or that of the shards'
    for path in (data_dir, *(path for split in SPLITS for path in folder.split_folders(data_dir, split))):
        if images := folder.scan(path, {}):
            image = os.path.join(path, os.fsdecode(images[0]))
            remedy = f'{image} is in no class folder; put the images into one folder for each class, {FOLDERS}'
    if shards := [name for name in names if '-of-' in name or 'tfrecord' in name]:
        remedy = f'if {shards[0]} is a TFRecord file rename or link it, a single one as train-00000-of-00001'
    elif any('.mindrecord' in name for name in names):
        remedy = 'put the MindRecord files of a split into train/ or validation/, or start their names so'
    raise ValueError(
        'no train-?????-of-????? (tfrecord), train*.mindrecord* (mindrecord), train/<class>/*.jpg (folder) '
        f"nor ImageNet's archives, and none for validation, only {first_names(names)}; {remedy}"
    )


def first_names(names):
    """The first four of `names` and how many more there are, for messages."""
    return (', '.join(names[:4]) or 'nothing') + (f' and {len(names) - 4} more' if len(names) > 4 else '')


def splits(data_dir: str | Path, layout: str) -> list[str]:
    """Which of SPLITS a directory of that layout has; InputError if it cannot be read."""
    with reading(data_dir, 'give the directory of a data set'):
        return list(contents(os.fspath(data_dir)).get(layout, ()))
