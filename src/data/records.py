"""One way to open a data set, whatever its layout: TFRecord or MindRecord shards, folders of images, ImageNet's archives."""

from __future__ import annotations

import functools
import os
import re
import stat
import tarfile
import time
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.data import archives, folder, mindrecord, tfrecord
from src.data.classes import BACKGROUND_CLASSES, imagenet_names, names_by_wordnet_ids, read_labels
from src.errors import InputError, reading

FORMATS = ('tfrecord', 'mindrecord', 'folder', 'archives')
SPLITS = ('train', 'validation')
FOLDERS = 'train/<class>/*.jpg and validation/<class>/*.jpg'
AGAIN = 'copy or make the shard again'
CHECKS = {'tfrecord': tfrecord.check_set, 'mindrecord': mindrecord.check_shards}  # raise ValueError for incomplete sets
PAUSES = (0.2, 0.5, 1, 2, 4)  # seconds, of a training before it tries again to read a record
SIZES = 10000  # files of a folder whose sizes are looked up: at worst a millisecond each, on a network's file system


@dataclass
class Records:
    """Where the images of a split are, and reading them in any order, one read for each.

    MindSpore's own readers go through shards in order or shuffle within a buffer; a training that is repeatable from any
    step needs every record at once. Records can be pickled and used in forked processes.
    """

    layout: str  # one of FORMATS
    paths: list[str]  # of shards, the archive, or class folders
    source: np.ndarray  # int32 [records], position in `paths`
    label: np.ndarray  # int64 [records], as stored; of folders from 0 by the sorted names, or as in labels.txt
    offset: np.ndarray | None = None  # int64 [records], first byte of the encoded image; None: each image is a file
    length: np.ndarray | None = None  # int64 [records], bytes of the encoded image
    byte: np.ndarray | None = None  # int64 [records], in TFRecord shards: where the record starts
    file: np.ndarray | None = None  # bytes [records]; one array, so that processes share the names of a million files
    crc: int = 0  # checksum of the records' checksums, where shards have them
    class_names: list[str] | None = None  # by stored label
    label_base: int | None = None  # lowest label of a class
    not_read: dict[str, list[str]] = field(default_factory=dict)  # {reason: paths} of what is no image in class folders

    def __post_init__(self):
        self.pauses = len(PAUSES)
        if self.label_base is None:  # 1 if no label is 0 and class 0 has no name or the background's, as TF-slim has it
            unnamed = not self.class_names or self.class_names[0] in ('background', '')
            self.label_base = int(unnamed and self.label.min() > 0)

    def __len__(self):
        return len(self.label)

    @property
    def upright(self) -> bool:
        """Whether images are turned as their EXIF orientation says. Shards are taken as stored, as the original did."""
        return self.layout == 'folder'

    @property
    def empty(self) -> list[str]:
        """Paths of the class folders that hold no image."""
        return self.not_read.get('class folder without an image', [])

    @property
    def left_out(self) -> str:
        """What was not read and why, in a line; '' if everything was."""
        return folder.as_line(self.not_read)

    @functools.cached_property
    def fingerprint(self) -> str:
        """By what a resumed training run, or a conversion that is continued, knows its records again.

        Their number, and checksums of the order of their labels and of what is known of their images without reading them:
        places and, in TFRecords, checksums; of folders all names and the sizes of up to SIZES files. Older checkpoints have
        the part before "and".
        """
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

    def read(self, i: int) -> bytes:
        """The encoded image of record `i`; InputError if it cannot be read."""
        # Opened anew each time (microseconds beside the decoding): kept open, the 1,152 shards of ImageNet
        # would exceed the usual limit of 1,024 files, and nothing here has to survive fork or pickle.
        try:
            return read_file(*self.place(i))
        except (OSError, ValueError) as error:
            problem = getattr(error, 'strerror', None) or error
            raise InputError(f'{self.where(i)}: {problem}; check that it can be read') from None

    def read_patiently(self, i: int) -> bytes:
        """As `read`, tried again after each of PAUSES: a network disk may stall for a while, or a file be away while it is
        replaced. After a record that stayed unreadable, which is a ValueError, there is only one pause for the next ones,
        until waiting has helped again."""
        for waited in (0, *PAUSES[: self.pauses]):
            time.sleep(waited)
            try:
                encoded = self.read(i)
            except InputError as error:
                problem = str(error)
            else:
                self.pauses = len(PAUSES) if waited else self.pauses
                return encoded
        self.pauses = 1
        raise ValueError(problem)

    def size(self, i: int) -> int:
        """Bytes of the encoded image of record `i`; OSError if it cannot be looked at."""
        return os.stat(self.place(i)[0]).st_size if self.length is None else int(self.length[i])

    def name(self, i: int) -> str:
        """A file name for the image of record `i`: the stored one, else one that says where it comes from."""
        if self.file is not None:
            return os.fsdecode(bytes(self.file[i]))
        path = self.paths[self.source[i]]
        name = self.byte is not None and os.path.basename(tfrecord.text_of(path, int(self.byte[i])))
        return name or f'{os.path.basename(path)}_{self._number(i):06d}.jpg'

    def where(self, i: int) -> str:
        """Record `i` in messages: the path of its file, or of the shard or archive and which record of it, from 0."""
        path, name = self.paths[self.source[i]], self.name(i) if self.file is not None else f'record {self._number(i)}'
        return os.path.join(path, name) if self.offset is None else f'{path}, {name}'

    def damage(self, i: int, error: Exception) -> str:
        """Place of record `i` and what is wrong with it, for messages."""
        place, problem = self.where(i), str(error)
        return problem if problem.startswith(place) else f'{place}: {problem}'

    def _number(self, i):
        return i % len(self) - int(np.searchsorted(self.source, self.source[i]))


