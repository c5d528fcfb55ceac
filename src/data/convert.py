"""Convert a data set of any layout to TFRecord or MindRecord shards.

Every split that the source has becomes N shards `<split>-?????-of-?????` (TFRecord) or with `.mindrecord` and
`.mindrecord.db` behind (MindRecord; MindDataset wants them as a list of files), its images shuffled over
all of them by the seed. The bytes of the images stay as they are, without --fix. Only images of folders that EXIF
says are not upright are turned, transparent ones put on white, and both encoded again, because shards are read as they
are. Labels stay, too, with one exception: folders count from 0, but TFRecords made of them count from 1, as TF-slim's
ImageNet does, whose label 0 is a background class; labels.txt has the names. ImageNet's archives
(ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz) are read without unpacking them;
their labels are TF-slim's, whatever the format. The images of a list of src.data.split are taken as those of folders. A
repeated command keeps the shards that are finished.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import sys

import numpy as np
from tqdm import tqdm

from src.data import labels, mindrecord, stamp, tfrecord
from src.data.archives import ARCHIVES
from src.data.findings import for_shard
from src.data.image import ImageError
from src.data.pool import at, cores, interruptible, spread
from src.data.records import FORMATS, SPLITS, find_format
from src.data.split import open_parts
from src.data.tfrecord import MOST, shard_name
from src.errors import InputError, Parser, counted, entry_point
from src.files import move

_PARTIAL = 'convert.partial'  # directory of the unfinished shards


class _Job:
    """What every shard's process has to know."""

    def __init__(self, dst, layout, shards, fix, seed, records, shift):
        self.dst, self.layout, self.shards, self.fix, self.shift = dst, layout, shards, fix, shift
        self.records = records  # by split
        self.order = {
            split: np.array_split(np.random.default_rng([seed, n]).permutation(len(found)), shards)
            for n, (split, found) in enumerate(records.items())
        }

    def name(self, split, number):
        suffix = mindrecord.SUFFIX if self.layout == 'mindrecord' else ''
        return shard_name(split, number, self.shards, suffix)


def _write(job, split, number):
    """Write one shard and name it when it is whole; returns its entry of the stamp."""
    records, order, name = job.records[split], job.order[split][number], job.name(split, number)
    entry = {'images': len(order), 'to_fix': 0, 'turned': 0, 'unreadable': [], 'fix': job.fix}

    def examples():
        for i in map(int, order):
            at(records.where(i))
            try:
                encoded, file, unfit, turned = for_shard(records.read(i), records.name(i), records.upright, job.fix)
            except ImageError as error:
                entry['unreadable'].append(f'{records.where(i)}: {error}')
                continue
            entry['to_fix'] += unfit
            entry['turned'] += turned
            yield encoded, int(records.label[i]) + job.shift, file

    partial = os.path.join(job.dst, _PARTIAL, name)
    if job.layout == 'tfrecord':
        tfrecord.write_shard(partial, examples())
        files = [name]
    else:
        mindrecord.write_shard(partial, examples(), [records.size(i) for i in order])
        files = [name + '.db', name]  # the index first: no shard without one
    bad = len(entry['unreadable'])
    if bad == len(order) and job.fix:
        raise InputError(f'shard {name} would be empty, none of its {bad} images can be decoded; give fewer --shards')
    entry['files'] = (
        {} if bad and not job.fix else {file: os.path.getsize(os.path.join(job.dst, _PARTIAL, file)) for file in files}
    )
    for file in entry['files']:
        move(os.path.join(job.dst, _PARTIAL, file), os.path.join(job.dst, file))
    return name, entry


def _save(job, name, text):
    partial = os.path.join(job.dst, _PARTIAL, name)
    with open(partial, 'w', encoding='utf-8', errors='surrogateescape') as file:  # any file name
        file.write(text)
    move(partial, os.path.join(job.dst, name))


def convert(
    src, dst, layout: str, shards: int, fix: bool = False, workers: int | None = None, seed: int = 0, progress: bool = False
) -> dict:
    """Convert the data set in `src`, a directory or a list, to `shards` shards per split in `dst`, `layout` tfrecord or
    mindrecord.

    Returns the entries by shard name: images, to_fix (re-encoded if `fix`), unreadable (left out if `fix`).
    InputError for unusable settings or sources, and without `fix` for images that cannot be decoded.
    """
    if layout not in FORMATS[:2]:
        raise InputError(f'format is {layout!r}; give tfrecord or mindrecord')
    if seed < 0:
        raise InputError(f'seed is {seed}; give 0 or more')
    workers = cores(workers)
    if os.path.basename(src) in ARCHIVES.values():  # if there is something else in the directory
        src, source = os.path.dirname(src) or '.', 'archives'
    else:
        source = 'folder' if os.path.isfile(src) else find_format(src)
    if os.path.realpath(src) == os.path.realpath(dst):
        raise InputError(f'--src and --dst are both {dst!r}; give another --dst')
    records = _open(src, source, shards, progress)
    names, shift = _class_names(records, source, layout)
    job = _Job(dst, layout, shards, fix, seed, records, shift)
    settings = {
        'version': 1 + 2 * (source == 'folder'),
        'format': layout,
        'shards': shards,
        'seed': seed,
        'labels': names,
        'source': {split: stamp.fingerprint(found) for split, found in records.items()},
    }
    try:
        os.makedirs(dst, exist_ok=True)
        with _alone(dst):
            done = _run(job, settings, stamp.finished(dst, settings, fix), workers, progress)
    except OSError as error:
        raise InputError(f'{error.filename or dst}: {error.strerror}; give a writable --dst with free space') from None
    _report_unreadable([text for entry in done.values() for text in entry['unreadable']], fix)
    return done


