"""What is unusual or damaged about encoded images: one of them, or all of a data set, in several processes."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import re
import signal
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from src.data import jpeg
from src.data.image import UnsupportedError, is_transparent, open_image, orientation, pixels, quiet
from src.data.records import Records
from src.data.tfrecord import masked_crc
from src.errors import InputError
from src.heartbeat import end_with_parent

TINY, HUGE = 32, 20e6  # pixels a side, pixels in all
UNREADABLE = ('undecodable', 'truncated', 'unsupported')
_HARMLESS = ('unknown JFIF revision', 'Unknown Adobe color transform', 'Invalid SOS parameters', 'bad ICC marker')
_EXPECTED = {'.png': 'PNG', '.bmp': 'BMP', '.gif': 'GIF', '.webp': 'WEBP'}
_CHUNK = 64  # records of a task
_work = None  # of a worker: the function of its tasks and what they share


def examine(encoded: bytes, name: str = '') -> dict[str, str]:
    """{kind: detail} of what was found about an encoded image; a file `name` that ends in .png, .bmp, .gif or .webp allows
    for that format.

    Everything is decoded (a JPEG at an eighth of its size, which reads all of its bytes).
    """
    found = {}
    try:
        opened = open_image(encoded)
        found = _unusual(opened, name)
        warning = jpeg.warning(encoded)
        if opened.format in ('JPEG', 'MPO') and warning != '':
            if warning:
                opened.draft(None, (1, 1))
            with quiet():
                opened.load()
        elif warning is None:
            pixels(opened)
            if is_transparent(opened):
                found['transparent'] = opened.mode
    except UnsupportedError as error:
        return {'unsupported': str(error)}
    except Exception as error:
        detail = re.sub(r'^cannot be decoded \((.*)\)$', r'\1', str(error) or type(error).__name__, flags=re.DOTALL)
        found['truncated' if 'truncated' in detail.lower() else 'undecodable'] = detail if encoded else 'no bytes'
        return found
    if warning:
        kind, detail = _damage(encoded, warning)
        found[kind] = detail
    if (turn := orientation(encoded, opened)) > 1:
        found['exif_rotated'] = f'orientation {turn}'
    try:
        with quiet():
            opened.getexif()
    except Exception as error:
        found['exif_broken'] = str(error) or type(error).__name__
    return found


def _unusual(opened, name):
    """What is unusual about format, colours and size of a PIL image."""
    (width, height), form = opened.size, opened.format.replace('MPO', 'JPEG')
    size, ending, found = f'{width} x {height}', os.path.splitext(name)[1].lower(), {}
    if form != _EXPECTED.get(ending, form):
        found['misnamed'] = f'{form} in a file called {ending}'
    elif ending not in _EXPECTED and form != 'JPEG':
        found['png_in_jpeg' if form == 'PNG' else 'other_format'] = form
    if opened.mode == 'CMYK':
        found['cmyk'] = size
    if opened.mode in ('1', 'L', 'LA', 'I;16', 'I', 'F'):
        found['greyscale'] = size
    if min(width, height) < TINY:
        found['tiny'] = size
    if width * height > HUGE:
        found['huge'] = size
    return found


def _damage(encoded, warning):
    """(kind, detail) for a `warning` (str) of libjpeg-turbo: "corrupt", or "warned" where the pixels are sound."""
    data = encoded[: encoded.rfind(b'\xff\xd9')]
    zeros, left = len(data) - len(data.rstrip(b'\0')), re.search(r'(\d+) extraneous bytes before marker 0xd9', warning)
    count = int(left[1]) if left else 0
    if zeros - count > 16:  # more than the decoder reads ahead: they were taken for pixels
        return 'corrupt', f'the last {zeros} bytes of its data are zeros'
    # Where bytes were lost, data of pixels are left over, and many of them; a few bytes or equal ones are padding.
    if left and (count <= 4 or len(set(data[-count:])) <= 2) or any(text in warning for text in _HARMLESS):
        return 'warned', warning
    return 'corrupt', warning


def examine_all(sets: list[Records], workers: int | None, progress: bool = False) -> list[tuple[list, bytes]]:
    """For each of `sets` what was found about its images: [(kind, record, detail)], and a digest of 16 bytes of each, zeros
    where there is no image."""
    tasks = [
        (n, start, min(start + _CHUNK, len(records)))
        for n, records in enumerate(sets)
        for start in range(0, len(records), _CHUNK)
    ]
    results = []
    with tqdm(desc='checking', total=sum(map(len, sets)), unit='record', disable=not progress) as bar:
        for result in spread(_examine_some, sets, tasks, workers):
            results.append(result)
            bar.update(len(result[3]) // 16)
    results.sort(key=lambda result: result[:2])
    by_set = [[result for result in results if result[0] == n] for n in range(len(sets))]
    return [(sum((found for *_, found, _ in own), []), b''.join(digests for *_, digests in own)) for own in by_set]


def _examine_some(sets, number, start, stop):
    """`number`, `start`, and for the records `start` to `stop` of `sets[number]` what `examine_all` returns."""
    records, found, digests = sets[number], [], bytearray()
    for k in range(start, stop):
        try:
            encoded, broken = _read(records, k)
            # A shard has no use for the ending of a file name: its readers expect JPEG.
            broken.update(examine(encoded, records.name(k) if records.layout in ('folder', 'archives') else ''))
        except (OSError, InputError) as error:
            encoded, broken = b'', {'damaged': f'cannot be read ({error})'}
        digests += hashlib.blake2b(encoded, digest_size=16).digest() if encoded else bytes(16)
        found += [(kind, k, detail) for kind, detail in broken.items()]
    return number, start, found, bytes(digests)


def _read(records, k):
    """The encoded image of record `k`, and {kind: detail} if its data do not have the checksum that a TFRecord stores
    behind them."""
    if records.byte is None:
        return records.read(k), {}
    (path, start, count), byte = records.place(k), int(records.byte[k])
    with open(path, 'rb') as file:
        file.seek(byte)
        size = struct.unpack('<Q4x', file.read(12))[0]
        data, crc = file.read(size), file.read(4)
    if len(crc) < 4:  # the file became shorter: perhaps the image is there
        return records.read(k), {'crc': 'of its data'}
    start -= byte + 12
    fits = struct.unpack('<I', crc)[0] == masked_crc(data)
    return data[start : start + count], {} if fits else {'crc': 'of its data'}


def process_count(workers: int | None) -> int:
    """Number of processes: `workers`, or as many as cores that this process may use; InputError if below 1."""
    if workers is not None and workers < 1:
        raise InputError(f'workers is {workers}; use 1 or more')
    return workers or len(os.sched_getaffinity(0))


def spread(function: Callable, shared: object, tasks: list[tuple], workers: int | None = None) -> Iterator:
    """Yield function(shared, *task) for the tasks, in the order in which they end, from up to `workers` processes (None: as
    many as cores that this process may use).

    The processes are forked, so `shared` may be large. One process, too, as a decoder that crashes must not take the caller
    with it. Few tasks are begun whose results the caller has not dealt with: a killed program has to repeat only these.
    InputError for `workers` below 1, or if a process was killed.
    """
    count, left = min(process_count(workers), len(tasks) or 1), iter(tasks)
    pool = ProcessPoolExecutor(
        count, multiprocessing.get_context('fork'), _begin, (function, shared, end_with_parent(signal.SIGKILL))
    )
    try:
        running = {pool.submit(_perform, task) for task in itertools.islice(left, count + 1)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                running |= {pool.submit(_perform, task) for task in itertools.islice(left, 1)}
                yield result
    except BrokenProcessPool:
        raise InputError(
            'a worker process was killed: it ran out of memory, or a decoder crashed on an image; use fewer --workers'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(function, shared, prepare):
    global _work
    _work = function, shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    prepare()  # a killed parent leaves no process behind


def _perform(task):
    function, shared = _work
    return function(shared, *task)
