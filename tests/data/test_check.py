"""The check finds what was planted."""

import io
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from src.data import jpeg as jpeg_decoder
from src.data import tfrecord
from src.data.check import check
from src.data.examine import examine, spread
from src.errors import InputError
from tests.data.samples import ODD, cli, fails, jpeg, write_folder


def test_check_finds_each_defect(odd, tmp_path):
    found = check(str(odd), 1)
    assert set(found['findings']) == set(ODD)
    for kind in ODD:
        names = [os.path.basename(one['where']) for one in found['findings'][kind]]
        assert names == (['empty.jpg'] if kind == 'undecodable' else []) + [f'{kind}.jpg']
    assert found['problems'] == 9  # greyscale and EXIF-rotated are none
    assert found['splits']['train'] == {
        'records': 16,
        'shards': {},
        'labels': {'min': 0, 'max': 1},
        'classes': {0: 2, 1: 14},
    }
    examples = [(encoded, 1, kind) for kind, encoded in ODD.items()] + [(b'', 1, 'empty')]
    tfrecord.write_shards(str(tmp_path / 'tf'), 'train', examples, 2)
    shards = check(tmp_path / 'tf', 2)
    assert set(shards['findings']) == set(ODD) - {'two_labels'} and shards['label_base'] == 1
    run = cli('check', odd, '--json', '--workers', '2')
    assert run.returncode == 1 and '16/16' in run.stderr
    assert json.loads(run.stdout) == json.loads(json.dumps(found))
    text = cli('check', odd).stdout
    assert 'problem: CMYK: 1\n' in text and 'note: EXIF-rotated: 1\n' in text
    assert text.endswith('9 problems\n')


def test_check_shards(sets, tmp_path):
    run = cli('check', sets / 'tf')
    assert run.returncode == 0 and run.stdout.splitlines() == [
        'train: 21 records in 3 shards of 7, labels 1 to 3, 3 classes of 7',
        '  records in shards: train-00000-of-00003: 7, train-00001-of-00003: 7, train-00002-of-00003: 7',
        '  records in classes: 1: 7, 2: 7, 3: 7',
        'validation: 6 records in 3 shards of 2, labels 1 to 3, 2 classes of 3',
        '  records in shards: ' + ', '.join(f'validation-0000{n}-of-00003: 2' for n in range(3)),
        '  records in classes: 1: 3, 3: 3',
        'labels start at 1',
        '0 problems',
    ]
    assert cli('check', sets / 'mr').returncode == cli('check', sets / 'folder').returncode == 0
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
    run = cli('check', broken, '--json')
    found = json.loads(run.stdout)
    assert run.returncode == 1 and set(found['findings']) == {'incomplete', 'damaged', 'crc'}
    assert 'lacks shard train-00002-of-00003' in found['findings']['incomplete'][0]['detail']
    assert found['findings']['crc'][0]['where'] == f'train-00000-of-00003, record 1, byte {starts[1]}'
    first, second = sorted(found['findings']['damaged'], key=lambda one: one['where'])
    assert first['where'] == f'train-00000-of-00003, record 4, byte {starts[4]}'
    assert re.match('train-00001-of-00003, record [0-9]+, byte', second['where'])
    assert 'checksum' in first['detail'] and 'truncated' in second['detail']
    counts = found['splits']
    assert counts['validation']['records'] == 6 and counts['train']['shards'][path.name] == 4


def test_check_of_folders(tmp_path):
    """What is not read is a problem, each kind once a class folder."""
    write_folder(tmp_path, 'train', ['a', 'b'], 2)
    (tmp_path / 'train/animals/ants').mkdir(parents=True)
    for name in ('b/x.tif', 'b/y.tif', 'b/.hidden'):
        (tmp_path / 'train' / name).write_bytes(b'x')
    found = check(tmp_path, 1)
    assert found['problems'] == 3 and found['findings'] == {
        'left_out': [
            {'where': str(tmp_path / 'train/animals/ants'), 'detail': '1 x folder inside a class folder, not read'},
            {'where': str(tmp_path / 'train/b/x.tif'), 'detail': '2 x file .tif, not read'},
        ],
        'empty': [{'where': str(tmp_path / 'train/animals'), 'detail': 'no image in this class folder'}],
    }
    run = cli('convert', '--src', tmp_path, '--dst', tmp_path / 'dst', '--format', 'tfrecord', '--shards', 1)
    assert run.returncode == 0 and 'left out: 1 x folder inside a class folder, the first is' in run.stderr


