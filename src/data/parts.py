"""A data set in parts for `src.data.check`, shards or the class folders of a split, with whatever of it can be read."""

from __future__ import annotations

import hashlib
import os
import re
import struct

import numpy as np
from tqdm import tqdm

from src.data.findings import examine
from src.data.pool import at, spread
from src.data.records import CHECKS, contents, walk
from src.data.tfrecord import masked_crc
from src.errors import InputError

_CHUNK = 64  # records of a task


class Shard:
    """Records of one shard.

    Args:
        rows (np.ndarray): int64 (n, 5): byte and size of each record (size 0 in MindRecord), offset and length of its image,
            label.
    """

    def __init__(self, split: str, path: str, rows: np.ndarray):
        self.split, self.path, self.rows, self.label = split, path, rows, rows[:, 4]
        self.shard = os.path.basename(path)

    def where(self, k: int) -> str:
        """Record `k` in messages: its shard, number and, in TFRecords, byte."""
        return f'{self.shard}, record {k}' + (f', byte {self.rows[k, 0]}' if self.rows[k, 1] else '')

    def read(self, k: int):
        """(encoded image, findings about the record around it, file name or ''); OSError if it cannot be read."""
        byte, size, offset, length, _ = map(int, self.rows[k])
        start, count = (byte + 12, size + 4) if size else (offset, length)
        with open(self.path, 'rb') as file:
            data = os.pread(file.fileno(), count, start)
        if len(data) < count:
            raise OSError(f'{len(data)} bytes read instead of {count}')
        broken = size and struct.unpack('<I', data[-4:])[0] != masked_crc(data[:-4])
        encoded = data[offset - start : offset - start + length]
        return encoded, {'crc': f'in the {size} bytes of data'} if broken else {}, ''


class Folders:
    """The images of a split's class folders or archive, with the same methods as `Shard`."""

    shard = None  # its name, of which folders have none

    def __init__(self, split: str, records):
        self.split, self.records, self.label = split, records, records.label

    def where(self, k: int) -> str:
        """Image `k` in messages."""
        return self.records.where(k)

    def read(self, k: int):
        """(encoded image, no findings, file name); InputError if it cannot be read."""
        return self.records.read(k), {}, self.records.name(k)


def candidates(data_dir, split: str, layout: str, report) -> list[str]:
    """Paths of the shards that are there. If the set is not complete, that is told to `report(kind, where, detail)`."""
    paths = contents(data_dir)[layout].get(split, [])
    try:
        CHECKS[layout](paths)
    except ValueError as error:
        report('incomplete', data_dir, str(error))
    return paths


def survey(paths: list[tuple[str, str]], number: int):
    """Of the shard `paths[number]` (split, path): `number`, the `rows` of a `Shard` for its sound records, and
    (where, problem) of the others."""
    path = paths[number][1]
    at(path)
    rows, damage = [], []
    name = os.path.basename(path)
    try:
        if re.search(r'\.mindrecord[0-9]*$', path):
            rows.extend((0, 0, *found) for found in walk(path, 'mindrecord'))
        else:
            for k, record in enumerate(walk(path, 'tfrecord')):
                if record.problem:
                    damage.append((f'{name}, record {k}, byte {record.byte}', record.problem))
                else:
                    rows.append(record[:5])
    except InputError as error:
        damage.append((name, str(error)))
    return number, np.array(rows, np.int64).reshape(-1, 5), damage


def examine_records(parts: list, number: int, start: int, stop: int):
    """Of the records `start` to `stop` of `parts[number]`: `number`, `start`, findings (kind, record, detail), and a digest
    of 16 bytes for each, zeros where there is no image."""
    part, found, digests = parts[number], [], bytearray()
    for k in range(start, stop):
        at(part.where(k))
        try:
            encoded, broken, name = part.read(k)
        except (OSError, InputError) as error:
            encoded, broken, name = None, {'damaged': f'cannot be read ({error})'}, ''
        if encoded is not None:
            broken = {**broken, **examine(encoded, name)}
        digests += hashlib.blake2b(encoded, digest_size=16).digest() if encoded else bytes(16)
        found += [(kind, k, detail) for kind, detail in broken.items()]
    return number, start, found, digests


def examine_all(parts: list, workers: int, progress: bool = False) -> list[tuple]:
    """What `examine_records` gives for all records of `parts`, in their order."""
    tasks = [
        (n, start, min(start + _CHUNK, len(part.label)))
        for n, part in enumerate(parts)
        for start in range(0, len(part.label), _CHUNK)
    ]
    total, results = sum(len(part.label) for part in parts), []
    with tqdm(desc='checking', total=total, unit='record', disable=not progress) as bar:
        for result in spread(examine_records, parts, tasks, workers):
            results.append(result)
            bar.update(len(result[3]) // 16)
    return sorted(results, key=lambda result: result[:2])
