"""Images read and decoded by threads while the network computes."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, NamedTuple

import numpy as np

from src.data.folder import read_file
from src.data.image import as_jpeg
from src.data.pool import cores
from src.data.preprocess import Preprocessing, evaluation_image

THUMBNAIL = 240  # pixels, longer side
WAIT = 0.05  # seconds for the next path, which may come from a program that waits for its answers
_END = object()


class Loaded(NamedTuple):
    """An image, or what is wrong with it."""

    path: str
    image: np.ndarray | None  # uint8 (size, size, 3)
    error: str | None
    thumbnail: bytes | None  # JPEG


def load(path: str, size: int, preprocessing: Preprocessing, with_thumbnail: bool = False) -> Loaded:
    """The image `path` as the evaluation crops and resizes it to `size`, turned upright."""
    try:
        encoded = read_file(path)
        image = evaluation_image(encoded, size, preprocessing, upright=True)
        return Loaded(path, image, None, as_jpeg(encoded, True, THUMBNAIL) if with_thumbnail else None)
    except (OSError, ValueError) as error:
        return Loaded(path, None, getattr(error, 'strerror', None) or str(error), None)


def batches(paths: Iterable[str], size: int, load: Callable[[str], Loaded]) -> Iterator[list[Loaded]]:
    """Yield lists of `size` results of `load`, in the order of `paths`, at most three lists ahead of the caller.

    A list is shorter at the end, and where the next path does not come in time.
    """
    ahead, ended = queue.Queue(2 * size), threading.Event()
    pool = ThreadPoolExecutor(cores())  # threads, because decoding and resizing hold no lock of Python's

    def read():
        try:
            for path in paths:
                if ended.is_set():
                    return
                ahead.put(pool.submit(load, path))
            ahead.put(_END)
        except Exception as error:
            ahead.put(error)

    threading.Thread(target=read, daemon=True).start()  # it may wait for standard input for ever
    try:
        last = None
        while last is not _END:
            batch, last = _next(ahead, size)
            if batch:
                yield [future.result() for future in batch]
    finally:
        ended.set()
        with contextlib.suppress(queue.Empty):
            while True:
                ahead.get_nowait()
        pool.shutdown(cancel_futures=True)


def _next(ahead, size):
    """Up to `size` futures from the queue, and what else was found last, or None."""
    found = [ahead.get()]
    with contextlib.suppress(queue.Empty):
        while len(found) < size and found[-1] is not _END and not isinstance(found[-1], Exception):
            found.append(ahead.get(timeout=WAIT))
    if isinstance(found[-1], Exception):
        raise found[-1]
    return (found[:-1], _END) if found[-1] is _END else (found, None)
