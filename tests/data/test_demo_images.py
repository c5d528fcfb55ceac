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
    for where, seed in ((a, 1), (b, 2), (b, 1), (c, 2)):  # in place of an earlier demo, too
        assert demo_images.make(where, seed, **settings) == where
        trees.append({name: Path(where, name).read_bytes() for name in os.listdir(where)})
    assert trees[0].pop('labels.txt').startswith(b'1:red striped disc\n') and trees[2].items() > trees[0].items()
    assert all(trees[0][name] != trees[3][name] for name in trees[0])
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


def test_what_the_demo_does_not_do(tmp_path):
    assert message(demo_images.make, tmp_path, 1, 0).startswith(
        "seed 1, images of each class {'train': 0, 'validation': 20}; "
    )
    (tmp_path / 'train-00000-of-01024').write_bytes(b"somebody's ImageNet")
    assert 'holds train-00000-of-01024, not made by the demo' in message(demo_images.make, str(tmp_path))
    assert os.listdir(tmp_path) == ['train-00000-of-01024']
