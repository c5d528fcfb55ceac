"""Run on every rank for test_distributed.py: three steps and an evaluation; rank 0 writes what came out."""

import hashlib
import json
import os
import sys

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src import collective, runtime
from src.data import pipeline
from src.data.records import open_records
from src.errors import InputError
from src.evaluation import evaluation
from src.inceptionv4 import InceptionV4
from src.options import load_settings
from src.training.optimizer import create_optimizer
from src.training.step import NetworkWithLoss, TrainStep
from src.weights import checkpoint
from train import load_data

GLOBAL_BATCH, STEPS, CLIP = 8, 3, 1.0


def main(data_dir, source, out, rank_size):
    settings = load_settings([]).but(device_target='CPU', rank_size=rank_size, image_size=75, num_workers=1)
    # Another seed on every rank: what makes the weights equal must be the broadcast or the checkpoint.
    run, result = runtime.start(settings.but(seed=1 + int(os.environ.get('RANK_ID', 0)))), {}
    network = InceptionV4(10, block_counts=(1, 1, 1), image_size=75)
    parameters, _ = checkpoint.load(source)
    if run.rank == 0:
        checkpoint.load_into(network, parameters, source)
    for _, cell in network.cells_and_names():
        if isinstance(cell, nn.BatchNorm2d):
            cell.use_batch_statistics = False
    # What sums the gradients as they are, and compiles faster than RMSProp.
    momentum = load_settings(['--optimizer', 'momentum'])
    optimizer = create_optimizer(network, momentum, np.full(STEPS, 0.001, np.float32), on_cpu=True)
    step = TrainStep(NetworkWithLoss(network, 0.1), optimizer, 1024.0, CLIP).set_train()
    if run.world > 1:
        collective.share(step.get_parameters())
    settings = settings.but(batch_size=GLOBAL_BATCH // run.world)
    train = pipeline.training_dataset(open_records(data_dir, 'train'), 1, settings, range(STEPS), run)
    result['norms'] = [float(step(*batch)[1].asnumpy()) for batch in train.create_tuple_iterator(num_epochs=1)]
    trained = {p.name: p.asnumpy().copy() for p in step.get_parameters()}
    checkpoint.load_into(network, parameters, source)
    digest = hashlib.sha256(b''.join(p.asnumpy().tobytes() for p in network.get_parameters())).digest()
    if run.world > 1:  # all ranks hold the same weights after restoring
        gathered = ops.AllGather()(Tensor(np.frombuffer(digest, np.uint8), ms.float32)).asnumpy().reshape(run.world, -1)
        result['equal'] = bool((gathered == gathered[0]).all())
    try:  # rank 1 has another copy of the records
        load_data(settings.but(data_dir=f'{out}.records' if run.rank else data_dir), run)
    except InputError as error:
        result['refused'] = str(error)
    settings = settings.but(num_classes=10, block_counts=(1, 1, 1), batch_size=4)
    evaluated = evaluation.Evaluation(open_records(data_dir, 'validation'), 1, settings, run)
    checkpoint.load_into(evaluated.step.network, checkpoint.averaged(parameters), source)
    result['evaluation'] = list(evaluated.of_network({}))
    result['outcomes'] = {name: column.tolist() for name, column in evaluated.outcomes._asdict().items()}
    if run.rank == 0:
        np.savez(f'{out}.npz', **trained)
        with open(f'{out}.json', 'w') as file:
            json.dump(result, file)


if __name__ == '__main__':
    main(*sys.argv[1:4], int(sys.argv[sys.argv.index('--rank_size') + 1]))
