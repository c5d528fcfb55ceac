"""Peak memory of training steps, beside the estimate that train.py goes by: `python -m benchmarks.memory [BATCH SIZE]`."""

import resource
import subprocess
import sys

CASES = ((2, 299), (16, 299), (32, 75))


def main(batch_size, image_size):
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor

    from src.inceptionv4 import InceptionV4
    from src.training import memory
    from src.training.optimizer import make_optimizer
    from src.training.step import NetworkWithLoss, TrainStep

    ms.set_context(mode=ms.GRAPH_MODE)
    network = InceptionV4(image_size=image_size)
    optimizer = make_optimizer(
        'rmsprop', network, np.full(10, 0.01, np.float32), weight_decay=1e-5, momentum=0.9, on_cpu=True
    )
    step = TrainStep(NetworkWithLoss(network), optimizer, loss_scale=None).set_train()
    batch = (
        np.zeros((batch_size, 3, image_size, image_size), np.uint8),
        np.ones((batch_size, 2), np.float32),
        np.ones((batch_size, 1536), np.uint8),
        np.zeros(batch_size, np.int32),
    )
    for _ in range(2):
        step(*map(Tensor, batch))[0].asnumpy()
    weights = sum(p.size for p in network.get_parameters())
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    estimate = memory.training_bytes(weights, batch_size, image_size)
    print(
        f'batch {batch_size:>3}, {image_size} x {image_size}: peak {peak / 1e9:.1f} GB, estimate {estimate / 1e9:.1f} GB',
        flush=True,
    )


if __name__ == '__main__':
    if len(sys.argv) == 3:
        main(*map(int, sys.argv[1:]))
    else:
        for case in CASES:
            subprocess.run([sys.executable, '-m', 'benchmarks.memory', *map(str, case)], check=True)
