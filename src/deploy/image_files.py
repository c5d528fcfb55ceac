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

from src.data.folder import IMAGE_SUFFIXES, NESTED, as_line, class_folders, scan
from src.data.image import as_jpeg
from src.data.preprocess import Preprocessing, evaluation_image
from src.data.records import read_file
from src.errors import InputError, reading
from src.evaluation.report import THUMBNAIL

AHEAD = 3  # batches that are decoded or in decoding
WAIT = 0.05  # seconds for the next line of standard input, which may come from a program that waits for its answers


def from_standard_input() -> Iterator[str | None]:
    """Yield what `find_images` finds for each line of standard input as it comes, and None where no further line is there
    yet. A line without an image is taken as the path of one, and reported with those that cannot be read."""
    with open(0, 'rb', buffering=0, closefd=False) as lines:  # unbuffered, so that `select` sees all that is there
        for line in lines:
            if path := os.fsdecode(line.rstrip(b'\r\n')):
                try:
                    yield from find_images(path)
                except InputError:
                    yield path
            if not select.select([lines], [], [], WAIT)[0]:
                yield None


def find_images(source: str) -> list[str]:
    """Paths of the images that `source` names, sorted: itself, all below a directory, chosen as those of class folders, or
    all that a pattern such as `photos/**/*.jpg` fits. A line on stderr tells what is left out of a directory. InputError if
    there is none."""
    with reading(source, 'name an image, or a directory or a pattern of some'):
        if os.path.isdir(source):
            found = _below(source)
        elif os.path.exists(source) or not glob.has_magic(source):
            os.stat(source)
            found = [source]
        else:
            found = [path for path in glob.glob(source, recursive=True) if path.lower().endswith(IMAGE_SUFFIXES)]
        if not found:
            raise ValueError(f'no image in it ({", ".join(IMAGE_SUFFIXES)})')
    return sorted(found)


def _below(folder):
    """Images below `folder`. Links are followed."""
    folders, found, left_out = [folder], [], {}
    for here in folders:  # which grows meanwhile
        found += [os.path.join(here, os.fsdecode(name)) for name in scan(here, left_out)]
        folders += [os.path.join(here, name) for name in class_folders(here)]
    left_out.pop(NESTED, None)
    if left_out:
        print(f'left out: {as_line(left_out)}', file=sys.stderr)
    return found


def load_image(path: str, size: int, preprocessing: Preprocessing, thumbnails: bool = False) -> tuple:
    """(path, image, why it cannot be read, JPEG with `thumbnails`), None for what there is not; the image is uint8 (size,
    size, 3), turned upright, cropped and resized as in an evaluation."""
    try:
        encoded = read_file(path)
        image = evaluation_image(encoded, size, preprocessing, upright=True)[..., :3]
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
