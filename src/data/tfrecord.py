"""TFRecord shards of TF-slim's ImageNet Examples, read and written without TensorFlow.

A record is: its length (uint64, little-endian), masked CRC-32C of the length, the data, masked CRC-32C of the data. The data
are a tf.train.Example, a protocol buffer (https://protobuf.dev/programming-guides/encoding/): a map of features. It is read
field by field, not by the protobuf library, which parses whole messages: for the labels it would read all images.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import google_crc32c  # has a C implementation on x86-64 and aarch64, and warns where it has to compute in Python
import numpy as np

# Names of the image and of its label: TF-slim's first, then those of TFDS, of TensorFlow's tutorial, of MindSpore.
IMAGE = ('image/encoded', 'image', 'image_raw', 'data')
LABEL = ('image/class/label', 'label', 'class')
SYNSET, _FILENAME = 'image/class/synset', 'image/filename'  # WordNet id, in ImageNet's records
NUMBERS = '-[0-9]{5}-of-[0-9]{5}'  # regular expression for what follows the split in a shard's name
# Tags: 0x0A, 0x12 and 0x1A are the fields 1, 2 and 3 with a length. An Example is {1: Features}, Features {1: entry, ...},
# an entry {1: name, 2: Feature}, a Feature one of these lists, a list {1: value}.
_KINDS = {0x0A: 'bytes', 0x12: 'float', 0x1A: 'int64'}
_FIXED = {0: None, 1: 8, 5: 4}  # wire types, the lowest three bits of a tag: a varint, or so many bytes
# How files of other kinds begin that people give for shards.
_OTHERS = {b'\x1f\x8b': 'gzip', b'x\x01': 'zlib', b'x\x9c': 'zlib', b'x\xda': 'zlib', b'PAR1': 'Parquet', b'ARROW1': 'Arrow'}
_LOWEST_64_BITS = 0xFFFFFFFFFFFFFFFF


class Record(NamedTuple):
    """One record of a shard or an archive: positions in the file are in bytes."""

    offset: int  # of the encoded image
    length: int  # of the encoded image
    label: int
    byte: int = 0  # where a TFRecord starts
    crc: int = 0  # of the data, as a TFRecord notes it
    file: bytes = b''  # the image's file name in an archive


def read_varint(buf: bytes, pos: int, end: int) -> tuple[int, int]:
    """(value, position after it) of the variable-length number at buf[pos], unsigned; ValueError if it is broken."""
    value = shift = 0
    while pos < end and shift < 70:
        byte = buf[pos]
        pos, value, shift = pos + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value & _LOWEST_64_BITS, pos
    raise ValueError('broken varint')


def read_fields(buf: bytes, pos: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (tag, start, stop) for every field of the message in buf[pos:end]: the tag is field number * 8 + wire type, the
    value buf[start:stop], of bytes without their length. `buf` is bytes, memoryview or mmap. ValueError for damage."""
    while pos < end:
        tag, pos = (buf[pos], pos + 1) if buf[pos] < 128 else read_varint(buf, pos, end)
        wire = tag & 7
        if wire == 2 and pos < end:
            stop, pos = (buf[pos], pos + 1) if buf[pos] < 128 else read_varint(buf, pos, end)
            stop += pos
        elif wire in _FIXED:
            stop = pos + _FIXED[wire] if wire else read_varint(buf, pos, end)[1]
        else:
            raise ValueError(f'wire type {wire}, or a field runs past its end')
        if stop > end:
            raise ValueError('a field runs past its end')
        yield tag, pos, stop
        pos = stop


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (number, value) for every field of a whole message: a varint's int, or a slice. ValueError for damage."""
    for tag, start, stop in read_fields(message, 0, len(message)):
        yield tag >> 3, read_varint(message, start, stop)[0] if tag & 7 == 0 else message[start:stop]


def encode_varint(value: int) -> bytes:
    """A number from 0 to 2^64 - 1 as a varint."""
    result = b''
    while value > 127:
        result, value = result + bytes([value & 127 | 128]), value >> 7
    return result + bytes([value])


