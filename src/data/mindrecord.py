"""MindRecord shards, found and read without MindSpore; writing them takes its FileWriter.

A shard is a file of fixed-size pages and an SQLite file `<shard>.db`, which has page and offset of every row. MindSpore
reads rows in their order (420 images/s where measured) or by a search (MindPage: 50/s). Training reads in an order of its
own, so here the index is read once, and an image is one read at a known offset: 25,000/s.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import re
import sqlite3
import struct
from collections.abc import Iterable, Iterator

import msgpack

from src.data.tfrecord import IMAGE, LABEL, NUMBERS, Record, check_set, column
from src.errors import reading

SUFFIX = '.mindrecord'
_ROWS = """SELECT PAGE_ID_RAW, PAGE_OFFSET_RAW, PAGE_OFFSET_RAW_END, PAGE_ID_BLOB, PAGE_OFFSET_BLOB,
           PAGE_OFFSET_BLOB_END FROM INDEXES ORDER BY ROW_ID"""


def check_shards(paths: list[str]) -> None:
    """ValueError unless the `paths` are those of one complete set."""
    if all(re.search(NUMBERS + r'\.mindrecord$', path) for path in paths):
        return check_set(paths)
    present = {os.path.basename(path) for path in paths}
    for path in paths:  # a shard lists its set, if one writer wrote all of it and nobody renamed it
        names = _header(path)['names']
        if os.path.basename(path) in names and names - present:
            raise ValueError(f'lacks shard {min(names - present)}; copy or make the whole set')


def _header(path):
    """The JSON header of a shard, with what is used of it checked."""
    try:
        with open(path, 'rb') as file:
            (length,) = struct.unpack('<Q', file.read(8))
            header = json.loads(file.read(length)) if length < 1 << 28 else None
        header['names'] = {os.path.basename(name) for name in header['shard_addresses']}
        columns, header['blobs'] = header['schema'][0]['schema'], list(header['schema'][0]['blob_fields'])
        header['types'] = {name: kind['type'] + ' array' * ('shape' in kind) for name, kind in columns.items()}
        return header
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, struct.error):
        name = os.path.basename(path)
        raise ValueError(f'{name} has no MindRecord header (encrypted files cannot be read)') from None


def walk(path: str) -> Iterator[Record]:
    """Yield the `Record` of every row of a shard; ValueError for any damage that shows, LookupError if no column has the
    name of an image or a label, OSError if the file cannot be read."""
    header, database = _header(path), os.path.abspath(path + '.db')
    image = column(header['types'], IMAGE, ['bytes'], 'column')
    label = column(header['types'], LABEL, ['int32', 'int64'], 'column')
    try:
        uri = pathlib.Path(database).as_uri() + '?mode=ro&immutable=1'
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as index:
            index.text_factory = bytes  # damaged text must not be decoded
            rows = index.execute(_ROWS).fetchall()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise ValueError(f'its index file {os.path.basename(database)} cannot be read: {error}') from None
    with open(path, 'rb') as file:
        for count, row in enumerate(rows):
            try:
                yield Record(*_locate(file, header, row, image, label))
            except (ValueError, TypeError, struct.error) as error:
                raise ValueError(f'record {count}: {error}') from None


def _locate(file, header, row, image, label):
    """Offset and length of the encoded image, and the label, of a `row` of the index: where its numbers and texts, in
    MessagePack, and its bytes begin and end, each with its length in front."""
    places, end = [], os.fstat(file.fileno()).st_size
    for page, first, last in (map(int, row[:3]), map(int, row[3:])):
        start = header['header_size'] + page * header['page_size']
        start, stop = start + first, start + last
        if not 0 <= start < stop <= end:
            raise ValueError(f'truncated: the row ends at byte {stop} of {end}')
        if struct.unpack('<Q', os.pread(file.fileno(), 8, start))[0] != stop - start - 8:
            raise ValueError("the row's own length is another than in the index")
        places.append((stop - start - 8, start + 8))
    others = msgpack.unpackb(os.pread(file.fileno(), *places[0]), strict_map_key=False)
    number = others.get(label) if isinstance(others, dict) else None
    if type(number) is not int or number >= 1 << 63:
        raise ValueError(f'no {label} in the row')
    length, start = places[1]
    for name in header['blobs'] if len(header['blobs']) > 1 else ():  # then each has a length of its own
        length, start = int.from_bytes(os.pread(file.fileno(), 8, start), 'big'), start + 8
        if name == image:
            break
        start += length
    if start + length > stop:
        raise ValueError(f'no {image} in the row')
    return start, length, number


def write_shard(path: str, examples: Iterable[tuple[bytes, int, str]], sizes: list[int]) -> None:
    """Write (encoded bytes, label, file name) examples to `path` and `path`.db, as columns data and label, in pages that fit
    images of about `sizes` bytes. InputError if MindSpore cannot write."""
    from mindspore.mindrecord import FileWriter
    from mindspore.mindrecord.common.exceptions import MindRecordException

    wanted = max(4 * max(sizes), min(sum(sizes), 1 << 25), 1 << 15)  # bytes of a page, of which 2^15 to 2^28 are allowed
    rows = ({'data': image, 'label': int(label)} for image, label, _ in examples)
    with reading(path, 'check the free space, or give another directory', (MindRecordException, RuntimeError)):
        os.path.realpath(path).encode()  # MindSpore opens no file whose name is not UTF-8
        writer = FileWriter(path, 1)
        writer.set_header_size(1 << 20)
        writer.set_page_size(min(1 << (wanted - 1).bit_length(), 1 << 28))
        writer.add_schema({'data': {'type': 'bytes'}, 'label': {'type': 'int64'}}, 'encoded images')
        writer.add_index(['label'])
        while batch := list(itertools.islice(rows, 32)):
            writer.write_raw_data(batch)
        writer.commit()
