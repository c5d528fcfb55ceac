"""Names of a network's classes: from a file, from a checkpoint, or ImageNet's."""

from __future__ import annotations

import sys
from pathlib import Path

from src.data import imagenet, labels
from src.errors import InputError


def class_names(
    path: str | Path, recorded: list[str] | None, num_classes: int, option: str = '--labels'
) -> list[str] | None:
    """Names by class number: those of the file `path` (lines `name` or `number:name`), or without one the `recorded`.

    Number 0 may be the background's, and is left out, where the network has a class less; ImageNet's background is put in
    front, with a line on stderr, where the network has 1001 classes. InputError for names that do not fit, with the
    `option` that gives others; None if there are none.
    """
    names = recorded
    if path:
        try:
            names = labels.by_number(labels.parse(path)[0])
        except FileNotFoundError:
            raise InputError(f'labels {path}: no such file; give a text file, one class a line') from None
    if not names:
        return None
    if len(names) == num_classes + 1 and names[0] in ('background', ''):
        names = names[1:]
    elif len(names) == num_classes - 1 == len(imagenet.classes()):
        print(
            f'note: {path or "the checkpoint"} names {len(names)} classes, the network has {num_classes}: class 0 is the '
            'background',
            file=sys.stderr,
        )
        names = ['background', *names]
    if len(names) != num_classes:
        raise InputError(
            f'{path or "class_names in the checkpoint"}: names the classes 0 to {len(names) - 1}, but the '
            f'network has {num_classes} classes; give {option} FILE with one line per class'
        )
    return [name or f'class {number}' for number, name in enumerate(names)]


def recorded_names(info: dict) -> list[str] | None:
    """Class names in a checkpoint's `info`, or ImageNet's for weights of other programs that were imported without any."""
    layout, classes = str(info.get('source', '')).partition(' ')[0], info['config'].get('num_classes')
    if info.get('class_names') or layout not in ('tf_slim', 'timm', 'mindcv'):
        return info.get('class_names')
    # The original trained 1000 classes with labels from 1, so of its own weights one cannot tell what class 0 is.
    return imagenet.class_names(classes) if (layout, classes) != ('tf_slim', 1000) else None
