"""The check finds what was planted."""

import io
import os
import re
import shutil
import signal
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from src.data import check as check_module
from src.data import jpeg as jpeg_decoder
from src.data import tfrecord
from src.data.check import check, examine
from src.errors import InputError
from tests.data.samples import ODD, cli, fails, jpeg, write_folder

KINDS = {  # what is found in the images of ODD
    'cmyk': 'CMYK',
    'png_in_jpeg': 'not a JPEG',
    'other_format': 'not a JPEG',
    'tiny': 'a side below 32 pixels',
    'truncated': 'cannot be decoded',
    'undecodable': 'cannot be decoded',
    'exif_rotated': 'EXIF-rotated',
    'two_labels': 'same file twice, with two labels',
}


def test_check_finds_each_defect(odd, tmp_path):
    tfrecord.write_shards(str(tmp_path / 'tf'), 'train', [(encoded, 1, kind) for kind, encoded in ODD.items()], 2)
    assert {kind for kind, *_ in check(tmp_path / 'tf', 2)[0]} == {*KINDS.values()} - {KINDS['two_labels']}
    (odd / 'train' / 'b' / os.fsdecode(b'caf\xe9.jpg')).write_bytes(b'x')
    text = cli('check', odd, '--workers', 2).stdout
    for name, kind in KINDS.items():
        if kind not in ('not a JPEG', 'EXIF-rotated'):  # a problem of shards only; none
            assert re.search(f'^problem: {kind}: {odd}/train/b/{name}.jpg: ', text, re.M), text
    assert 'b/caf\\udce9.jpg: not an image, or ' in text and 'note: EXIF-rotated: 1\n' in text
    assert 'b/cmyk.jpg: JPEG, 48 x 40\n' in text and text.endswith('2 classes, labels 0 to 1\n7 problems\n')


def test_check_of_shards(sets, tmp_path):
    run = cli('check', sets / 'tf')
    assert run.returncode == 0 and run.stdout.splitlines() == [
        'train: 21 records, 3 classes, labels 1 to 3',
        'validation: 6 records, 2 classes, labels 1 to 3',
        '0 problems',
    ]
    assert check(sets / 'mr', 1)[0] == check(sets / 'folder', 1)[0] == []
    fails(cli('check', tmp_path), 'only nothing; give')
    fails(cli('check', sets / 'tf', '--workers', '0'), 'workers is 0')
    broken = shutil.copytree(sets / 'tf', tmp_path / 'broken')
    path = broken / 'train-00000-of-00003'
    data = bytearray(path.read_bytes())
    starts = [record.byte for record in tfrecord.walk(str(path))]
    data[starts[2] - 1] ^= 1  # the data checksum of record 1
    data[starts[4] + 9] ^= 1  # the length checksum of record 4: the end of what can be read
    path.write_bytes(data)
    os.truncate(broken / 'train-00001-of-00003', 1000)
    (broken / 'train-00002-of-00003').unlink()
    found, labels = check(broken, 2)
    assert Counter(kind for kind, *_ in found) == {'damaged or missing shards': 3, 'damaged record': 1}
    text = '\n'.join(f'{where}: {detail}' for _, where, detail in found)
    assert 'lacks shard train-00002-of-00003' in text and f'{path}, record 1: wrong checksum of its data' in text
    assert re.search(f'{path}: record 4 at byte {starts[4]}: .*checksum', text) and re.search('00001-of-.*truncated', text)
    assert labels['validation'].total() == 6 and labels['train'].total() >= 4


def test_check_of_folders(tmp_path):
    """What is not read is a problem, each kind once."""
    write_folder(tmp_path, 'train', ['a', 'b'], 2)
    (tmp_path / 'train/animals/ants').mkdir(parents=True)
    for name in ('b/x.tif', 'b/y.tif', 'b/.hidden'):
        (tmp_path / 'train' / name).write_bytes(b'x')
    assert check(tmp_path, 1)[0] == [
        ('left out', f'{tmp_path}/train/animals/ants', '1 x folder inside a class folder'),
        ('left out', f'{tmp_path}/train/animals', '1 x class folder without an image'),
        ('left out', f'{tmp_path}/train/b/x.tif', '2 x file .tif'),
    ]


def test_check_of_labels_and_copies(tmp_path):
    """Labels that no training takes; training images in the validation set, contradicting labels, plain copies."""
    a, b, c = (jpeg(n) for n in range(3))
    labelled = [(a, 1), (b, 1), (a, 1), (b, 2), (b'', 1), (b'', -1)]
    tfrecord.write_shards(str(tmp_path), 'train', [(*one, '') for one in labelled], 1)
    tfrecord.write_shards(str(tmp_path), 'validation', [(c, 1, ''), (b, 2, ''), (c, 4, '')], 1)
    (tmp_path / 'labels.txt').write_text('1:a\n2:b\n3:c\n')
    train, val = (f'{tmp_path}/{split}-00000-of-00001, record' for split in ('train', 'validation'))
    found = [one for one in check(tmp_path, 2)[0] if one[0] != 'cannot be decoded']
    assert found == [
        ('same file twice', f'{train} 2', f'label 1, same bytes as {train} 0, label 1'),
        ('same file twice, with two labels', f'{train} 3', f'label 2, same bytes as {train} 1, label 1'),
        ('in training and validation, with two labels', f'{val} 1', f'label 2, same bytes as {train} 1, label 1'),
        ('same file twice, with two labels', f'{val} 2', f'label 4, same bytes as {val} 0, label 1'),
        ('label does not fit', f'{train} 5', 'label -1 is negative or has no name'),
        ('label does not fit', f'{val} 2', 'label 4 is negative or has no name'),
    ]
    (tmp_path / 'labels.txt').unlink()
    assert 'label 4 is negative or has no training image' in str(check(tmp_path, 1)[0])


@pytest.mark.skipif(not jpeg_decoder.library(), reason='no libturbojpeg of version 3 (requirements.txt has a wheel)')
def test_damaged_data():
    """What decoders pass over: zeros or noise in place of data; padding in front of the end is none."""
    rng, kinds = np.random.default_rng(0), []
    for _ in range(20):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((400, 300), 2).save(file, 'JPEG', quality=90)
        encoded = file.getvalue()
        at = int(rng.integers(encoded.rindex(b'\xff\xda') + 14, len(encoded) - 600))
        assert examine(encoded) == {}
        assert 'damaged data' in examine(encoded[:at] + bytes(len(encoded) - at - 2) + encoded[-2:])
        noise = rng.integers(0, 256, 64, np.uint8).tobytes()
        kinds += examine(encoded[:at] + noise + encoded[at + 64 :])
    assert sum(kind in ('damaged data', 'cannot be decoded') for kind in kinds) >= 15, kinds
    for padding in (b'\0' * 30, b'\xaa' * 30):
        assert examine(encoded[:-2] + padding + encoded[-2:]) == {}


def test_death_of_a_worker_process(tmp_path, monkeypatch):
    """Whatever killed it, the file at which it was is named."""
    path = write_folder(tmp_path, 'train', ['a', 'b'], 100) / 'train/b/b_50.jpg'
    path.write_bytes(b'deadly')

    def examine(encoded):
        return os.kill(os.getpid(), signal.SIGKILL) if encoded == b'deadly' else {}

    monkeypatch.setattr(check_module, 'examine', examine)
    with pytest.raises(InputError, match=f'a worker was killed at .*{path}.*: out of memory, .*; use fewer --workers'):
        check(tmp_path, 2)
