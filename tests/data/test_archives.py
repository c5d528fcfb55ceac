"""ImageNet's archives: read where they lie, converted, refused with a reason when they are not whole."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from scipy.io import savemat

from src.data import imagenet
from src.data.archives import ARCHIVES, DEVKIT
from src.data.check import check
from src.data.convert import convert
from src.data.records import find_format, open_records
from tests.data.samples import ODD, ROOT, cli, content, fails, jpeg, message

TRAIN, VALIDATION = ARCHIVES['train'], ARCHIVES['validation']
# In an order of their own, as the development kit numbers them: dalmatian, tench, toilet tissue.
SYNSETS = ['n02110341', 'n01440764', 'n15075141']
LABELS = {'n02110341': 252, 'n01440764': 1, 'n15075141': 1000}
TRUTH = [3, 1, 1, 2, 3]  # classes of the validation images, as the kit numbers them


def tar(files, mode='w', form=tarfile.GNU_FORMAT):
    """A tar (bytes) of {name: bytes}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=form) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def train_images(per_class=4):
    return {
        synset: {f'{synset}_{10 * k + 3}.JPEG': jpeg([c, k]) for k in range(per_class)} for c, synset in enumerate(SYNSETS)
    }


def write_train(directory, images):
    (directory / TRAIN).write_bytes(tar({f'{synset}.tar': tar(found) for synset, found in images.items()}))


def kit(truth=TRUTH, synsets=SYNSETS):
    kinds = [('ILSVRC2012_ID', 'f8'), ('WNID', 'O'), ('words', 'O'), ('num_children', 'f8')]
    rows = [(n, synset, 'words', 0) for n, synset in enumerate([*synsets, 'n00001740'], 1)]  # the last is no leaf
    meta = io.BytesIO()
    savemat(meta, {'synsets': np.array(rows, kinds).reshape(-1, 1)})
    files = {
        'readme.txt': b'',
        'data/ILSVRC2012_validation_ground_truth.txt': ''.join(f'{n}\n' for n in truth).encode(),
        'data/meta.mat': meta.getvalue(),
    }
    return tar({f'ILSVRC2012_devkit_t12/{name}': data for name, data in files.items()}, 'w:gz')


def validation_images():
    return {f'ILSVRC2012_val_{n:08d}.JPEG': jpeg([9, n]) for n in range(len(TRUTH), 0, -1)}  # not in the order of numbers


@pytest.fixture
def archives(tmp_path):
    path = tmp_path / 'imagenet'
    path.mkdir()
    write_train(path, train_images())
    (path / VALIDATION).write_bytes(tar(validation_images()))
    (path / DEVKIT).write_bytes(kit())
    return path


def expected():
    train = [(data, LABELS[synset]) for synset, found in train_images().items() for data in found.values()]
    truth = [LABELS[SYNSETS[n - 1]] for n in TRUTH]
    validation = [(data, truth[int(name[15:23]) - 1]) for name, data in validation_images().items()]
    return {'train': sorted(train), 'validation': sorted(validation)}


def test_records(archives):
    """Images, labels and names; labels count as in TF-slim's records, so they need no list."""
    assert find_format(archives) == 'archives' and all(list(imagenet.classes())[n - 1] == s for s, n in LABELS.items())
    for split, images in expected().items():
        records = open_records(archives, split)
        assert content(records) == images and records.label_base == 1
        assert records.class_names == ['background', *imagenet.names()]
        assert records.name(0) in records.where(0) and str(archives) in records.where(0)
        assert records.size(1) == len(records.read(1))
    found = check(archives, 1)
    assert found['problems'] == 0 and found['splits']['validation']['classes'] == {1: 1, 252: 2, 1000: 2}


@pytest.mark.parametrize('layout', ['tfrecord', 'mindrecord'])
def test_convert(archives, tmp_path, layout):
    dst = tmp_path / layout
    (archives / 'train' / 'n01440764').mkdir(parents=True)  # somebody has begun to unpack
    (archives / 'train' / 'n01440764' / 'n01440764_3.JPEG').write_bytes(b'')
    assert 'as folder (train) and as archives' in message(convert, archives, dst, layout, 2)
    run = cli('convert', '--src', archives / TRAIN, '--dst', dst, '--format', layout, '--shards', 2)
    assert run.returncode == 0 and 'train, 12 images in 2 shards' in run.stdout, run.stderr
    assert 'validation, 5 images in 2 shards' in run.stdout
    for split, images in expected().items():
        records = open_records(dst, split)
        assert content(records) == images and records.label_base == 1
        assert records.class_names == ['background', *imagenet.names()]
    if layout == 'tfrecord':
        assert b'n01440764_13.JPEG' in b''.join(path.read_bytes() for path in dst.glob('train-*'))
    assert cli('check', dst).returncode == 0


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_one_split_is_enough(archives, tmp_path, split):
    for other in {'train': (VALIDATION, DEVKIT), 'validation': (TRAIN,)}[split]:
        (archives / other).unlink()
    convert(archives, tmp_path / 'dst', 'tfrecord', 1, workers=1)
    assert content(open_records(tmp_path / 'dst', split)) == expected()[split]


def test_fix(archives, tmp_path):
    """ImageNet's odd files: a PNG and CMYK with names of JPEG."""
    images = train_images(2)
    images['n01440764'].update({'n01440764_77.JPEG': jpeg(5, form='PNG'), 'n01440764_78.JPEG': ODD['cmyk']})
    write_train(archives, images)
    run = cli('convert', '--src', archives, '--dst', tmp_path / 'dst', '--format', 'tfrecord', '--shards', 1, '--fix')
    assert run.returncode == 0 and '2 images, CMYK or no JPEG, re-encoded' in run.stdout
    records = open_records(tmp_path / 'dst', 'train')
    assert len(records) == 8 and all(records.read(i)[:2] == b'\xff\xd8' for i in range(8))


