"""Compile the evaluation step with outputs of each image, and the training step of 8 ranks, as for the NPU `chip`, and write
their IR to a directory, in this order: `python tests/ascend.py CHIP DIRECTORY`.

MindSpore's Python decides everything as for that chip. Below it is the CPU, which has no kernels for an NPU's operations:
the compilation then ends with an error, after the IR was written.
"""

import os
import sys

chip, directory = sys.argv[1:]
os.environ |= {'MS_DEV_SAVE_GRAPHS': '1', 'MS_DEV_SAVE_GRAPHS_PATH': directory, 'MS_DEV_DUMP_IR_PASSES': 'validate'}

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore._c_expression import MSContext
from mindspore.ops import constexpr

from src.evaluation.evaluation import make_step
from src.inceptionv4 import InceptionV4, set_precision
from src.training import step as training
from src.training.optimizer import make_optimizer

BATCH, SIZE = 2, 75
NETWORK = {'num_classes': 10, 'block_counts': (1, 1, 1), 'image_size': SIZE, 'aux_logits': True}


def main():
    MSContext.get_ascend_soc_version = lambda self: chip
    training._on_cpu = constexpr(lambda: False)
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL, device_num=8, global_rank=0, gradients_mean=True
    )
    image, label = np.zeros((BATCH, 3, SIZE, SIZE), np.uint8), np.zeros(BATCH, np.int32)
    make_step(NETWORK, 'O3', per_image=True).set_train(False).compile(Tensor(image), Tensor(label))
    network = set_precision(InceptionV4(**NETWORK), 'O3')
    optimizer = make_optimizer('rmsprop', network, np.full(100, 0.01, np.float32), weight_decay=1e-5, momentum=0.9)
    with_loss = training.NetworkWithLoss(network, 0.1, 0.4, ms.float16)
    step = training.TrainStep(with_loss, optimizer, 'dynamic', clip_norm=2.0).set_train()
    batch = image, np.ones((BATCH, 2), np.float32), np.ones((BATCH, 1536), np.float32), label
    try:
        step.compile(*map(Tensor, batch))
    except RuntimeError as error:
        if chip != 'ascend910' or 'NPU' not in str(error):
            raise


if __name__ == '__main__':
    main()
