"""Protocol buffers, read and written field by field (https://protobuf.dev/programming-guides/encoding/).

Not by the protobuf library, which parses whole messages: for the labels of a data set it would read all of its images.
"""

from __future__ import annotations

from collections.abc import Iterator

_FIXED = {0: None, 1: 8, 5: 4}  # wire types, the lowest three bits of a tag: a varint, or so many bytes
_LOWEST_64_BITS = 0xFFFFFFFFFFFFFFFF


def read_varint(buf: bytes, pos: int, end: int) -> tuple[int, int]:
    """(value, position after it) of the variable-length number at buf[pos], unsigned; ValueError if it is broken."""
    value = 0
    for shift in range(0, 70, 7):
        if pos >= end:
            break
        byte = buf[pos]
        pos += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _LOWEST_64_BITS, pos
    raise ValueError('broken varint')


def read_fields(buf: bytes, pos: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (tag, start, stop) for every field of the message in buf[pos:end]: the tag is field number * 8 + wire type, the
    value buf[start:stop], of bytes without their length. `buf` is bytes, memoryview or mmap. ValueError for damage."""
    try:
        while pos < end:
            tag, pos = (buf[pos], pos + 1) if buf[pos] < 128 else read_varint(buf, pos, end)
            if (wire := tag & 7) == 2:
                stop, pos = (buf[pos], pos + 1) if buf[pos] < 128 else read_varint(buf, pos, end)
                stop += pos
            elif wire in _FIXED:
                stop = pos + _FIXED[wire] if wire else read_varint(buf, pos, end)[1]
            else:
                raise ValueError(f'wire type {wire}')
            if stop > end:
                raise ValueError('a field runs past its end')
            yield tag, pos, stop
            pos = stop
    except IndexError:  # the message ends with a tag, and `buf` with it
        raise ValueError('a field runs past its end') from None


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (number, value) for every field of a whole message: a varint's int, or a slice. ValueError for damage."""
    for tag, start, stop in read_fields(message, 0, len(message)):
        yield tag >> 3, read_varint(message, start, stop)[0] if tag & 7 == 0 else message[start:stop]


def encode_varint(value: int) -> bytes:
    """A number from 0 to 2^64 - 1 as a varint."""
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


def encode_field(number: int, value: int | bytes) -> bytes:
    """A field with a number (negative ones as int64) or, for bytes, with the length in front of them."""
    if isinstance(value, int):
        return encode_varint(number << 3) + encode_varint(value & _LOWEST_64_BITS)
    return encode_varint(number << 3 | 2) + encode_varint(len(value)) + value
