"""How long saving a checkpoint interrupts a training: `python -m benchmarks.checkpoint [DIR]`; nothing is trained.

Writes the full state of a training of the whole network (weights, RMSProp's two slots, moving averages) ROUNDS times below
DIR, the way a training does, and copies it as often, which is all that a training waits for where a thread writes. Both
medians are compared with the time of an epoch of ImageNet: at the original's rates, and with 64 devices at the estimate of
docs/scaling.md.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.rounds import interleaved, machine, spread
from src.errors import InputError, Parser, entry_point
from src.inceptionv4 import InceptionV4
from src.training.optimizer import make_optimizer
from src.training.scaling import TRAINING_IMAGES
from src.training.step import NetworkWithLoss, TrainStep
from src.weights import checkpoint

ROUNDS = 5
RATES = {1: 469.6, 8: 3109.0, 64: 29282.0}  # images a second by devices


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
        with tempfile.TemporaryDirectory(dir=directory) as place:

            def save(place=place, step=step):
                for older in checkpoint.by_age(place):
                    older.unlink()
                checkpoint.save(place, step, step=1, epoch=0, config={})

            seconds = interleaved({'save': save, 'copy': partial(checkpoint.snapshot, step)}, ROUNDS, warm_up=1)
            (path,) = checkpoint.by_age(place)
            started = time.perf_counter()
            checkpoint.load(path)
            loading, size = time.perf_counter() - started, path.stat().st_size
        print(
            f'ema_decay {ema_decay}: {size / 1e6:.0f} MB; saved in {spread(seconds["save"])} s, copied in '
            f'{spread(seconds["copy"])} s; loaded and its checksum compared in {loading:.2f} s'
        )
        for devices, rate in RATES.items():
            epoch = TRAINING_IMAGES / rate
            share = {name: 100 * np.median(values) / epoch for name, values in seconds.items()}
            print(
                f'  one save an epoch of ImageNet on {devices} device(s), {epoch:.0f} s: {share["save"]:.2f} % of the time, '
                f'{share["copy"]:.2f} % where a thread writes'
            )
    print(f'medians of {ROUNDS} (lowest to highest); {machine("mindspore", "numpy")}')


if __name__ == '__main__':
    main()
