"""Recipes side by side on the same records: `python -m benchmarks.recipes DATA --recipe FILE [OPTION=VALUE ...] ...`.

A recipe is a file as `--config_path` takes it, and what differs from it here; `--option` goes to all. Seed after seed, the
recipes take turns; every training run is a process of its own, below `recipes_compared`, and evaluates after each epoch.

CPU seconds are those of whole programs, evaluations included; an epoch has its share of them.
"""

import os
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

from benchmarks.rounds import machine, spread
from src.data.records import open_records
from src.data.tfrecord import write_shards
from src.errors import Parser, entry_point
from src.training import metrics
from src.workflow import ROOT


def data_options(parser):
    """`parser` with the options that say which images, and how often with other ones drawn."""
    parser.add_argument('data', help='records')
    parser.add_argument('--train', type=int, default=0, help='training images of a class, at most; 0: all')
    parser.add_argument('--validation', type=int, default=0, help='validation images of a class, at most; 0: all')
    parser.add_argument('--seeds', default='1,2,3', help='default: 1,2,3')
    return parser


def subset(source, target, train, validation):
    """The directory `target` with the first `train` and `validation` images of each class in `source`, none twice; all of
    them for 0."""
    seen = set()
    for split, most in (('validation', validation), ('train', train)):
        records, counts, kept = open_records(source, split), Counter(), []
        for i, label in enumerate(records.label.tolist()):
            image = records.read(i)
            if image not in seen and not 0 < most <= counts[label]:
                kept.append((image, label, records.name(i)))
                seen.add(image)
                counts[label] += 1
        write_shards(target, split, kept, 1)
    if (names := Path(source, 'labels.txt')).exists():
        Path(target, names.name).write_bytes(names.read_bytes())
    return target


def train(folder, options):
    """[(images trained, CPU seconds, top-1)] at each evaluation of a training run in `folder` with the options
    [OPTION=VALUE]."""
    every = 'mode=train_and_evaluate epochs_between_evals=1 keep_checkpoint_max=1 overwrite=true'.split()
    command = [sys.executable, ROOT / 'train.py', *(f'--{one}' for one in [*options, *every, f'log_dir={folder}'])]
    before = sum(os.times()[2:4])
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    seconds = sum(os.times()[2:4]) - before
    for path in folder.glob('*.ckpt'):
        path.unlink()
    start, *records = metrics.read(folder / metrics.NAME)
    found = [(one['step'], one['top1']) for one in records if one['kind'] == 'evaluation']
    return [(step * start['global_batch'], seconds * step / found[-1][0], top1) for step, top1 in found]


@entry_point
def main():
    parser = Parser(prog='python -m benchmarks.recipes', description=__doc__.partition(':')[0])
    parser.add_argument('--recipe', action='append', nargs='+', required=True, help='FILE [OPTION=VALUE ...], for each')
    parser.add_argument('--option', nargs='*', default=[], help='OPTION=VALUE ... of all')
    a = data_options(parser).parse_args()
    place, found = Path('recipes_compared').resolve(), {' '.join(words): [] for words in a.recipe}
    data = subset(Path(a.data).resolve(), place / 'data', a.train, a.validation)
    print(machine('mindspore', 'numpy'), flush=True)
    for seed in a.seeds.split(','):
        for number, (text, (path, *own)) in enumerate(zip(found, a.recipe)):
            options = [f'config_path={Path(path).resolve()}', f'data_dir={data}', f'seed={seed}', 'num_workers=1']
            points = train(place / f'{number}_{seed}', [*options, *a.option, *own])
            found[text].append(points)
            top1 = ', '.join(f'{point[2]:.1f}' for point in points)
            print(f'seed {seed}, {text}: top-1 {top1} %; {points[-1][1]:.0f} CPU s, {points[-1][0]:,} images', flush=True)
    target = statistics.median(points[-1][2] for points in next(iter(found.values())))
    for text, seeds in found.items():
        first = [next((point for point in points if point[2] >= target), None) for points in seeds]
        cost = f'after {spread([point[1] for point in first], 0)} CPU s' if all(first) else 'not always'
        print(f'{text}: final top-1 {spread([points[-1][2] for points in seeds], 1)} %; {target:.1f} % {cost}')


if __name__ == '__main__':
    main()