def encode_field(number: int, value: int | bytes) -> bytes:
    """A field with a number (negative ones as int64) or, for bytes, with the length in front of them."""
    if isinstance(value, int):
        return encode_varint(number << 3) + encode_varint(value & _LOWEST_64_BITS)
    return encode_varint(number << 3 | 2) + encode_varint(len(value)) + value


def masked_crc(data: bytes | memoryview) -> int:
    """The checksum of `data`, rotated and shifted as TensorFlow does it: below 2^32."""
    # Of all other buffers google_crc32c takes only NumPy's without a copy.
    crc = google_crc32c.value(data if isinstance(data, bytes) else np.frombuffer(data, np.uint8))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def walk(path: str) -> Iterator[Record]:
    """Yield the `Record` of every record of a shard; images are not read, so the checksum of the data is not compared.
    ValueError for a damaged record or another file, LookupError if no feature has a known name and kind."""
    with open(path, 'rb') as file:
        buf = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    byte, count, names = 0, 0, ()
    while byte < len(buf):
        start, size = byte + 12, int.from_bytes(buf[byte : byte + 8], 'little')
        stop = start + size
        try:
            if masked_crc(buf[byte : byte + 8]) != int.from_bytes(buf[byte + 8 : start], 'little') or stop + 4 > len(buf):
                kind = '' if byte else next((kind for first, kind in _OTHERS.items() if buf[: len(first)] == first), '')
                other = f'no TFRecord file but {kind}, which has to be unpacked or converted'
                raise ValueError(other if kind else 'truncated, damaged or no TFRecord file: wrong checksum of its length')
            features = _features(buf, start, stop)
            names = names or _names(buf, features)
            yield Record(*_locate(buf, features, *names), byte, *struct.unpack_from('<I', buf, stop))
        except ValueError as error:
            raise ValueError(f'record {count} at byte {byte}: {error}') from None
        byte, count = stop + 4, count + 1


def _features(buf, pos, end):
    """{name: (start, stop)} of the features of the Example in buf[pos:end]; of equal names the last counts, as in any
    protocol buffer."""
    features = {}
    for start, stop in _inside(buf, pos, end, 0x0A, 0x0A):
        first = start + 2 + buf[start + 1]  # behind the field of a name of up to 127 bytes
        features[buf[start + 2 : first]] = first, stop
    return features


def _names(buf, features):
    """Names (bytes) of those of the `features` that are the image and its label."""
    kinds = {}
    for name, place in features.items():
        tags = [tag for feature in _inside(buf, *place, 0x12) for tag, *_ in read_fields(buf, *feature)]
        kinds[name.decode('utf-8', 'replace')[:80]] = _KINDS.get(tags[0], 'no') if tags else 'no'
    image, label = column(kinds, IMAGE, ['bytes'], 'feature'), column(kinds, LABEL, ['int64'], 'feature')
    return image.encode(), label.encode()


def column(types: dict[str, str], names: tuple[str, ...], wanted: list[str], what: str) -> str:
    """The one of the columns `types` {name: type} with one of the `names` and a `wanted` type, the first of `names` before
    others; LookupError if there is none or several. `what` is what others call columns."""
    chosen = [name for name in names if types.get(name) in wanted]
    if len(chosen) == 1 or names[0] in chosen:
        return chosen[0]
    raise LookupError(
        f'has {len(chosen) or "no"} {what}s of type {" or ".join(wanted)} named {" or ".join(names)}, only: '
        f'{", ".join(f"{name} ({kind})" for name, kind in types.items())}; write it with one image and one label {what}, '
        'the number of the class'
    )


def _inside(buf, pos, end, *tags):
    """Yield (start, stop) of every field in buf[pos:end] that lies below `tags`, one inside the other."""
    for tag, start, stop in read_fields(buf, pos, end):
        if tag == tags[0]:
            if len(tags) > 1:
                yield from _inside(buf, start, stop, *tags[1:])
            else:
                yield start, stop


