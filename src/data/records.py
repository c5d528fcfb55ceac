"""One way to open a data set, whatever its layout: TFRecord or MindRecord shards, folders of images, ImageNet's archives."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import struct
import tarfile
import time
import zlib
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.data import archives, folder, mindrecord, tfrecord
from src.data.classes import BACKGROUND_CLASSES, imagenet_names, names_by_wordnet_ids, read_labels
from src.errors import InputError, reading

READERS = {'tfrecord': tfrecord.walk, 'mindrecord': mindrecord.walk, 'archives': archives.walk}
CHECKS = {'tfrecord': tfrecord.check_set, 'mindrecord': mindrecord.check_shards}  # raise ValueError for incomplete sets
AGAIN = 'copy, download or make it again'
PAUSES = (0.2, 0.5, 1, 2, 4)  # seconds before a training run tries again to read a record
SIZES = 10000  # files of a folder whose sizes are looked up: at worst a millisecond each, on a network's file system


@dataclass
class Records:
    """Where the images of a split are: one read for each, in any order. MindSpore's own readers go through shards in order
    or shuffle within a buffer; a training run that is repeatable from any step needs every record at once."""

    layout: str  # tfrecord, mindrecord, folder or archives
    paths: list[str]  # of shards, the archive, or class folders
    source: np.ndarray  # int32 [records], position in `paths`
    label: np.ndarray  # int64 [records], as stored; of folders from 0 by the sorted names, or as in labels.txt
    offset: np.ndarray | None = None  # int64 [records], first byte of the encoded image; None: each image is a file
    length: np.ndarray | None = None  # int64 [records], bytes of the encoded image
    byte: np.ndarray | None = None  # int64 [records], in TFRecord shards: where the record starts
    file: np.ndarray | None = None  # bytes [records]; one array, so that processes share the names of a million files
    crc: int = 0  # checksum of the records' checksums, where shards have them
    class_names: list[str] | None = None  # by stored label
    not_read: dict[str, list[str]] = field(default_factory=dict)  # {reason: paths} of what is no image in class folders

    def __len__(self):
        return len(self.label)

    @property
    def label_base(self) -> int:
        """Lowest label of a class: 1 if no label is 0 and class 0 has no name or the background's, as TF-slim has it."""
        unnamed = not self.class_names or self.class_names[0] in ('background', '')
        return int(unnamed and self.label.min(initial=1) > 0)

    @property
    def upright(self) -> bool:
        """Whether images are turned as their EXIF orientation says. Shards are taken as stored, as the original did."""
        return self.layout == 'folder'

    @property
    def left_out(self) -> str:
        """What was not read and why, in a line; '' if everything was."""
        return folder.as_line(self.not_read)

    def refuse_empty_folders(self) -> None:
        """InputError naming the first class folder that holds no image."""
        if empty := self.not_read.get(folder.EMPTY):
            remedy = f'put its images directly into it, or remove it (left out: {self.left_out})'
            raise InputError(f'class folder {empty[0]} holds no image; {remedy}')

    @functools.cached_property
    def fingerprint(self) -> str:
        """By what a resumed training run knows its records again: checksums of their labels, and of what is known of their
        images without reading them: places and, in TFRecords, checksums; in folders names and the sizes of up to SIZES
        files. Older checkpoints have the part before "and"."""
        label = zlib.crc32(np.asarray(self.label, np.int64).tobytes())
        if self.offset is None:
            known = b'/'.join(os.fsencode(os.path.basename(path)) for path in self.paths)
            some = np.linspace(0, len(self) - 1, min(len(self), SIZES), dtype=int)
            with reading(self.paths[0], 'restore or remove it'):
                sizes = np.array([self.size(i) for i in some], np.int64)
            file = zlib.crc32(sizes.tobytes(), zlib.crc32(known + self.source.tobytes() + self.file.tobytes()))
        else:
            file = zlib.crc32(self.length.tobytes(), zlib.crc32(self.offset.tobytes(), self.crc))
        return f'{len(self)} with label checksum {label:08x} and file checksum {file:08x}'

    def place(self, i: int) -> tuple[str, int, int | None]:
        """Path, first byte and number of bytes (None: all) of the encoded image of record `i`."""
        path = self.paths[self.source[i]]
        if self.offset is None:
            return os.path.join(path, self.name(i)), 0, None
        return path, int(self.offset[i]), int(self.length[i])

    def read(self, i: int, patiently: bool = False) -> bytes:
        """The encoded image of record `i`; InputError if it cannot be read, with `patiently` after all of PAUSES: a network
        disk may stall, or a file be away while it is replaced."""
        # Opened anew each time (microseconds beside the decoding): kept open, the 1,152 shards of ImageNet
        # would exceed the usual limit of 1,024 files, and nothing here has to survive fork or pickle.
        for pause in (0, *PAUSES) if patiently else (0,):
            if pause:  # a sleep of 0 takes a twentieth of the time that decoding an image does
                time.sleep(pause)
            try:
                return read_file(*self.place(i))
            except (OSError, ValueError) as error:
                problem = getattr(error, 'strerror', None) or error
        raise InputError(f'{self.where(i)}: {problem}; check that it can be read')

    def size(self, i: int) -> int:
        """Bytes of the encoded image of record `i`; OSError if it cannot be looked at."""
        return os.stat(self.place(i)[0]).st_size if self.length is None else int(self.length[i])

    def name(self, i: int) -> str:
        """A file name for the image of record `i`: the stored one, else one that says where it comes from."""
        if self.file is not None:
            return os.fsdecode(bytes(self.file[i]))
        path, number = self._shard(i)
        name = self.byte is not None and os.path.basename(tfrecord.text_of(path, int(self.byte[i])))
        return name or f'{os.path.basename(path)}_{number:06d}.jpg'

    def where(self, i: int) -> str:
        """Record `i` in messages: the path of its file, or of the shard or archive and which record of it, from 0."""
        path, number = self._shard(i)
        if self.offset is None:
            return os.path.join(path, self.name(i))
        return f'{path}, {self.name(i) if self.file is not None else f"record {number}"}'

    def damage(self, i: int, error: Exception) -> str:
        """Place of record `i` and what is wrong with it, for messages."""
        place, problem = self.where(i), str(error)
        return problem if problem.startswith(place) else f'{place}: {problem}'

    def _shard(self, i):
        """Path of the source of record `i`, and how many records of it come before."""
        return self.paths[self.source[i]], i - int(np.searchsorted(self.source, self.source[i]))


