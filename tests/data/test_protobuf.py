"""Fields of protocol buffers, written, read and damaged."""

import mmap

import pytest

from src.data.protobuf import encode_field, encode_varint, read_fields, read_values, read_varint


@pytest.mark.parametrize('value', [0, 1, 127, 128, 300, 2**31, 2**63, 2**64 - 1])
def test_varint(value):
    encoded = encode_varint(value)
    assert read_varint(b'\xff' + encoded + b'\xff', 1, 1 + len(encoded)) == (value, 1 + len(encoded))
    assert len(encoded) == max(1, -(-value.bit_length() // 7))


MESSAGE = (
    encode_field(1, 300)
    + encode_field(2, -3)
    + encode_field(300, b'abc')
    + encode_field(4, b'x' * 200)
    + encode_field(5, b'')
)
FIXED = b'\x31' + bytes([1]) + bytes(7) + b'\x3d' + bytes([2]) + bytes(3)  # field 6 of 8 bytes, field 7 of 4


def test_values():
    expected = [(1, 300), (2, 2**64 - 3), (300, b'abc'), (4, b'x' * 200), (5, b''), (6, 1), (7, 2)]
    for kind in (bytes, memoryview):
        found = list(read_values(kind(MESSAGE + FIXED)))
        assert found == expected and type(found[2][1]) is kind


def test_positions(tmp_path):
    (tmp_path / 'file').write_bytes(b'??' + MESSAGE + b'??')
    with open(tmp_path / 'file', 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buf:
        found = {tag: buf[start:stop] for tag, start, stop in read_fields(buf, 2, 2 + len(MESSAGE))}
    assert found[300 << 3 | 2] == b'abc' and found[1 << 3] == encode_varint(300)


@pytest.mark.parametrize('kind', [bytes, memoryview])
@pytest.mark.parametrize(
    'message, problem',
    [
        (b'\x0a', 'a field runs past its end'),
        (b'\x0a\x05abcd', 'a field runs past its end'),
        (b'\x31' + bytes(7), 'a field runs past its end'),
        (b'\x0a\xff\xff\xff\xff\x7f', 'a field runs past its end'),
        (b'\x08', 'broken varint'),
        (b'\x08\x80', 'broken varint'),
        (b'\x08' + b'\xff' * 10 + b'\x01', 'broken varint'),
        (b'\x0b', 'wire type 3'),
    ],
)
def test_damage(message, problem, kind):
    with pytest.raises(ValueError, match=problem):
        list(read_values(kind(message)))
