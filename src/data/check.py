"""Read and decode every record of a data set: python -m src.data.check DIR [--json] [--workers N]

Exit status 0 for a data set without problems, 1 with problems (listed), 2 if there is nothing to check.
Greyscale and EXIF-rotated pictures are notes, no problems: training turns those of folders upright and takes those in
shards as they are stored, as the original did. Damage that decoders pass over takes libjpeg-turbo 3 to be found (see
requirements.txt); of 64 random bytes inside 1,000 photos it noticed 83 %, of tails of zeros all, and none in 3,034 sound
photos.
"""

import argparse
import collections
import hashlib
import os
import re
import struct
import sys

import numpy as np
from tqdm import tqdm

from src.data import mindrecord, tfrecord
from src.data.crc import crc32c, mask
from src.data.image import examine
from src.data.pool import cores, interruptible, spread
from src.data.records import SPLITS, find_format, open_records, read_labels, splits
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
    'truncated': 'truncated picture',
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
    'exif_broken': 'broken EXIF',
}
NOTES = ('warned', 'misnamed', 'greyscale', 'exif_rotated', 'exif_broken')
MOST_CLASSES = 1001  # without names, unless there are more records
_CHUNK, _SHOWN = 64, 10


class _Shard:
    """Records of one shard: `rows` int64 [n, 5] of byte, size (0 in MindRecord), offset, length, label."""

    def __init__(self, split, path, rows):
        self.split, self.path, self.rows, self.label = split, path, rows, rows[:, 4]
        self.part = os.path.basename(path)

    def where(self, k):
        return f'{self.part}, record {k}' + (f', byte {self.rows[k, 0]}' if self.rows[k, 1] else '')

    def read(self, k):
        """The picture's bytes and findings about the record around it."""
        byte, size, offset, length, _ = map(int, self.rows[k])
        start, count = (byte + 12, size + 4) if size else (offset, length)
        with open(self.path, 'rb') as file:
            data = os.pread(file.fileno(), count, start)
        if len(data) < count:
            raise OSError(f'{len(data)} bytes read instead of {count}')
        broken = size and struct.unpack('<I', data[-4:])[0] != mask(crc32c(data[:-4]))
        picture = data[offset - start : offset - start + length]
        return picture, {'crc': f'in the {size} bytes of data'} if broken else {}, ''


class _Folder:
    """The same for the pictures of a split's class folders."""

    def __init__(self, split, records):
        self.split, self.records, self.label, self.part = split, records, records.label, None

    def where(self, k):
        return self.records.where(k)

    def read(self, k):
        return self.records.read(k), {}, self.records.name(k)


def _survey(paths, number):
    """Number of the shard, rows of its sound records, and what is wrong with the others."""
    path = paths[number][1]
    rows, damage = [], []
    name = os.path.basename(path)
    try:
        if re.search(r'\.mindrecord[0-9]*$', path):
            rows.extend((0, 0, *found) for found in mindrecord.walk(path))
        else:
            for k, record in enumerate(tfrecord.walk(path)):
                if record.problem:
                    damage.append((f'{name}, record {k}, byte {record.byte}', record.problem))
                else:
                    rows.append(record[:5])
    except InputError as error:
        damage.append((name, str(error)))
    return number, np.array(rows, np.int64).reshape(-1, 5), damage


def _examine(parts, number, start, stop):
    """Findings (kind, record, detail) and a digest for each of the records `start` to `stop` of a part."""
    part, found, digests = parts[number], [], bytearray()
    for k in range(start, stop):
        try:
            encoded, broken, name = part.read(k)
        except (OSError, InputError) as error:
            encoded, broken, name = None, {'damaged': f'cannot be read ({error})'}, ''
        if encoded is not None:
            broken = {**broken, **examine(encoded, name)}
        digests += hashlib.blake2b(encoded, digest_size=16).digest() if encoded else bytes(16)
        found += [(kind, k, detail) for kind, detail in broken.items()]
    return number, start, found, digests


def _candidates(data_dir, split, layout, report):
    """Paths of the shards that are there, even if the set is not complete; that is reported."""
    try:
        return (
            tfrecord.find_shards(data_dir, split)
            if layout == 'tfrecord'
            else mindrecord.find_mindrecords(data_dir, split, SPLITS[split])
        )
    except InputError as error:
        report('incomplete', data_dir, str(error))
    if layout == 'mindrecord':
        return mindrecord.list_shards(data_dir, SPLITS[split])
    return [
        os.path.join(data_dir, n) for n in sorted(os.listdir(data_dir)) if re.fullmatch(split + '-[0-9]{5}-of-[0-9]{5}', n)
    ]