def read_file(path: str, start: int = 0, count: int | None = None) -> bytes:
    """`count` bytes (None: all) of a regular file from `start`. OSError or ValueError if they cannot be read, or if it is
    another kind of file, of which the end might never come."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        info = os.fstat(file)
        if not stat.S_ISREG(info.st_mode):
            raise ValueError('no regular file')
        count = info.st_size if count is None else count
        data = os.pread(file, count, start)
    finally:
        os.close(file)
    if len(data) != count:
        raise ValueError(f'{len(data)} bytes read instead of {count}; the file became shorter, start again')
    return data


def open_records(data_dir: str | Path, split: str, layout: str | None = None, damage: list[str] | None = None) -> Records:
    """`Records` of `split` ("train" or "validation"), the layout as given or detected. Class names are those of labels.txt,
    else ImageNet's where TFRecords have its WordNet ids. InputError says what is missing or damaged, and where; with a list
    `damage` that is added to it, and the records are those that could be found."""
    layout, found = folder.find_layout(data_dir, layout)
    with reading(data_dir):
        if split not in found:
            raise ValueError(f'no {split} part ({layout}) in it')
        paths = found[split]
        if layout == 'folder' and len(paths) > 1:
            raise ValueError(f'has both {" and ".join(map(os.path.basename, paths))}; keep one')
    if layout == 'folder':
        return open_folder(paths[0], min(found.items())[1][0], read_labels(data_dir, False))
    with _noted(damage), reading(data_dir):
        CHECKS.get(layout, list)(paths)
    class_names = imagenet_names(BACKGROUND_CLASSES) if layout == 'archives' else read_labels(data_dir)
    return _index(layout, paths, class_names, damage)


def open_folder(path: str, train_path: str, class_names: list[str] | None = None) -> Records:
    """`Records` of the images in the class folders of the directory `path`. A label is the place of the class in
    `class_names`, else among the class folders of `train_path`. InputError if there is no image or a class is unknown."""
    with reading(path, 'give one directory <class>/*.jpg for each class'):
        return Records('folder', **folder.index(path, train_path, class_names))


@contextlib.contextmanager
def _noted(damage):
    """A block whose `InputError` is added to the list `damage`, if there is one."""
    try:
        yield
    except InputError as error:
        if damage is None:
            raise
        damage.append(str(error))


def _index(layout, paths, class_names, damage):
    """`Records` of all records of the shards or the archive `paths`. InputError for the first damaged one, or as
    `open_records` has it; if there is no record."""
    numbers, files, counts = array('q'), [], []
    for path in tqdm(paths, 'indexing', unit='shard', disable=None, leave=False):  # on a terminal only
        with _noted(damage), reading(path, AGAIN, (tarfile.TarError,)):
            for record in READERS[layout](path):
                numbers.frombytes(struct.pack('5q', *record[:5]))
                files.append(record.file)
        counts.append(len(files) - sum(counts))
    if not files and not damage:
        raise InputError(f'{paths[0]}: no record in it; {AGAIN}')
    offset, length, label, byte, crc = map(np.array, np.array(numbers).reshape(-1, 5).T)
    known = {'archives': {'file': np.array(files, 'S')}}
    if layout == 'tfrecord':
        known[layout] = {'byte': byte, 'crc': zlib.crc32(crc.astype(np.uint32).tobytes())}
        if class_names is None:
            ids = [tfrecord.text_of(paths[0], start, tfrecord.SYNSET) for start in byte[: counts[0]][:8].tolist()]
            class_names = names_by_wordnet_ids(list(zip(label.tolist(), ids)))
    source = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return Records(layout, paths, source, label, offset, length, class_names=class_names, **known.get(layout, {}))
