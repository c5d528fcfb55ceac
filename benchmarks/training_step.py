"""Training steps of this network beside timm's in PyTorch, on the CPU: `python -m benchmarks.training_step [--variants]`.

Images a second of steps in turns, time to the first step (the graph is compiled in it), threads at work (CPU over wall-clock
seconds), peak memory. Each candidate is a process of its own with all cores, which waits while another one has its step; one
whose work was done by fewer threads than there are cores ends the comparison. All of them train on the same images in
float32, timm also in bfloat16 by autocast. With `--variants` this network's own steps instead: what the optimizer, the norm
of the gradients, clipping and the loss scale take. requirements-bench.txt lists what must be installed.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import mindspore as ms  # before torch: it chooses the implementation of protobuf
import numpy as np

from benchmarks.peers import timm_model
from benchmarks.rounds import Threads, environment, interleaved, machine, spread
from src.errors import InputError, Parser, entry_point

PAUSE = 0.3  # seconds; threads look for work for a while after their last step
RATE, WEIGHT_DECAY, MOMENTUM, DECAY, EPSILON = 1e-4, 1e-5, 0.9, 0.9, 1.0
PEAK = re.compile(r'VmHWM:\s+(\d+) kB')  # not ru_maxrss, in which a process inherits what its parent had


def ours(a, images, labels, optimizer='rmsprop', alone=False, **options):
    """Function that takes one step of this network, as train.py builds it or the optimizer `alone`, and gives its loss."""
    from mindspore import Tensor, nn

    from src.inceptionv4 import InceptionV4
    from src.training.optimizer import make_optimizer
    from src.training.step import NetworkWithLoss, TrainStep

    ms.set_context(mode=ms.GRAPH_MODE)
    blocks = tuple(map(int, a.block_counts.split(',')))
    network = InceptionV4(image_size=a.image_size, block_counts=blocks)
    rates = np.full(10000, RATE, np.float32)
    optimizer = make_optimizer(optimizer, network, rates, weight_decay=WEIGHT_DECAY, momentum=MOMENTUM, on_cpu=True)
    with_loss = NetworkWithLoss(network, 0.1)
    step = nn.TrainOneStepCell(with_loss, optimizer) if alone else TrainStep(with_loss, optimizer, **options)
    step.set_train()
    draws, mask = np.tile(np.float32([0, 1]), (len(images), 1)), np.ones((len(images), 1536), np.float32)
    batch = [Tensor(value) for value in (images, draws, mask, labels)]

    def run():
        outputs = step(*batch)
        return float((outputs if alone else outputs[0]).asnumpy())

    return run


def timm(a, images, labels, channels_last=False, bfloat16=False):
    """Function that takes one step of timm's network and gives its loss."""
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = timm_model().train().to(memory_format=layout)
    optimizer = torch.optim.RMSprop(network.parameters(), RATE, DECAY, EPSILON, WEIGHT_DECAY, MOMENTUM)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    labels = torch.from_numpy(labels.astype(np.int64))

    def run():
        x = torch.from_numpy(images).contiguous(memory_format=layout).float() / 127.5 - 1
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=bfloat16):
            loss = loss_of(network(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


PEERS = {
    'this network': partial(ours, loss_scale=None),
    'timm': timm,
    'timm, channels last': partial(timm, channels_last=True),
    'timm, channels last, bfloat16': partial(timm, channels_last=True, bfloat16=True),
}
VARIANTS = {
    'optimizer alone': partial(ours, alone=True),
    'norm': partial(ours, loss_scale=None),
    'norm, clipping': partial(ours, loss_scale=None, clip_norm=2.0),
    'norm, clipping, loss scale': partial(ours, loss_scale='dynamic', clip_norm=2.0),
    'the same without a branch': partial(ours, loss_scale='dynamic', clip_norm=2.0, drop_overflow_update='select'),
    'momentum, optimizer alone': partial(ours, optimizer='momentum', alone=True),
    'momentum, norm': partial(ours, optimizer='momentum', loss_scale=None),
}


class Candidate:
    """A process that trains one candidate. Attributes: `first`, seconds from its start to the end of its first step."""

    def __init__(self, name, argv):
        command = [sys.executable, '-m', 'benchmarks.training_step', *argv, '--alone', name]
        start = time.perf_counter()
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, env=environment(), **pipes)
        self.name, self.first = name, 0.0
        self.step()
        self.first = time.perf_counter() - start

    def step(self):
        """One step; waits for its end."""
        self.process.stdin.write('\n')
        self.process.stdin.flush()
        if not self.process.stdout.readline().startswith('loss '):
            raise InputError(f'{self.name} ended with an error, see above; requirements-bench.txt lists what it needs')

    def peak(self):
        """Its peak memory so far, GB."""
        return int(PEAK.search(Path(f'/proc/{self.process.pid}/status').read_text())[1]) * 1024 / 1e9


def train_alone(make, a):
    """A step for every line on stdin, its loss on stdout."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (a.batch_size, 3, a.image_size, a.image_size), np.uint8)
    run = make(a, images, rng.integers(0, 1000, a.batch_size).astype(np.int32))
    for _ in sys.stdin:
        print(f'loss {run()}', flush=True)


@entry_point
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog='python -m benchmarks.training_step', description=__doc__.partition(':')[0])
    parser.add_argument('--batch_size', type=int, default=8, help='images a step (default: 8)')
    parser.add_argument('--image_size', type=int, default=299, help='height and width in pixels (default: 299)')
    parser.add_argument('--rounds', type=int, default=15, help='timed steps of each candidate (default: 15)')
    parser.add_argument('--block_counts', default='4,7,3', help="blocks of this network; timm's are always 4,7,3")
    parser.add_argument('--variants', action='store_true', help="this network's own steps in place of timm's")
    parser.add_argument('--only', default='', help='candidates of both kinds whose names this regular expression finds')
    parser.add_argument('--alone', default='', help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.alone:
        return train_alone({**PEERS, **VARIANTS}[a.alone], a)
    print(f'batch {a.batch_size}, {a.image_size} x {a.image_size}, {a.rounds} rounds')
    print(machine('mindspore', *(() if a.variants else ('torch', 'timm'))), flush=True)
    candidates = {}
    try:
        kinds = {**PEERS, **VARIANTS} if a.only else VARIANTS if a.variants else PEERS
        # One after the other: the time to the first step is measured, too.
        for name in filter(re.compile(a.only).search, kinds):
            candidates[name] = Candidate(name, argv)
        threads = {name: Threads(candidate.process.pid) for name, candidate in candidates.items()}
        steps = {name: candidate.step for name, candidate in candidates.items()}
        seconds = interleaved(steps, a.rounds, pause=PAUSE, threads=threads)
        columns = f'{"of first":>8} {"first step, s":>13} {"threads":>7} {"peak GB":>7}'
        print(f'{"":<30} {"images/s (lowest to highest)":<30} {columns}')
        reference = seconds[next(iter(seconds))]
        for name, candidate in candidates.items():
            speed = spread([a.batch_size / value for value in seconds[name]])
            ratio = statistics.median(base / value for base, value in zip(reference, seconds[name]))
            print(
                f'{name:<30} {speed:<30} {ratio:>8.2f} {candidate.first:>13.1f} {threads[name].used:>7.2f} '
                f'{candidate.peak():>7.2f}',
                flush=True,
            )
            threads[name].require(name)
    finally:
        for candidate in candidates.values():
            candidate.process.kill()


if __name__ == '__main__':
    main()
