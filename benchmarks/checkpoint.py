"""How long saving a checkpoint interrupts a training: `python -m benchmarks.checkpoint [DIR]`; nothing is trained.

Writes the full state of a training of the whole network (weights, RMSProp's two slots, moving averages) ROUNDS times below
DIR, the way a training does, and compares the median with the time of an epoch of ImageNet at the original's rates.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from src.errors import InputError, Parser, entry_point
from src.inceptionv4 import InceptionV4
from src.training.optimizer import make_optimizer
from src.training.scaling import TRAINING_IMAGES
from src.training.step import NetworkWithLoss, TrainStep
from src.weights import checkpoint

ROUNDS = 5
RATES = {1: 469.6, 8: 3109.0}  # images a second of 1 and 8 devices, as the original published them


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.checkpoint', description=__doc__.partition(':')[0])
    parser.add_argument('directory', nargs='?', help='existing directory to write below (default: the temporary one)')
    directory = parser.parse_args(argv).directory
    if directory and not Path(directory).is_dir():
        raise InputError(f'directory {directory} does not exist; name an existing one')
    for ema_decay in (0.0, 0.9999):
        network = InceptionV4()
        optimizer = make_optimizer('rmsprop', network, np.full(10, 0.01, np.float32), weight_decay=1e-5, momentum=0.9)
        step = TrainStep(NetworkWithLoss(network), optimizer, ema_decay=ema_decay)
        seconds = []
        with tempfile.TemporaryDirectory(dir=directory) as place:
            for i in range(ROUNDS):
                started = time.perf_counter()
                path = checkpoint.save(place, step, step=i, epoch=0, config={})
                seconds.append(time.perf_counter() - started)
                size = path.stat().st_size
                for older in checkpoint.by_age(place)[:-1]:
                    older.unlink()
            started = time.perf_counter()
            checkpoint.load(path)
            loading = time.perf_counter() - started
        median = statistics.median(seconds)
        print(
            f'ema_decay {ema_decay}: {size / 1e6:.0f} MB; saved, synced and renamed in {median:.2f} s (median of '
            f'{ROUNDS}, {min(seconds):.2f} to {max(seconds):.2f}); loaded and its checksum compared in {loading:.2f} s'
        )
        for devices, rate in RATES.items():
            epoch = TRAINING_IMAGES / rate
            print(
                f'  one save an epoch of ImageNet on {devices} device(s), {epoch:.0f} s: {100 * median / epoch:.2f} % of '
                'the time'
            )


if __name__ == '__main__':
    main()
