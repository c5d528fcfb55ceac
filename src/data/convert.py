"""Convert a data set of any layout to TFRecord or MindRecord shards.

Every split becomes N shards `<split>-?????-of-?????` (TFRecord) or with `.mindrecord` and `.mindrecord.db` behind
(MindRecord; MindDataset wants them as a list of files), its images shuffled over all of them, always in the same order. The
bytes of the images stay as they are, without --fix. Only images of folders that EXIF says are not upright are turned,
transparent ones put on white, and both encoded again, because shards are read as they are. Labels stay, too, with one
exception: folders count from 0, but TFRecords made of them from 1, as TF-slim's ImageNet does, whose label 0 is a background
class; labels.txt has the names. ImageNet's archives are read without unpacking them; their labels are TF-slim's, whatever
the format. The images of a list of src.data.split are taken as those of folders. A repeated command keeps finished shards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src import files
from src.data import mindrecord, tfrecord
from src.data.check import UNREADABLE, examine, spread
from src.data.classes import names_as_text
from src.data.folder import find_layout
from src.data.image import ImageError, as_jpeg
from src.data.records import open_records
from src.data.split import open_list
from src.errors import InputError, Parser, counted, entry_point, reading

NAME = 'convert.json'  # what a directory of shards is made from
TO_FIX = {'CMYK', 'not a JPEG'}  # greyscale JPEG needs none: every JPEG decoder reads it


def read_note(path: Path, made_from: dict, others: list[str]) -> dict:
    """What the file `path` notes about the `others` beside it. ValueError unless these are `made_from` the same."""
    noted = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    for key, value in made_from.items():
        if others and noted.get(key) != value:
            raise ValueError(f'{min(others)} beside it was made by something else, or of another {key}, now {value}')
    return noted


def _write(shared, split, number, name):
    """Write one shard. Returns its number of images, {what: number} of those that are not taken as they are, and lines on
    the unreadable ones."""
    dst, settings, sets, shift = shared
    records, path, fix, changed, unreadable = sets[split], os.path.join(dst, name), settings['fix'], Counter(), []
    order = np.random.default_rng([0, list(sets).index(split)]).permutation(len(records))
    order = np.array_split(order, settings['shards'])[number].tolist()

    def examples():
        for i in order:
            encoded, file = records.read(i), os.path.basename(records.name(i))
            kinds = examine(encoded)
            if bad := [detail for kind, detail in kinds.items() if kind in UNREADABLE]:
                unreadable.append(f'{"left out" if fix else "bad"}: {records.where(i)}: {bad[0]}')
                continue
            to_fix = bool(TO_FIX & {*kinds})
            turned = records.upright and bool({'EXIF-rotated', 'transparent'} & {*kinds})
            if to_fix and fix or turned:
                encoded, file = as_jpeg(encoded, records.upright), os.path.splitext(file)[0] + '.jpg'
            changed['CMYK or no JPEG' + (', re-encoded' if fix else ': see --fix')] += to_fix
            changed['turned upright or put on white, re-encoded'] += turned
            yield encoded, int(records.label[i]) + shift, file

    with contextlib.suppress(ImageError), files.replacing(path) as temporary:
        if settings['format'] == 'tfrecord':
            tfrecord.write_shard(temporary, examples())
        else:
            mindrecord.write_shard(str(temporary), examples(), [records.size(i) for i in order])
        if unreadable and not fix:
            raise ImageError('so the shard is not kept')
        if len(unreadable) == len(order):
            raise InputError(f'{path} would be empty, none of its images can be decoded; give fewer --shards')
        if settings['format'] == 'mindrecord':
            files.move(f'{temporary}.db', f'{path}.db')  # the index first: no shard without one
    return len(order), changed, unreadable


def convert(src: str, dst: str, layout: str, shards: int, fix: bool = False, workers: int | None = None) -> Counter:
    """Convert the data set in `src`, a directory or a list, to `shards` shards per split in `dst`, `layout` tfrecord or
    mindrecord. Returns {what: number} of the images that were not taken as they are, in shards that were not there already.
    InputError for unusable settings or sources, and without `fix` for images that cannot be decoded."""
    if os.path.isfile(src):
        source, sets = 'folder', open_list(src)
    else:
        source, found = find_layout(src)
        sets = {split: open_records(src, split, source) for split in found}
    for split, records in sets.items():
        if records.left_out:
            print('left out:', records.left_out, file=sys.stderr)
        if not 1 <= shards <= len(records):
            images = counted(len(records), split + ' image')
            raise InputError(f'{counted(shards, "shard")} for {images}; give --shards 1 to {len(records)}')
    names = next(iter(sets.values())).class_names or []
    shift = int(source == 'folder' and layout == 'tfrecord' and names[0] != 'background')
    names = ['background'] * shift + names
    known = {split: records.fingerprint for split, records in sets.items()}
    settings = {'version': 4, 'format': layout, 'shards': shards, 'labels': names, 'source': known}
    suffix, note = mindrecord.SUFFIX * (layout == 'mindrecord'), Path(dst, NAME)
    tasks = [(split, n, tfrecord.shard_name(split, n, shards, suffix)) for split in sets for n in range(shards)]
    changed, unreadable = Counter(), []
    with files.lock_file(Path(dst, files.LOCK), 'give another --dst'):
        with reading(note, f'remove {dst} or give another --dst'):
            there = [name for name in os.listdir(dst) if '-of-' in name or name == 'labels.txt']
            if read_note(note, settings, there).get('fix') is not fix:
                for *_, name in tasks:
                    Path(dst, name).unlink(missing_ok=True)
            settings['fix'] = fix
            note.write_text(json.dumps(settings))
            if names:
                text = names_as_text(names).encode(errors='surrogateescape')  # of any file names
                note.with_name('labels.txt').write_bytes(text)
        tasks = [task for task in tasks if not os.path.exists(os.path.join(dst, task[-1]))]
        with reading(dst, 'check the disk'), tqdm(total=sum(map(len, sets.values())), unit='image', disable=None) as bar:
            for images, found, lines in spread(_write, (dst, settings, sets, shift), tasks, workers, lambda *task: task[-1]):
                changed, unreadable = changed + found, unreadable + lines
                bar.update(images)
    print(*unreadable, sep='\n', end='\n' * bool(unreadable), file=sys.stderr)
    if unreadable and not fix:
        images = counted(len(unreadable), 'image')
        raise InputError(f'{images} cannot be decoded, as listed above; replace them, or leave them out with --fix')
    return changed + Counter({'left out, listed above': len(unreadable)})


@entry_point
def main():
    """The command line."""
    parser = Parser('python -m src.data.convert', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--src', help="data set: TFRecord or MindRecord shards, folders, or ImageNet's archives")
    source.add_argument('--list', dest='src', metavar='FILE', help='list of images, made by src.data.split')
    parser.add_argument('--dst', required=True, help='where the shards go')
    parser.add_argument('--format', required=True, choices=('tfrecord', 'mindrecord'))
    parser.add_argument('--shards', required=True, type=int, help='shards per split')
    parser.add_argument('--fix', action='store_true', help='re-encode CMYK and what is no JPEG; leave out what is damaged')
    parser.add_argument('--workers', type=int, help='processes (default: as many as cores)')
    args = parser.parse_args()
    changed = convert(args.src, args.dst, args.format, args.shards, args.fix, args.workers)
    for split in find_layout(args.dst, args.format)[1]:
        print(f'{args.dst}: {split}, {counted(len(open_records(args.dst, split, args.format)), "image")}')
    for what, count in changed.items():
        print(f'{counted(count, "image")} {what}')


if __name__ == '__main__':
    main()
