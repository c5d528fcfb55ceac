"""The images that a command line names, and reading them ahead of a network."""

from __future__ import annotations

import glob
import itertools
import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from src.data.folder import IMAGE_SUFFIXES, NESTED, as_line, class_folders, scan
from src.data.image import as_jpeg
from src.data.preprocess import Preprocessing, evaluation_image
from src.data.records import read_file
from src.errors import InputError, reading

THUMBNAIL = 240  # pixels, longer side
AHEAD = 3  # batches that are decoded or in decoding
WAIT = 0.05  # seconds for the next line of standard input, which may come from a program that waits for its answers


def named_images(source: str) -> Iterable[str | None]:
    """What `find_images` finds, also of each line of a list: a text file (`.txt`), or `-`, standard input, with None where
    no further line is there yet. A line without an image is taken as the path of one."""
    if source == '-':
        return _of_lines(_standard_input())
    if not source.endswith('.txt') or not os.path.isfile(source):
        return find_images(source)
    with reading(source, 'write the path of an image on each line'):
        return list(_of_lines(Path(source).read_bytes().splitlines()))


def _of_lines(lines):
    for line in lines:
        if line is None:
            yield None
        elif path := os.fsdecode(line.rstrip(b'\r\n')):
            try:
                yield from find_images(path)
            except InputError:
                yield path  # is reported with those that cannot be read


def _standard_input():
    """Yield its lines as they come, and None before a wait."""
    rest, found = b'', b'\n'
    while found:
        if not select.select([0], [], [], WAIT)[0]:
            yield None
        found = os.read(0, 1 << 16)
        *lines, rest = (rest + found).split(b'\n')
        yield from lines
    yield rest


def find_images(source: str) -> list[str]:
    """Paths of the images that `source`, a path or `file://` URL, names, sorted: itself, all below a directory, chosen as
    those of class folders, or all that a pattern such as `photos/**/*.jpg` fits. A line on stderr says what is left out of
    a directory. InputError if there is none."""
    source, left_out = url2pathname(urlsplit(source).path) if source.startswith('file://') else source, ''
    with reading(source, 'name an image, or a directory or a pattern of some'):
        if os.path.isdir(source):
            found, left_out = _below(source)
        elif os.path.exists(source) or not glob.has_magic(source):
            os.stat(source)
            found = [source]
        else:
            paths = glob.glob(source, recursive=True)
            found = [path for path in paths if path.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(path)]
        if not found:
            raise ValueError(f'no image in it ({", ".join(IMAGE_SUFFIXES)})' + f'; {left_out}' * bool(left_out))
    if left_out:
        print(f'left out: {left_out}', file=sys.stderr)
    return sorted(found)


def _below(folder):
    """Images below `folder`, and a line on what is left out. Links are followed, but not back to where they are."""
    folders, found, left_out = [folder], [], {}
    for here in folders:  # which grows meanwhile
        found += [os.path.join(here, os.fsdecode(name)) for name in scan(here, left_out)]
        above = {*map(os.path.realpath, (here, *Path(here).parents))}
        below = [os.path.join(here, name) for name in class_folders(here)]
        folders += [path for path in below if os.path.realpath(path) not in above]
    left_out.pop(NESTED, None)
    return found, as_line(left_out)


def load_image(path: str, size: int, preprocessing: Preprocessing, thumbnails: bool = False) -> tuple:
    """(path, image, why it cannot be read, JPEG with `thumbnails`), None for what there is not; the image is uint8 (size,
    size, 3), turned upright, cropped and resized as in an evaluation."""
    try:
        encoded = read_file(path)
        image = evaluation_image(encoded, size, preprocessing, upright=True)
        return path, image, None, as_jpeg(encoded, True, THUMBNAIL) if thumbnails else None
    except (OSError, ValueError) as error:
        return path, None, getattr(error, 'strerror', None) or str(error), None


def load_batches(items: Iterable, size: int, load: Callable) -> Iterator[list]:
    """Yield lists of `size` results of `load`, in the order of `items`; a shorter one at the end, and at an item None, since
    the next one may be long in coming. Threads are ahead of the caller: decoding and resizing hold no lock of Python's."""
    waiting = deque()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for item in itertools.chain(items, [None]):
            if item is not None:
                waiting.append(pool.submit(load, item))
            while waiting and (item is None or len(waiting) == AHEAD * size):
                yield [waiting.popleft().result() for _ in range(min(size, len(waiting)))]
