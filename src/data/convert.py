"""Convert a data set of any layout to TFRecord or MindRecord shards.

Every split that the source has becomes N shards `<split>-?????-of-?????` (TFRecord) or with `.mindrecord` and
`.mindrecord.db` behind (MindRecord; MindDataset wants them as a list of files), its images shuffled over all of them,
always in the same order. The bytes of the images stay as they are, without --fix. Only images of folders that EXIF says
are not upright are turned, transparent ones put on white, and both encoded again, because shards are read as they are.
Labels stay, too, with one exception: folders count from 0, but TFRecords made of them count from 1, as TF-slim's ImageNet
does, whose label 0 is a background class; labels.txt has the names. ImageNet's archives (ILSVRC2012_img_train.tar,
ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz) are read without unpacking them; their labels are TF-slim's,
whatever the format. The images of a list of src.data.split are taken as those of folders. A repeated command keeps the
shards that are finished.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.data import mindrecord, tfrecord
from src.data.archives import ARCHIVES
from src.data.classes import LARGEST, names_as_text
from src.data.examine import UNREADABLE, examine, process_count, spread
from src.data.folder import SPLITS, find_layout
from src.data.image import ImageError, as_jpeg
from src.data.split import open_parts
from src.errors import InputError, Parser, counted, entry_point, reading
from src.files import LOCK, lock_file, move

NAME = 'convert.json'  # the settings of a conversion and its finished shards
TO_FIX = ('cmyk', 'png_in_jpeg', 'other_format')  # greyscale JPEG needs none: every JPEG decoder reads it
_PARTIAL = 'convert.partial'  # directory of the unfinished shards


def recorded(path: str | Path, settings: dict, foreign: list[str]) -> dict:
    """What the file `path` records about the results beside it; {} where they are to be made.

    ValueError if they were made with other `settings`, if it is damaged, or if there are `foreign` files but no record.
    """
    try:
        found = json.loads(Path(path).read_text(encoding='utf-8'))
        earlier = dict(found.get('settings', found))
    except FileNotFoundError:
        if foreign:
            raise ValueError(f'is missing, but {foreign[0]} is there, made by something else') from None
        return {}
    except (ValueError, TypeError, AttributeError):
        raise ValueError('is damaged') from None
    for key, value in settings.items():
        if earlier.get(key) != value:
            raise ValueError(f'is of {key} {earlier.get(key)}, now {value}')
    return found


class _Job:
    """What every shard's process has to know."""

    def __init__(self, dst, settings, records, shift, fix):
        self.dst, self.settings, self.records, self.shift, self.fix = os.fspath(dst), settings, records, shift, fix
        shards, seed = settings['shards'], settings['seed']
        self.order = {
            split: np.array_split(np.random.default_rng([seed, n]).permutation(len(found)), shards)
            for n, (split, found) in enumerate(records.items())
        }

    def shard(self, split, number):
        suffix = mindrecord.SUFFIX if self.settings['format'] == 'mindrecord' else ''
        return tfrecord.shard_name(split, number, self.settings['shards'], suffix)

    def partial(self, name):
        return os.path.join(self.dst, _PARTIAL, name)

    def rename(self, name):
        move(self.partial(name), os.path.join(self.dst, name))

    def save(self, name, text):
        with open(self.partial(name), 'w', encoding='utf-8', errors='surrogateescape') as file:  # any file name
            file.write(text)
        self.rename(name)

    def finished(self, entries):
        """Those of the `entries` {name: entry} of an earlier command whose shards are there and as they are wanted."""
        return {
            name: {'images': entry.get('pictures'), **entry}  # as earlier versions called them
            for name, entry in entries.items()
            if (entry['fix'] == self.fix or not entry['to_fix'] + len(entry['unreadable']))
            and all(
                os.path.isfile(path) and os.path.getsize(path) == size
                for path, size in ((os.path.join(self.dst, f), s) for f, s in entry['files'].items())
            )
        }


def _for_shard(records, i, fix):
    """Image `i` as a shard takes it: (encoded, file name, whether there is something `TO_FIX`, whether it was changed to
    be upright). ImageError on what cannot be decoded."""
    encoded, name = records.read(i), records.name(i)
    found = examine(encoded)
    for kind in UNREADABLE:
        if kind in found:
            raise ImageError(found[kind])
    unfit = any(kind in found for kind in TO_FIX)
    changed = records.upright and ('exif_rotated' in found or 'transparent' in found)
    if unfit and fix or changed:
        encoded, name = as_jpeg(encoded, records.upright), os.path.splitext(name)[0] + '.jpg'
    return encoded, name, unfit, changed


def _write(job, split, number):
    """Write one shard and name it when it is whole; returns its name and entry in `NAME`."""
    records, order, name = job.records[split], job.order[split][number], job.shard(split, number)
    entry = {'images': len(order), 'to_fix': 0, 'turned': 0, 'unreadable': [], 'fix': job.fix, 'files': {}}

    def examples():
        for i in map(int, order):
            try:
                encoded, file, unfit, turned = _for_shard(records, i, job.fix)
            except ImageError as error:
                entry['unreadable'].append(f'{records.where(i)}: {error}')
                continue
            entry['to_fix'] += unfit
            entry['turned'] += turned
            yield encoded, int(records.label[i]) + job.shift, file

    if job.settings['format'] == 'tfrecord':
        tfrecord.write_shard(job.partial(name), examples())
        files = [name]
    else:
        mindrecord.write_shard(job.partial(name), examples(), [records.size(i) for i in order])
        files = [name + '.db', name]  # the index first: no shard without one
    bad = len(entry['unreadable'])
    if bad == len(order) and job.fix:
        raise InputError(f'shard {name} would be empty, none of its {bad} images can be decoded; give fewer --shards')
    if job.fix or not bad:
        entry['files'] = {file: os.path.getsize(job.partial(file)) for file in files}
        for file in files:
            job.rename(file)
    return name, entry


