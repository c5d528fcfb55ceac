"""ImageNet's archives: read where they lie, converted, refused with a reason when they are not whole."""

import io
import os
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from src.data.archives import ARCHIVES, DEVKIT
from src.data.classes import imagenet_classes, imagenet_names
from src.data.folder import find_layout
from src.data.records import open_records
from tests.data.samples import cli, content, jpeg, message

TRAIN, VALIDATION = ARCHIVES['train'], ARCHIVES['validation']
# In an order of their own, as the development kit numbers them: dalmatian, tench, toilet tissue.
LABELS = {'n02110341': 252, 'n01440764': 1, 'n15075141': 1000}
SYNSETS = list(LABELS)
TRUTH = [3, 1, 1, 2, 3]  # classes of the validation images, as the kit numbers them


def tar(files, mode='w'):
    """A tar (bytes) of {name: bytes}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def train_images():
    return {synset: {f'{synset}_{10 * k + 3}.JPEG': jpeg([c, k]) for k in range(4)} for c, synset in enumerate(SYNSETS)}


def kit(truth=TRUTH, synsets=SYNSETS):
    kinds = [('ILSVRC2012_ID', 'f8'), ('WNID', 'O'), ('words', 'O'), ('num_children', 'f8')]
    rows = [(n, synset, 'words', 0) for n, synset in enumerate([*synsets, 'n00001740'], 1)]  # the last is no leaf
    meta = io.BytesIO()
    savemat(meta, {'synsets': np.array(rows, kinds).reshape(-1, 1)})
    numbers = ''.join(f'{n}\n' for n in truth).encode()
    files = {'readme.txt': b'', 'data/ILSVRC2012_validation_ground_truth.txt': numbers, 'data/meta.mat': meta.getvalue()}
    return tar({f'ILSVRC2012_devkit_t12/{name}': data for name, data in files.items()}, 'w:gz')


def validation_images():
    return {f'ILSVRC2012_val_{n:08d}.JPEG': jpeg([9, n]) for n in range(len(TRUTH), 0, -1)}  # not in the order of numbers


@pytest.fixture
def archives(tmp_path):
    path = tmp_path / 'imagenet'
    path.mkdir()
    (path / TRAIN).write_bytes(tar({f'{synset}.tar': tar(found) for synset, found in train_images().items()}))
    (path / VALIDATION).write_bytes(tar(validation_images()))
    (path / DEVKIT).write_bytes(kit())
    return path


def expected(split):
    if split == 'train':
        return sorted((data, LABELS[synset]) for synset, found in train_images().items() for data in found.values())
    return sorted((data, LABELS[SYNSETS[TRUTH[int(name[15:23]) - 1] - 1]]) for name, data in validation_images().items())


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_records(archives, split):
    """Images, labels and names; labels count as in TF-slim's records. One split is enough."""
    for other in {'train': (VALIDATION, DEVKIT), 'validation': (TRAIN,)}[split]:
        (archives / other).unlink()
    assert find_layout(archives)[0] == 'archives' and all(list(imagenet_classes())[n - 1] == s for s, n in LABELS.items())
    records = open_records(archives, split)
    assert content(records) == expected(split) and records.label_base == 1
    assert records.class_names == ['background', *imagenet_names()]
    assert records.where(0) == f'{archives / ARCHIVES[split]}, {records.name(0)}' and records.name(0).endswith('.JPEG')
    assert records.size(1) == len(records.read(1))


@pytest.mark.parametrize('layout', ['tfrecord', 'mindrecord'])
def test_convert(archives, tmp_path, layout):
    (archives / 'train' / 'n01440764').mkdir(parents=True)  # somebody has begun to unpack
    assert 'as folder (train) and as archives' in message(find_layout, archives)
    dst = tmp_path / layout
    run = cli('convert', '--src', archives / TRAIN, '--dst', dst, '--format', layout, '--shards', 2)
    assert run.returncode == 0 and 'train, 12 images\n' in run.stdout, run.stderr
    assert 'validation, 5 images\n' in run.stdout
    for split in ('train', 'validation'):
        records = open_records(dst, split)
        assert content(records) == expected(split) and records.class_names == ['background', *imagenet_names()]
    assert open_records(dst, 'train').name(0).endswith('.JPEG') or layout == 'mindrecord'


def cut(size):
    return lambda path: os.truncate(path, size if size > 0 else path.stat().st_size + size)


def content_of(data):
    return lambda path: path.write_bytes(data)


BAD = {
    'missing kit': (DEVKIT, os.unlink, f'{DEVKIT}: No such file'),
    'kit without classes': (DEVKIT, content_of(tar({'a/data/x.mat': b''}, 'w:gz')), "'meta.mat' is missing"),
    'kit of another set': (DEVKIT, content_of(kit([*TRUTH, 1])), f'5 images in it, but {DEVKIT} has the classes of 6'),
    'cut between classes': (TRAIN, cut(512 + 10240), f'{TRAIN}: cut off or damaged at byte 10752'),
    'cut images': (VALIDATION, cut(2000), f'{VALIDATION}: '),
    'unknown class': (TRAIN, content_of(tar({'n00000001.tar': b''})), 'n00000001.tar in it is none of 1000 <WordNet'),
    'images of another class': (TRAIN, content_of(tar({'n02110341.tar': tar({'n01440764_1.JPEG': b''})})), '>.JPEG'),
    'training as validation': (VALIDATION, content_of(tar({'n01440764.tar': b''})), 'is no ILSVRC2012_val_'),
}


@pytest.mark.parametrize('name, damage, problem', BAD.values(), ids=BAD)
def test_unusable(archives, name, damage, problem):
    damage(archives / name)
    text = message(open_records, archives, 'train' if name == TRAIN else 'validation')
    assert problem in text and 'download it' in text, text
