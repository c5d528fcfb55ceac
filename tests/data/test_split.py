"""Photos are split by class and seed, copies stay on one side, nothing is lost, and the list is a source of conversion."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from src.data.convert import convert
from src.data.records import open_records
from src.data.split import choose_validation, open_list, split, write_list
from tests.data.samples import ODD, cli, fails, jpeg, message, write_folder


@pytest.mark.parametrize('seed', range(6))
def test_copies_stay_on_one_side(seed):
    """Of random images in four classes, some with copies in their class or in others, which only train."""
    rng = np.random.default_rng(seed)
    label, group = rng.integers(0, 4, 80), np.where(rng.random(80) < 0.8, np.arange(80), rng.integers(0, 80, 80))
    chosen = choose_validation(label, group, seed)
    for here in (group == one for one in np.unique(group)):
        assert len({*chosen[here]}) == 1 and (len({*label[here]}) == 1 or not chosen[here].any())
    for here in (label == number for number in range(4)):
        assert 0 < chosen[here].sum() <= round(0.2 * here.sum())


def test_a_fifth_of_every_class_by_the_seed():
    label, group = np.repeat([0, 1, 2, 3], [2, 10, 57, 100]), np.arange(169)
    found = [choose_validation(label, group, seed) for seed in (1, 1, 2)]
    assert all(np.bincount(label[chosen]).tolist() == [1, 2, 11, 20] for chosen in found)
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    # Another class beside them changes nothing for the others.
    assert np.array_equal(choose_validation(np.r_[label, [4] * 20], np.arange(189), 1)[:169], found[0])
    # Where no image fits into a fifth with its copies, the one with the fewest copies is taken.
    assert choose_validation(np.zeros(9, int), np.repeat([0, 1], [5, 4]), 1).tolist() == [False] * 5 + [True] * 4


@pytest.fixture
def photos(tmp_path):
    """Odd names, formats and copies, and files that are no images."""
    path = tmp_path / 'my photos'
    for number, name in enumerate(['Ähnliches & Co', 'кошки', 'dog\'s, "new"\nline', '猫']):
        (path / name).mkdir(parents=True)
        for k in range(7):
            form, ending = [('JPEG', 'JPG'), ('PNG', 'png'), ('WEBP', 'webp'), ('GIF', 'gif'), ('BMP', 'bmp')][k % 5]
            (path / name / f' {k} é.{ending}').write_bytes(jpeg([number, k], form=form))
    for copy in ('猫/copy of 0.jpg', '猫/z.jpg', 'кошки/also a 猫.jpg'):
        shutil.copy(path / '猫' / ' 0 é.JPG' if '猫/' in copy else path / '猫' / ' 1 é.png', path / copy)
    (path / '猫' / os.fsdecode(b'not UTF-8 \xff.jpg')).write_bytes(ODD['cmyk'])
    for name, data in {'broken.jpg': b'no image', 'cut off.jpg': jpeg(7)[:-60], 'notes.txt': b''}.items():
        (path / '猫' / name).write_bytes(data)
    return path


def test_odd_photos(photos, tmp_path):
    """Every image is in the list once, all else is named; the list is written, read and converted without a loss."""
    done = cli('split', photos, tmp_path / 'a list.csv', '--seed', 3)
    assert done.returncode == 0 and '4 classes, 26 photos to train with, 6 to validate with' in done.stdout, done.stderr
    found = open_list(tmp_path / 'a list.csv')
    listed = Counter(records.where(i) for records in found.values() for i in range(len(records)))
    bad = {str(photos / '猫' / name) for name in ('broken.jpg', 'cut off.jpg', 'notes.txt')}
    assert listed.keys() == {*map(str, photos.glob('*/*'))} - bad and set(listed.values()) == {1}
    assert all(os.path.basename(path) in done.stderr for path in bad)
    assert all(r.class_names[r.label[i]] == Path(r.where(i)).parent.name for r in found.values() for i in range(len(r)))
    made = convert(tmp_path / 'a list.csv', tmp_path / 'shards', 'tfrecord', 2, fix=True, workers=1)
    assert made['left out, listed above'] == 0
    for part, records in found.items():
        shards = open_records(tmp_path / 'shards', part)
        assert Counter(shards.label.tolist()) == Counter((records.label + 1).tolist())
        stored, original = ({r.read(i) for i in range(len(r))} for r in (shards, records))
        jpegs = {encoded for encoded in original if encoded.startswith(b'\xff\xd8')} - {ODD['cmyk']}
        assert jpegs and jpegs <= stored and all(encoded.startswith(b'\xff\xd8') for encoded in stored)
    assert shards.class_names[1:] == found['train'].class_names
    for seed in range(4):
        side = {os.path.basename(path): part for part, name, path in split(photos, seed, workers=1)[0] if name == '猫'}
        assert side[' 0 é.JPG'] == side['copy of 0.jpg'] == side['z.jpg']
        assert side[' 1 é.png'] == 'train'  # also in another class


def only_copies(path):
    (path / 'c').mkdir()
    for k in range(2):
        shutil.copy(path / 'a' / f'a_{k}.jpg', path / 'c')


@pytest.mark.parametrize(
    'spoil, part',
    [
        (lambda path: write_folder(path, '', ['c'], 1), "class 'c' has too few photos"),
        (only_copies, "class 'c' has too few photos"),
        (lambda path: (path / 'empty').mkdir(), 'empty holds no image'),
        (lambda path: shutil.rmtree(path / 'b'), 'one class folder'),
    ],
)
def test_bad_photos(tmp_path, spoil, part):
    path = write_folder(tmp_path / 'photos', '', ['a', 'b'], 4)
    spoil(path)
    assert part in message(split, path, workers=1)


def test_bad_lists(tmp_path):
    path = write_folder(tmp_path / 'photos', '', ['a', 'b'], 4)
    rows, _ = split(path, workers=1)
    for text, part in [
        ('part,class,path\n', 'no first line part,class,path with photos below'),
        ('part,class,path\ntest,a,1.jpg\n', "record 2: 'test,a,1.jpg'"),
    ]:
        (tmp_path / 'bad.csv').write_text(text)
        assert part in message(convert, tmp_path / 'bad.csv', tmp_path / 'dst', 'tfrecord', 1)
        assert part in message(write_list, rows, tmp_path / 'bad.csv') and (tmp_path / 'bad.csv').read_text() == text
    assert 'No such file' in message(write_list, rows, tmp_path / 'no/such.csv')
    fails(cli('split', path, tmp_path / 'list.csv', '--seed', -1), 'seed is -1')
    write_list([('train', 'a', 'photos/a/a_0.jpg')], tmp_path / 'relative.csv')
    assert open_list(tmp_path / 'relative.csv')['train'].read(0) == (path / 'a/a_0.jpg').read_bytes()
