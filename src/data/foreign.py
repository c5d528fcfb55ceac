"""Data sets that other programs wrote and that are not read: what a file is, by its content, and what to do with it."""

from __future__ import annotations

import contextlib
import os
import zlib

from src.data.crc import masked_crc

_REWRITE = 'write its images into train/<class>/ and validation/<class>/, or as TFRecord shards'
_UNPACK = 'unpack it, and put the images into train/<class>/ and validation/<class>/'
_KINDS = (  # position, bytes there, what it is, remedy
    (0, b'PAR1', 'a Parquet file', _REWRITE),
    (0, b'ARROW1', 'an Arrow file', _REWRITE),
    (0, b'FEA1', 'a Feather file', _REWRITE),
    (0, b'\xff\xff\xff\xff', 'an Arrow stream', _REWRITE),
    (16, b'\xde\xc0\xef\xbe', 'an LMDB database', _REWRITE),
    (0, b'\x0a\x23\xd7\xce', 'an MXNet RecordIO file', _REWRITE),
    (0, b'\x89HDF', 'an HDF5 file', _REWRITE),
    (0, b'MATLAB 5.0', 'a MATLAB file', _REWRITE),
    (0, b'\0\0\x08\3', 'an IDX file, as MNIST has them', _REWRITE),
    *((0, bytes([0x80, version]), 'a Python pickle', _REWRITE) for version in range(2, 6)),
    (0, b'\x93NUMPY', 'a NumPy file', _REWRITE),
    (0, b'SQLite format 3', 'an SQLite database', _REWRITE),
    (257, b'ustar', 'a tar archive, as WebDataset has them', _UNPACK),
    (0, b'PK\3\4', 'a ZIP archive', _UNPACK),
    (0, b"7z\xbc\xaf'\x1c", 'a 7z archive', _UNPACK),
    (0, b'(\xb5/\xfd', 'compressed with Zstandard', 'decompress it with unzstd'),
    (0, b'BZh', 'compressed with bzip2', 'decompress it with bunzip2'),
    (0, b'\xfd7zXZ', 'compressed with xz', 'decompress it with unxz'),
)
_HEAD = 1024  # bytes of a file that are looked at
_LOOKED_AT = 100  # names in a directory


def is_tfrecord(path: str) -> bool:
    """Whether the file `path` begins as a TFRecord file: the length of its first record has a checksum."""
    return _begins_as_tfrecord(_head(path))


def _head(path):
    with contextlib.suppress(OSError), open(path, 'rb') as file:
        return file.read(_HEAD)
    return b''


def _begins_as_tfrecord(head):
    return len(head) >= 12 and masked_crc(head[:8]) == int.from_bytes(head[8:12], 'little')


def kind(path: str) -> str:
    """What the file `path` is and what to do with it, 'a Parquet file: write ...'; '' if it is not known."""
    head = _head(path)
    for at, magic, what, remedy in _KINDS:
        if head[at : at + len(magic)] == magic:
            return f'{what}: {remedy}'
    with contextlib.suppress(zlib.error):
        inside = zlib.decompressobj(47).decompress(head, _HEAD)  # 47: gzip or zlib, by the header
        by = 'gzip' if head[:2] == b'\x1f\x8b' else 'zlib'
        if _begins_as_tfrecord(inside):
            how = 'gzip -dc FILE > train-?????-of-?????' if by == 'gzip' else "Python's zlib.decompress"
            return f'a TFRecord file compressed with {by}: decompress it with {how}'
        if by == 'gzip':
            return 'compressed with gzip' + (f', a tar archive: {_UNPACK}' if inside[257:262] == b'ustar' else ': gunzip it')
    return ''


def first_in(directory: str, names: list[str]) -> str:
    """'<path> is <kind>' of the first of the files `names` in `directory`, or in the directories among them, that is known;
    '' if there is none."""
    for name in names[:_LOOKED_AT]:
        path = os.path.join(directory, name)
        inside = (
            sorted(os.listdir(path))[:_LOOKED_AT] if os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK) else ['']
        )
        for file in (os.path.join(path, one) if one else path for one in inside):
            if os.path.isfile(file) and (found := kind(file)):
                return f'{file} is {found}'
    return ''
