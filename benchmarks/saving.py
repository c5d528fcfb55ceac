"""How long saving a checkpoint interrupts a training run: `python -m benchmarks.saving [DIR]`; nothing is trained.

Saves the full state of a training run of the whole network (weights, RMSProp's two slots, moving averages) below DIR, and
copies it, which is all that a training run waits for where a thread writes.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.rounds import interleaved, machine, spread
from src.errors import Parser, entry_point
from src.inceptionv4 import InceptionV4
from src.options import load_settings
from src.training.optimizer import create_optimizer
from src.training.step import NetworkWithLoss, TrainStep
from src.weights import checkpoint

ROUNDS = 5


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.saving', description=__doc__.partition(':')[0])
    parser.add_argument('directory', nargs='?', help='existing directory to write below (default: the temporary one)')
    network = InceptionV4()
    optimizer = create_optimizer(network, load_settings([]), np.full(10, 0.01, np.float32))
    step = TrainStep(NetworkWithLoss(network), optimizer, ema_decay=0.9999)
    with tempfile.TemporaryDirectory(dir=parser.parse_args(argv).directory) as place:
        save = partial(checkpoint.save, place, step, step=1, epoch=0, config={})
        seconds = interleaved({'saved': save, 'copied': partial(checkpoint.snapshot, step)}, ROUNDS)
        (path,) = Path(place).glob('*.ckpt')
        started = time.perf_counter()
        checkpoint.load(path)
        print(f'{path.stat().st_size / 1e6:.0f} MB, loaded with its checksum in {time.perf_counter() - started:.2f} s')
    for name, values in seconds.items():
        print(f'{name} in {spread(values)} s')
    print(f'medians of {ROUNDS} (lowest to highest); {machine("mindspore", "numpy")}')


if __name__ == '__main__':
    main()
