"""The demo data set."""

import io
import os
from collections import Counter
from pathlib import Path

from PIL import Image

from src.data import demo_images
from src.data.records import open_records
from tests.data.samples import message


def test_demo(tmp_path):
    settings = {'train_per_class': 2, 'validation_per_class': 1}
    a, b, c = (str(tmp_path / name) for name in 'abc')
    trees = []
    for where, seed in ((a, 1), (b, 1), (c, 2)):
        assert demo_images.make(where, seed, **settings) == where
        trees.append({name: Path(where, name).read_bytes() for name in os.listdir(where)})
    names = trees[1].pop('labels.txt') and trees[0].pop('labels.txt').decode()
    assert names.startswith('1:red striped disc\n') and trees[0] == trees[1]
    assert all(trees[0][name] != trees[2][name] for name in trees[0])
    images = []
    for split, per_class in (('train', 2), ('validation', 1)):
        records = open_records(a, split)
        assert Counter(records.label.tolist()) == dict.fromkeys(range(1, 11), per_class)
        assert records.label.tolist() != sorted(records.label)
        images += [records.read(i) for i in range(len(records))]
    sizes = {Image.open(io.BytesIO(encoded)).size for encoded in images}
    assert len(set(images)) == 30 and len(sizes) > 20
    assert 120 <= min(map(min, sizes)) <= max(map(max, sizes)) <= 320
    classes = list(demo_images.CLASSES.values())
    assert len(set(classes)) == 10
    for cue in range(3):
        assert len({c[cue] for c in classes}) == 4  # so it tells at most 4 of 10 classes
        assert len({c[:cue] + c[cue + 1 :] for c in classes}) < 10  # and the other two do not tell all
    demo_images.make(a, 2, num_shards=1, **settings)
    assert sorted(os.listdir(a)) == ['labels.txt', 'train-00000-of-00001', 'validation-00000-of-00001']


def test_demo_errors(tmp_path):
    for name, value in [('train_per_class', 0), ('num_shards', 0), ('seed', -1)]:
        assert f'{name} is {value}; ' in message(demo_images.make, str(tmp_path), **{name: value})
    (tmp_path / 'train-00000-of-01024').write_bytes(b"somebody's ImageNet")
    assert 'holds train-00000-of-01024, not made by the demo' in message(demo_images.make, str(tmp_path))
    assert os.listdir(tmp_path) == ['train-00000-of-01024']
