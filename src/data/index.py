"""Where the images of a set of shards are, and reading them in any order, one read for each.

MindSpore's own readers go through shards in order or shuffle within a buffer; a training that is repeatable from any step
needs every record at once.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from src.errors import InputError


@dataclass
class Index:
    """Where the images are: one entry per record, in the order of `paths` and of the records in them."""

    paths: list[str]
    shard: np.ndarray  # int32 [records], position in `paths`
    offset: np.ndarray  # int64 [records], first byte of the encoded image in its shard
    length: np.ndarray  # int64 [records], bytes of the encoded image
    label: np.ndarray  # int64 [records], as stored
    crc: int = 0  # checksum of the records' checksums, where shards have them
    class_names: list[str] | None = None  # by stored label
    # (path, offset) -> file name of the image there, '' if the record has none
    stored_name: Callable[[str, int], str] | None = None
    upright = False  # images are taken as they are stored, as the original took TFRecords
    left_out, empty = '', ()  # as in `Folder`; of a shard everything is read

    def __len__(self):
        return len(self.label)

    def place(self, i: int) -> tuple[str, int, int]:
        """Path of the shard, first byte and number of bytes of the encoded image of record `i`."""
        return self.paths[self.shard[i]], int(self.offset[i]), int(self.length[i])

    def read(self, i: int) -> bytes:
        """The encoded image of record `i`; InputError if it cannot be read."""
        # Opened anew each time (microseconds beside the decoding): kept open, the 1,152 shards of ImageNet
        # would exceed the usual limit of 1,024 files, and nothing here has to survive fork or pickle.
        path, offset, length = self.place(i)
        try:
            file = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(file, length, offset)
            finally:
                os.close(file)
        except OSError as error:
            raise InputError(f'{self.where(i)}: {error.strerror}; check that the shard can be read') from None
        if len(data) != length:
            raise InputError(
                f'{self.where(i)}: {len(data)} bytes read instead of {length}; the shard became shorter, start again'
            )
        return data

    @property
    def label_base(self) -> int:
        """Lowest label of a class: 1 if no label is 0 and class 0 has no name or the background's, as TF-slim has it."""
        unnamed = not self.class_names or self.class_names[0] in ('background', '')
        return int(unnamed and self.label.min() > 0)

    def files_checksum(self) -> int:
        """A checksum by which other images are noticed: of their places and, in TFRecords, their checksums."""
        return zlib.crc32(self.length.tobytes(), zlib.crc32(self.offset.tobytes(), self.crc))

    def size(self, i: int) -> int:
        """Bytes of the encoded image of record `i`."""
        return int(self.length[i])

    def name(self, i: int) -> str:
        """A file name for the image of record `i`: the one in the record, else one that tells where it comes from."""
        if self.stored_name and (name := self.stored_name(self.paths[self.shard[i]], int(self.offset[i]))):
            return name
        shard, _, record = self.where(i).rpartition(', record ')
        return f'{os.path.basename(shard)}_{int(record):06d}.jpg'

    def where(self, i: int) -> str:
        """Record `i` in messages: path of the shard and number of the record in it, from 0."""
        shard = self.shard[i]
        return f'{self.paths[shard]}, record {i % len(self) - int(np.searchsorted(self.shard, shard))}'


def index_files(walk, paths: list[str], progress: bool = False) -> Index:
    """Index of what `walk(path)` yields for the records of a shard: (offset, length, label), or these and a checksum."""
    columns, counts = [array('q'), array('q'), array('q'), array('I')], []
    for path in tqdm(paths, 'indexing', unit='shard', disable=not progress, leave=False):
        before = len(columns[0])
        for values in walk(path):
            for column, value in zip(columns, values):
                column.append(value)
        counts.append(len(columns[0]) - before)
    shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    *columns, crc = columns
    return Index(list(paths), shard, *(np.array(column, np.int64) for column in columns), zlib.crc32(crc))
