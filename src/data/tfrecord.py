"""TFRecord shards of TF-slim ImageNet Examples, read and written without TensorFlow.

A record is: uint64 LE length, masked crc32c of the length, the data, masked crc32c of the data. The data is
a tf.train.Example in protobuf wire format: a map of features, of which only two are read here.
"""

import contextlib
import itertools
import mmap
import os
import re
import struct
from typing import NamedTuple

from src import files
from src.data.crc import crc32c, length_crc, mask
from src.data.index import index_files
from src.errors import InputError, counted

ENCODED, LABEL = b'image/encoded', b'image/class/label'
SYNSET = b'image/class/synset'  # WordNet id, in ImageNet's records
_KINDS = {0x0A: 'bytes', 0x12: 'float', 0x1A: 'int64'}  # tags of the three list types of a Feature


def list_directory(data_dir, remedy):
    """Sorted names in `data_dir`; InputError ending with `remedy` if it is '', unreadable or empty."""
    if not data_dir:
        raise InputError(f"the data directory is '': {remedy}")
    try:
        names = sorted(os.listdir(data_dir))
    except OSError as error:
        raise InputError(f'data directory {data_dir!r}: {error.strerror}; {remedy}') from None
    if not names:
        raise InputError(f'data directory {data_dir!r} is empty; {remedy}')
    return names


def find_shards(data_dir, split, suffix=''):
    """Sorted paths of the complete set `<split>-?????-of-?????<suffix>` in `data_dir`; else InputError."""
    pattern, data_dir = f'{split}-?????-of-?????{suffix}', os.fspath(data_dir or '')
    remedy = f'give the directory of the {"TFRecord " * (not suffix)}shards {pattern}'
    names = list_directory(data_dir, remedy)
    shard_name = re.compile(re.escape(split) + '-([0-9]{5})-of-([0-9]{5})' + re.escape(suffix))
    matches = list(filter(None, map(shard_name.fullmatch, names)))
    if not matches:
        some = ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')
        raise InputError(f'no file {pattern} in {data_dir!r}, only {some}; {remedy}')
    totals = sorted({m[2] for m in matches})
    if len(totals) > 1:
        raise InputError(
            f'{data_dir!r} mixes {split} shards of different sets: {" and ".join("of-" + t for t in totals)}; keep one set'
        )
    numbers, total = {int(m[1]) for m in matches}, int(totals[0])
    missing = [f'{split}-{n:05d}-of-{total:05d}{suffix}' for n in range(total) if n not in numbers]
    if missing:
        more = f' and {len(missing) - 1} more' if len(missing) > 1 else ''
        raise InputError(f'{data_dir!r} lacks shard {missing[0]}{more}; copy or make all {total}')
    if max(numbers) >= total:
        raise InputError(f'{data_dir!r}: shard number {max(numbers):05d} in a set of {total}; remove it')
    paths = [os.path.join(data_dir, m[0]) for m in matches]
    for path in paths:
        if not os.path.isfile(path) or not os.path.getsize(path):
            raise InputError(f'shard {path!r} has no bytes or is not a file; copy or make it again')
    return paths


def _varint(buf, pos, end):
    value = 0
    for shift in range(0, 70, 7):
        if pos >= end:
            break
        byte = buf[pos]
        pos += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, pos
    raise ValueError('broken varint')


def _fields(buf, pos, end):
    """Yield (tag, start, stop) of the message in buf[pos:end]; tag is field number * 8 + wire type."""
    while pos < end:
        tag = buf[pos]
        pos += 1
        if tag > 127:
            tag, pos = _varint(buf, pos - 1, end)
        wire = tag & 7
        if wire == 2:
            stop = buf[pos]  # at worst the first crc byte, which the check below turns into an error
            pos += 1
            if stop > 127:
                stop, pos = _varint(buf, pos - 1, end)
            stop += pos
        elif wire == 0:
            stop = _varint(buf, pos, end)[1]
        elif wire in (1, 5):
            stop = pos + (8 if wire == 1 else 4)
        else:
            raise ValueError(f'wire type {wire}')
        if stop > end:
            raise ValueError('a field runs past its end')
        yield tag, pos, stop
        pos = stop


def _only_value(buf, name, feature, kind):
    """(start, stop) of the only value of a Feature, which must be a list of `kind`."""
    if feature is None:
        raise ValueError(f'no feature {name.decode()}')
    found, count = 'no', 0
    for tag, start, stop in _fields(buf, *feature):
        found, inside = _KINDS.get(tag, found), (start, stop)
    if found != kind:
        raise ValueError(f'feature {name.decode()} holds {found} values instead of {kind}')
    for tag, start, stop in _fields(buf, *inside):
        packed = tag == 0x0A and kind == 'int64'
        if tag == 0x0A and not packed:
            value, count = (start, stop), count + 1  # bytes, which may be none
        while (packed or tag == 0x08 and kind == 'int64') and start < stop:
            value = start, (_varint(buf, start, stop)[1] if packed else stop)
            start, count = value[1], count + 1
    if count > 1:
        raise ValueError(f'feature {name.decode()} holds several values instead of one')
    if not count:
        raise ValueError(f'feature {name.decode()} is empty')
    return value


