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
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from src.data.classes import imagenet_classes

ARCHIVES = {'train': 'ILSVRC2012_img_train.tar', 'validation': 'ILSVRC2012_img_val.tar'}
DEVKIT = 'ILSVRC2012_devkit_t12.tar.gz'
_TRUTH, _META = 'ILSVRC2012_validation_ground_truth.txt', 'meta.mat'
_BLOCK = 512  # bytes of a tar's header


def walk(path: str, progress: bool = False) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (offset, bytes, label, file name) of the images in an archive, in its order; the labels of validation images are
    in the development kit beside it.

    ValueError, OSError or tarfile.TarError where it is cut off or damaged, or holds anything else; Exception from the kit.
    """
    truth, numbers = None, set()
    if os.path.basename(path) == ARCHIVES['validation']:
        truth = ground_truth(os.path.join(os.path.dirname(path), DEVKIT))
    with open(path, 'rb') as file, tarfile.open(fileobj=file, mode='r:') as tar:
        for name, offset, length, label in _train_images(tar, progress) if truth is None else _validation_images(tar, truth):
            numbers.add(label if truth is None else name)
            yield offset, length, label, name.encode('ascii')
    if not numbers or truth and len(numbers) != len(truth):
        raise ValueError(
            f'{len(numbers)} images in it' + (f', but {DEVKIT} has the classes of {len(truth)}' if truth else '')
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
    labels = {f'{synset}.tar': label for label, synset in enumerate(imagenet_classes(), 1)}
    for outer in tqdm(_files(tar), 'indexing', len(labels), unit='class', disable=not progress, leave=False):
        name = os.path.basename(outer.name)
        if name not in labels:  # a second tar of a class is none of those that are left
            raise ValueError(f'{outer.name} in it is none of {len(imagenet_classes())} <WordNet id>.tar')
        label = labels.pop(name)
        with tarfile.open(fileobj=tar.extractfile(outer), mode='r:') as inner:
            for image in _files(inner):
                if not re.fullmatch(name[: -len('.tar')] + r'_\d+\.JPEG', os.path.basename(image.name)):
                    raise ValueError(f'{image.name} in {outer.name} in it is no <WordNet id>_<number>.JPEG')
                yield os.path.basename(image.name), outer.offset_data + image.offset_data, image.size, label


def _validation_images(tar, truth):
    """Yield (file name, offset, bytes, label) of the images of the flat archive; `truth` has their labels by number."""
    for image in _files(tar):
        name = os.path.basename(image.name)
        number = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', name)
        if not number or not 1 <= int(number[1]) <= len(truth):
            raise ValueError(f'{image.name} in it is no ILSVRC2012_val_<number>.JPEG, of which {DEVKIT} has {len(truth)}')
        yield name, image.offset_data, image.size, truth[int(number[1]) - 1]


def ground_truth(path: str) -> list[int]:
    """Labels of the validation images 1, 2, ... by the development kit at `path`; ValueError if it is damaged or another."""
    from scipy.io import loadmat  # takes a fifth of a second, which other layouts need not wait for

    try:
        with tarfile.open(path, 'r:gz') as tar:
            contents = {os.path.basename(member.name): tar.extractfile(member).read() for member in _files(tar)}
        synsets = np.atleast_1d(loadmat(io.BytesIO(contents[_META]), squeeze_me=True)['synsets'])
        synset = {int(row['ILSVRC2012_ID']): str(row['WNID']) for row in synsets}
        labels = {synset: label for label, synset in enumerate(imagenet_classes(), 1)}
        return [labels[synset[int(line)]] for line in contents[_TRUTH].split()]
    except Exception as error:  # of a damaged file scipy raises anything
        reason = f'{error} is missing in it' if isinstance(error, KeyError) else getattr(error, 'strerror', None) or error
        raise ValueError(f'{path}: {reason or "damaged"}; download it again') from None
