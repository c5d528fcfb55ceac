"""Peak memory of a training, beside the estimate by which it refuses batches that are too large:
`python -m benchmarks.memory [BATCH_SIZE IMAGE_SIZE]`, by default all of CASES."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from src.data import demo_images
from src.errors import InputError, Parser, entry_point
from src.programs import ROOT

CASES = ((2, 299), (8, 299), (16, 299), (32, 75))  # images a step, height and width in pixels


def peak(directory, batch_size, image_size):
    """Bytes of the process that trains six steps with the whole network and saves a checkpoint."""
    options = ['--batch_size', batch_size, '--image_size', image_size, '--max_train_steps', 6, '--overwrite', 'true']
    options += ['--data_dir', directory / 'data', '--log_dir', directory / 'training', '--compile_cache', 'off']
    command = ['bash', str(ROOT / 'scripts/run_standalone_train.sh'), *map(str, options)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, 'PYTHON': sys.executable})
    # subprocess has no usage of one child. The peak of this process, which a child inherits, is far below any training's.
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise InputError(f'the training with batch_size {batch_size} at image_size {image_size} failed; see above')
    return 1024 * usage.ru_maxrss


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.memory', description='Peak memory of a training beside the estimate.')
    parser.add_argument('case', nargs='*', type=int, help='images a step, height and width in pixels')
    case = parser.parse_args(argv).case
    if len(case) not in (0, 2):
        raise InputError(f'{len(case)} numbers given; expected none, or BATCH_SIZE IMAGE_SIZE')
    from src.training import memory
    from src.weights.read import empty_network

    weights = sum(parameter.size for parameter in empty_network({}).get_parameters())
    with tempfile.TemporaryDirectory() as directory:
        demo_images.make(Path(directory) / 'data', train_per_class=10, validation_per_class=1)
        for batch_size, size in [case] if case else CASES:
            used, estimate = peak(Path(directory), batch_size, size), memory.TRAINING.bytes(weights, batch_size, size)
            print(
                f'batch {batch_size}, {size} x {size}: peak {used / 1e9:.2f} GB, estimate {estimate / 1e9:.2f} GB',
                flush=True,
            )


if __name__ == '__main__':
    main()
