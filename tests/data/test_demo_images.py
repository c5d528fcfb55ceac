"""The demo data set."""

import io
import os
from collections import Counter

from PIL import Image

from src.data import demo_images
from src.data.records import open_records
from tests.data.samples import message


def tree(directory):
    return {name: (directory / name).read_bytes() for name in os.listdir(directory)}


def test_demo(tmp_path):
    settings = {'train_per_class': 2, 'validation_per_class': 1}
    a, b, c = (tmp_path / name for name in 'abc')
    for where, seed in ((a, 1), (b, 1), (c, 2)):
        assert demo_images.make(str(where), seed, **settings) == str(where)
    assert tree(a) == tree(b)
    assert all(tree(a)[n] != tree(c)[n] for n in tree(a) if n != 'labels.txt')
    assert (a / 'labels.txt').read_text().splitlines()[0] == '1:red striped disc'
    images = []
    for split, per_class in (('train', 2), ('validation', 1)):
        index = open_records(str(a), split)
        assert Counter(index.label.tolist()) == dict.fromkeys(range(1, 11), per_class)
        assert index.label.tolist() != sorted(index.label)
        images += [index.read(i) for i in range(len(index))]
    sizes = {Image.open(io.BytesIO(p)).size for p in images}
    assert len(set(images)) == 30 and len(sizes) > 20
    assert 120 <= min(map(min, sizes)) <= max(map(max, sizes)) <= 320
    classes = list(demo_images.CLASSES.values())
    assert len(set(classes)) == 10
    for cue in range(3):
        assert len({c[cue] for c in classes}) == 4  # so it tells at most 4 of 10 classes
        assert len({c[:cue] + c[cue + 1 :] for c in classes}) < 10  # and the other two do not tell all

    before = os.stat(a / 'train-00000-of-00002').st_mtime_ns
    demo_images.make(str(a), 1, **settings)
    assert os.stat(a / 'train-00000-of-00002').st_mtime_ns == before  # complete: kept
    os.remove(a / 'validation-00001-of-00002')
    demo_images.make(str(a), 1, **settings)
    assert tree(a) == tree(b)  # incomplete: made again
    demo_images.make(str(a), 2, num_shards=1, **settings)
    assert sorted(tree(a)) == ['demo.json', 'labels.txt', 'train-00000-of-00001', 'validation-00000-of-00001']


def test_demo_errors(tmp_path):
    for name, value in [('train_per_class', 0), ('validation_per_class', 0), ('num_shards', 0), ('seed', -1)]:
        assert f'{name} is {value}; ' in message(demo_images.make, str(tmp_path), **{name: value})
    (tmp_path / 'train-00000-of-01024').write_bytes(b"somebody's ImageNet")
    assert 'holds train-00000-of-01024, not made by the demo' in message(demo_images.make, str(tmp_path))
    assert os.listdir(tmp_path) == ['train-00000-of-01024']
