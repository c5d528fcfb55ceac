"""Records whose labels leave it open whether they count from 0 or from 1."""

import io
import json

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

import eval as eval_entry
import train
from src.data.preprocess import PREPROCESSING, scale
from src.data.tfrecord import write_shards
from src.inceptionv4 import InceptionV4
from src.weights import checkpoint

CLASSES, SIZE = 6, 75
NETWORK = {'block_counts': [1, 1, 1], 'image_size': SIZE}
COLOURS = [(230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 230, 30), (30, 230, 230), (240, 240, 240)]


def jpeg(number):
    """An image of the class `number` (from 0): its colour, a little darker for some."""
    file = io.BytesIO()
    Image.new('RGB', (90, 90), COLOURS[number]).save(file, 'JPEG', quality=95)
    return file.getvalue()


@pytest.fixture(scope='module')
def network(compiles):
    """{name: ndarray} of a network that recognises the colours, with `CLASSES` classes."""
    ms.set_seed(1)
    cell = InceptionV4(num_classes=CLASSES, **NETWORK).set_train(False)
    pixels = np.broadcast_to(np.array(COLOURS, np.float32)[:, :, None, None], (CLASSES, 3, SIZE, SIZE))
    found = cell.feature_maps(scale(ms.Tensor(np.ascontiguousarray(pixels)), PREPROCESSING))[0].asnumpy().mean((2, 3))
    middle = found.mean(0)
    weights = np.linalg.lstsq(found - middle, 20 * np.eye(CLASSES), rcond=1e-3)[0].T
    values = {name: p.asnumpy().copy() for name, p in cell.parameters_dict().items()}
    values['logits.weight'] = weights.astype(np.float32)
    values['logits.bias'] = (-weights @ middle).astype(np.float32)
    return values


def write(path, values, **config):
    names = config.pop('class_names', None)
    config = {'num_classes': len(values['logits.bias']), **NETWORK, **config}
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(path, values, {'config': config, **({'class_names': names} if names else {})})
    return path


def records(path, labels, split='validation', encoded=jpeg, shift=0):
    """A shard with an image of the class `label - shift` for each of `labels`."""
    write_shards(path, split, [(encoded(label - shift), label, '') for label in labels], 1)
    return path


def evaluated(path, data, *options):
    """Top-1 by eval.py."""
    eval_entry.main(['--ckpt_path', str(path), '--data_dir', str(data), '--num_workers', '1', '--batch_size', '8', *options])
    (found,) = json.loads((path.parent / 'evaluation.json').read_text())
    return found['top1']


def test_labels_that_are_left_open_are_refused(network, tmp_path, capsys):
    """Unless the training recorded from where its labels count, or somebody says it."""
    some = [1, 2, 3, 4] * 3  # fits labels 0 to 5 and labels 1 to 6
    from_0, from_1 = records(tmp_path / '0', some), records(tmp_path / '1', some, shift=1)
    weights, own = write(tmp_path / 'a/w.ckpt', network), write(tmp_path / 'b/w.ckpt', network, label_offset='1')
    values = {**network, 'logits.bias': np.concatenate([[-9], network['logits.bias']]).astype(np.float32)}
    values['logits.weight'] = np.concatenate([0 * network['logits.weight'][:1], network['logits.weight']])
    raw = write(tmp_path / 'c/w.ckpt', values, label_offset='0', class_names=['background', *'abcdef'])
    for path, remedy in ((weights, 'if they count from 0, 1 if'), (raw, 'import the weights with --drop_background first')):
        with pytest.raises(SystemExit) as caught:
            evaluated(path, from_0)
        error = capsys.readouterr().err
        assert caught.value.code == 2 and 'labels 1 to 4 may count from 0 or 1, ' in error and remedy in error
    assert evaluated(weights, from_0, '--label_offset', '0') == 100 == evaluated(own, from_1)
    assert evaluated(raw, from_1, '--label_offset', '0', '--report', str(tmp_path / 'report')) == 100
    rows = (tmp_path / 'report/images.csv').read_text().splitlines()[1:]
    assert {tuple(row.split(',')[1:3]) for row in rows} == {(name, name) for name in 'abcd'}


def test_training_says_what_it_assumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    records(tmp_path / 'data', [1, 2, 3, 4], 'train')
    options = ['--data_dir', 'data', '--batch_size', '4', '--max_epochs', '1', '--resume', 'no', '--device_target', 'CPU']
    for more, expected in ([], True), (['--label_offset', '1'], False):
        with pytest.raises(SystemExit):  # there is no such checkpoint; by then the line is written
            train.main([*options, '--overwrite', 'true', *more])
        line = next(line for line in capsys.readouterr().out.splitlines() if '4 training images' in line)
        assert ('labels from 1 (assumed, as none is 0; ' in line and '--label_offset 0' in line) == expected, line
