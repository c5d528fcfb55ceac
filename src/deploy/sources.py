"""The images that a command line names: files, directories, patterns, lists of them, `file://` URLs, standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from src.data.folder import IMAGE_SUFFIXES
from src.errors import InputError

STANDARD_INPUT, LIST_SUFFIX = '-', '.txt'


def find_images(source: str | Path) -> list[str]:
    """Paths of the images that `source` names: itself, all below a directory, all that a pattern such as `photos/**/*.jpg`
    fits, sorted by name, or those of the lines of a text file (`.txt`), each of which may be a source again, but no list.

    A line without an image is taken as the path of one, so that it is reported with those that cannot be read. InputError if
    another source has none.
    """
    path = _path(os.fspath(source))
    if path.endswith(LIST_SUFFIX) and os.path.isfile(path):
        return list(_listed(path))
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        found = list(_below(path))
        if not found:
            raise InputError(f'{path}: no image in it ({", ".join(IMAGE_SUFFIXES)})')
        return found
    if not (found := _matching(path)):
        raise InputError(f'{path}: {"no image fits it" if glob.has_magic(path) else "no such image or directory"}')
    return found


def images_of(lines: Iterator[bytes]) -> Iterator[str]:
    """Paths of the images that the `lines` of a list name, as they come."""
    for line in lines:
        text = os.fsdecode(line).strip('\r\n')
        if text.strip():
            try:
                path = _path(text)
                found = list(_below(path) if os.path.isdir(path) else _matching(path))
            except InputError:
                path, found = text, []
            yield from found or [path]


def standard_input() -> Iterator[str]:
    """Paths of the images that standard input names, a line each. The end of the program does not wait for the next line."""
    # A file of its own: while a thread waits for a line in `sys.stdin`, Python cannot end.
    with open(sys.stdin.fileno(), 'rb', closefd=False) as lines:
        yield from images_of(lines)


def _path(source):
    """The path that `source`, a path or a `file://` URL, names. InputError for other URLs."""
    scheme, separator, _ = source.partition('://')
    if not separator or not scheme.isalpha() or os.path.exists(source):
        return source
    parts = urlsplit(source)
    if scheme.lower() != 'file' or parts.netloc not in ('', 'localhost'):
        raise InputError(f'{source}: only file:// URLs of this machine are read; download it first')
    return url2pathname(parts.path)


def _listed(path):
    try:
        with open(path, 'rb') as lines:
            found = list(images_of(lines))
    except OSError as error:
        raise InputError(f'{path}: {error.strerror}') from None
    if not found:
        raise InputError(f'{path}: names no image; give one path a line')
    return found


def _below(folder):
    """Images at any depth below `folder`, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f'{folder}: {error.strerror}') from None
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)
        elif entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
            yield entry.path


def _matching(pattern):
    """Images that the shell pattern fits, sorted by name; `**` stands for directories at any depth."""
    if os.path.exists(pattern) or not glob.has_magic(pattern):
        return [pattern] if os.path.exists(pattern) else []
    found = sorted(path for path in glob.iglob(pattern, recursive=True) if path.lower().endswith(IMAGE_SUFFIXES))
    return [path for path in found if os.path.isfile(path)]
