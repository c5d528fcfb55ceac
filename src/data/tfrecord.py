"""TFRecord shards of TF-slim's ImageNet Examples, read and written without TensorFlow.

MindSpore's TFRecordDataset does not say where an image or a damaged record stands in a file; training reads images in an
order of its own, by their places.

A record is: its length (uint64, little-endian), masked CRC-32C of the length, the data, masked CRC-32C of the data. The data
are a tf.train.Example (`src.data.example`).
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import itertools
import mmap
import os
import struct
from array import array
from typing import NamedTuple

from src import files
from src.data import foreign
from src.data.crc import masked_crc
from src.data.example import locate, names_in, value_of
from src.data.index import Index, index_files
from src.data.protobuf import encode_field
from src.data.shards import IMAGE, LABEL, MOST, shard_name
from src.errors import InputError, counted

ENCODED, CLASS, FILENAME = IMAGE[0].encode(), LABEL[0].encode(), b'image/filename'
SYNSET = b'image/class/synset'  # WordNet id, in ImageNet's records


class Record(NamedTuple):
    """One record as `walk` finds it: positions in the shard are in bytes."""

    byte: int  # where its header starts
    size: int  # bytes of data, which start 12 after `byte`
    offset: int  # of the encoded image in the shard
    length: int  # of the encoded image
    label: int
    problem: str = ''  # what is wrong with it; then offset, length and label mean nothing
    crc: int = 0  # of the data, as the shard notes it


def walk(path: str):
    """Yield a `Record` for every record of a shard; the checksum of the data is not compared.

    A damaged Example has a `problem`; damage of the framing is the `problem` of the last record, of size 0. InputError if
    the file cannot be opened, is no TFRecord file but a known other one, or has the image or the label in features of
    unknown names.
    """
    byte, count, names = 0, 0, ()
    try:
        with open(path, 'rb') as file:
            end = os.fstat(file.fileno()).st_size
            if not end:
                raise ValueError('the file has no bytes')
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buf:
                while byte < end:
                    if end - byte < 12:
                        raise ValueError(f'truncated: {end - byte} bytes left, a record header has 12')
                    size, crc = struct.unpack_from('<QI', buf, byte)
                    if masked_crc(buf[byte : byte + 8]) != crc:
                        if not byte and (what := foreign.kind(path)):
                            raise InputError(f'shard {path!r} is {what}')
                        raise ValueError('wrong checksum of the record length, damaged or no TFRecord file')
                    if size > end - byte - 16:
                        raise ValueError(
                            f'truncated: {size} bytes of data and 4 of checksum announced, {end - byte - 12} left'
                        )
                    place = byte + 12, byte + 12 + size
                    try:
                        names = names or names_in(buf, *place, f'shard {path!r}, record {count} at byte {byte}')
                        found = locate(buf, *place, *names)
                    except ValueError as error:
                        found = 0, 0, 0, str(error)
                    yield Record(byte, size, *found, crc=struct.unpack_from('<I', buf, byte + 12 + size)[0])
                    byte, count = byte + size + 16, count + 1
    except OSError as error:
        raise InputError(f'shard {path!r}: {error.strerror}; check the path and its permissions') from None
    except ValueError as error:
        yield Record(byte, 0, 0, 0, 0, str(error))


def _sound(path):
    """Yield (offset, length, label, checksum) of every record; InputError for the first damaged one."""
    for count, record in enumerate(walk(path)):
        if record.problem:
            raise InputError(
                f'shard {path!r}, record {count} at byte {record.byte}: {record.problem}; copy or make the shard again'
            )
        yield record.offset, record.length, record.label, record.crc


def noted_synsets(path: str, count: int = 8) -> list[tuple[int, bytes]]:
    """(label, WordNet id) of the first `count` records of a shard; [] if one of them has no id."""
    with open(path, 'rb') as file:
        noted = [
            (record.label, value_of(os.pread(file.fileno(), record.size + 4, record.byte + 12), SYNSET))
            for record in itertools.islice(walk(path), count)
        ]
    return noted if all(synset for _, synset in noted) else []


def index_shards(paths: list[str], progress: bool = False) -> Index:
    """Index of all records of the shards; InputError names shard, record (from 0) and byte of any damage."""
    return dataclasses.replace(index_files(_sound, paths, progress), stored_name=stored_name)


@functools.lru_cache(2048)  # ImageNet has 1,152 shards, and convert asks for names in random order
def _starts(path):
    """Positions of the records in a shard, in bytes."""
    starts = array('q', [0])
    with open(path, 'rb') as file:
        while len(header := os.pread(file.fileno(), 8, starts[-1])) == 8:
            starts.append(starts[-1] + 16 + struct.unpack('<Q', header)[0])
    return starts


def stored_name(path: str, offset: int) -> str:
    """The last part of the file name in the record whose image begins at byte `offset` of a shard; '' if it has none."""
    with contextlib.suppress(OSError, IndexError), open(path, 'rb') as file:  # the shard is gone, or became shorter
        starts = _starts(path)
        at = bisect.bisect(starts, offset)
        data = os.pread(file.fileno(), starts[at] - starts[at - 1] - 12, starts[at - 1] + 12)
        return os.path.basename(value_of(data, FILENAME).decode('utf-8', 'surrogateescape'))
    return ''


def framed(data: bytes) -> bytes:
    """A record of a shard: `data` with its length and the checksums."""
    length = struct.pack('<Q', len(data))
    return length + struct.pack('<I', masked_crc(length)) + data + struct.pack('<I', masked_crc(data))


def _record(encoded, label, filename):
    """One record (bytes) with the features that TF-slim reads."""

    def entry(key, kind, value):
        return encode_field(1, encode_field(1, key) + encode_field(2, encode_field(kind, encode_field(1, value))))

    form = b'png' if encoded.startswith(b'\x89PNG') else b'jpeg'
    name = filename.encode('utf-8', 'surrogateescape')
    features = entry(b'image/format', 1, form) + entry(FILENAME, 1, name)
    return framed(encode_field(1, features + entry(CLASS, 3, int(label)) + entry(ENCODED, 1, encoded)))


def write_shard(path, examples):
    """Write (encoded bytes, label, file name) examples to one shard; OSError if it cannot be written."""
    with open(path, 'wb') as file:
        file.writelines(_record(*example) for example in examples)


def write_shards(directory, split: str, examples, num_shards: int) -> list[str]:
    """Write (encoded bytes, label, file name) examples, dealt out in turn to the shards; returns their paths.

    All shards get their names only when all are written. InputError if a shard would be left empty.
    """
    examples = list(examples)
    if not 1 <= num_shards <= min(len(examples), MOST):
        raise InputError(
            f'{counted(num_shards, split + " shard")} for {counted(len(examples), "image")}; '
            f'give 1 to {min(len(examples), MOST)} shards'
        )
    os.makedirs(directory, exist_ok=True)
    paths = [os.path.join(directory, shard_name(split, n, num_shards)) for n in range(num_shards)]
    with contextlib.ExitStack() as stack:
        for n, path in enumerate(paths):
            write_shard(stack.enter_context(files.replacing(path)), examples[n::num_shards])
    return paths
