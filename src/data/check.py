"""Read and decode every record of a data set: python -m src.data.check DIR [--json] [--workers N]

Exit status 0 for a data set without problems, 1 with problems (listed), 2 if there is nothing to check.
Greyscale, EXIF-rotated and transparent images are notes, no problems: training turns those of folders upright, with
white behind what is transparent, and takes those in shards as they are stored, as the original did. Damage that decoders
ignore is only found with libjpeg-turbo 3 (see requirements.txt): it noticed 64 random bytes in 83 % of 1,000 images, a
tail of zeros in all, and nothing in 3,034 sound images.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys

import numpy as np

from src.data.classes import BACKGROUND_CLASSES, read_labels
from src.data.examine import examine_all, spread
from src.data.folder import find_layout
from src.data.records import CHECKS, Records, open_records, walk
from src.errors import InputError, Parser, counted, entry_point
from src.files import as_json

KINDS = {
    'leaked': 'same file in training and validation',
    'two_labels': 'same file with two labels',
    'incomplete': 'shards are missing',
    'damaged': 'shard is damaged',
    'crc': 'wrong checksum of a record',
    'label': 'label does not fit',
    'undecodable': 'cannot be decoded',
    'truncated': 'truncated image',
    'unsupported': 'format that is not supported',
    'corrupt': 'damaged data',
    'png_in_jpeg': 'PNG in place of JPEG',
    'other_format': 'neither JPEG nor PNG',
    'cmyk': 'CMYK',
    'tiny': 'tiny, a side below 32 pixels',
    'huge': 'huge, above 20 megapixels',
    'duplicate': 'same file twice',
    'left_out': 'left out',
    'empty': 'class without an image',
    'warned': 'decoder warns, pixels are sound',
    'misnamed': 'other format than the name says',
    'greyscale': 'greyscale',
    'exif_rotated': 'EXIF-rotated',
    'transparent': 'transparent',
    'exif_broken': 'broken EXIF',
}
NOTES = ('warned', 'misnamed', 'greyscale', 'exif_rotated', 'transparent', 'exif_broken')
_SHOWN = 10


def check(data_dir: str, workers: int | None = None, progress: bool = False) -> dict:
    """Read every record; returns a dict of counts and `findings`: kind -> list of where and detail.

    InputError if there is nothing to check; damage is a problem in the result.
    """
    found = collections.defaultdict(list)

    def report(kind, where, detail):
        found[kind].append({'where': where, 'detail': ' '.join(detail.splitlines())})

    layout, present = find_layout(data_dir)
    if layout in ('folder', 'archives'):
        sets = [(split, open_records(data_dir, split, layout)) for split in present]
        names = sets[0][1].class_names
        for _, records in sets:
            for why, paths in records.not_read.items():
                if paths != records.empty:
                    report('left_out', paths[0], f'{len(paths)} x {why}, not read')
            for path in records.empty:
                report('empty', path, 'no image in this class folder')
    else:
        names = read_labels(data_dir)
        for split in present:
            try:
                CHECKS[layout](present[split])
            except ValueError as error:
                report('incomplete', data_dir, str(error))
        sets = _open_shards([(split, path) for split in present for path in present[split]], layout, workers, report)
    results = examine_all([records for _, records in sets], workers, progress)
    for (_, records), (unusual, _) in zip(sets, results):
        for kind, k, detail in unusual:
            report(kind, _where(records, k), detail)
    _report_copies(sets, b''.join(digests for _, digests in results), report)
    summary = {split: _summary([records for one, records in sets if one == split]) for split in present}
    _check_labels(sets, summary, names, report)
    lowest = min((s['labels']['min'] for s in summary.values() if s['records']), default=0)
    return {
        'directory': os.fspath(data_dir),
        'format': layout,
        'label_base': int(lowest > 0),
        'problems': sum(len(places) for kind, places in found.items() if kind not in NOTES),
        'splits': summary,
        'findings': {kind: found[kind] for kind in KINDS if kind in found},
    }


def _where(records, k):
    """Record `k` in messages: of a shard its name, the record's number and, in TFRecords, byte."""
    if records.layout in ('folder', 'archives'):
        return records.where(k)
    byte = f', byte {records.byte[k]}' if records.byte is not None else ''
    return f'{os.path.basename(records.paths[0])}, record {k}{byte}'


def _open_shards(paths, layout, workers, report):
    """(split, `Records` of what is sound in the shard) for each of `paths` (split, path)."""
    sets, tasks = [None] * len(paths), [(n,) for n in range(len(paths))]
    for number, records, damage in spread(_open_shard, ([path for _, path in paths], layout), tasks, workers):
        sets[number] = paths[number][0], records
        for where, detail in damage:
            report('damaged', where, detail)
    return sets


