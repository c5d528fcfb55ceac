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
from src.data.tfrecord import Record
from src.errors import reading

ARCHIVES = {'train': 'ILSVRC2012_img_train.tar', 'validation': 'ILSVRC2012_img_val.tar'}
DEVKIT = 'ILSVRC2012_devkit_t12.tar.gz'
_TRUTH, _META = 'ILSVRC2012_validation_ground_truth.txt', 'meta.mat'
_BLOCK = 512  # bytes of a tar's header


def walk(path: str) -> Iterator[Record]:
    """Yield the `Record` of every image in an archive, in its order; the labels of validation images are in the development
    kit beside it. ValueError, OSError or tarfile.TarError where it is cut off or damaged, or holds anything else."""
    with open(path, 'rb') as file, tarfile.open(fileobj=file, mode='r:') as tar:
        if os.path.basename(path) == ARCHIVES['train']:
            yield from _train_images(tar)
        else:
            yield from _validation_images(tar, ground_truth(os.path.join(os.path.dirname(path), DEVKIT)))


def _files(tar):
    """Yield the files of an open tar; ValueError where it is cut off or damaged."""
    yield from (member for member in tar if member.isfile())
    # `tarfile` takes the first thing that is no header for the end of the tar, and also the end of the file.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(_BLOCK) != bytes(_BLOCK):
        raise ValueError(f'cut off or damaged at byte {tar.offset}')


def _train_images(tar):
    """Yield the `Record` of every image in a tar of tars."""
    labels = {f'{synset}.tar': label for label, synset in enumerate(imagenet_classes(), 1)}
    for outer in tqdm(_files(tar), 'indexing', len(labels), unit='class', disable=None, leave=False):
        name = os.path.basename(outer.name)
        if name not in labels:  # a second tar of a class is none of those that are left
            raise ValueError(f'{outer.name} in it is none of {len(imagenet_classes())} <WordNet id>.tar')
        label = labels.pop(name)
        with tarfile.open(fileobj=tar.extractfile(outer), mode='r:') as inner:
            for image in _files(inner):
                file = os.path.basename(image.name).encode()
                yield Record(outer.offset_data + image.offset_data, image.size, label, file=file)


def _validation_images(tar, truth):
    """Yield the `Record` of every image of the flat archive; `truth` has their labels by number."""
    images = list(_files(tar))
    for image in images:
        file = os.path.basename(image.name)
        number = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', file)
        if not number or not 1 <= int(number[1]) <= len(truth):
            raise ValueError(f'{image.name} in it is no ILSVRC2012_val_<number>.JPEG, of which {DEVKIT} has {len(truth)}')
        yield Record(image.offset_data, image.size, truth[int(number[1]) - 1], file=file.encode())
    if len(images) != len(truth):
        raise ValueError(f'{len(images)} images in it, but {DEVKIT} has the classes of {len(truth)}')


def ground_truth(path: str) -> list[int]:
    """Labels of the validation images 1, 2, ... by the development kit at `path`; InputError if it is damaged or another."""
    from scipy.io import loadmat  # takes a fifth of a second, which other layouts need not wait for

    with reading(path, 'download it again', (Exception,)):  # of a damaged file scipy raises anything
        with tarfile.open(path, 'r:gz') as tar:
            files = {os.path.basename(member.name): tar.extractfile(member).read() for member in _files(tar)}
        synsets = np.atleast_1d(loadmat(io.BytesIO(files[_META]), squeeze_me=True)['synsets'])
        synset = {int(row['ILSVRC2012_ID']): str(row['WNID']) for row in synsets}
        labels = {synset: label for label, synset in enumerate(imagenet_classes(), 1)}
        return [labels[synset[int(line)]] for line in files[_TRUTH].split()]
