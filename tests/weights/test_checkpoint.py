"""Checkpoint files, beside what the tests of trainings show."""

import re

import numpy as np
import pytest

from src.errors import InputError
from src.inceptionv4 import InceptionV4
from src.training import resume
from src.weights import checkpoint


def _file(tmp_path, classes=7, **options):
    network = InceptionV4(classes, **{'block_counts': (1, 1, 1), 'image_size': 75, **options})
    return checkpoint.save(tmp_path, network, step=1, epoch=0, config={})


@pytest.mark.parametrize(
    'saved, wanted, message',
    [
        ({'block_counts': (2, 1, 1)}, {}, 'it has 2,1,1 Inception blocks, the network 1,1,1; use --block_counts 2,1,1'),
        ({}, {'block_counts': (1, 1, 2)}, 'it has 1,1,1 Inception blocks, the network 1,1,2; use --block_counts 1,1,1'),
        ({}, {'num_classes': 9}, 'it has 7 classes, the network 9; use --num_classes 7'),
        ({}, {'aux_logits': True}, 'it has no auxiliary classifier; use --aux_logits false'),
        (
            {'in_channels': 1},
            {},
            'parameter conv2d_1a_3x3.conv.weight has the shape (32, 1, 3, 3), the network needs (32, 3, 3, 3): it is of '
            'another network, or of a training run with other options (optimizer, freeze, ema_decay)',
        ),
    ],
    ids=['blocks too many', 'blocks missing', 'classes', 'auxiliary', 'channels'],
)
def test_mismatch_is_named_with_its_remedy(tmp_path, saved, wanted, message):
    path = _file(tmp_path, **saved)
    network = InceptionV4(**{'num_classes': 7, 'block_counts': (1, 1, 1), 'image_size': 75, **wanted})
    before = network.logits.weight.asnumpy()
    with pytest.raises(InputError, match=f'^{re.escape(f"{path}: {message}")}$'):
        checkpoint.load_into(network, checkpoint.load(path)[0], path)
    assert np.array_equal(network.logits.weight.asnumpy(), before)  # all or nothing


def test_what_was_restored_is_one_line(tmp_path):
    """Neither classifier is restored; of many names only the first few are listed."""
    path = _file(tmp_path, 9, aux_logits=True)
    network = InceptionV4(7, block_counts=(1, 1, 1), image_size=75, aux_logits=True)
    count = len(network.parameters_dict())
    assert resume.restore(network, str(path)) == (
        f'{path}: {count - 14} of {count} parameters loaded, all but 14: logits.weight, logits.bias, '
        'aux_logits.conv2d_1b_1x1.conv.weight, ...'
    )
