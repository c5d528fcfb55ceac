"""Training on cached features is training on the images with everything but the classifier frozen."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.data import pipeline
from src.data.records import open_records
from src.errors import InputError
from src.evaluation.evaluation import Evaluation
from src.inceptionv4 import InceptionV4
from src.options import Settings
from src.runtime import Run
from src.training.frozen_features import FeatureEvaluation, cached, frozen
from src.training.optimizer import freeze
from src.training.step import NetworkWithLoss, TrainStep
from src.weights import checkpoint
from tests.conftest import SMALL
from tests.data.samples import settings
from train import main

NETWORK = {'num_classes': 10, 'block_counts': (1, 1, 1), 'image_size': 75}
SETTINGS = settings(batch_size=8, seed=5, min_object_covered=0.3, dropout_keep_prob=1.0)  # each way has its own masks


def build():
    """The step of a network whose statistics have seen nothing, all but its classifier frozen."""
    ms.set_seed(3)
    network = InceptionV4(**NETWORK)
    freeze(network, frozen(network, SETTINGS.but(cache_features=2), Run(log=lambda line: None)))
    optimizer = nn.Momentum(network.trainable_params(), 0.05, 0.9)
    return network, TrainStep(NetworkWithLoss(network, 0.1), optimizer, None, ema_decay=0.9)


def train(step, batches, network):
    """Losses of the steps of two epochs and the first of a third."""
    step.set_train()
    network.set_train(False)  # frozen layers are in inference mode
    data = batches(range(15), 75).create_tuple_iterator(num_epochs=1)
    return [float(step(*batch)[0].asnumpy()) for batch in data]


@pytest.mark.slow
@pytest.mark.compiles
def test_cached_is_uncached(data, tmp_path):
    """The same losses and weights while each epoch has a copy of its own, the same evaluation."""
    records, run = open_records(str(data), 'train'), Run(directory=tmp_path)
    network, step = build()
    losses = train(step, lambda steps, _: pipeline.training_dataset(records, 1, SETTINGS, steps, run), network)
    expected = {name: value.copy() for name, value in checkpoint.values(step).items()}
    network, step = build()
    ours = train(step, cached(pipeline.LoadTraining(records, 1, SETTINGS), step.network, 2, run), network)
    assert np.allclose(ours[:14], losses[:14], rtol=0, atol=1e-5) and np.ptp(losses) > 0.1
    assert abs(ours[14] - losses[14]) > 1e-4  # the third epoch has the images of the first
    found = checkpoint.values(step)
    body = [name for name in expected if 'logits' not in name and name != 'global_step']
    assert len(body) > 400 and all(np.array_equal(found[name], expected[name]) for name in body)

    validation, network_settings = (
        open_records(str(data), 'validation'),
        Settings({**NETWORK, 'batch_size': 7, 'num_workers': 1}),
    )
    plain, kept = (kind(validation, 1, network_settings, Run()) for kind in (Evaluation, FeatureEvaluation))
    for _ in range(2):  # the second time the features are known
        ours, theirs = kept.of_training(step), plain.of_training(step)
        assert (ours.top1, ours.top5, ours.images) == (theirs.top1, theirs.top5, 30)
        assert abs(ours.loss - theirs.loss) < 1e-5
        step.parameters_dict()['ema.logits.bias'].set_data(ms.ops.arange(10).astype(ms.float32) / 20)


def test_what_features_cannot_replace():
    network, cached_settings = InceptionV4(**NETWORK), SETTINGS.but(cache_features=3)
    for options, world, message in [({'aux_logits': True}, 1, 'use --aux_logits false'), ({}, 2, 'use --rank_size 1')]:
        with pytest.raises(InputError, match=message):
            frozen(network, cached_settings.but(**options), Run(world=world))


@pytest.mark.compiles
def test_resume(data, tmp_path, capsys):
    """A training run that is resumed ends in the same checkpoint, bit for bit."""
    log = tmp_path / 'log'

    def run(*options):
        command = ['--data_dir', data, *SMALL, '--cache_features', 2, '--lr', 0.01, '--max_epochs', 3, '--log_dir', log]
        main([*map(str, command), '--save_checkpoint_steps', '20', *options])
        return capsys.readouterr().out

    run()
    expected, _ = checkpoint.load(log / 'inceptionv4-3_45.ckpt')
    for path in checkpoint.by_age(log)[1:]:
        path.unlink()
    assert 'resuming from step 20' in run('--resume', 'auto')
    found, _ = checkpoint.load(log / 'inceptionv4-3_45.ckpt')
    assert len(found) > 200 and all(np.array_equal(found[name], value) for name, value in expected.items())
