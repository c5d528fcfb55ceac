"""MindRecord shards, found and read without MindSpore; writing them takes its FileWriter.

A shard is a file of fixed-size pages and an SQLite file `<shard>.db`, which tells page and offset of every row. MindSpore
reads rows in their order (MindDataset, FileReader: 420 images/s where measured) or by a search (MindPage: 50/s, and it
cannot be pickled). Training reads in an order of its own, so here the index is read once, and an image is one read at a
known offset: 25,000/s.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import sqlite3
import struct

from src import files
from src.data import foreign
from src.data.index import Index, index_files
from src.data.shards import IMAGE, LABEL, NUMBERS, column, find_shards
from src.errors import InputError

SUFFIX = '.mindrecord'
_NUMBERED = re.compile(r'(.*\.mindrecord)([0-9]*)', re.DOTALL)
_ROWS = """SELECT PAGE_ID_RAW, PAGE_OFFSET_RAW, PAGE_OFFSET_RAW_END, PAGE_ID_BLOB, PAGE_OFFSET_BLOB,
           PAGE_OFFSET_BLOB_END FROM INDEXES ORDER BY ROW_ID"""
_AGAIN = 'copy or make the shard again'


def list_shards(data_dir, aliases) -> list[str]:
    """Sorted paths of what may be shards of a split: named `<alias>*.mindrecord*` or in `alias`/."""
    found, begins = [], re.compile(f'({"|".join(aliases)})(?![a-z])', re.IGNORECASE)
    for name in sorted(os.listdir(data_dir)):
        path = os.path.join(data_dir, name)
        if name.lower() in aliases and os.path.isdir(path):
            found += [os.path.join(path, n) for n in sorted(os.listdir(path)) if _NUMBERED.fullmatch(n)]
        elif begins.match(name) and _NUMBERED.fullmatch(name):
            found.append(path)
    return found


def find_mindrecords(data_dir, split: str, aliases) -> list[str]:
    """Sorted paths of the complete set of MindRecord shards of `split`, whose names may start with one of `aliases`.

    InputError if there is none, if shards are missing, or if there are shards of two sets.
    """
    paths = list_shards(data_dir, aliases)
    if any(re.search(NUMBERS + r'\.mindrecord$', path) for path in paths):
        return find_shards(data_dir, split, SUFFIX)
    if not paths:
        some = ', '.join(sorted(os.listdir(data_dir))[:4]) or 'nothing'
        raise InputError(
            f'no MindRecord file of the split {split} in {data_dir!r}, only {some}; '
            f'name them {split}*.mindrecord* or put them into {os.path.join(data_dir, split)}'
        )
    sets = {_NUMBERED.fullmatch(path)[1] for path in paths}
    if len(sets) > 1 and any(_NUMBERED.fullmatch(path)[2] for path in paths):
        raise InputError(f'{data_dir!r} mixes {split} shards of different sets: {" and ".join(sorted(sets))}; keep one set')
    folder = os.path.dirname(paths[0])
    numbers = [_NUMBERED.fullmatch(path)[2] for path in paths]
    expected = (
        [f'{os.path.basename(min(sets))}{n:0{len(numbers[0])}d}' for n in range(max(map(int, numbers)) + 1)]
        if all(numbers)
        else []
    )
    for path in paths:  # a shard lists its set, if one writer wrote all of it and nobody renamed it
        siblings = _header(path)['shard_addresses']
        expected += siblings if os.path.basename(path) in siblings else []
    missing = [name for name in expected if not os.path.exists(os.path.join(folder, os.path.basename(name)))]
    if missing:
        raise InputError(f'{folder!r} lacks shard {missing[0]}; copy or make the whole set')
    return paths


def _header(path):
    """The JSON header of a shard, checked for what is used of it."""
    try:
        with open(path, 'rb') as file:
            (length,) = struct.unpack('<Q', file.read(8).ljust(8, b'\0'))
            header = json.loads(file.read(length)) if length < 1 << 28 else None
        fields, sizes = header['schema'][0], (header['header_size'], header['page_size'])
        names = header['shard_addresses']
        if min(sizes) < 1 or {type(n) for n in sizes} != {int} or not all(isinstance(n, str) for n in names):
            raise ValueError
        header['types'] = {name: kind['type'] + ' array' * ('shape' in kind) for name, kind in fields['schema'].items()}
        header['blobs'] = list(fields['blob_fields'])
        return header
    except OSError as error:
        raise InputError(f'shard {path!r}: {error.strerror}; check the path and its permissions') from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        what = foreign.kind(path)
        problem = f'is {what}' if what else f'has no MindRecord header (encrypted files cannot be read); {_AGAIN}'
        raise InputError(f'shard {path!r} {problem}') from None


def _scalars(data):
    """The MessagePack map of a row's scalar columns, as a dict; ValueError for anything else.

    https://github.com/msgpack/msgpack/blob/master/spec.md
    """
    fixed = {0xC2: False, 0xC3: True, 0xC0: None}
    numbers = {0xCA + n: f'>{form}' for n, form in enumerate('fdBHIQbhiq')}
    sizes = {0xD9: '>B', 0xDA: '>H', 0xDB: '>I', 0xDE: '>H'}
    pos = 0

    def take(form):
        nonlocal pos
        (value,) = struct.unpack_from(form, data, pos)
        pos += struct.calcsize(form)
        return value

    def value():
        code = take('B')
        if code < 0x80 or code >= 0xE0:
            return code - 256 * (code >= 0xE0)
        if code in numbers:
            return take(numbers[code])
        if 0xA0 <= code < 0xC0 or code in (0xD9, 0xDA, 0xDB):
            return take(f'{take(sizes[code]) if code in sizes else code & 31}s')
        if 0x80 <= code < 0x90 or code == 0xDE:
            return {value(): value() for _ in range(take(sizes[code]) if code in sizes else code & 15)}
        return fixed[code]

    try:
        found = value()
        return {key.decode(): found[key] for key in found}
    except (struct.error, KeyError, AttributeError, TypeError, UnicodeDecodeError, RecursionError):
        raise ValueError('broken row') from None


def walk(path: str):
    """Yield (offset, length, label) of the image of every row; InputError for any damage that shows."""
    header = _header(path)
    types, blobs = header['types'], header['blobs']
    where = f'shard {path!r}'
    image = column(where, types, IMAGE, ['bytes'], 'column')
    label = column(where, types, LABEL, ['int32', 'int64'], 'column')
    if not os.path.isfile(path + '.db'):
        raise InputError(f'shard {path!r} lacks its index file {os.path.basename(path)}.db; {_AGAIN}')
    uri = pathlib.Path(os.path.abspath(path + '.db')).as_uri()
    try:
        with contextlib.closing(sqlite3.connect(uri + '?mode=ro&immutable=1', uri=True)) as index:
            index.text_factory = bytes  # damaged text must not be decoded
            rows = index.execute(_ROWS).fetchall()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise InputError(f'index file {path + ".db"!r}: {error}; {_AGAIN}') from None
    with open(path, 'rb') as file:
        end = os.fstat(file.fileno()).st_size
        for count, row in enumerate(rows):
            start = 0
            try:
                raw_page, raw, raw_end, page, start, stop = map(int, row)
                raw_page, page = (header['header_size'] + n * header['page_size'] for n in (raw_page, page))
                raw, raw_end, start, stop = raw_page + raw, raw_page + raw_end, page + start, page + stop
                if not (0 <= raw < raw_end <= end and 0 <= start < stop <= end):
                    raise ValueError(f'truncated: the row ends at byte {max(raw_end, stop)} of {end}')
                parts = [os.pread(file.fileno(), size, at) for at, size in ((raw, raw_end - raw), (start, 8))]
                lengths = [struct.unpack_from('<Q', part)[0] for part in parts]
                if lengths != [raw_end - raw - 8, stop - start - 8]:
                    raise ValueError("the row's own length is another than in the index")
                scalars = _scalars(parts[0][8:])
                found, pos = (start + 8, stop - start - 8), start + 8
                for name in blobs if len(blobs) > 1 else []:  # then each has a length of its own
                    (length,) = struct.unpack('>Q', os.pread(file.fileno(), 8, pos))
                    found, pos = (pos + 8, length) if name == image else found, pos + 8 + length
                if sum(found) > stop or type(scalars.get(label)) is not int or scalars[label] >= 1 << 63:
                    raise ValueError(f'no {label} or no {image} in the row')
            except (ValueError, TypeError, struct.error) as error:
                raise InputError(f'shard {path!r}, record {count} at byte {start}: {error}; {_AGAIN}') from None
            yield *found, scalars[label]


def index_mindrecords(paths: list[str], progress: bool = False) -> Index:
    """Index of all rows of the shards; InputError names shard, record (from 0) and byte of any damage."""
    return index_files(walk, paths, progress)


def write_shard(path: str, examples, sizes: list[int]) -> None:
    """Write (encoded bytes, label, file name) examples to `path` and `path`.db, as columns data, label and file_name.

    `sizes` are the likely bytes of the images: pages are made to fit. InputError if MindSpore cannot write.
    """
    if files.printable(os.path.realpath(path)) != os.path.realpath(path):
        raise InputError(f'{path}: MindSpore writes no MindRecord where a name is not UTF-8; give another directory')
    from mindspore.mindrecord import FileWriter
    from mindspore.mindrecord.common.exceptions import MindRecordException

    page = 1 << 15
    while page < max(4 * max(sizes), min(sum(sizes), 1 << 25)) and page < 1 << 28:
        page *= 2
    try:
        writer = FileWriter(path, 1)
        writer.set_header_size(1 << 20)
        writer.set_page_size(page)
        writer.add_schema(
            {'data': {'type': 'bytes'}, 'label': {'type': 'int64'}, 'file_name': {'type': 'string'}}, 'encoded images'
        )
        writer.add_index(['label'])
        batch = []
        for encoded, label, name in examples:
            batch.append({'data': encoded, 'label': int(label), 'file_name': files.printable(name)})
            if len(batch) == 32:
                writer.write_raw_data(batch)
                batch = []
        if batch:
            writer.write_raw_data(batch)
        writer.commit()
    except (MindRecordException, RuntimeError) as error:
        raise InputError(
            f'shard {path!r}: MindSpore cannot write it ({str(error).splitlines()[0]}); check the free space'
        ) from None