def _locate(buf, pos, end):
    """Offset and length of the encoded picture, and the label, of the Example in buf[pos:end]."""
    features, key_lengths = {}, (len(ENCODED), len(LABEL))
    for tag, *inside in _fields(buf, pos, end):
        if tag != 0x0A:
            continue
        for entry, start, stop in _fields(buf, *inside):
            if entry != 0x0A or buf[start] == 0x0A and buf[start + 1] not in key_lengths:
                continue  # a key of another length: most entries end here, which halves the time
            key, value = b'', (start, start)
            for part, first, last in _fields(buf, start, stop):
                if part == 0x0A:
                    key = buf[first:last] if last - first <= len(LABEL) else b''  # never copy a huge key
                    if key != ENCODED and key != LABEL:
                        break
                elif part == 0x12:
                    value = first, last
            features[key] = value
    start, stop = _only_value(buf, ENCODED, features.get(ENCODED), 'bytes')
    label = _varint(buf, *_only_value(buf, LABEL, features.get(LABEL), 'int64'))[0]
    return start, stop - start, label - (label >> 63 << 64)


class Record(NamedTuple):
    """One record as `walk` finds it: positions in the shard are in bytes."""

    byte: int  # where its header starts
    size: int  # bytes of data, which start 12 after `byte`
    offset: int  # of the encoded picture in the shard
    length: int  # of the encoded picture
    label: int
    problem: str = ''  # what is wrong with it; then offset, length and label mean nothing
    crc: int = 0  # of the data, as the shard notes it


def walk(path):
    """Yield a `Record` for every record of a shard; the data's own checksum is not compared.

    A damaged Example has a `problem`; damage of the framing is the `problem` of the last record, of size 0.
    """
    byte = 0
    try:
        with open(path, 'rb') as file:
            end = os.fstat(file.fileno()).st_size
            if not end:
                raise ValueError('the file has no bytes')
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buf:
                while byte < end:
                    if end - byte < 12:
                        raise ValueError(f'truncated: {end - byte} bytes left, a record header has 12')
                    low, high, crc = struct.unpack_from('<III', buf, byte)
                    # A set upper half would mean a record of 4 GiB or more, and protobuf ends at 2.
                    if high or length_crc(low) != crc:
                        raise ValueError('wrong checksum of the record length, damaged or no TFRecord file')
                    if low > end - byte - 16:
                        raise ValueError(
                            f'truncated: {low} bytes of data and 4 of checksum announced, {end - byte - 12} left'
                        )
                    try:
                        found = _locate(buf, byte + 12, byte + 12 + low)
                    except ValueError as error:
                        found = 0, 0, 0, str(error)
                    yield Record(byte, low, *found, crc=struct.unpack_from('<I', buf, byte + 12 + low)[0])
                    byte += low + 16
    except OSError as error:
        raise InputError(f'shard {path!r}: {error.strerror}; check the path and its permissions') from None
    except ValueError as error:
        yield Record(byte, 0, 0, 0, 0, str(error))


def _sound(path):
    for count, record in enumerate(walk(path)):
        if record.problem:
            raise InputError(
                f'shard {path!r}, record {count} at byte {record.byte}: {record.problem}; copy or make the shard again'
            )
        yield record.offset, record.length, record.label, record.crc


def _feature(data, name):
    """Bytes of the feature `name` of an Example (bytes, with its checksum); b"" if it is missing or another kind's."""
    entry = _field(1, name) + b'\x12'  # key, then the tag of its value
    at = data.find(entry) + len(entry)
    try:
        if at < len(entry):
            return b''
        length, start = _varint(data, at, len(data))
        return data[slice(*_only_value(data, name, (start, start + length), 'bytes'))]
    except ValueError:
        return b''


def noted_synsets(path, count=8):
    """(label, WordNet id) of the first `count` records of a shard; [] if one notes no id."""
    with open(path, 'rb') as file:
        noted = [
            (record.label, _feature(os.pread(file.fileno(), record.size + 4, record.byte + 12), SYNSET))
            for record in itertools.islice(walk(path), count)
        ]
    return noted if all(synset for _, synset in noted) else []


def index_shards(paths, progress=False):
    """Index of all records of the shards; InputError names shard, record (from 0) and byte of any damage."""
    return index_files(_sound, paths, progress)


def _field(number, payload):
    """A length-delimited field (bytes), or a varint field if `payload` is an int."""

    def varint(value):
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    if isinstance(payload, int):
        return varint(number << 3) + varint(payload & 0xFFFFFFFFFFFFFFFF)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def _record(encoded, label, filename):
    """One framed record (bytes) with the features that TF-slim reads."""

    def entry(key, kind, value):
        return _field(1, _field(1, key) + _field(2, _field(kind, _field(1, value))))

    form = b'png' if encoded.startswith(b'\x89PNG') else b'jpeg'
    name = filename.encode('utf-8', 'surrogateescape')
    data = _field(
        1,
        entry(b'image/format', 1, form)
        + entry(b'image/filename', 1, name)
        + entry(LABEL, 3, int(label))
        + entry(ENCODED, 1, encoded),
    )
    return struct.pack('<QI', len(data), length_crc(len(data))) + data + struct.pack('<I', mask(crc32c(data)))


def write_shard(path, examples):
    """Write (encoded bytes, label, file name) examples to one shard."""
    with open(path, 'wb') as file:
        file.writelines(_record(*example) for example in examples)


def write_shards(directory, split, examples, num_shards):
    """Write (encoded bytes, label, file name) examples, dealt out in turn to the shards; returns their paths.

    All shards get their names only when all are written. InputError if a shard would be left empty.
    """
    examples = list(examples)
    if not 1 <= num_shards <= min(len(examples), 99999):
        raise InputError(
            f'{counted(num_shards, split + " shard")} for {counted(len(examples), "picture")}; '
            f'give 1 to {min(len(examples), 99999)} shards'
        )
    os.makedirs(directory, exist_ok=True)
    paths = [os.path.join(directory, f'{split}-{n:05d}-of-{num_shards:05d}') for n in range(num_shards)]
    with contextlib.ExitStack() as stack:
        for n, path in enumerate(paths):
            write_shard(stack.enter_context(files.replacing(path)), examples[n::num_shards])
    return paths