def _open(src, source, shards, progress):
    """{split: records} of the data set; InputError if a split has fewer images than `shards`."""
    records = open_parts(src, source, progress)
    for split, found in records.items():
        if found.left_out:
            print('left out:', found.left_out, file=sys.stderr)
        most = min(len(found), MOST)
        if not 1 <= shards <= most:
            raise InputError(
                f'{counted(shards, "shard")} for {counted(len(found), split + " image")}; give --shards 1 to {most}'
            )
    return records


def _class_names(records, source, layout):
    """Names by the labels that are written (their numbers, if they have none), and what is added to the source's labels."""
    names = next(iter(records.values())).class_names
    shift = int(source == 'folder' and layout == 'tfrecord' and names[0] != 'background')
    if names:
        return ['background'] * shift + names, shift
    present = {int(label) for found in records.values() for label in np.unique(found.label)}
    return [str(n) if n in present else '' for n in range(min(max(present), labels.LARGEST) + 1)], shift


@contextlib.contextmanager
def _alone(dst):
    """While no other conversion writes to the directory `dst`, else InputError."""
    lock = os.open(dst, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(f'another conversion writes to {dst!r}; wait for it or give another --dst') from None
    finally:
        os.close(lock)


def _report_unreadable(unreadable, fix):
    """Print what cannot be decoded (list of str); without `fix` that is an InputError."""
    for text in unreadable:
        print('left out:' if fix else 'bad:', text, file=sys.stderr)
    if unreadable and not fix:
        raise InputError(
            f'{counted(len(unreadable), "image")} cannot be decoded, the first is {unreadable[0]}; '
            'replace them, or leave them out with --fix'
        )


def _run(job, settings, done, workers, progress):
    partial = os.path.join(job.dst, _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    os.mkdir(partial)

    def save():
        _save(job, stamp.NAME, stamp.as_text(settings, done))

    save()
    names = {label: name for label, name in enumerate(settings['labels']) if name.strip()}
    _save(job, 'labels.txt', labels.text(names))
    tasks = [(split, n) for split in job.records for n in range(job.shards) if job.name(split, n) not in done]
    kept = sum(entry['images'] for entry in done.values())
    total = sum(map(len, job.records.values()))
    with tqdm(total=total, initial=kept, unit='image', disable=not progress) as bar:
        for name, entry in spread(_write, job, tasks, workers):
            done[name] = entry
            if entry['files']:
                save()
            bar.update(entry['images'])
    shutil.rmtree(partial)
    return done


@entry_point
@interruptible
def main():
    parser = Parser(
        prog='python -m src.data.convert', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--src', help="data set: TFRecord or MindRecord shards, folders, or ImageNet's archives")
    source.add_argument('--list', dest='src', metavar='FILE', help='list of images, made by src.data.split')
    parser.add_argument('--dst', required=True, help='where the shards go')
    parser.add_argument('--format', required=True, choices=FORMATS[:2])
    parser.add_argument('--shards', required=True, type=int, help='shards per split')
    parser.add_argument(
        '--fix',
        action='store_true',
        help='re-encode CMYK and what is no JPEG as RGB '
        'JPEG of quality 95 (greyscale JPEG stays), leave out what cannot be decoded',
    )
    parser.add_argument('--workers', type=int, help='processes (default: as many as cores)')
    parser.add_argument('--seed', type=int, default=0, help='of the order (default: 0)')
    args = parser.parse_args()
    done = convert(args.src, args.dst, args.format, args.shards, args.fix, args.workers, args.seed, True)
    fixed, lost = (sum(entry['to_fix'] for entry in done.values()), sum(len(entry['unreadable']) for entry in done.values()))
    for split in SPLITS:
        entries = [entry for name, entry in done.items() if name.startswith(split)]
        if entries:
            count = sum(entry['images'] - len(entry['unreadable']) for entry in entries)
            print(f'{args.dst}: {split}, {counted(count, "image")} in {counted(len(entries), "shard")}')
    if fixed:
        print(f'{counted(fixed, "image")}, CMYK or no JPEG' + (', re-encoded' if args.fix else ': see --fix'))
    if turned := sum(entry.get('turned', 0) for entry in done.values()):
        print(f'{counted(turned, "image")} turned upright or put on white, re-encoded')
    if lost:
        print(f'{counted(lost, "image")} left out, listed above')


if __name__ == '__main__':
    main()