def test_check_labels(tmp_path):
    for split, labels in (('train', [1, 2, -1]), ('validation', [2, 4])):
        tfrecord.write_shards(str(tmp_path), split, [(jpeg(n + 1), n, 'x') for n in labels], 1)
    (tmp_path / 'labels.txt').write_text('1:a\n2:b\n3:c\n')
    second = list(tfrecord.walk(str(tmp_path / 'train-00000-of-00001')))[1].byte
    found = check(tmp_path, 1)['findings']
    assert [one['detail'] for one in found['label']] == [
        'label -1 of 1 image in train is negative',
        'label 4 of 1 image in validation is not in labels.txt',
    ]
    assert [one['where'].partition(', byte')[0] for one in found['label']] == [
        'train-00000-of-00001, record 2',
        'validation-00000-of-00001, record 1',
    ]
    assert found['leaked'] == [
        {
            'where': 'validation-00000-of-00001, record 0, byte 0',
            'detail': f'same bytes as train-00000-of-00001, record 1, byte {second}',
        }
    ]
    (tmp_path / 'labels.txt').unlink()
    assert 'label 4 of 1 image in validation has no training image' in str(check(tmp_path, 1)['findings']['label'])
    tfrecord.write_shards(str(tmp_path), 'train', [(jpeg(1), 0, ''), (jpeg(2), 2**40, '')], 1)
    assert 'label 1099511627776 of 1 image in train would make 1099511627777 classes' in str(
        check(tmp_path, 1)['findings']['label']
    )


def test_check_of_copies(tmp_path):
    """In the order of weight: training images in the validation set, labels that contradict each other, plain copies."""
    a, b, c = (jpeg(n) for n in range(3))
    labelled = [(a, 1), (b, 1), (a, 1), (b, 2), (b'', 1), (b'', 2)]
    tfrecord.write_shards(str(tmp_path), 'train', [(*one, '') for one in labelled], 1)
    tfrecord.write_shards(str(tmp_path), 'validation', [(c, 1, ''), (b, 2, ''), (c, 1, '')], 1)
    found = check(tmp_path, 2)['findings']
    assert list(found) == ['leaked', 'two_labels', 'undecodable', 'duplicate']

    def pairs(kind):
        return [
            tuple(map(int, re.search(r'record (\d+).*record (\d+)', f'{one["where"]} {one["detail"]}').groups()))
            for one in found[kind]
        ]

    assert (pairs('leaked'), pairs('two_labels'), pairs('duplicate')) == ([(1, 1)], [(3, 1), (1, 1)], [(2, 0), (2, 0)])
    assert found['two_labels'][0]['detail'].endswith(' with the label 1, here 2')
    assert found['duplicate'][1]['where'].startswith('validation-00000-of-00001, record 2')


@pytest.mark.skipif(not jpeg_decoder.library(), reason='no libturbojpeg of version 3 (requirements.txt has a wheel)')
def test_examine_damaged_data():
    """What decoders pass over: zeros or noise in place of data; padding in front of the end is none."""
    rng, kinds = np.random.default_rng(0), []
    for _ in range(20):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((400, 300), 2).save(file, 'JPEG', quality=90)
        encoded = file.getvalue()
        start = encoded.rindex(b'\xff\xda') + 14
        at = int(rng.integers(start, len(encoded) - 600))
        assert examine(encoded) == {}
        zeros = examine(encoded[:at] + bytes(len(encoded) - at - 2) + encoded[-2:])
        assert re.fullmatch(r'the last \d{3,} bytes of its data are zeros', zeros.get('corrupt', '')), zeros
        noise = rng.integers(0, 256, 64, np.uint8).tobytes()
        kinds += examine(encoded[:at] + noise + encoded[at + 64 :]) or ['unnoticed']
    assert sum(kind in ('corrupt', 'undecodable', 'truncated') for kind in kinds) >= 15, kinds
    for padding in (b'\0' * 30, b'\xaa' * 30):
        assert list(examine(encoded[:-2] + padding + encoded[-2:])) == ['warned']


def test_examine_never_raises():
    rng = np.random.default_rng(0)
    for encoded in [ODD[kind] for kind in ('cmyk', 'png_in_jpeg', 'other_format', 'exif_rotated')]:
        for _ in range(150):
            bad = bytearray(encoded)
            for at in rng.integers(0, min(len(bad), 600), 4):
                bad[at] = rng.integers(256)
            assert isinstance(examine(bytes(bad)), dict)
    assert examine(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n') == {'undecodable': 'not an image'}


def write(directory, number):
    (directory / str(number)).write_text('')
    return number


def test_tasks_do_not_run_ahead_of_their_results(tmp_path):
    """So a conversion that is killed has to repeat only a few shards."""
    results = spread(write, tmp_path, [(number,) for number in range(40)], 2)
    found = [next(results)]
    assert len(os.listdir(tmp_path)) <= 5  # whenever one looks
    assert sorted(found + list(results)) == list(range(40))


def test_death_of_a_worker_process(tmp_path):
    with pytest.raises(InputError, match='a worker process was killed: .*; use fewer --workers'):
        list(spread(lambda *_: os.kill(os.getpid(), signal.SIGKILL), None, [()]))
