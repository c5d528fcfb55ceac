"""Time from the command to the first result of a training run, an evaluation and an export: `python -m benchmarks.start`.

Training: to the line of its first step. Evaluation: to its table. Export: to the verified file. Cold: with an empty compile
cache; warm: with one that an earlier start has filled (an export has none). The scripts take turns, on drawn images.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.rounds import interleaved, machine, spread
from src.data import demo_images
from src.errors import InputError, Parser, entry_point
from src.workflow import ROOT


def first_result(script, pattern, *arguments):
    """Seconds from the start of `script` to the output line that matches `pattern`."""
    start, seconds, lines = time.perf_counter(), None, []
    command = ['bash', str(ROOT / 'scripts' / script), *map(str, arguments)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'env': {**os.environ, 'PYTHON': sys.executable}}
    with subprocess.Popen(command, text=True, **pipes) as child:
        for line in child.stdout:
            lines.append(line)
            seconds = seconds or (time.perf_counter() - start if re.match(pattern, line) else None)
    if child.returncode or seconds is None:
        raise InputError(f'{script} failed: {"".join(lines[-3:]).strip()}')
    return seconds


@entry_point
def main():
    parser = Parser(prog='python -m benchmarks.start', description=__doc__.partition(':')[0])
    parser.add_argument('--rounds', type=int, default=3, help='starts of each (default: 3)')
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        directory, weights = Path(place), Path(place, 'weights.ckpt')
        data = demo_images.make(directory / 'data', train_per_class=6, validation_per_class=3)
        training = ['run_standalone_train.sh', 'step: 1 ', '--data_dir', data, '--log_dir', directory / 'training']
        training += '--overwrite true --batch_size 8 --image_size 75 --max_train_steps 1 --display_every 1'.split()
        evaluation = ['run_eval.sh', r'\d+ validation images, each', '--ckpt_path', weights, '--data_dir', data]
        commands = {'export': ['run_export.sh', 'deviation of ', '--ckpt_path', weights, '--file_name', directory / 'net']}
        for name, command in (('training', training), ('evaluation', evaluation)):
            first_result(*command, '--compile_cache', directory / 'warm')
            for cache in ('cold', 'warm'):
                commands[f'{name}, {cache}'] = [*command, '--compile_cache', directory / cache]
            if not weights.exists():
                next((directory / 'training').glob('*.ckpt')).rename(weights)

        def timed(name):
            shutil.rmtree(directory / 'cold', ignore_errors=True)
            return first_result(*commands[name])

        found = interleaved({name: partial(timed, name) for name in commands}, a.rounds)
    print(f'seconds to the first result, median of {a.rounds} (lowest to highest); {machine("mindspore", "numpy")}')
    for name in sorted(found):
        print(f'{name:<16} {spread(found[name], 1)}')


if __name__ == '__main__':
    main()
