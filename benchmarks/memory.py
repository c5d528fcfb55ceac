"""Peak memory of training steps, beside the estimate by which train.py refuses batches that are too large:
`python -m benchmarks.memory [BATCH_SIZE IMAGE_SIZE]`, by default all of CASES."""

import resource
import subprocess
import sys

from src.errors import InputError, Parser, entry_point

CASES = ((2, 299), (16, 299), (32, 75))  # images a step, height and width in pixels


def measure(batch_size, image_size):
    """Train two steps and print the peak memory of this process and the estimate."""
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
        np.ones((batch_size, 1536), np.float32),
        np.zeros(batch_size, np.int32),
    )
    for _ in range(2):
        step(*map(Tensor, batch))[0].asnumpy()
    weights = sum(p.size for p in network.get_parameters())
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    estimate = memory.TRAINING.bytes(weights, batch_size, image_size)
    print(
        f'batch {batch_size:>3}, {image_size} x {image_size}: peak {peak / 1e9:.1f} GB, estimate {estimate / 1e9:.1f} GB',
        flush=True,
    )


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.memory', description='Peak memory of training steps beside the estimate.')
    parser.add_argument('case', nargs='*', type=int, help='images a step, height and width in pixels')
    case = parser.parse_args(argv).case
    if len(case) not in (0, 2):
        raise InputError(f'{len(case)} numbers given; expected none, or BATCH_SIZE IMAGE_SIZE')
    if case:
        return measure(*case)
    for case in CASES:  # in a process each, as a peak never goes down
        subprocess.run([sys.executable, '-m', 'benchmarks.memory', *map(str, case)], check=True)


if __name__ == '__main__':
    main()
