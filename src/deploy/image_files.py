"""The images that a command line names, and reading them ahead of a network."""

from __future__ import annotations

import glob
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from src.data.folder import IMAGE_SUFFIXES, NESTED, as_line, class_folders, read_file, scan
from src.data.image import as_jpeg
from src.data.preprocess import Preprocessing, evaluation_image
from src.errors import reading

THUMBNAIL = 240  # pixels, longer side


def find_images(source: str, log: Callable[[str], None]) -> list[str]:
    """Paths of the images that `source` names, sorted: itself, all below a directory, chosen as those of class folders, or
    all that a pattern such as `photos/**/*.jpg` fits. `log` gets a line on what is left out of a directory. InputError if
    there is none."""
    left_out = []
    with reading(source, 'name an image, or a directory or a pattern of some'):
        if os.path.isdir(source):
            found = list(_below(source, (), left_out))
        elif os.path.exists(source):
            found = [source]
        elif glob.has_magic(source):
            paths = sorted(glob.iglob(source, recursive=True))
            found = [path for path in paths if path.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(path)]
        else:
            raise ValueError('no such image or directory')
        line = as_line(left_out)
        if not found:
            raise ValueError('; '.join([f'no image in it ({", ".join(IMAGE_SUFFIXES)})'] + [line] * bool(line)))
    if line:
        log(f'left out: {line}')
    return found


def _below(folder, above, left_out):
    """Yield the images; `above` are the real paths of the directories on the way, to which a link must not lead back."""
    here = os.path.realpath(folder)
    if here in above:
        return
    images, others = scan(folder, True)
    left_out += [one for one in others if one.what != NESTED]
    images = {*map(os.fsdecode, images)}
    for name in sorted([*images, *class_folders(folder)]):
        path = os.path.join(folder, name)
        if name in images:
            yield path
        else:
            yield from _below(path, (*above, here), left_out)


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
    """Yield lists of `size` results of `load`, the last one shorter, in the order of `items`. Threads are at most two lists
    ahead of the caller."""
    loaded = _load_ahead(items, 2 * size, load)
    while batch := list(itertools.islice(loaded, size)):
        yield batch


def _load_ahead(items, ahead, load):
    waiting = deque()
    pool = ThreadPoolExecutor(
        len(os.sched_getaffinity(0))
    )  # threads, because decoding and resizing hold no lock of Python's
    try:
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
