"""Read and decode every record of a data set: python -m src.data.check DIR [--workers N]

Exit status 0 for a data set without problems, 1 with problems (a line each), 2 if there is nothing to check.
EXIF-rotated and transparent images are notes, which are only counted: training turns those of folders upright,
with white behind what is transparent, and takes those in shards as they are stored, as the original did. Damage that
decoders ignore is only found with libjpeg-turbo 3 (see requirements.txt): it noticed 64 random bytes in 83 % of 1,000
images, a tail of zeros in all, and nothing in 3,034 sound images.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from tqdm import tqdm

from src.data import jpeg, tfrecord
from src.data.folder import find_layout
from src.data.image import open_image, orientation, pixels
from src.data.records import Records, open_records, read_file
from src.errors import InputError, Parser, counted, entry_point
from src.heartbeat import end_with_parent

# Kinds of what is found, as they are printed: those that are no problems, and images that cannot be used at all.
NOTES = ('EXIF-rotated', 'transparent')
UNREADABLE = ('damaged record', 'cannot be decoded')
_HARMLESS = ('unknown JFIF revision', 'Unknown Adobe color transform', 'Invalid SOS parameters', 'bad ICC marker')


def examine(encoded: bytes) -> dict[str, str]:
    """{kind: detail} of what is unusual or damaged in an encoded image. Everything is decoded (a JPEG at an eighth of its
    size, which reads all of its bytes)."""
    try:
        opened = open_image(encoded)
        (width, height), form = opened.size, opened.format.replace('MPO', 'JPEG')
        warning = jpeg.warning(encoded)
        if warning:
            opened.draft(None, (1, 1))
        # All is decoded but a JPEG that was read without a warning; what white behind it changes is transparent.
        transparent = warning != '' and not np.array_equal(pixels(opened), pixels(opened, white=True))
    except Exception as error:  # hostile bytes get nearly any out of Pillow
        return {'cannot be decoded': str(error) or type(error).__name__}
    kinds = {
        'not a JPEG': form != 'JPEG',
        'CMYK': opened.mode == 'CMYK',
        'a side below 32 pixels': min(width, height) < 32,
        'damaged data': warning and _loses_pixels(encoded, warning),
        'EXIF-rotated': orientation(encoded, opened) > 1,
        'transparent': transparent,
    }
    return {kind: warning or f'{form}, {width} x {height}' for kind, found in kinds.items() if found}


def _loses_pixels(encoded, warning):
    """Whether a warning of libjpeg-turbo is about pixels."""
    data = encoded[: encoded.rfind(b'\xff\xd9')]
    zeros, left = len(data) - len(data.rstrip(b'\0')), re.search(r'(\d+) extraneous bytes before marker 0xd9', warning)
    count = int(left[1]) if left else 0
    # Where bytes were lost, data of pixels are left over, and many of them; a few bytes or equal ones are padding.
    padding = left and (count <= 4 or len(set(data[-count:])) <= 2) or any(text in warning for text in _HARMLESS)
    return not padding or zeros - count > 16  # more zeros than the decoder reads ahead were taken for pixels


def spread(
    function: Callable, shared: object, tasks: list[tuple], workers: int | None, name: Callable[..., str], chunk: int = 1
) -> Iterator:
    """Yield function(shared, *task) for the tasks in their order, from up to `workers` processes (None: as many as cores),
    to which a `chunk` of tasks goes at once. They are forked, so `shared` may be large. One process, too, as a decoder that
    crashes must not take the caller with it. InputError for `workers` below 1, or if a process was killed, with what `name`
    makes of the tasks that were at work then."""
    if workers is not None and workers < 1:
        raise InputError(f'workers is {workers}; use 1 or more')
    count, context = min(workers or len(os.sched_getaffinity(0)), len(tasks) or 1), multiprocessing.get_context('fork')
    at_work = context.RawArray('b', len(tasks))  # 1 for each task that a process has begun and not ended
    pool = ProcessPoolExecutor(count, context, _begin, (function, shared, end_with_parent(signal.SIGKILL), at_work))
    try:
        yield from pool.map(_perform, range(len(tasks)), tasks, chunksize=chunk)
    except BrokenProcessPool:
        at = ' or '.join(name(*tasks[number]) for number in np.flatnonzero(at_work))
        reason = 'out of memory, or by a crash of a decoder; use fewer --workers, or remove that file'
        raise InputError(f'a worker was killed at {at}: {reason}') from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(function, shared, prepare, at_work):
    global _work
    _work = function, shared, at_work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    prepare()  # a killed parent leaves no process behind


def _perform(number, task):
    function, shared, at_work = _work
    at_work[number] = 1
    result = function(shared, *task)
    at_work[number] = 0
    return result


def examine_all(sets: dict[str, Records], workers: int | None = None) -> Iterator[tuple[str, int, dict[str, str], bytes]]:
    """Yield (key, number, what `examine` returns, a digest of 16 bytes or b'' if there is none) for every record of `sets`,
    which are {key: records}."""
    tasks = [(key, k) for key, records in sets.items() for k in range(len(records))]
    results = spread(_examine, sets, tasks, workers, lambda key, k: sets[key].where(k), 64)
    results = tqdm(results, 'checking', len(tasks), unit='record', disable=None)
    yield from ((*task, *result) for result, task in zip(results, tasks))


def _examine(sets, key, k):
    records = sets[key]
    try:
        encoded = _read(records, k)
    except (OSError, ValueError) as error:
        return {'damaged record': getattr(error, 'strerror', None) or str(error)}, b''
    kinds = examine(encoded)
    if records.layout == 'folder':  # readers of shards expect JPEG
        kinds.pop('not a JPEG', None)
    return kinds, hashlib.blake2b(encoded, digest_size=16).digest() if encoded else b''


def _read(records, k):
    """The encoded image of record `k`. OSError; ValueError if a TFRecord has another checksum: no training compares it."""
    path, offset, length = records.place(k)
    if records.byte is None:
        return read_file(path, offset, length)
    start = int(records.byte[k]) + 12
    size = int.from_bytes(read_file(path, start - 12, 8), 'little')
    data = read_file(path, start, size + 4)
    if tfrecord.masked_crc(data[:size]) != int.from_bytes(data[size:], 'little'):
        raise ValueError('wrong checksum of its data')
    return data[offset - start :][:length]


def check(data_dir: str, workers: int | None = None) -> tuple[list[tuple[str, str, str]], dict[str, Counter]]:
    """Read every record. Returns what was found, each (kind, where, detail), and {split: {label: images}}. InputError if
    there is nothing to check."""
    found, sets, first = [], {}, {}
    layout, present = find_layout(data_dir)
    for split in present:
        damage = []
        sets[split] = open_records(data_dir, split, layout, damage)
        found += [('damaged or missing shards', *text.partition(': ')[::2]) for text in damage]
        found += [('left out', paths[0], f'{len(paths)} x {why}') for why, paths in sets[split].not_read.items()]
    for split, k, kinds, digest in examine_all(sets, workers):
        records, this = sets[split], (split, k)
        found += [(kind, records.where(k), detail) for kind, detail in kinds.items()]
        if digest and (original := first.setdefault(digest, this)) is not this:
            earlier, j = sets[original[0]], original[1]
            kind = 'same file twice' if earlier is records else 'in training and validation'
            kind += ', with two labels' * bool(records.label[k] != earlier.label[j])
            same = f'same bytes as {earlier.where(j)}, label {earlier.label[j]}'
            found.append((kind, records.where(k), f'label {records.label[k]}, {same}'))
    of_first = next(iter(sets.values()))  # training records, if there are any
    names = of_first.class_names
    known = [label for label, name in enumerate(names) if name] if names else np.unique(of_first.label)
    for records in sets.values():
        for label, k in zip(*np.unique(records.label, return_index=True)):
            if label < 0 or label not in known:
                reason = 'has no name' if names else 'has no training image'
                found.append(('label does not fit', records.where(k), f'label {label} is negative or {reason}'))
    return found, {split: Counter(records.label.tolist()) for split, records in sets.items()}


@entry_point
def main():
    """The command line."""
    parser = Parser(prog='python -m src.data.check', description=__doc__.partition(':')[0])
    parser.add_argument('directory', metavar='DIR', help="TFRecord or MindRecord shards, folders, or ImageNet's archives")
    parser.add_argument('--workers', type=int, help='processes (default: as many as cores)')
    args = parser.parse_args()
    found, labels = check(args.directory, args.workers)
    problems = sorted(one for one in found if one[0] not in NOTES)
    for kind, where, detail in problems:
        print(f'problem: {kind}: {where}: {" ".join(detail.splitlines())}')
    for kind, count in Counter(kind for kind, *_ in found if kind in NOTES).items():
        print(f'note: {kind}: {count}')
    for split, images in labels.items():
        low, high = min(images, default='-'), max(images, default='-')
        print(f'{split}: {counted(sum(images.values()), "record")}, {len(images)} classes, labels {low} to {high}')
    print(counted(len(problems), 'problem'))
    sys.exit(bool(problems))


if __name__ == '__main__':
    main()
