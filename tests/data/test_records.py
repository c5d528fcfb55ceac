"""Every layout opens alike; conversion keeps bytes and labels; the check finds what was planted."""

import io
import json
import os
import pickle
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data import jpeg as jpeg_decoder
from src.data import mindrecord, tfrecord
from src.data.check import check
from src.data.convert import convert
from src.data.image import examine, rgb_jpeg
from src.data.records import find_format, open_records
from src.errors import InputError

ROOT = str(Path(__file__).resolve().parents[2])


def jpeg(seed=0, size=(48, 40), mode='RGB', form='JPEG', **kw):
    bands = np.random.default_rng(seed).integers(0, 256, (4, 5, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(bands, 'RGBX').convert('RGB').convert(mode).resize(size, 2).save(file, form, **kw)
    return file.getvalue()


def write_folder(path, split, classes, per_class, seed=0, extension='.jpg'):
    for c, name in enumerate(classes):
        (path / split / name).mkdir(parents=True, exist_ok=True)
        for k in range(per_class):
            (path / split / name / f'{name}_{k}{extension}').write_bytes(jpeg([seed, c, k]))
    return path


def content(records, shift=0):
    return sorted((records.read(i), int(records.label[i]) - shift) for i in range(len(records)))


def message(call, *args, **kw):
    with pytest.raises(InputError) as caught:
        call(*args, **kw)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def cli(module, *args, **kw):
    command = [sys.executable, '-m', f'src.data.{module}', *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **kw)


def fails(run, *parts):
    last = run.stderr.splitlines()[-1]
    assert run.returncode == 2 and last.startswith('error: ') and 'Traceback' not in run.stderr, run.stderr
    assert all(part in last for part in parts), last


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    """Same pictures in all layouts: folder to TFRecord to MindRecord to TFRecord; folder to MindRecord"""
    top = tmp_path_factory.mktemp('sets')
    folder = write_folder(top / 'folder', 'train', ['cat', 'dog', 'emu'], 7)
    write_folder(folder, 'val', ['cat', 'emu'], 3, seed=1)
    for src, dst, layout, shards in [
        ('folder', 'tf', 'tfrecord', 3),
        ('tf', 'mr', 'mindrecord', 2),
        ('mr', 'tf2', 'tfrecord', 1),
        ('folder', 'mr0', 'mindrecord', 4),
    ]:
        convert(str(top / src), str(top / dst), layout, shards, workers=1)
    return top


@pytest.mark.parametrize('layout, shift', [('tf', 1), ('mr', 1), ('tf2', 1), ('mr0', 0), ('folder', 0)])
def test_layouts(sets, layout, shift):
    form = {'tf': 'tfrecord', 'mr': 'mindrecord'}.get(layout[:2], 'folder')
    assert find_format(str(sets / layout)) == form
    for split, count, labels in (('train', 21, {0, 1, 2}), ('validation', 6, {0, 2})):
        records, plain = open_records(sets / layout, split), open_records(sets / 'folder', split, 'folder')
        assert content(records, shift) == content(plain)
        assert len(records) == count and records.label.dtype == 'i8' and set(records.label - shift) == labels
        assert records.class_names == ['background'] * shift + ['cat', 'dog', 'emu']
        assert str(sets / layout) in records.where(count - 1) and records.name(0).endswith('.jpg')
        assert records.size(2) == len(records.read(2)) and type(records.read(0)) is bytes
        again = pickle.loads(pickle.dumps(records))
        assert content(again) == content(records) and again.where(1) == records.where(1)
        pid = os.fork()
        if not pid:
            os._exit(records.read(0) != again.read(0))
        assert os.waitpid(pid, 0)[1] == 0


def test_order_is_shuffled_by_the_seed_alone(sets, tmp_path):
    for name, seed in (('a', 0), ('b', 5), ('c', 5)):
        assert (
            cli(
                'convert',
                '--src',
                sets / 'folder',
                '--dst',
                tmp_path / name,
                '--format',
                'tfrecord',
                '--shards',
                3,
                '--seed',
                seed,
                '--workers',
                2,
            ).returncode
            == 0
        )
    shards = [f'{split}-{n:05d}-of-00003' for split in ('train', 'validation') for n in range(3)]
    first, a, b, c = ([(d / name).read_bytes() for name in shards] for d in (sets / 'tf', *map(tmp_path.joinpath, 'abc')))
    assert first == a != b == c
    labels = open_records(sets / 'tf', 'train').label.tolist()
    assert labels != sorted(labels)
    assert sorted(os.listdir(tmp_path / 'a')) == ['convert.json', 'labels.txt', *shards]


def test_mindspore_reads_our_shards(sets):
    from mindspore.dataset import MindDataset

    files = sorted(str(p) for p in (sets / 'mr').glob('train*.mindrecord'))
    rows = MindDataset(files, ['data', 'label'], shuffle=False).create_tuple_iterator(output_numpy=True)
    found = sorted((data.tobytes(), int(label)) for data, label in rows)
    assert found == content(open_records(sets / 'tf', 'train'))
    assert os.stat(files[0]).st_mode & 0o44 == os.stat(sets / 'mr' / 'labels.txt').st_mode & 0o44


def mindspore_writes(path, schema, rows, shards=1, index=()):
    from mindspore.mindrecord import FileWriter

    os.makedirs(os.path.dirname(path), exist_ok=True)
    writer = FileWriter(str(path), shards)
    writer.set_header_size(1 << 14)
    writer.set_page_size(1 << 15)
    writer.add_schema(schema, 'x')
    if index:
        writer.add_index(list(index))
    writer.write_raw_data(rows)
    writer.commit()


@pytest.mark.parametrize(
    'picture, label, kind, extra, index, where',
    [
        ('data', 'label', 'int64', {}, ['label'], 'train.mindrecord'),
        ('image_bytes', 'labels', 'int32', {'note': {'type': 'string'}}, ['note'], 'train/x.mindrecord'),
        (
            'image_encoded',
            'image_class_label',
            'int32',
            {'a': {'type': 'bytes'}, 'z': {'type': 'float64'}},
            [],
            'train_imagenet.mindrecord',
        ),
        (
            'image',
            'label',
            'int64',
            {'v': {'type': 'float32', 'shape': [-1]}, 'k': {'type': 'int32'}},
            ['k'],
            'train.mindrecord',
        ),
    ],
)
def test_other_mindrecords(tmp_path, picture, label, kind, extra, index, where):
    schema = {picture: {'type': 'bytes'}, label: {'type': kind}, **extra}
    values = {'note': 'n' * 300, 'a': b'abc', 'z': 0.5, 'v': np.ones(3, np.float32), 'k': -70000}
    labels = [0, 127, 128, 255, 256, 65536, 2**31 - 1, -1, -32, -33, -129, -40000] + [7] * 30
    others = {name: values[name] for name in extra}
    rows = [{picture: jpeg(n), label: value, **others} for n, value in enumerate(labels)]
    mindspore_writes(tmp_path / where, schema, rows, 3, index)
    records = open_records(tmp_path, 'train')
    assert content(records) == sorted((jpeg(n), value) for n, value in enumerate(labels))
    assert records.class_names is None
    files = sorted((tmp_path / where).parent.glob('*.mindrecord1'))
    files[0].unlink()
    assert 'lacks shard' in message(open_records, tmp_path, 'train')
    assert 'lacks shard' in check(tmp_path, 1)['findings']['incomplete'][0]['detail']


def test_mindrecord_columns(tmp_path):
    mindspore_writes(
        tmp_path / 'train.mindrecord',
        {'pixels': {'type': 'bytes'}, 'label': {'type': 'int32'}},
        [{'pixels': b'a', 'label': 1}],
    )
    assert 'only: label (int32), pixels (bytes)' in message(open_records, tmp_path, 'train')
    mindspore_writes(
        tmp_path / 'b/train.mindrecord',
        {'image': {'type': 'bytes'}, 'label': {'type': 'string'}},
        [{'image': b'a', 'label': 'cat'}],
    )
    assert 'no columns of type int32 or int64' in message(open_records, tmp_path / 'b', 'train')


@pytest.fixture
def mr(sets, tmp_path):
    return tmp_path, shutil.copytree(sets / 'mr0', tmp_path / 'mr')


@pytest.mark.parametrize(
    'damage, parts',
    [
        (lambda p: os.truncate(p, 1 << 20), ['record 0 at byte', 'truncated']),
        (lambda p: os.truncate(p, 100), ['has no MindRecord header']),
        (lambda p: p.write_bytes(b'x' * 5000), ['has no MindRecord header']),
        (lambda p: p.with_name(p.name + '.db').unlink(), ['lacks its index file train-00001-of-0000']),
        (lambda p: p.with_name(p.name + '.db').write_bytes(b'x' * 5000), ['file is not a database']),
        (lambda p: p.unlink(), ['lacks shard train-00001-of-00004.mindrecord']),
        (lambda p: p.write_bytes(b''), ['has no bytes']),
    ],
)
def test_damaged_mindrecord(mr, damage, parts):
    path = mr[1]
    damage(path / 'train-00001-of-00004.mindrecord')
    text = message(open_records, path, 'train')
    assert all(part in text for part in ['train-00001-of-00004.mindrecord', *parts]), text
    found = check(path, 1)
    assert found['problems'] == sum(map(len, found['findings'].values())) >= 1
    assert found['splits']['train']['records'] >= 15  # the other shards were read


def test_random_damage_of_mindrecord(mr):
    path, rng = mr[1] / 'train-00000-of-00004.mindrecord', np.random.default_rng(0)
    for file, size in ((path, 700), (path.with_name(path.name + '.db'), 16384)):
        good = file.read_bytes()
        for _ in range(150):
            bad = bytearray(good)
            for at in rng.integers(0, size, 8):
                bad[at] = rng.integers(256)
            file.write_bytes(bad)
            try:
                assert all(0 <= length < 5000 for _, length, _ in mindrecord.walk(str(path)))
            except InputError as error:
                assert path.name in str(error)
        file.write_bytes(good)


def test_folder_labels(tmp_path):
    write_folder(tmp_path, 'train', ['b', 'a', 'c'], 1, extension='.JPEG')
    write_folder(tmp_path, 'validation', ['c'], 1)
    (tmp_path / 'train' / '.hidden').mkdir()
    (tmp_path / 'train' / 'a' / 'notes.txt').write_text('no picture')
    (tmp_path / 'train' / 'a' / '.a.jpg').write_text('no picture')
    (tmp_path / 'train' / 'a' / "ä 'x.png").write_bytes(jpeg(form='PNG'))

    def labels():
        return tuple(open_records(tmp_path, split).label.tolist() for split in ('train', 'validation'))

    assert labels() == ([0, 0, 1, 2], [2])
    assert open_records(tmp_path, 'train').read(1) == jpeg(form='PNG')
    for text, expected in [
        ('c\nb\n\na\n', ([2, 2, 1, 0], [0])),
        ('1:c\n2:b\n5: a\n', ([5, 5, 2, 1], [1])),
        ('0:x\n1:c\n2:b\n3:a\n', ([3, 3, 2, 1], [1])),
    ]:
        (tmp_path / 'labels.txt').write_text(text)
        assert labels() == expected
    assert open_records(tmp_path, 'train').class_names == ['x', 'c', 'b', 'a']
    for text, part in [
        ('a\nb\n', "/c' is not in labels.txt"),
        ('0:a\n0:b\n1:c', "names label 0 twice, 'a' and 'b'"),
        ('0:a\nb\n', "'b' is no line"),
        ('a\na\nb\nc', 'names a class twice'),
        ('999999999:a\n', "/a' is not in labels.txt"),
        ('', "/a' is not in labels.txt"),
    ]:
        (tmp_path / 'labels.txt').write_text(text)
        assert part in message(open_records, tmp_path, 'train')
    (tmp_path / 'labels.txt').unlink()
    write_folder(tmp_path, 'validation', ['d'], 1)
    assert "validation/d' is not in" in message(open_records, tmp_path, 'validation')
    (tmp_path / 'val').mkdir()
    assert 'both validation and val' in message(open_records, tmp_path, 'validation')


def test_layout_errors(sets, tmp_path):
    for value, part in [('', "directory is ''"), (tmp_path / 'no', 'No such file'), (tmp_path, 'is empty')]:
        assert part in message(open_records, value, 'train')
    names = ['flowers_validation_00000-of-00005.tfrecord', 'imagenet.mindrecord0', 'pictures.zip']
    for name, part in zip(
        names,
        [
            'named like validation-00000-of-00005: rename or link flowers_validation',
            'start their names',
            'only pictures.zip; give the directory above',
        ],
    ):
        (tmp_path / name).write_bytes(b'x')
        text = message(open_records, tmp_path, 'train')
        assert all(p in text for p in (part, 'train-?????-of-????? (tfrecord)', 'train/<class>/*.jpg')), text
        (tmp_path / name).unlink()
    both = shutil.copytree(sets / 'tf', tmp_path / 'both')
    shutil.copytree(sets / 'folder' / 'val', both / 'val')
    assert 'tfrecord (train-00000-of-00003) and folder (val/cat); give dataset_format' in message(
        open_records, both, 'train'
    )
    assert len(open_records(both, 'train', 'tfrecord')) == 21
    assert len(open_records(both, 'validation', 'folder')) == 6
    assert "dataset_format is 'zip'; give auto, tfrecord" in message(open_records, both, 'train', 'zip')
    assert 'no MindRecord file of the split train' in message(open_records, both, 'train', 'mindrecord')
    assert 'no train folder' in message(open_records, both, 'train', 'folder')
    (tmp_path / 'empty' / 'train' / 'a').mkdir(parents=True)
    assert 'no picture in' in message(open_records, tmp_path / 'empty', 'train')
    (tmp_path / 'shards').mkdir()
    for n in range(9):
        (tmp_path / 'shards' / f'train-0000{n}-of-00010').write_bytes(b'x')
    assert 'lacks shard train-00009-of-00010' in message(open_records, tmp_path / 'shards', 'train')
    with pytest.raises(ValueError, match="split 'test'"):
        open_records(both, 'test')


def test_kept_and_refused(sets, tmp_path):
    src, dst = shutil.copytree(sets / 'folder', tmp_path / 'src'), tmp_path / 'dst'
    convert(src, dst, 'tfrecord', 3, workers=1)
    before = {name: os.stat(dst / name).st_mtime_ns for name in os.listdir(dst) if '-of-' in name}
    (dst / 'train-00001-of-00003').write_bytes(b'cut off')
    (dst / 'convert.partial').mkdir()
    (dst / 'convert.partial' / 'train-00001-of-00003').write_bytes(b'half')
    convert(src, dst, 'tfrecord', 3, workers=1, fix=True)  # nothing was to be fixed, so all shards stay
    changed = [name for name in before if os.stat(dst / name).st_mtime_ns != before[name]]
    assert changed == ['train-00001-of-00003'] and not (dst / 'convert.partial').exists()
    assert (dst / changed[0]).read_bytes() == (sets / 'tf' / changed[0]).read_bytes()
    same = {'src': src, 'dst': dst, 'layout': 'tfrecord', 'shards': 3}
    for change, part in [
        ({'seed': 1}, 'with seed 0, now 1'),
        ({'shards': 2}, 'with shards 3, now 2'),
        ({'layout': 'mindrecord'}, 'format tfrecord, now mindrecord'),
    ]:
        assert part in message(convert, **{**same, **change})
    write_folder(src, 'train', ['dog'], 9)
    assert 'with source {' in message(convert, src, dst, 'tfrecord', 3)
    (dst / 'convert.json').write_text('{')
    assert "convert.json' is damaged" in message(convert, src, dst, 'tfrecord', 3)
    (dst / 'convert.json').unlink()
    assert 'holds labels.txt, not made by a conversion' in message(convert, src, dst, 'tfrecord', 3)


def test_convert_errors(sets, tmp_path):
    src, new = sets / 'folder', tmp_path / 'new'
    good = {'src': src, 'dst': new, 'layout': 'tfrecord', 'shards': 1}
    for change, part in [
        ({'shards': 0}, '0 shards for 21 train pictures'),
        ({'layout': 'zip'}, "format is 'zip'"),
        ({'shards': 7}, '7 shards for 6 validation pictures; give --shards 1 to 6'),
        ({'seed': -1}, 'seed is -1'),
        ({'workers': 0}, 'workers is 0'),
        ({'dst': src}, 'are both'),
        ({'src': new}, 'No such file'),
    ]:
        assert part in message(convert, **{**good, **change})
    file = tmp_path / 'file'
    file.write_text('x')
    fails(cli('convert', '--src', src, '--dst', file, '--format', 'tfrecord', '--shards', 1), 'file: ')
    assert not new.exists()


def test_killed_half_way(tmp_path):
    src = write_folder(tmp_path / 'src', 'train', ['a', 'b'], 300)
    dst, whole = tmp_path / 'dst', tmp_path / 'whole'
    call = [
        sys.executable,
        '-m',
        'src.data.convert',
        '--src',
        str(src),
        '--dst',
        str(dst),
        '--format',
        'tfrecord',
        '--shards',
        '60',
        '--workers',
        '2',
    ]
    names = {f'train-{n:05d}-of-00060' for n in range(60)}

    def finished():
        return names & set(os.listdir(dst)) if dst.exists() else set()

    run = subprocess.Popen(call, cwd=ROOT, stderr=subprocess.DEVNULL)
    while run.poll() is None and len(finished()) < 5:
        time.sleep(0.002)
    with open(f'/proc/{run.pid}/task/{run.pid}/children') as file:
        children = file.read().split()
    run.send_signal(signal.SIGKILL)
    run.wait()
    for _ in range(200):
        alive = [c for c in children if os.path.exists(f'/proc/{c}') and ') Z ' not in Path(f'/proc/{c}/stat').read_text()]
        if not alive:
            break
        time.sleep(0.02)
    kept = {name: os.stat(dst / name).st_mtime_ns for name in finished()}
    assert not alive and len(children) == 2 and 5 <= len(kept) < 60
    tfrecord.index_shards([str(dst / name) for name in kept])  # whole, all of them
    assert subprocess.run(call, cwd=ROOT, capture_output=True).returncode == 0
    rewritten = [name for name, stamp in kept.items() if os.stat(dst / name).st_mtime_ns != stamp]
    assert len(rewritten) <= 4  # named, but not yet noted when the run was killed
    convert(src, whole, 'tfrecord', 60, workers=1)
    assert set(os.listdir(dst)) == set(os.listdir(whole)) == names | {'convert.json', 'labels.txt'}
    assert all((dst / n).read_bytes() == (whole / n).read_bytes() for n in names)


def test_two_at_a_time(sets, tmp_path):
    import fcntl

    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert 'another conversion writes to' in message(convert, sets / 'folder', tmp_path, 'tfrecord', 1)
    os.close(lock)


TURNED = Image.Exif()
TURNED[0x112] = 6
ODD = {
    'cmyk': jpeg(1, mode='CMYK'),
    'greyscale': jpeg(2, mode='L'),
    'png_in_jpeg': jpeg(3, form='PNG'),
    'other_format': jpeg(4, form='BMP'),
    'tiny': jpeg(5, size=(31, 60)),
    'huge': jpeg(6, size=(5000, 4001)),
    'truncated': jpeg(7)[:-60],
    'undecodable': b'no picture at all',
    'exif_rotated': jpeg(8, exif=TURNED),
    'two_labels': jpeg([0, 0, 0]),
}


@pytest.fixture
def odd(tmp_path):
    path = write_folder(tmp_path / 'odd', 'train', ['a', 'b'], 2)
    for kind, encoded in ODD.items():
        (path / 'train' / 'b' / f'{kind}.jpg').write_bytes(encoded)
    (path / 'train' / 'b' / 'empty.jpg').write_bytes(b'')
    (path / 'train' / 'b' / 'real.png').write_bytes(jpeg(9, form='PNG'))  # a PNG that says so
    return path


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
    fails(cli('check', tmp_path), 'is empty; give')
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
        'label -1 of 1 picture in train is negative',
        'label 4 of 1 picture in validation is not in labels.txt',
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
    assert 'label 4 of 1 picture in validation has no training picture' in str(check(tmp_path, 1)['findings']['label'])
    tfrecord.write_shards(str(tmp_path), 'train', [(jpeg(1), 0, ''), (jpeg(2), 2**40, '')], 1)
    assert 'label 1099511627776 of 1 picture in train would make 1099511627777 classes' in str(
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


@pytest.mark.parametrize('layout', ['tfrecord', 'mindrecord'])
def test_fix(odd, tmp_path, layout):
    dst = tmp_path / layout
    call = ['--src', odd, '--dst', dst, '--format', layout, '--shards', 2]
    if layout == 'tfrecord':
        run = cli('convert', *call)
        fails(run, '3 pictures cannot be decoded', '--fix')
        bad = [line for line in run.stderr.splitlines() if line.startswith('bad: ')]
        names = sorted(re.search('([a-z]+).jpg: ', line)[1] for line in bad)
        assert names == ['empty', 'truncated', 'undecodable']
        assert 'lacks shard' in message(open_records, dst, 'train') or not list(dst.glob('train-*'))
    run = cli('convert', *call, '--fix')
    assert run.returncode == 0, run.stderr
    assert all(
        part in run.stdout
        for part in (
            'train, 13 pictures in 2 shards',
            '3 pictures left out',
            '4 pictures, CMYK or no JPEG, re-encoded',
            '1 picture turned upright as their EXIF orientation says, re-encoded',
        )
    ), run.stdout
    assert run.stderr.count('left out: ') == 3 and 'empty.jpg: no bytes' in run.stderr
    records = open_records(dst, 'train')
    pictures = {records.read(i) for i in range(13)}
    original = {p.read_bytes() for p in (odd / 'train').glob('*/*')}
    assert len(pictures & original) == 13 - 4 - 1 - 1  # one of the others is there twice
    for fixed in pictures - original:
        with Image.open(io.BytesIO(fixed)) as picture:
            size = (40, 48) if fixed == rgb_jpeg(ODD['exif_rotated'], True) else (48, 40)
            assert (picture.format, picture.mode, picture.size) == ('JPEG', 'RGB', size)
    assert {rgb_jpeg(ODD['cmyk']), rgb_jpeg(ODD['exif_rotated'], True)} <= pictures - original
    assert set(check(dst, 1)['findings']) == {'greyscale', 'tiny', 'huge', 'two_labels'}
    assert '3 pictures left out' in cli('convert', *call, '--fix').stdout  # which the first run did


def test_examine_never_raises():
    rng = np.random.default_rng(0)
    for encoded in [ODD[kind] for kind in ('cmyk', 'png_in_jpeg', 'other_format', 'exif_rotated')]:
        for _ in range(150):
            bad = bytearray(encoded)
            for at in rng.integers(0, min(len(bad), 600), 4):
                bad[at] = rng.integers(256)
            assert isinstance(examine(bytes(bad)), dict)
    assert examine(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n') == {'undecodable': 'not a picture'}


def test_sqlite_with_other_content(mr):
    path = mr[1] / 'train-00000-of-00004.mindrecord'
    for change in (
        'PAGE_ID_BLOB = -1',
        "PAGE_OFFSET_BLOB = 'x'",
        'PAGE_OFFSET_RAW_END = 1 << 60',
        'PAGE_OFFSET_RAW = 3',
        'PAGE_OFFSET_BLOB = PAGE_OFFSET_BLOB_END - 8',
    ):
        copy = shutil.copytree(mr[1], mr[0] / 'copy', dirs_exist_ok=True)
        with sqlite3.connect(copy / (path.name + '.db')) as index:
            index.execute('UPDATE INDEXES SET ' + change)
        index.close()
        text = message(open_records, copy, 'train')
        assert f"{path.name}', record 0 at byte" in text, text
    header = json.dumps({'header_size': 1, 'page_size': True}).encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header)
    assert 'has no MindRecord header' in message(open_records, mr[1], 'train')


def test_names_of_any_bytes(tmp_path):
    for split in ('train', 'validation'):
        for name in (b'\xff, record 7', 'ä\n'.encode(), b'plain'):
            folder = os.fsencode(tmp_path / 'src' / split) + b'/' + name
            os.makedirs(folder)
            for k, file in enumerate((b'\xfe.jpg', b'%s %d.jpg')):
                Path(os.fsdecode(folder + b'/' + file)).write_bytes(jpeg([k, *name, len(split)]))
    for src, dst, layout in [('src', 'a, record 3', 'tfrecord'), ('a, record 3', 'b', 'mindrecord')]:
        run = cli('convert', '--src', tmp_path / src, '--dst', tmp_path / dst, '--format', layout, '--shards', 1)
        assert run.returncode == 0, run.stderr
        for split in ('train', 'validation'):
            plain = open_records(tmp_path / 'src', split)
            assert content(open_records(tmp_path / dst, split), 1) == content(plain)
        assert cli('check', tmp_path / dst).returncode == 0
    names = open_records(tmp_path / 'b', 'train').class_names
    assert names == ['background', 'plain', 'ä', os.fsdecode(b'\xff, record 7')]
    (tmp_path / 'src' / 'train' / 'plain' / os.fsdecode(b'\xfd.jpg')).write_bytes(b'')
    run = cli('check', tmp_path / 'src')
    assert run.returncode == 1 and 'plain/\\udcfd.jpg: no bytes' in run.stdout


def test_reading_needs_no_mindspore(sets):
    code = (
        'import sys\nfrom src.data import check, convert\nfrom src.data.records import open_records\n'
        f"for name in ('tf', 'mr', 'folder'): open_records({str(sets)!r} + '/' + name, 'train').read(3)\n"
        "sys.exit('mindspore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