def check(data_dir, workers=None, dataset_format='auto', progress=False):
    """Read every record; returns a dict of counts and `findings`: kind -> list of where and detail.

    InputError if there is nothing to check; damage is a finding.
    """
    workers, findings = cores(workers), collections.defaultdict(list)

    def report(kind, where, detail):
        findings[kind].append({'where': where, 'detail': ' '.join(detail.split())})

    layout = find_format(data_dir, dataset_format)
    present = splits(data_dir, layout)
    if not present:
        raise InputError(f'data directory {data_dir!r} holds no {layout} data; give another directory')
    if layout == 'folder':
        parts = [_Folder(split, open_records(data_dir, split, layout)) for split in present]
        names = parts[0].records.class_names
        for part in parts:
            for what, first, count in part.records.not_read:
                report('left_out', first, f'{count} x {what}, not read')
            for path in part.records.empty:
                report('empty', path, 'no image in this class folder')
    else:
        names = read_labels(data_dir)
        paths = [(split, path) for split in present for path in _candidates(data_dir, split, layout, report)]
        parts = [None] * len(paths)
        tasks = [(n,) for n in range(len(paths))]
        surveys = spread(_survey, paths, tasks, workers)
        for number, rows, damage in tqdm(surveys, 'indexing', len(tasks), unit='shard', disable=not progress):
            parts[number] = _Shard(*paths[number], rows)
            for where, detail in damage:
                report('damaged', where, detail)
    tasks = [
        (n, start, min(start + _CHUNK, len(part.label)))
        for n, part in enumerate(parts)
        for start in range(0, len(part.label), _CHUNK)
    ]
    results = []
    total = sum(len(part.label) for part in parts)
    with tqdm(desc='checking', total=total, unit='record', disable=not progress) as bar:
        for result in spread(_examine, parts, tasks, workers):
            results.append(result)
            bar.update(len(result[3]) // 16)
    results.sort(key=lambda result: result[:2])
    for number, _, found, _ in results:
        for kind, k, detail in found:
            report(kind, parts[number].where(k), detail)
    _report_copies(parts, b''.join(digests for *_, digests in results), report)
    summary = {split: _summary([part for part in parts if part.split == split]) for split in present}
    _check_labels(parts, summary, names, report)
    lowest = min((s['labels']['min'] for s in summary.values() if s['records']), default=0)
    return {
        'directory': os.fspath(data_dir),
        'format': layout,
        'label_base': int(lowest > 0),
        'problems': sum(len(found) for kind, found in findings.items() if kind not in NOTES),
        'splits': summary,
        'findings': {kind: findings[kind] for kind in KINDS if kind in findings},
    }


def _report_copies(parts, digests, report):
    """Every record with the bytes of an earlier one; `digests` has 16 bytes for each, zeros where there is none."""
    digests = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort(digests.T)  # stable: of the same bytes the first record comes first
    again = (digests[order][1:] == digests[order][:-1]).all(1) & digests[order][1:].any(1)
    first = np.maximum.accumulate(np.where(np.r_[False, again], 0, np.arange(len(order))))
    starts = np.cumsum([0] + [len(part.label) for part in parts])

    def place(record):
        number = int(np.searchsorted(starts, record, 'right')) - 1
        return parts[number], record - int(starts[number])

    for copy, original in sorted(zip(order[1:][again].tolist(), order[first[1:][again]].tolist())):
        (part, k), (other, j) = place(copy), place(original)
        labels = f' with the label {other.label[j]}, here {part.label[k]}' if other.label[j] != part.label[k] else ''
        kinds = ['leaked'] * (part.split != other.split) + ['two_labels'] * bool(labels)
        for kind in kinds or ['duplicate']:
            report(kind, part.where(k), f'same bytes as {other.where(j)}{labels}')


def _summary(parts):
    labels, counts = np.unique(np.concatenate([part.label for part in parts]), return_counts=True)
    return {
        'records': int(counts.sum()),
        'shards': {part.part: len(part.label) for part in parts if part.part},
        'labels': {'min': int(labels[0]), 'max': int(labels[-1])} if len(labels) else {},
        'classes': dict(zip(map(int, labels), map(int, counts))),
    }


def _check_labels(parts, summary, names, report):
    most = max(MOST_CLASSES, sum(found['records'] for found in summary.values()))
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
                else 'has no training picture'
                if trained and label not in trained
                else ''
            )
            if reason:
                part = next(part for part in parts if part.split == split and label in part.label)
                report(
                    'label',
                    part.where(int(np.argmax(part.label == label))),
                    f'label {label} of {counted(count, "picture")} in {split} {reason}',
                )


def _range(counts, noun):
    return f'{len(counts)} {noun} of {min(counts)}' + f' to {max(counts)}' * (min(counts) < max(counts))


def _print(result):
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
@interruptible
def main():
    parser = Parser(
        prog='python -m src.data.check', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('directory', metavar='DIR', help='TFRecord or MindRecord shards, or folders')
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
