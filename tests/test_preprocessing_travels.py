"""The preprocessing that belongs to the weights: what it does to an image, and that evaluation takes it from there."""

import io
import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from PIL import Image

import eval as evaluation_entry
from src.data.preprocess import PREPROCESSING, Preprocessing, evaluation_image, recorded_preprocessing
from src.data.records import open_records
from src.errors import InputError
from src.inceptionv4 import InceptionV4
from src.weights import checkpoint
from tests.conftest import SMALL

OTHER = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 0.7, 'bicubic', True)


def test_square_images_are_cropped_as_torchvision_does():
    """Shorter side to int(size / fraction), then the middle; here computed with Pillow step by step."""
    image, file = Image.fromarray(np.random.default_rng(0).integers(0, 256, (260, 391, 3), np.uint8)), io.BytesIO()
    image.save(file, 'png')
    resized = image.resize((int(107 * 391 / 260), 107), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 75) / 2), 16
    expected = np.asarray(resized.crop((left, top, left + 75, top + 75)))
    assert np.array_equal(evaluation_image(file.getvalue(), 75, OTHER)[..., :3], expected)


def test_what_is_recorded():
    assert recorded_preprocessing(None) == PREPROCESSING
    assert recorded_preprocessing(json.loads(json.dumps(OTHER._asdict()))) == OTHER
    for wrong in ({}, {**OTHER._asdict(), 'unknown': 1}):
        with pytest.raises(InputError, match='preprocessing: .*; make the checkpoint again'):
            recorded_preprocessing(wrong)


@pytest.mark.compiles
def test_eval_uses_the_checkpoints(tmp_path, data):
    """eval.py's loss is that of images prepared as the checkpoint says."""
    config, rng = {'num_classes': 10, 'block_counts': [1, 1, 1], 'image_size': 75}, np.random.default_rng(0)
    network = InceptionV4(**config).set_train(False)
    for parameter in network.get_parameters():
        if parameter.ndim > 1:
            kernel = rng.standard_normal(parameter.shape) * (2 / np.prod(parameter.shape[1:])) ** 0.5
            parameter.set_data(Tensor(kernel, ms.float32))
    path = checkpoint.save(tmp_path, network, step=1, epoch=1, config=config, preprocessing=OTHER._asdict())
    evaluation_entry.main(['--ckpt_path', str(path), '--data_dir', str(data), *SMALL])
    found = json.loads((tmp_path / 'evaluation.json').read_text())[0]['loss']

    ms.set_context(mode=ms.PYNATIVE_MODE)
    records = open_records(data, 'validation')
    images = np.stack([evaluation_image(records.read(i), 75, OTHER)[..., :3] for i in range(len(records))])
    inputs = ((images - np.array(OTHER.mean)) / OTHER.std).transpose(0, 3, 1, 2)
    loss = ops.cross_entropy(network(Tensor(inputs, ms.float32)), Tensor(records.label - 1, ms.int32))
    assert found == pytest.approx(float(loss), rel=1e-4)
