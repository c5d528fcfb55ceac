"""The images that a command line names, and reading them ahead of a network."""

from __future__ import annotations

import glob
import itertools
import os
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


def named_images(source: str) -> Iterable[str]:
    """What `find_images` finds, also of each line of a list: a text file (`.txt`), or `-`, standard input. A line without an
    image is taken as the path of one."""
    if source == '-':
        return _of_lines(open(0, 'rb', closefd=False))
    if not source.endswith('.txt') or not os.path.isfile(source):
        return find_images(source)
    with reading(source, 'write the path of an image on each line'):
        return list(_of_lines(Path(source).read_bytes().splitlines()))


def _of_lines(lines):
    for line in map(os.fsdecode, lines):
        if line := line.rstrip('\r\n'):
            try:
                yield from find_images(line)
            except InputError:
                yield line  # is reported with those that cannot be read


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
    """Yield lists of `size` results of `load`, in the order of `items`, the last one shorter. Threads are ahead of the
    caller: decoding and resizing hold no lock of Python's."""
    items, waiting = iter(items), deque()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        while True:
            while len(waiting) < AHEAD and (some := [*itertools.islice(items, size)]):
                waiting.append([pool.submit(load, item) for item in some])
            if not waiting:
                return
            yield [one.result() for one in waiting.popleft()]
