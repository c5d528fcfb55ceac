"""ImageNet's archives: read where they lie, converted, refused with a reason when they are not whole."""

import io
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


TRAIN_IMAGES = {synset: {f'{synset}_{k}.JPEG': jpeg([c, k]) for k in (3, 13)} for c, synset in enumerate(SYNSETS)}
VALIDATION_IMAGES = {f'ILSVRC2012_val_{n:08d}.JPEG': jpeg([9, n]) for n in (5, 4, 3, 2, 1)}  # not in the order of numbers
EXPECTED = {
    'train': [(data, LABELS[synset]) for synset, images in TRAIN_IMAGES.items() for data in images.values()],
    'validation': [(data, LABELS[SYNSETS[TRUTH[int(name[15:23]) - 1] - 1]]) for name, data in VALIDATION_IMAGES.items()],
}


def kit(truth=TRUTH):
    kinds = [('ILSVRC2012_ID', 'f8'), ('WNID', 'O'), ('words', 'O'), ('num_children', 'f8')]
    rows = [(n, synset, 'words', 0) for n, synset in enumerate([*SYNSETS, 'n00001740'], 1)]  # the last is no leaf
    meta = io.BytesIO()
    savemat(meta, {'synsets': np.array(rows, kinds).reshape(-1, 1)})
    numbers = ''.join(f'{n}\n' for n in truth).encode()
    files = {'readme.txt': b'', 'data/ILSVRC2012_validation_ground_truth.txt': numbers, 'data/meta.mat': meta.getvalue()}
    return tar({f'ILSVRC2012_devkit_t12/{name}': data for name, data in files.items()}, 'w:gz')


@pytest.fixture
def archives(tmp_path):
    path = tmp_path / 'imagenet'
    path.mkdir()
    (path / TRAIN).write_bytes(tar({f'{synset}.tar': tar(images) for synset, images in TRAIN_IMAGES.items()}))
    (path / VALIDATION).write_bytes(tar(VALIDATION_IMAGES))
    (path / DEVKIT).write_bytes(kit())
    return path


def test_archives_and_their_shards(archives, tmp_path):
    """Images, labels and names; labels count as in TF-slim's records. What somebody has begun to unpack is named."""
    assert all(list(imagenet_classes())[n - 1] == synset for synset, n in LABELS.items())
    run = cli('convert', '--src', archives, '--dst', tmp_path / 'made', '--format', 'tfrecord', '--shards', 2)
    assert run.returncode == 0 and 'train, 6 images\n' in run.stdout and 'validation, 5 images\n' in run.stdout, run.stderr
    for split in ('train', 'validation'):
        records = open_records(archives, split)
        for found in (records, open_records(tmp_path / 'made', split)):
            assert content(found) == sorted(EXPECTED[split]) and found.label_base == 1
            assert found.class_names == ['background', *imagenet_names()] and found.name(0).endswith('.JPEG')
        assert records.where(0) == f'{archives / ARCHIVES[split]}, {records.name(0)}'
    (archives / 'train' / 'n01440764').mkdir(parents=True)
    assert 'as folder (train) and as archives' in message(find_layout, archives)


BAD = {
    'missing kit': (DEVKIT, None, f'{DEVKIT}: No such file'),
    'kit of another set': (DEVKIT, kit([*TRUTH, 1]), f'5 images in it, but {DEVKIT} has the classes of 6'),
    'cut between classes': (TRAIN, tar({'n02110341.tar': tar({})})[: 512 + 10240], f'{TRAIN}: cut off or damaged at byte'),
    'training as validation': (VALIDATION, tar({'n01440764.tar': b''}), 'is no ILSVRC2012_val_'),
}


@pytest.mark.parametrize('name, data, problem', BAD.values(), ids=BAD)
def test_unusable(archives, name, data, problem):
    (archives / name).unlink()
    if data is not None:
        (archives / name).write_bytes(data)
    text = message(open_records, archives, 'train' if name == TRAIN else 'validation')
    assert problem in text and 'download' in text, text
