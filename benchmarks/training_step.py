"""Time that gradient norm, clipping and loss scale add to a training step: `python -m benchmarks.training_step`.

All variants train the same network in one process, one step of each per round, in a new random order every round. The
first call of each, which compiles, is not counted.
"""

import platform
import statistics
import time

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.errors import Parser, entry_point
from src.inceptionv4 import InceptionV4
from src.training.optimizer import make_optimizer
from src.training.step import NetworkWithLoss, TrainStep


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.training_step', description=__doc__.partition(':')[0])
    parser.add_argument('--batch_size', type=int, default=8, help='images a step (default: 8)')
    parser.add_argument('--image_size', type=int, default=299, help='height and width in pixels (default: 299)')
    parser.add_argument('--rounds', type=int, default=15, help='timed steps of each variant (default: 15)')
    args = parser.parse_args(argv)
    ms.set_context(mode=ms.GRAPH_MODE)
    network = InceptionV4(image_size=args.image_size)
    optimizer = make_optimizer(
        'rmsprop', network, np.full(10000, 1e-4, np.float32), weight_decay=1e-5, momentum=0.9, on_cpu=True
    )
    with_loss = NetworkWithLoss(network, 0.1)
    steps = {
        'optimizer alone': nn.TrainOneStepCell(with_loss, optimizer),
        'norm': TrainStep(with_loss, optimizer, None),
        'norm, clipping': TrainStep(with_loss, optimizer, None, clip_norm=2.0),
        'norm, clipping, loss scale': TrainStep(with_loss, optimizer, 'dynamic', clip_norm=2.0),
    }
    rng = np.random.default_rng(0)
    batch = [
        Tensor(value)
        for value in (
            rng.integers(0, 256, (args.batch_size, 3, args.image_size, args.image_size), np.uint8),
            np.tile(np.float32([0, 1]), (args.batch_size, 1)),
            np.ones((args.batch_size, 1536), np.float32),
            rng.integers(0, 1000, args.batch_size).astype(np.int32),
        )
    ]

    def run(step):
        start = time.perf_counter()
        outputs = step.set_train()(*batch)
        (outputs[0] if isinstance(outputs, tuple) else outputs).asnumpy()
        return time.perf_counter() - start

    compiled = {name: run(step) for name, step in steps.items()}
    seconds = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name in rng.permutation(list(steps)):
            seconds[name].append(run(steps[name]))
    print(
        f'batch {args.batch_size}, {args.image_size} x {args.image_size}, {args.rounds} rounds; MindSpore {ms.__version__}, '
        f'{platform.machine()}, Python {platform.python_version()}'
    )
    first = seconds['optimizer alone']
    for name, values in seconds.items():
        ratio = statistics.median(value / base for value, base in zip(values, first))
        print(
            f'{name:<28} {statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f}), '
            f'{ratio:.3f} x the first in the same round, first call {compiled[name]:.1f} s'
        )


if __name__ == '__main__':
    main()