def test_killed_half_way(archives, tmp_path):
    """A repeated command keeps the finished shards, and the result is that of one run."""
    write_train(archives, train_images(200))
    dst, call = tmp_path / 'dst', ['--format', 'tfrecord', '--shards', '5', '--workers', '1']
    run = subprocess.Popen(
        [sys.executable, '-m', 'src.data.convert', '--src', archives, '--dst', dst, *call],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    while run.poll() is None and not list(dst.glob('train-*')):
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    kept = {path: path.stat().st_mtime_ns for path in dst.glob('train-*')}
    assert 0 < len(kept) < 5
    assert cli('convert', '--src', archives, '--dst', dst, *call).returncode == 0
    assert sum(path.stat().st_mtime_ns != stamp for path, stamp in kept.items()) <= 1  # named, but not yet noted
    convert(archives, tmp_path / 'whole', 'tfrecord', 5, workers=1)
    assert all((tmp_path / 'whole' / path.name).read_bytes() == path.read_bytes() for path in dst.glob('*-of-*'))
    write_train(archives, train_images(3))
    assert 'with source {' in message(convert, archives, dst, 'tfrecord', 5)


def cut(size):
    return lambda path: os.truncate(path, size if size > 0 else path.stat().st_size + size)


def overwrite(at, data):
    def damage(path):
        with open(path, 'r+b') as file:
            file.seek(at)
            file.write(data)

    return damage


def content_of(data):
    return lambda path: path.write_bytes(data)


ONE = {'n01440764_1.JPEG': jpeg(1)}
BAD = {
    'missing kit': (DEVKIT, os.unlink, f'{DEVKIT}: No such file'),
    'kit cut off': (DEVKIT, cut(-100), f'{DEVKIT}: '),
    'no kit': (DEVKIT, content_of(b'<html>'), f'{DEVKIT}: not a gzip file'),
    'kit without classes': (DEVKIT, content_of(tar({'a/data/meta.mat': b''}, 'w:gz')), 'ground_truth.txt in it'),
    'kit with a damaged list': (DEVKIT, content_of(kit(['x'])), f'{DEVKIT}: '),
    'kit of other classes': (DEVKIT, content_of(kit(synsets=['n1', 'n2', 'n3'])), "'n3' is no class of ImageNet 2012"),
    'kit of another set': (DEVKIT, content_of(kit(TRUTH + [1])), f'5 images, but {DEVKIT} has the classes of 6'),
    'kit too short': (DEVKIT, content_of(kit(TRUTH[:3])), 'in it is none of ILSVRC2012_val_00000001.JPEG to 00000003'),
    'empty': (TRAIN, content_of(b''), f'{TRAIN}: empty file'),
    'no tar': (TRAIN, content_of(b'<html>' * 200), f'{TRAIN}: '),
    'cut in a header': (TRAIN, cut(700), f'{TRAIN}: '),
    'cut in a class': (TRAIN, cut(1000), 'n02110341.tar: '),
    'cut between classes': (TRAIN, cut(512 + 10240), f'{TRAIN}: cut off or damaged at byte 10752'),
    'cut images': (VALIDATION, cut(2000), f'{VALIDATION}: '),
    'damaged header': (TRAIN, overwrite(512 + 10240, b'\xff' * 512), f'{TRAIN}: cut off or damaged at byte 10752'),
    'damaged header inside': (TRAIN, overwrite(512, b'\xff' * 512), 'n02110341.tar: '),
    'a class twice': (
        TRAIN,
        content_of(tar({'n01440764.tar': tar(ONE), './n01440764.tar': tar(ONE)})),
        './n01440764.tar in it is none of 1000',
    ),
    'unknown class': (TRAIN, content_of(tar({'n00000001.tar': tar(ONE)})), 'n00000001.tar in it is none of 1000 <WordNet'),
    'validation as training': (TRAIN, content_of(tar(validation_images())), '.JPEG in it is none of 1000 <WordNet id>.tar'),
    'images of another class': (TRAIN, content_of(tar({'n02110341.tar': tar(ONE)})), 'is no n02110341_<number>.JPEG'),
    'training as validation': (VALIDATION, content_of(tar({'n01440764.tar': tar(ONE)})), 'is none of ILSVRC2012_val_'),
    'nothing in it': (TRAIN, content_of(tar({})), 'it holds no image'),
}


@pytest.mark.parametrize('name, damage, part', BAD.values(), ids=BAD)
def test_unusable(archives, tmp_path, name, damage, part):
    assert len(tar(train_images()['n02110341'])) == 10240  # what the places of damage above go by
    damage(archives / name)
    text = message(convert, archives, tmp_path / 'dst', 'tfrecord', 1, workers=1)
    assert part in text and name in text and 'download it' in text and not (tmp_path / 'dst').exists()


def test_one_line_and_status_2(archives, tmp_path):
    os.truncate(archives / TRAIN, 11000)
    fails(cli('convert', '--src', archives, '--dst', tmp_path / 'dst', '--format', 'tfrecord', '--shards', 1), TRAIN)
    (archives / VALIDATION).unlink()
    assert f'no validation part (archives) in it, only {DEVKIT}' in message(open_records, archives, 'validation')