def _open_shard(shared, number):
    """`number`, the sound records of that shard, and (where, problem) of the others."""
    (paths, layout), rows, damage = shared, [], []
    name = os.path.basename(paths[number])
    try:
        for k, found in enumerate(walk(paths[number], layout)):
            if found.problem:
                damage.append((f'{name}, record {k}, byte {found.byte}', found.problem))
            else:
                rows.append(found[:4])
    except InputError as error:
        damage.append((name, str(error)))
    offset, length, label, byte = np.array(rows, np.int64).reshape(-1, 4).T
    byte = byte if layout == 'tfrecord' else None
    source = np.zeros(len(rows), np.int32)
    return number, Records(layout, [paths[number]], source, label, offset, length, byte, label_base=0), damage


def _report_copies(sets, digests, report):
    """Every record with the bytes of an earlier one; `digests` has 16 bytes for each, zeros where there is none."""
    digests = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort(digests.T)  # stable: of the same bytes the first record comes first
    again = (digests[order][1:] == digests[order][:-1]).all(1) & digests[order][1:].any(1)
    first = np.maximum.accumulate(np.where(np.r_[False, again], 0, np.arange(len(order))))
    starts = np.cumsum([0] + [len(records) for _, records in sets])

    def place(record):
        number = int(np.searchsorted(starts, record, 'right')) - 1
        return *sets[number], record - int(starts[number])

    for copy, original in sorted(zip(order[1:][again].tolist(), order[first[1:][again]].tolist())):
        (split, records, k), (other, others, j) = place(copy), place(original)
        label, earlier = records.label[k], others.label[j]
        labels = f' with the label {earlier}, here {label}' if earlier != label else ''
        kinds = ['leaked'] * (split != other) + ['two_labels'] * bool(labels)
        for kind in kinds or ['duplicate']:
            report(kind, _where(records, k), f'same bytes as {_where(others, j)}{labels}')


def _summary(sets):
    """Counts of a split's records, by shard and by label."""
    labels, counts = np.unique(np.concatenate([records.label for records in sets]), return_counts=True)
    shards = [records for records in sets if records.layout not in ('folder', 'archives')]
    return {
        'records': int(counts.sum()),
        'shards': {os.path.basename(records.paths[0]): len(records) for records in shards},
        'labels': {'min': int(labels[0]), 'max': int(labels[-1])} if len(labels) else {},
        'classes': dict(zip(map(int, labels), map(int, counts))),
    }


def _check_labels(sets, summary, names, report):
    """Report every label that a training cannot take."""
    most = max(BACKGROUND_CLASSES, sum(found['records'] for found in summary.values()))
    for split, found in summary.items():
        for label, count in found['classes'].items():
            trained = summary.get('train', found)['classes']
            reason = (
                'is negative'
                if label < 0
                else 'is not in labels.txt'
                if names and not ''.join(names[label : label + 1])
                else f'would make {label + 1} classes'
                if label > most
                else 'has no training image'
                if trained and label not in trained
                else ''
            )
            if reason:
                records = next(records for one, records in sets if one == split and label in records.label)
                detail = f'label {label} of {counted(count, "image")} in {split} {reason}'
                report('label', _where(records, int(np.argmax(records.label == label))), detail)


def _range(counts, noun):
    """For example `3 shards of 6 to 7`, for the numbers of records in them."""
    return f'{len(counts)} {noun} of {min(counts)}' + f' to {max(counts)}' * (min(counts) < max(counts))


def _print(result):
    """What `check` found, for people."""
    for split, found in result['splits'].items():
        if not found['records']:
            print(f'{split}: no sound record')
            continue
        labels = found['labels']
        print(
            f'{split}: {found["records"]} records'
            + (f' in {_range(found["shards"].values(), "shards")}' if found['shards'] else '')
            + f', labels {labels["min"]} to {labels["max"]}, {_range(found["classes"].values(), "classes")}'
        )
        for what in ('shards', 'classes'):
            if 1 < len(found[what]) <= _SHOWN:
                print(f'  records in {what}: ' + ', '.join(f'{k}: {v}' for k, v in found[what].items()))
    print(f'labels start at {result["label_base"]}')
    for kind, found in result['findings'].items():
        print(f'{"note" if kind in NOTES else "problem"}: {KINDS[kind]}: {len(found)}')
        for one in found[:_SHOWN]:
            print(f'  {one["where"]}: {one["detail"]}')
        if len(found) > _SHOWN:
            print(f'  and {len(found) - _SHOWN} more (--json lists all)')
    print(counted(result['problems'], 'problem'))


@entry_point
def main():
    """The command line."""
    parser = Parser(
        prog='python -m src.data.check', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('directory', metavar='DIR', help="TFRecord or MindRecord shards, folders, or ImageNet's archives")
    parser.add_argument('--json', action='store_true', help='print everything as JSON')
    parser.add_argument('--workers', type=int, help='processes (default: as many as cores)')
    args = parser.parse_args()
    result = check(args.directory, args.workers, progress=True)
    if args.json:
        print(as_json(result, 1))
    else:
        _print(result)
    sys.exit(1 if result['problems'] else 0)


if __name__ == '__main__':
    main()
