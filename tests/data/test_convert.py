"""Conversion keeps bytes and labels, goes on after an end, and refuses what does not fit."""

import fcntl
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from src.data import tfrecord
from src.data.check import check
from src.data.convert import convert
from src.data.image import as_jpeg
from src.data.records import open_records
from tests.data.samples import ODD, ROOT, cli, fails, message, write_folder


def test_order_is_shuffled_and_the_same_again(sets, tmp_path):
    call = ['--src', sets / 'folder', '--dst', tmp_path, '--format', 'tfrecord', '--shards', 3, '--workers', 2]
    assert cli('convert', *call).returncode == 0
    shards = [f'{split}-{n:05d}-of-00003' for split in ('train', 'validation') for n in range(3)]
    assert all((sets / 'tf' / name).read_bytes() == (tmp_path / name).read_bytes() for name in shards)
    labels = open_records(sets / 'tf', 'train').label.tolist()
    assert labels != sorted(labels)
    assert sorted(os.listdir(tmp_path)) == ['.lock', 'convert.json', 'labels.txt', *shards]


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
        ({'shards': 2}, 'is of shards 3, now 2'),
        ({'layout': 'mindrecord'}, 'is of format tfrecord, now mindrecord'),
    ]:
        assert part in message(convert, **{**same, **change})
    stamp = json.loads((dst / 'convert.json').read_text())
    for entry in stamp['shards'].values():  # as earlier versions wrote it
        entry['pictures'] = entry.pop('images')
    (dst / 'convert.json').write_text(json.dumps(stamp))
    assert sum(entry['images'] for entry in convert(src, dst, 'tfrecord', 3, workers=1).values()) == 27
    write_folder(src, 'train', ['dog'], 9)
    assert 'is of source {' in message(convert, src, dst, 'tfrecord', 3)
    (dst / 'convert.json').write_text('{')
    assert 'convert.json: is damaged' in message(convert, src, dst, 'tfrecord', 3)
    (dst / 'convert.json').unlink()
    assert 'convert.json: is missing, but labels.txt is there' in message(convert, src, dst, 'tfrecord', 3)


def test_convert_errors(sets, tmp_path):
    src, new = sets / 'folder', tmp_path / 'new'
    good = {'src': src, 'dst': new, 'layout': 'tfrecord', 'shards': 1}
    for change, part in [
        ({'shards': 0}, '0 shards for 21 train images'),
        ({'shards': 7}, '7 shards for 6 validation images; give --shards 1 to 6'),
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
    call = [sys.executable, '-m', 'src.data.convert', '--src', src, '--dst', dst, '--format', 'tfrecord']
    call += ['--shards', '60', '--workers', '2']
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
    assert all(not record.problem for name in kept for record in tfrecord.walk(str(dst / name)))  # whole, all of them
    assert subprocess.run(call, cwd=ROOT, capture_output=True).returncode == 0
    rewritten = [name for name, stamp in kept.items() if os.stat(dst / name).st_mtime_ns != stamp]
    assert len(rewritten) <= 4  # named, but not yet noted when the run was killed
    convert(src, whole, 'tfrecord', 60, workers=1)
    assert set(os.listdir(dst)) == set(os.listdir(whole)) == names | {'.lock', 'convert.json', 'labels.txt'}
    assert all((dst / n).read_bytes() == (whole / n).read_bytes() for n in names)


def test_two_at_a_time(sets, tmp_path):
    with open(tmp_path / '.lock', 'w') as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # of this process, as seen by another one
        call = ['--src', sets / 'folder', '--dst', tmp_path, '--format', 'tfrecord', '--shards', 1]
        fails(cli('convert', *call), 'is in use by another process; wait until it finishes or give another --dst')


@pytest.mark.parametrize('layout', ['tfrecord', 'mindrecord'])
def test_fix(odd, tmp_path, layout):
    dst = tmp_path / layout
    call = ['--src', odd, '--dst', dst, '--format', layout, '--shards', 2]
    if layout == 'tfrecord':
        run = cli('convert', *call)
        fails(run, '3 images cannot be decoded', '--fix')
        bad = [line for line in run.stderr.splitlines() if line.startswith('bad: ')]
        names = sorted(re.search('([a-z]+).jpg: ', line)[1] for line in bad)
        assert names == ['empty', 'truncated', 'undecodable']
        assert 'lacks shard' in message(open_records, dst, 'train') or not list(dst.glob('train-*'))
    run = cli('convert', *call, '--fix')
    assert run.returncode == 0, run.stderr
    assert all(
        part in run.stdout
        for part in (
            'train, 13 images in 2 shards',
            '3 images left out',
            '4 images, CMYK or no JPEG, re-encoded',
            '1 image turned upright or put on white, re-encoded',
        )
    ), run.stdout
    assert run.stderr.count('left out: ') == 3 and 'empty.jpg: no bytes' in run.stderr
    records = open_records(dst, 'train')
    images = {records.read(i) for i in range(13)}
    original = {p.read_bytes() for p in (odd / 'train').glob('*/*')}
    assert len(images & original) == 13 - 4 - 1 - 1  # one of the others is there twice
    for fixed in images - original:
        with Image.open(io.BytesIO(fixed)) as image:
            size = (40, 48) if fixed == as_jpeg(ODD['exif_rotated'], True) else (48, 40)
            assert (image.format, image.mode, image.size) == ('JPEG', 'RGB', size)
    assert {as_jpeg(ODD['cmyk']), as_jpeg(ODD['exif_rotated'], True)} <= images - original
    assert set(check(dst, 1)['findings']) == {'greyscale', 'tiny', 'huge', 'two_labels'}
    assert '3 images left out' in cli('convert', *call, '--fix').stdout  # which the first run did
