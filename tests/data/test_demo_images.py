"""The demo data set."""

import os
from collections import Counter

from src.data import demo_images
from src.data.image import EncodedImage
from src.data.records import open_records
from tests.data.samples import message


def test_demo(tmp_path):
    """The same images for the same seed, also in place of an earlier demo; as many of each class, in random order."""
    trees = []
    for where, seed in (('a', 1), ('b', 2), ('b', 1), ('c', 2)):
        place = demo_images.make(tmp_path / where, seed, train_per_class=2, validation_per_class=1)
        trees.append({path.name: path.read_bytes() for path in place.iterdir()})
    assert trees[0].pop('labels.txt').startswith(b'1:red striped disc\n') and trees[2].items() > trees[0].items()
    assert all(trees[0][name] != trees[3][name] for name in trees[0])
    images = []
    for split, per_class in (('train', 2), ('validation', 1)):
        records = open_records(place, split)
        assert Counter(records.label.tolist()) == dict.fromkeys(range(1, 11), per_class)
        assert records.label.tolist() != sorted(records.label)
        images += [records.read(i) for i in range(len(records))]
    assert len(set(images)) == 30 and len({EncodedImage(encoded).width for encoded in images}) > 20


def test_records_of_somebody_else_stay(tmp_path):
    (tmp_path / 'train-00000-of-01024').write_bytes(b"somebody's ImageNet")
    assert 'holds train-00000-of-01024, not made by the demo' in message(demo_images.make, str(tmp_path))
    assert os.listdir(tmp_path) == ['train-00000-of-01024']
