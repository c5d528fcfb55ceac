"""Conversion keeps bytes and labels, continues after an end, and refuses what does not fit."""

import fcntl
import io
import os
import re
import shutil
import signal
import subprocess
import sys

from PIL import Image

from src.data.check import check
from src.data.convert import convert
from src.data.image import as_jpeg
from src.data.records import open_records
from tests.data.samples import ODD, ROOT, cli, fails, message, shards, write_folder


def test_order_is_shuffled_and_the_same_again(sets, tmp_path):
    call = ['--src', sets / 'folder', '--dst', tmp_path, '--format', 'tfrecord', '--shards', 3, '--workers', 2]
    assert cli('convert', *call).returncode == 0
    names = [f'{split}-{n:05d}-of-00003' for split in ('train', 'validation') for n in range(3)]
    assert all((sets / 'tf' / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    labels = open_records(sets / 'tf', 'train').label.tolist()
    assert labels != sorted(labels)
    assert sorted(os.listdir(tmp_path)) == ['.lock', 'convert.json', 'labels.txt', *names]


def test_what_has_no_names_gets_none(tmp_path):
    shards(tmp_path / 'src', 'train', [1, 3, 2])
    convert(str(tmp_path / 'src'), str(tmp_path / 'dst'), 'mindrecord', 1)
    records = open_records(tmp_path / 'dst', 'train')
    assert sorted(records.label) == [1, 2, 3] and records.class_names is None and records.label_base == 1


def test_what_was_made_by_something_else(sets, tmp_path):
    src, dst = shutil.copytree(sets / 'folder', tmp_path / 'src'), tmp_path / 'dst'
    convert(src, dst, 'tfrecord', 3, workers=1)
    same = {'src': src, 'dst': dst, 'layout': 'tfrecord', 'shards': 3}
    remedy = f'; remove {dst} or give another --dst'
    assert 'of another shards, now 2' + remedy in message(convert, **{**same, 'shards': 2})
    assert 'of another format, now mindrecord' + remedy in message(convert, **{**same, 'layout': 'mindrecord'})
    write_folder(src, 'train', ['dog'], 9)
    assert 'of another source, now {' in message(convert, **same)
    for text in ('{"settings": {}}', '{'):  # as earlier versions wrote it; damaged
        (dst / 'convert.json').write_text(text)
        assert message(convert, **same).endswith(remedy)
    (dst / 'convert.json').unlink()
    assert 'convert.json: labels.txt beside it was made by something else' in message(convert, **same)


def test_convert_errors(sets, tmp_path):
    src, new = sets / 'folder', tmp_path / 'new'
    good = {'src': src, 'dst': new, 'layout': 'tfrecord', 'shards': 1}
    for change, part in [
        ({'shards': 0}, '0 shards for 21 train images'),
        ({'shards': 7}, '7 shards for 6 validation images; give --shards 1 to 6'),
        ({'src': tmp_path / 'nowhere'}, 'No such file'),
    ]:
        assert part in message(convert, **{**good, **change})
    assert not new.exists()
    file = tmp_path / 'file'
    file.write_text('x')
    fails(cli('convert', '--src', src, '--dst', file, '--format', 'tfrecord', '--shards', 1), 'file: ')
    other = tmp_path / os.fsdecode(b'caf\xe9')  # names are shown as on a terminal
    call = ['--src', src, '--dst', other, '--format', 'mindrecord', '--shards', 1]
    fails(cli('convert', *call), 'caf\\udce9', "'utf-8' codec can't encode")
    with open(tmp_path / '.lock', 'w') as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # of this process, as seen by another one
        call = ['--src', src, '--dst', tmp_path, '--format', 'tfrecord', '--shards', 1]
        fails(cli('convert', *call), 'is in use by another process; wait until it finishes or give another --dst')


KILLED = """
import os, sys
from src.data import convert
write = convert.tfrecord.write_shard
def third(path, examples):
    write(path, examples)
    if 'train-00002' in str(path):
        os.kill(os.getppid(), 9)  # before it has its name
        os.read(os.pipe()[0], 1)
convert.tfrecord.write_shard = third
convert.convert(*sys.argv[1:3], 'tfrecord', 4, workers=1)
"""


def test_killed_half_way(sets, tmp_path):
    """Its workers end with it; what is finished stays, and what is not is removed by the next one."""
    dst = tmp_path / 'dst'
    run = subprocess.run([sys.executable, '-c', KILLED, sets / 'folder', dst], cwd=ROOT, capture_output=True, timeout=100)
    assert run.returncode == -signal.SIGKILL  # its pipes are closed: the worker has ended, too
    kept = {name: os.stat(dst / name).st_mtime_ns for name in os.listdir(dst) if name.startswith('train')}
    assert sorted(kept) == ['train-00000-of-00004', 'train-00001-of-00004'] and list(dst.glob('.train-*'))
    convert(sets / 'folder', dst, 'tfrecord', 4, workers=1)
    assert all(os.stat(dst / name).st_mtime_ns == time for name, time in kept.items())
    convert(sets / 'folder', tmp_path / 'whole', 'tfrecord', 4, workers=1)
    made = {path.name: path.read_bytes() for path in (tmp_path / 'whole').iterdir() if path.name != '.lock'}
    assert {path.name: path.read_bytes() for path in dst.iterdir() if path.name != '.lock'} == made


def test_fix(odd, tmp_path):
    dst = tmp_path / 'dst'
    call = ['--src', odd, '--dst', dst, '--format', 'mindrecord', '--shards', 2]
    run = cli('convert', *call)
    fails(run, '3 images cannot be decoded', '--fix')
    names = sorted(re.search('([a-z]+).jpg: ', line)[1] for line in run.stderr.splitlines() if line.startswith('bad: '))
    assert names == ['empty', 'truncated', 'undecodable'] and len([*dst.glob('train-*.mindrecord')]) < 2
    run = cli('convert', *call, '--fix')
    assert run.returncode == 0, run.stderr
    assert {*run.stdout.splitlines()} == {
        '1 image turned upright or put on white, re-encoded',
        '3 images left out, listed above',
        '3 images CMYK or no JPEG, re-encoded',
        f'{dst}: train, 10 images',
    }
    assert run.stderr.count('left out: ') == 3
    records = open_records(dst, 'train')
    images = {records.read(i) for i in range(10)}
    original = {p.read_bytes() for p in (odd / 'train').glob('*/*')}
    assert len(images & original) == 10 - 3 - 1 - 1  # one of the others is there twice
    for fixed in images - original:
        with Image.open(io.BytesIO(fixed)) as image:
            size = (40, 48) if fixed == as_jpeg(ODD['exif_rotated'], True) else (48, 40)
            assert (image.format, image.mode, image.size) == ('JPEG', 'RGB', size)
    assert {as_jpeg(ODD['cmyk']), as_jpeg(ODD['exif_rotated'], True)} <= images - original
    kinds = {'a side below 32 pixels', 'same file twice, with two labels'}
    assert {kind for kind, *_ in check(dst, 1)[0]} == kinds
