"""The preprocessing that belongs to the weights: what it does to an image, and that evaluation takes it from there."""

import io
import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

import eval as evaluation_entry
from src.data.preprocess import PREPROCESSING, Preprocessing, evaluation_image, recorded_preprocessing
from src.data.records import open_records
from src.errors import InputError
from src.weights import checkpoint
from src.weights.read import empty_network
from tests.conftest import SMALL

OTHER = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 0.7, 'bicubic', True)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'png')
    return file.getvalue()


def test_square_images_are_cropped_as_torchvision_does():
    """Shorter side to int(size / fraction), then the middle; here computed with Pillow step by step."""
    image = np.random.default_rng(0).integers(0, 256, (260, 391, 3), np.uint8)
    resized = Image.fromarray(image).resize((int(107 * 391 / 260), 107), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 75) / 2), 16
    expected = np.asarray(resized.crop((left, top, left + 75, top + 75)))
    assert np.array_equal(evaluation_image(png(image), 75, OTHER), expected)
    turned = evaluation_image(png(image.transpose(1, 0, 2)), 75, OTHER)
    assert np.abs(turned.transpose(1, 0, 2).astype(int) - expected).max() <= 1
    bilinear = evaluation_image(png(image), 75, OTHER._replace(interpolation='bilinear'))
    assert bilinear.shape == (75, 75, 3) and not np.array_equal(bilinear, expected)


def test_what_is_recorded():
    assert recorded_preprocessing(None) == PREPROCESSING
    assert recorded_preprocessing(json.loads(json.dumps(OTHER._asdict()))) == OTHER
    changes = ({'std': [0, 1, 1]}, {'mean': [1, 2]}, {'central_fraction': float('nan')}, {'square': 'yes'}, {'unknown': 1})
    for wrong in ([], 'text', {}, *({**OTHER._asdict(), **change} for change in changes)):
        with pytest.raises(InputError, match='preprocessing .* cannot be used'):
            recorded_preprocessing(wrong)


@pytest.mark.compiles
def test_eval_uses_the_checkpoints(tmp_path, data, capsys):
    """eval.py's loss is that of images prepared as the checkpoint says."""
    config = {'num_classes': 10, 'block_counts': [1, 1, 1], 'image_size': 75}
    network, r = empty_network(config), np.random.default_rng(0)
    shapes = {name: p.shape for name, p in network.parameters_dict().items()}
    values = {name: np.full(shape, name.endswith(('gamma', 'variance')), 'f4') for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if len(shape) > 1:
            values[name] = (r.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype('f4')
    path = tmp_path / 'inceptionv4-1_1.ckpt'
    checkpoint.write(path, values, {'step': 1, 'epoch': 1, 'config': config, 'preprocessing': OTHER._asdict()})
    evaluation_entry.main(['--ckpt_path', str(path), '--data_dir', str(data), *SMALL])
    found = json.loads((tmp_path / 'evaluation.json').read_text())[0]['loss']

    ms.set_context(mode=ms.PYNATIVE_MODE)
    checkpoint.load_into(network.set_train(False), values, path)
    records = open_records(data, 'validation')
    expected = {}
    for preprocessing in (OTHER, PREPROCESSING):
        mean, std = (np.array(levels, 'f4') for levels in preprocessing[:2])
        images = np.stack([evaluation_image(records.read(i), 75, preprocessing) for i in range(len(records))])
        z = network(Tensor(((images - mean) / std).transpose(0, 3, 1, 2).astype('f4'))).asnumpy().astype('f8')
        log_p = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
        expected[preprocessing] = -log_p[np.arange(len(z)), np.array(records.label[:]) - 1].mean()
    assert found == pytest.approx(expected[OTHER], rel=1e-4)
    assert found != pytest.approx(expected[PREPROCESSING], rel=1e-2)