def convert(src: str, dst: str, layout: str, shards: int, fix: bool = False, workers: int | None = None) -> dict:
    """Convert the data set in `src`, a directory or a list, to `shards` shards per split in `dst`, `layout` tfrecord or
    mindrecord.

    Returns the entries by shard name: images, to_fix (re-encoded if `fix`), unreadable (left out if `fix`).
    InputError for unusable settings or sources, and without `fix` for images that cannot be decoded.
    """
    workers = process_count(workers)
    if os.path.basename(src) in ARCHIVES.values():  # if there is something else in the directory
        src, source = os.path.dirname(src) or '.', 'archives'
    else:
        source = 'folder' if os.path.isfile(src) else find_layout(src)[0]
    if os.path.realpath(src) == os.path.realpath(dst):
        raise InputError(f'--src and --dst are both {dst!r}; give another --dst')
    records = open_parts(src, source)
    for split, found in records.items():
        if found.left_out:
            print('left out:', found.left_out, file=sys.stderr)
        most = min(len(found), tfrecord.MOST)
        if not 1 <= shards <= most:
            images = counted(len(found), split + ' image')
            raise InputError(f'{counted(shards, "shard")} for {images}; give --shards 1 to {most}')
    names, shift = _class_names(records, source, layout)
    settings = {
        'version': 1 + 2 * (source == 'folder'),
        'format': layout,
        'shards': shards,
        'seed': 0,  # there is one order: a training run draws its own
        'labels': names,
        'source': {split: found.fingerprint for split, found in records.items()},
    }
    with reading(dst, 'give another --dst, or remove this one'):
        done = _run(_Job(dst, settings, records, shift, fix), workers)
    unreadable = [text for entry in done.values() for text in entry['unreadable']]
    for text in unreadable:
        print('left out:' if fix else 'bad:', text, file=sys.stderr)
    if unreadable and not fix:
        raise InputError(
            f'{counted(len(unreadable), "image")} cannot be decoded, the first is {unreadable[0]}; '
            'replace them, or leave them out with --fix'
        )
    return done


def _class_names(records, source, layout):
    """Names by the labels that are written (their numbers, if they have none), and what is added to the source's labels."""
    names = next(iter(records.values())).class_names
    shift = int(source == 'folder' and layout == 'tfrecord' and names[0] != 'background')
    if names:
        return ['background'] * shift + names, shift
    present = {int(label) for found in records.values() for label in np.unique(found.label)}
    return [str(n) if n in present else '' for n in range(min(max(present), LARGEST) + 1)], shift


def _run(job, workers):
    """Write the shards that are not finished; the entries of all."""
    lock = lock_file(os.path.join(job.dst, LOCK), 'give another --dst')
    ours = re.compile(rf'labels.txt|({"|".join(SPLITS)}){tfrecord.NUMBERS}(\.mindrecord(\.db)?)?')
    foreign = [name for name in sorted(os.listdir(job.dst)) if ours.fullmatch(name)]
    with reading(os.path.join(job.dst, NAME), f'remove {job.dst} or give another --dst'):
        done = job.finished(recorded(os.path.join(job.dst, NAME), job.settings, foreign).get('shards', {}))
    shutil.rmtree(job.partial(''), ignore_errors=True)  # of a command that was killed
    os.mkdir(job.partial(''))

    def save():
        job.save(NAME, json.dumps({'settings': job.settings, 'shards': dict(sorted(done.items()))}, indent=1))

    save()
    job.save('labels.txt', names_as_text({k: name for k, name in enumerate(job.settings['labels']) if name.strip()}))
    numbers = range(job.settings['shards'])
    tasks = [(split, n) for split in job.records for n in numbers if job.shard(split, n) not in done]
    kept = sum(entry['images'] for entry in done.values())
    with tqdm(total=sum(map(len, job.records.values())), initial=kept, unit='image') as bar:
        for name, entry in spread(_write, job, tasks, workers):
            done[name] = entry
            if entry['files']:
                save()
            bar.update(entry['images'])
    shutil.rmtree(job.partial(''))
    lock.close()
    return done


@entry_point
def main():
    """The command line."""
    parser = Parser(
        prog='python -m src.data.convert', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--src', help="data set: TFRecord or MindRecord shards, folders, or ImageNet's archives")
    source.add_argument('--list', dest='src', metavar='FILE', help='list of images, made by src.data.split')
    parser.add_argument('--dst', required=True, help='where the shards go')
    parser.add_argument('--format', required=True, choices=('tfrecord', 'mindrecord'))
    parser.add_argument('--shards', required=True, type=int, help='shards per split')
    parser.add_argument('--fix', action='store_true', help='re-encode CMYK and what is no JPEG; leave out what is damaged')
    parser.add_argument('--workers', type=int, help='processes (default: as many as cores)')
    args = parser.parse_args()
    done = convert(args.src, args.dst, args.format, args.shards, args.fix, args.workers)
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
