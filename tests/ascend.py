"""Compile graphs as for NPUs and write their IR to a directory, in this order: `tests/ascend.py DIRECTORY CHIP:GRAPH ...`.

GRAPH: `evaluation`, the evaluation step; or, for 8 ranks, what a sink runs on the device: the training step with its data
queue, with a `branch` on overflow, or without (`select`).

MindSpore's Python decides everything as for that chip. Below it is the CPU, which has no kernels for an NPU's operations:
the compilation then ends with an error, after the IR was written.
"""

import os
import sys

if __name__ == '__main__':  # before MindSpore is imported
    os.environ |= {'MS_DEV_SAVE_GRAPHS': '1', 'MS_DEV_SAVE_GRAPHS_PATH': sys.argv[1], 'MS_DEV_DUMP_IR_PASSES': 'validate'}

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore._c_expression import MSContext
from mindspore.ops import constexpr
from mindspore.train.dataset_helper import _DataWrapper

from src.evaluation.evaluation import make_step
from src.inceptionv4 import InceptionV4, set_precision
from src.options import load_settings
from src.training import step as training
from src.training.optimizer import create_optimizer

BATCH, SIZE = 2, 75
NETWORK = {'num_classes': 10, 'block_counts': (1, 1, 1), 'image_size': SIZE, 'aux_logits': True}
BATCHES = ([ms.uint8, ms.float32, ms.float32, ms.int32], [[BATCH, 3, SIZE, SIZE], [BATCH, 2], [BATCH, 1536], [BATCH]])


def pretend(chip, setattr=setattr):
    """Make MindSpore 2.8 believe that it has the NPU `chip`."""
    setattr(MSContext, 'get_ascend_soc_version', lambda self: chip)


def compile_evaluation():
    step = make_step(NETWORK, 'O3').set_train(False)
    step.compile(Tensor(np.zeros((BATCH, 3, SIZE, SIZE), np.uint8)), Tensor(np.zeros(BATCH, np.int32)))


def compile_training(drop_overflow_update):
    """The `TrainStep` as train.py makes it for an NPU, with auxiliary classifier and clipping; with a branch averages."""
    network = set_precision(InceptionV4(**NETWORK), 'O3')
    optimizer = create_optimizer(network, load_settings([]), np.full(100, 0.01, np.float32))
    with_loss = training.NetworkWithLoss(network, 0.1, True, ms.float16)
    ema_decay = 0.9 if drop_overflow_update == 'branch' else 0.0
    step = training.TrainStep(with_loss, optimizer, 'dynamic', 2.0, ema_decay, drop_overflow_update)
    sink = _DataWrapper(step, *BATCHES, 'queue').set_train()
    sink.add_flags(sink_mode=True)
    try:
        sink.compile()
    except RuntimeError as error:
        if not any(operation in str(error) for operation in ('GetNext', 'NPU')):
            raise


if __name__ == '__main__':
    training._on_cpu = constexpr(lambda: False)
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, device_num=8, global_rank=0)
    for word in sys.argv[2:]:
        chip, graph = word.split(':')
        pretend(chip)
        compile_evaluation() if graph == 'evaluation' else compile_training(graph)
