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
        (
            {'block_counts': (2, 1, 1)},
            {},
            'it has blocks that the network does not have: the file has 2,1,1 Inception blocks, the network 1,1,1; '
            'give --block_counts 2,1,1',
        ),
        (
            {},
            {'block_counts': (1, 1, 2)},
            'parameter mixed_7c.branch_0.conv2d_0a_1x1.conv.weight (256, 1536, 1, 1) is missing (and 49 more): the file '
            'has 1,1,1 Inception blocks, the network 1,1,2; give --block_counts 1,1,1',
        ),
        (
            {},
            {'num_classes': 9},
            'parameter logits.weight has the shape (7, 1536), the network needs (9, 1536) (and 1 more): the file has 7 '
            'classes; give --num_classes 7',
        ),
        (
            {},
            {'aux_logits': True},
            'parameter aux_logits.conv2d_1b_1x1.conv.weight (128, 1024, 1, 1) is missing (and 11 more): the file has no '
            'auxiliary classifier; give --aux_logits false',
        ),
        (
            {'in_channels': 1},
            {},
            'parameter conv2d_1a_3x3.conv.weight has the shape (32, 1, 3, 3), the network needs (32, 3, 3, 3): it is of '
            'another network, or of a training with other options (optimizer, freeze, ema_decay)',
        ),
    ],
    ids=['blocks too many', 'blocks missing', 'classes', 'auxiliary', 'channels'],
)
def test_what_does_not_fit_and_why(tmp_path, saved, wanted, message):
    path = _file(tmp_path, **saved)
    network = InceptionV4(**{'num_classes': 7, 'block_counts': (1, 1, 1), 'image_size': 75, **wanted})
    before = network.logits.weight.asnumpy()
    with pytest.raises(InputError, match=f'^{re.escape(f"{path}: {message}")}$'):
        checkpoint.load_into(network, checkpoint.load(path)[0], path)
    assert np.array_equal(network.logits.weight.asnumpy(), before)  # all or nothing


def test_what_was_restored_is_one_line(tmp_path):
    """Neither classifier is restored; of many names only the first few are told."""
    path = _file(tmp_path, 9, aux_logits=True)
    network = InceptionV4(7, block_counts=(1, 1, 1), image_size=75, aux_logits=True)
    count = len(network.parameters_dict())
    assert resume.restore(network, str(path)) == (
        f'{path}: {count - 14} of {count} parameters loaded, all but 14: logits.weight, logits.bias, '
        'aux_logits.conv2d_1b_1x1.conv.weight, ...'
    )
