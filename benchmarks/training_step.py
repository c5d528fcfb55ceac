"""Training steps of this network beside timm's in PyTorch, on the CPU: `python -m benchmarks.training_step`.

Images a second of steps in turns, threads at work (CPU over wall-clock seconds), peak memory. All candidates train on the
same images in float32, timm also in bfloat16 by autocast. requirements-bench.txt lists what must be installed.
"""

from functools import partial

import mindspore as ms  # before torch: it chooses the implementation of protobuf
import numpy as np

from benchmarks import rounds
from benchmarks.peers import timm_model
from src.errors import entry_point
from src.options import load_settings
from src.runtime import Run

RATE, WEIGHT_DECAY, MOMENTUM, DECAY, EPSILON = 1e-4, 1e-5, 0.9, 0.9, 1.0


def ours(a, images, labels):
    """Function that takes one step of this network, as train.py builds it, and returns its loss."""
    import train

    ms.set_context(mode=ms.GRAPH_MODE)
    settings = load_settings(['--num_classes=1000', f'--image_size={a.image_size}', f'--block_counts={a.block_counts}'])
    network = train.create_network(settings, Run(), '')
    step = train.create_step(settings, Run(), network, np.full(10000, RATE, np.float32)).set_train()
    draws, mask = np.tile(np.float32([0, 1]), (len(images), 1)), np.ones((len(images), 1536), np.float32)
    batch = [ms.Tensor(value) for value in (images, draws, mask, labels)]
    return lambda: [float(step(*batch)[0].asnumpy())]


def timm(a, images, labels, channels_last=False, bfloat16=False):
    """Function that takes one step of timm's network and returns its loss."""
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = timm_model().train().to(memory_format=layout)
    optimizer = torch.optim.RMSprop(network.parameters(), RATE, DECAY, EPSILON, WEIGHT_DECAY, MOMENTUM)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    labels = torch.from_numpy(labels.astype(np.int64))

    def step():
        x = torch.from_numpy(images).contiguous(memory_format=layout).float() / 127.5 - 1
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=bfloat16):
            loss = loss_of(network(x), labels)
        loss.backward()
        optimizer.step()
        return [loss.item()]

    return step


CANDIDATES = {
    'this network': ours,
    'timm': timm,
    'timm, channels last': partial(timm, channels_last=True),
    'timm, channels last, bfloat16': partial(timm, channels_last=True, bfloat16=True),
}


@entry_point
def main():
    parser = rounds.parser('benchmarks.training_step', __doc__, 15)
    parser.add_argument('--batch_size', type=int, default=8, help='images a step (default: 8)')
    parser.add_argument('--image_size', type=int, default=299, help='height and width in pixels (default: 299)')
    parser.add_argument('--block_counts', default='4,7,3', help="blocks of this network; timm's are always 4,7,3")
    a = parser.parse_args()
    if a.alone:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (a.batch_size, 3, a.image_size, a.image_size), np.uint8)
        return rounds.serve(CANDIDATES[a.alone](a, images, rng.integers(0, 1000, a.batch_size).astype(np.int32)))
    print(f'batch {a.batch_size}, {a.image_size} x {a.image_size}; {rounds.machine("mindspore")}', flush=True)
    rounds.compare(rounds.alone('benchmarks.training_step', CANDIDATES), a, a.batch_size)


if __name__ == '__main__':
    main()