def _locate(buf, features, image, label):
    """Offset and length of the encoded image, and the label, of the features called `image` and `label`."""
    images, numbers = [*_inside(buf, *features.get(image, (0, 0)), 0x12, 0x0A, 0x0A)], []
    for values in _inside(buf, *features.get(label, (0, 0)), 0x12, 0x1A):
        for _, start, stop in read_fields(buf, *values):
            while start < stop:  # one number, or packed: varints, one behind the other
                number, start = read_varint(buf, start, stop)
                numbers.append(number - (number >> 63 << 64))
    if len(images) != 1 or len(numbers) != 1:
        raise ValueError(f'{len(images)} values of the image and {len(numbers)} of the label instead of one of each')
    return images[0][0], images[0][1] - images[0][0], numbers[0]


def text_of(path: str, byte: int, name: str = _FILENAME) -> str:
    """The text feature `name` of the record that starts at `byte` of a shard; '' if it has none or cannot be read."""
    with contextlib.suppress(OSError, ValueError, IndexError, struct.error), open(path, 'rb') as file:
        data = os.pread(file.fileno(), *struct.unpack('<Q', os.pread(file.fileno(), 8, byte)), byte + 12)
        place = _features(data, 0, len(data)).get(name.encode(), (0, 0))
        for start, stop in _inside(data, *place, 0x12, 0x0A, 0x0A):
            return data[start:stop].decode('utf-8', 'surrogateescape')
    return ''


def framed(data: bytes) -> bytes:
    """A record of a shard: `data` with its length and the checksums."""
    length = struct.pack('<Q', len(data))
    return length + struct.pack('<I', masked_crc(length)) + data + struct.pack('<I', masked_crc(data))


def _record(encoded, label, filename):
    """One record (bytes) with the features that TF-slim reads."""

    def entry(key, kind, value):
        return encode_field(1, encode_field(1, key.encode()) + encode_field(2, encode_field(kind, encode_field(1, value))))

    form = b'png' if encoded.startswith(b'\x89PNG') else b'jpeg'
    features = entry('image/format', 1, form) + entry(_FILENAME, 1, filename.encode('utf-8', 'surrogateescape'))
    return framed(encode_field(1, features + entry(LABEL[0], 3, int(label)) + entry(IMAGE[0], 1, encoded)))


def write_shard(path: str, examples: Iterable[tuple[bytes, int, str]]) -> None:
    """Write (encoded bytes, label, file name) examples to one shard; OSError if it cannot be written."""
    with open(path, 'wb') as file:
        file.writelines(_record(*example) for example in examples)


def shard_name(split: str, number: int, total: int, suffix: str = '') -> str:
    """The file name of shard `number`, from 0, of `total`."""
    return f'{split}-{number:05d}-of-{total:05d}{suffix}'


def write_shards(directory: str, split: str, examples: Iterable, num_shards: int) -> list[str]:
    """Write (encoded bytes, label, file name) examples, dealt out in turn to the shards; returns their paths."""
    examples = list(examples)
    os.makedirs(directory, exist_ok=True)
    paths = [os.path.join(directory, shard_name(split, n, num_shards)) for n in range(num_shards)]
    for n, path in enumerate(paths):
        write_shard(path, examples[n::num_shards])
    return paths


def check_set(paths: list[str]) -> None:
    """ValueError unless the `paths`, which end as NUMBERS says, and maybe in a suffix, are those of one complete set."""
    present = {os.path.basename(path) for path in paths}
    split, total, suffix = re.fullmatch('(.*)-[0-9]{5}-of-([0-9]{5})(.*)', max(present), re.DOTALL).groups()
    whole = {shard_name(split, n, int(total), suffix) for n in range(int(total))}
    if present - whole:
        raise ValueError(f'shard {min(present - whole)} is none of a set of {int(total)}; keep one set')
    if whole - present:
        raise ValueError(f'lacks shard {min(whole - present)}; copy or make all {int(total)}')
