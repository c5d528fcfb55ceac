"""Batch sizes of a fine-tuning that no folder of photos could fill, or that stand for the default."""

import pytest

from src import workflow
from src.inceptionv4 import InceptionV4
from src.weights import checkpoint
from tests.data.samples import write_folder


@pytest.mark.parametrize('option, expected', [('--batch_size 0', 10), ('--batch_size=999', 10), ('--batch_size=4', 4)])
def test_a_batch_has_no_more_images_than_there_are(option, expected, made, monkeypatch):
    photos, weights, output = made
    commands, start = [], workflow.start

    def stopped(program, *arguments, **named):
        if program != 'train.py':
            return start(program, *arguments, **named)
        commands.append([*map(str, arguments)])
        raise SystemExit

    monkeypatch.setattr(workflow, 'start', stopped)
    monkeypatch.setattr('sys.argv', ['workflow', 'finetune', str(photos), str(weights), str(output), *option.split()])
    with pytest.raises(SystemExit) as caught:
        workflow.main()
    assert caught.value.code is None
    (words,) = commands
    words = [word for argument in words for word in argument.split('=')]
    assert words[len(words) - 1 - words[::-1].index('--batch_size') + 1] == str(expected), words
    steps = 10 // expected * int(words[words.index('--max_epochs') + 1])
    assert 200 <= steps < 200 + 10 // expected


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Photos, of which 10 are to train with, weights, and a directory for the output."""
    path = tmp_path_factory.mktemp('batch')
    network = InceptionV4(7, block_counts=(1, 1, 1), image_size=75)
    about = {'num_classes': 7, 'block_counts': [1, 1, 1], 'image_size': 75}
    weights = checkpoint.save(path, network, step=1, epoch=1, config=about)
    return write_folder(path, 'photos', ['a', 'b'], 6) / 'photos', weights, path / 'output'
