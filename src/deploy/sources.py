"""The images that a command line names: files, directories, patterns, lists of them, `file://` URLs, standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from src.data.folder import IMAGE_SUFFIXES, NESTED, as_line, class_folders, scan
from src.errors import InputError

STANDARD_INPUT, LIST_SUFFIX = '-', '.txt'


def find_images(source: str | Path, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Paths of the images that `source` names: itself, all below a directory, all that a pattern such as `photos/**/*.jpg`
    fits, sorted by name, or those of the lines of a text file (`.txt`), each of which may be a source again, but no list.

    A line without an image is taken as the path of one, so that it is reported with those that cannot be read. InputError if
    another source has none. A line on what is left out of a directory goes to `say`.
    """
    path = _path(os.fspath(source))
    if path.endswith(LIST_SUFFIX) and os.path.isfile(path):
        return list(_listed(path, say))
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        lines = []
        found = _below(path, lines.append)
        if not found:
            raise InputError('; '.join([f'{path}: no image in it ({", ".join(IMAGE_SUFFIXES)})', *lines]))
        for line in lines:
            say(line)
        return found
    if not (found := _matching(path)):
        raise InputError(f'{path}: {"no image fits it" if glob.has_magic(path) else "no such image or directory"}')
    return found


def images_of(lines: Iterator[bytes], say: Callable[[str], None] = lambda line: None) -> Iterator[str]:
    """Paths of the images that the `lines` of a list name, as they come."""
    for line in lines:
        text = os.fsdecode(line).strip('\r\n')
        if text.strip():
            try:
                path = _path(text)
                found = _below(path, say) if os.path.isdir(path) else _matching(path)
            except InputError:
                path, found = text, []
            yield from found or [path]


def standard_input(say: Callable[[str], None] = lambda line: None) -> Iterator[str]:
    """Paths of the images that standard input names, a line each. The end of the program does not wait for the next line."""
    # A file of its own: while a thread waits for a line in `sys.stdin`, Python cannot end.
    with open(sys.stdin.fileno(), 'rb', closefd=False) as lines:
        yield from images_of(lines, say)


def _path(source):
    """The path that `source`, a path or a `file://` URL, names. InputError for other URLs."""
    scheme, separator, _ = source.partition('://')
    if not separator or not scheme.isalpha() or os.path.exists(source):
        return source
    parts = urlsplit(source)
    if scheme.lower() != 'file' or parts.netloc not in ('', 'localhost'):
        raise InputError(f'{source}: only file:// URLs of this machine are read; download it first')
    return url2pathname(parts.path)


def _listed(path, say):
    try:
        with open(path, 'rb') as lines:
            found = list(images_of(lines, say))
    except OSError as error:
        raise InputError(f'{path}: {error.strerror}') from None
    if not found:
        raise InputError(f'{path}: names no image; give one path a line')
    return found


def _below(folder, say):
    """Images at any depth below `folder`, sorted by name, chosen as those of class folders; `say` gets what is left out."""
    not_read = []
    found = list(_walk(folder, (), not_read))
    if line := as_line(not_read):
        say(f'left out: {line}')
    return found


def _walk(folder, above, not_read):
    """Yield the images; `above` are the real paths of the directories on the way, to which a link must not lead back."""
    try:
        here = os.path.realpath(folder)
        if here in above:
            return
        images, left_out = scan(folder, True)
        folders = class_folders(folder)
    except OSError as error:
        raise InputError(f'{folder}: {error.strerror}') from None
    not_read += [one for one in left_out if one.what != NESTED]
    images = {*map(os.fsdecode, images)}
    for name in sorted([*images, *folders]):
        path = os.path.join(folder, name)
        if name in images:
            yield path
        else:
            yield from _walk(path, (*above, here), not_read)


def _matching(pattern):
    """Images that the shell pattern fits, sorted by name; `**` stands for directories at any depth."""
    if os.path.exists(pattern) or not glob.has_magic(pattern):
        return [pattern] if os.path.exists(pattern) else []
    found = sorted(path for path in glob.iglob(pattern, recursive=True) if path.lower().endswith(IMAGE_SUFFIXES))
    return [path for path in found if os.path.isfile(path)]