def read_file(path: str, start: int = 0, count: int | None = None) -> bytes:
    """`count` bytes (None: all) of a regular file from `start`. OSError or ValueError if they cannot be read, or if it is
    another kind of file, of which the end might never come."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
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


def contents(data_dir: str) -> dict[str, dict[str, list[str]]]:
    """{layout: {split: its shards, archive or folder}} of what a directory holds; OSError if it cannot be read."""
    names, found = sorted(os.listdir(data_dir)), {layout: {} for layout in FORMATS}
    for split in SPLITS:
        shards = [name for name in names if re.fullmatch(split + tfrecord.NUMBERS, name)]
        found['tfrecord'][split] = [os.path.join(data_dir, name) for name in shards]
        found['mindrecord'][split] = mindrecord.list_shards(data_dir, folder.SPLIT_NAMES[split])
        found['folder'][split] = [path for path in folder.split_folders(data_dir, split) if folder.class_folders(path)]
        found['archives'][split] = [os.path.join(data_dir, name) for name in names if name == archives.ARCHIVES[split]]
    found = {layout: {split: paths for split, paths in splits.items() if paths} for layout, splits in found.items()}
    return {layout: splits for layout, splits in found.items() if splits}


def find_format(data_dir: str | Path) -> str:
    """Which of FORMATS a directory holds; InputError if none or two of them."""
    if not data_dir:
        raise InputError("data_dir is ''; give the directory of a data set")
    data_dir = os.fspath(data_dir)
    with reading(data_dir):
        found = contents(data_dir) or _refuse(data_dir)
    if len(found) > 1:
        first = [f'{layout} ({os.path.relpath(min(splits.items())[1][0], data_dir)})' for layout, splits in found.items()]
        raise InputError(f'{data_dir} holds a data set as {" and as ".join(first)}; keep one of them in it')
    return next(iter(found))


def _refuse(data_dir):
    """Raise a ValueError on a directory without a data set, with a remedy that fits what is in it."""
    names, remedy = sorted(os.listdir(data_dir)), 'give the directory above train/ and validation/, or that of the shards'
    for path in (data_dir, *(path for split in SPLITS for path in folder.split_folders(data_dir, split))):
        if images := folder.scan(path, {}):
            image = os.path.join(path, os.fsdecode(images[0]))
            remedy = f'{image} is in no class folder; put the images into one folder for each class, {FOLDERS}'
    if shards := [name for name in names if '-of-' in name or 'tfrecord' in name]:
        remedy = f'if {shards[0]} is a TFRecord file rename or link it, a single one as train-00000-of-00001'
    elif any('.mindrecord' in name for name in names):
        remedy = 'put the MindRecord files of a split into train/ or validation/, or start their names so'
    raise ValueError(
        'no train-?????-of-????? (tfrecord), train*.mindrecord* (mindrecord), train/<class>/*.jpg (folder) '
        f"nor ImageNet's archives, and none for validation, only {first_names(names)}; {remedy}"
    )


def first_names(names):
    """The first four of `names` and how many more there are, for messages."""
    return (', '.join(names[:4]) or 'nothing') + (f' and {len(names) - 4} more' if len(names) > 4 else '')


def splits(data_dir: str | Path, layout: str) -> list[str]:
    """Which of SPLITS a directory of that layout has; InputError if it cannot be read."""
    with reading(data_dir, 'give the directory of a data set'):
        return list(contents(os.fspath(data_dir)).get(layout, ()))


def open_records(data_dir: str | Path, split: str, layout: str | None = None, progress: bool = False) -> Records:
    """`Records` of `split` ("train" or "validation"), the layout as given or found by looking. Class names are those of
    labels.txt, else ImageNet's where TFRecords have its WordNet ids. InputError says what is missing or damaged, and where.
    """
    layout, data_dir = layout or find_format(data_dir), os.fspath(data_dir)
    with reading(data_dir):
        found = contents(data_dir).get(layout, {})
        if not (paths := found.get(split)):
            raise ValueError(f'no {split} part ({layout}) in it, only {first_names(sorted(os.listdir(data_dir)))}')
        if layout == 'folder' and len(paths) > 1:
            raise ValueError(f'has both {" and ".join(map(os.path.basename, paths))}; keep one')
        CHECKS.get(layout, list)(paths)
    if layout == 'folder':
        return open_folder(paths[0], min(found.items())[1][0], read_labels(data_dir, False))
    fields = _columns(layout, paths, progress)
    names = imagenet_names(BACKGROUND_CLASSES) if layout == 'archives' else read_labels(data_dir)
    if names is None and layout == 'tfrecord':
        first = {name: fields[name][fields['source'] == 0][:8].tolist() for name in ('byte', 'label')}
        ids = [tfrecord.text_of(paths[0], byte, tfrecord.SYNSET).encode() for byte in first['byte']]
        names = names_by_wordnet_ids(list(zip(first['label'], ids)))
    return Records(layout, paths, class_names=names, **fields)


def walk(path: str, layout: str, progress: bool = False) -> Iterator[tuple]:
    """Yield what the reader of `layout` does; InputError for damage, and where the file is another one."""
    walks = {'tfrecord': tfrecord.walk, 'mindrecord': mindrecord.walk}
    try:
        yield from walks[layout](path) if layout in walks else archives.walk(path, progress)
    except (ValueError, OSError, LookupError, OverflowError, tarfile.TarError) as error:
        remedy = AGAIN if layout in walks else 'download it again, or another one that fits'
        with reading(path, '' if isinstance(error, LookupError) else remedy, (OverflowError, tarfile.TarError)):
            raise


def _columns(layout, paths, progress):
    """{name: array} of `Records` for all records of `paths`; InputError for the first damaged one."""
    names = ('offset', 'length', 'label', *{'tfrecord': ('byte', 'crc'), 'archives': ('file',)}.get(layout, ()))
    columns, counts = {name: [] if name == 'file' else array('q') for name in names}, []
    for path in tqdm(paths, 'indexing', unit='shard', disable=not progress, leave=False):
        for number, found in enumerate(walk(path, layout, progress)):
            if layout == 'tfrecord':
                if found.problem:
                    raise InputError(f'{path}: record {number} at byte {found.byte}: {found.problem}; {AGAIN}')
                found = found.offset, found.length, found.label, found.byte, found.crc
            for column, value in zip(columns.values(), found):
                column.append(value)
        counts.append(len(columns['label']) - sum(counts))
    if not sum(counts):
        raise InputError(f'{paths[0]}: no record in it; {AGAIN}')
    found = {name: np.array(column, 'S' if name == 'file' else np.int64) for name, column in columns.items()}
    if layout == 'tfrecord':
        found['crc'] = zlib.crc32(found['crc'].astype(np.uint32).tobytes())
    return {'source': np.repeat(np.arange(len(counts), dtype=np.int32), counts), **found}


def open_folder(path: str, train_path: str, class_names: list[str] | None = None) -> Records:
    """`Records` of the images in the class folders of the directory `path`. A label is the place of the class in
    `class_names`, else among the class folders of `train_path`. InputError if there is no image or a class is unknown."""
    with reading(path, 'give one directory <class>/*.jpg for each class'):
        return Records('folder', **folder.index(path, train_path, class_names))
