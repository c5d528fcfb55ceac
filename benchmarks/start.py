"""Time from the command to the first result of a training, an evaluation and an export: `python -m benchmarks.start`.

Training: to the line of its first step. Evaluation: to its table. Export: to the verified file. Cold: with an empty compile
cache; warm: with the one that an earlier start has filled (an export has none). All are started by their scripts, in turns,
in a new random order every round, on drawn images.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.rounds import interleaved, machine, spread
from src.data import demo_images
from src.errors import InputError, Parser, entry_point
from src.programs import ROOT


def first_result(script, pattern, *arguments):
    """Seconds from the start of `script` to the output line that matches `pattern` (None: to its end)."""
    start, seconds, lines = time.perf_counter(), None, []
    command = ['bash', str(ROOT / 'scripts' / script), *map(str, arguments)]
    environment = {**os.environ, 'PYTHON': sys.executable}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as child:
        for line in child.stdout:
            lines.append(line)
            if pattern and seconds is None and re.match(pattern, line):
                seconds = time.perf_counter() - start
    if child.returncode or pattern and seconds is None:
        raise InputError(f'{script} failed: {"".join(lines[-3:]).strip()}')
    return seconds or time.perf_counter() - start


def programs(directory, network):
    """{name: function that starts it and returns the seconds} for everything that is timed."""
    data = demo_images.make(directory / 'data', train_per_class=6, validation_per_class=3)
    training = ('run_standalone_train.sh', 'step: 1 ', '--data_dir', data, '--overwrite', 'true', *network)
    training += ('--max_train_steps', 1, '--display_every', 1, '--log_dir', directory / 'training', '--compile_cache')
    first_result(*training, directory / 'warm')
    (checkpoint,) = (directory / 'training').glob('*.ckpt')
    checkpoint = checkpoint.rename(directory / 'weights.ckpt')
    evaluation = ('run_eval.sh', r'\d+ validation images, each', '--ckpt_path', checkpoint, '--data_dir', data)
    evaluation += ('--compile_cache',)
    first_result(*evaluation, directory / 'warm')

    def cold(*command):
        with tempfile.TemporaryDirectory(dir=directory) as empty:
            return first_result(*command, empty)

    return {
        'training, cold': partial(cold, *training),
        'training, warm': partial(first_result, *training, directory / 'warm'),
        'evaluation, cold': partial(cold, *evaluation),
        'evaluation, warm': partial(first_result, *evaluation, directory / 'warm'),
        'export': partial(
            first_result, 'run_export.sh', None, '--ckpt_path', checkpoint, '--file_name', directory / 'exported'
        ),
    }


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.start', description=__doc__.partition(':')[0])
    parser.add_argument('--image_size', type=int, default=75, help='height and width in pixels (default: 75)')
    parser.add_argument('--batch_size', type=int, default=8, help='images a step (default: 8)')
    parser.add_argument('--block_counts', default='4,7,3', help='Inception A, B and C blocks (default: 4,7,3)')
    parser.add_argument('--rounds', type=int, default=3, help='starts of each (default: 3)')
    args = parser.parse_args(argv)
    network = ('--image_size', args.image_size, '--batch_size', args.batch_size, '--block_counts', args.block_counts)
    with tempfile.TemporaryDirectory() as directory:
        calls, seconds = programs(Path(directory), network), {}
        timed = {name: partial(lambda name: seconds.setdefault(name, []).append(calls[name]()), name) for name in calls}
        interleaved(timed, args.rounds, warm_up=0)
        print(f'{args.image_size} x {args.image_size}, batch {args.batch_size}, blocks {args.block_counts}; seconds to the')
        print(f'first result, median of {args.rounds} (lowest to highest); {machine("mindspore", "numpy")}')
        for name in calls:
            print(f'{name:<16} {spread(seconds[name], 1)}')


if __name__ == '__main__':
    main()
