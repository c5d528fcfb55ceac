"""Names that are not UTF-8, as of old cameras and archives: they look everywhere as on the screen, and end nothing."""

import os

import pytest

from tests.data.samples import cli, fails, jpeg

PHOTO, SHOWN = os.fsdecode(b'caf\xe9'), 'caf\\udce9'
CLASS, SHOWN_CLASS = os.fsdecode(b'd\xf6g'), 'd\\udcf6g'


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Class folders, in `data` in parts; one has a file that is no image, and one that is left out."""
    place = tmp_path_factory.mktemp('photos')
    for part, count in (('data/train', 4), ('data/validation', 2), ('all', 4)):
        for c, name in enumerate(('cat', CLASS)):
            (place / part / name).mkdir(parents=True)
            for k in range(count):
                (place / part / name / f'{PHOTO}{k}.jpg').write_bytes(jpeg([c, k]))
        (place / part / 'cat' / f'{PHOTO}.jpg').write_bytes(b'no image')
        (place / part / 'cat' / f'{PHOTO}.txt').write_bytes(b'a note')
    return place


def test_programs_for_data(photos, tmp_path):
    listed, records = tmp_path / f'{PHOTO}.csv', tmp_path / f'{PHOTO}.tfrecord'
    done = cli('split', photos / 'all', listed)
    assert done.returncode == 0 and f'cat/{SHOWN}.jpg: not an image' in done.stdout + done.stderr, done.stderr
    done = cli('check', photos / 'data')
    assert done.returncode == 1 and f'cat/{SHOWN}.jpg' in done.stdout + done.stderr, done.stderr
    done = cli('convert', '--list', listed, '--dst', records, '--format', 'tfrecord', '--shards', 1, '--fix')
    assert done.returncode == 0 and f'{SHOWN}.tfrecord: train, ' in done.stdout + done.stderr, done.stderr
    assert cli('check', records).returncode == 0
    other = tmp_path / f'{PHOTO}.mindrecord'
    fails(cli('convert', '--list', listed, '--dst', other, '--format', 'mindrecord', '--shards', 1), SHOWN, 'not UTF-8')
