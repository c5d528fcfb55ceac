"""ImageNet's archives as they are downloaded: images are read where they lie in them, nothing is unpacked.

`ILSVRC2012_img_train.tar` holds a tar for each class, named by its WordNet id, `ILSVRC2012_img_val.tar` 50,000 images, whose
classes stand in `ILSVRC2012_devkit_t12.tar.gz`. Labels are those of TF-slim's records: 1 to 1000 in the order of the
WordNet ids, 0 is the background.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import zlib
from array import array
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from src.data import imagenet
from src.data.index import Index
from src.errors import InputError, counted

ARCHIVES = {'train': 'ILSVRC2012_img_train.tar', 'validation': 'ILSVRC2012_img_val.tar'}
DEVKIT = 'ILSVRC2012_devkit_t12.tar.gz'
_TRUTH, _META = 'data/ILSVRC2012_validation_ground_truth.txt', 'data/meta.mat'
_BLOCK = 512  # bytes of a tar's header
_BROKEN = (tarfile.TarError, EOFError, zlib.error, ValueError, KeyError, OverflowError)


@dataclass
class Archive(Index):
    """The images of one archive, in its order; `paths` has its path."""

    file: np.ndarray = None  # bytes [images]; one array, so that processes share the names of a million files
    left_out: str = ''  # classes of a training archive without an image
    not_read = ()  # as in `Folder`

    def name(self, i: int) -> str:
        """The file name of image `i`."""
        return os.fsdecode(bytes(self.file[i]))

    def where(self, i: int) -> str:
        """Image `i` in messages: the archive and the name of the image in it."""
        return f'{self.paths[0]}, {self.name(i)}'


def open_archive(data_dir: str, split: str, progress: bool = False) -> Archive:
    """The images of a split's archive in `data_dir`; InputError naming an archive that is missing, cut off or damaged, or
    that holds anything else."""
    path = os.path.join(data_dir, ARCHIVES[split])
    if not os.path.isfile(path):
        raise InputError(f'{data_dir!r} lacks {ARCHIVES[split]}; put it there as it is downloaded')
    truth = _ground_truth(os.path.join(data_dir, DEVKIT)) if split == 'validation' else None
    names, places, labels = [], array('q'), array('q')
    try:
        with open(path, 'rb') as file, tarfile.open(fileobj=file, mode='r:') as tar:
            images = _train_images(tar, progress) if truth is None else _validation_images(tar, truth)
            for name, offset, length, label in images:
                names.append(name.encode('ascii'))  # 24 characters in the official archives
                places.extend((offset, length))
                labels.append(label)
        if not names:
            raise ValueError('it holds no image')
        if truth is not None and len(set(names)) != len(truth):
            raise ValueError(f'{counted(len(set(names)), "image")}, but {DEVKIT} has the classes of {len(truth)}')
    except _BROKEN as error:
        raise InputError(f'{path}: {error}; download it again, or another one that fits') from None
    offset, length = np.array(places, np.int64).reshape(-1, 2).T.copy()
    label = np.array(labels, np.int64)
    found = set(labels)
    empty = [synset for n, synset in enumerate(imagenet.classes(), 1) if n not in found] if truth is None else []
    return Archive(
        [path],
        np.zeros(len(label), np.int32),
        offset,
        length,
        label,
        class_names=imagenet.class_names(imagenet.BACKGROUND_CLASSES),
        file=np.array(names, 'S'),
        left_out=f'{len(empty)} of {len(imagenet.classes())} classes, of which {path} has no image, the first is {empty[0]}'
        if empty
        else '',
    )


def _files(tar):
    """Yield the files of an open tar; ValueError where it is cut off or damaged, or holds anything but files."""
    for member in tar:
        if not member.isfile() and not member.isdir():
            raise ValueError(f'{member.name} in it is no file')
        if member.isfile():
            yield member
    # `tarfile` takes the first thing that is no header for the end of the tar, and also the end of the file.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(_BLOCK) != bytes(_BLOCK):
        raise ValueError(f'cut off or damaged at byte {tar.offset}')


def _train_images(tar, progress):
    """Yield (file name, offset in the file, bytes, label) of the images in a tar of tars."""
    labels = {synset: label for label, synset in enumerate(imagenet.classes(), 1)}
    total = len(labels)
    for outer in tqdm(_files(tar), 'indexing', total, unit='class', disable=not progress, leave=False):
        synset = os.path.basename(outer.name)[: -len('.tar')]
        if f'{synset}.tar' != os.path.basename(outer.name) or synset not in labels:
            raise ValueError(f'{outer.name} in it is none of {total} <WordNet id>.tar')
        label = labels.pop(synset)  # a second tar of the class is none of those that are left
        try:
            with tarfile.open(fileobj=tar.extractfile(outer), mode='r:') as inner:
                for image in _files(inner):
                    name = os.path.basename(image.name)
                    if not re.fullmatch(synset + r'_\d+\.JPEG', name):
                        raise ValueError(f'{image.name} in it is no {synset}_<number>.JPEG')
                    yield name, outer.offset_data + image.offset_data, image.size, label
        except _BROKEN as error:
            raise ValueError(f'{outer.name}: {error}') from None


def _validation_images(tar, truth):
    """Yield (file name, offset, bytes, label) of the images of the flat archive; `truth` has their labels by number."""
    for image in _files(tar):
        name = os.path.basename(image.name)
        number = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', name)
        if not number or not 1 <= int(number[1]) <= len(truth):
            raise ValueError(
                f'{image.name} in it is none of ILSVRC2012_val_00000001.JPEG to {len(truth):08d}, those of {DEVKIT}'
            )
        yield name, image.offset_data, image.size, truth[int(number[1]) - 1]


def _ground_truth(path):
    """Labels (list of int) of the validation images 1, 2, ... by the development kit at `path`."""
    from scipy.io import loadmat  # takes a fifth of a second, which other layouts need not wait for

    if not os.path.isfile(path):
        raise InputError(f'{path} is missing, which has the classes of the validation images; download it, too')
    labels = {synset: label for label, synset in enumerate(imagenet.classes(), 1)}
    try:
        with tarfile.open(path, 'r:gz') as tar:
            contents = {m.name: tar.extractfile(m).read() for m in _files(tar) if m.name.endswith((_TRUTH, _META))}
        truth, meta = (next((c for n, c in contents.items() if n.endswith(wanted)), None) for wanted in (_TRUTH, _META))
        if truth is None or meta is None:
            raise ValueError(f'no {_TRUTH if truth is None else _META} in it')
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)['synsets'])
        synset = {int(row['ILSVRC2012_ID']): str(row['WNID']) for row in synsets}
        return [labels[synset[int(line)]] for line in truth.split()]
    except KeyError as error:
        raise InputError(f'{path}: {error} is no class of ImageNet 2012; download it again') from None
    except Exception as error:  # of a damaged file scipy raises anything
        raise InputError(f'{path}: {error or "damaged"}; download it again') from None
