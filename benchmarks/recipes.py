"""Recipes side by side on the same records: `python -m benchmarks.recipes DATA --recipe FILE[,OPTION=VALUE ...] ...`.

A recipe is a file as `--config_path` takes it, and what differs from it here. `--epochs` are those of the first recipe; the
epochs of all are scaled by the same factor (`max_epochs`, `T_max`, `warmup_epochs`, `lr_decay_epochs`), and `image_sizes` as
`--image_size` is to the recipe's, to 75 pixels at least. Seed after seed, the recipes take turns, each time from another one
on; every training is a `benchmarks.timed_training` in a process and a directory of its own and evaluates after each epoch.
`--option block_counts=1,1,1` goes to all trainings.

Beside the table it writes recipes.csv and recipes.png. A training that is complete in `--directory` is not done again, so
that a stopped comparison goes on.
"""

import concurrent.futures
import csv
import math
import os
import queue
import re
import statistics
import subprocess
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

from benchmarks.finetune import copy_without_duplicates
from benchmarks.rounds import machine
from benchmarks.timed_training import EVALUATED
from src.errors import InputError, Parser, entry_point
from src.files import replacing
from src.options import load_settings
from src.training.stages import make_stages, multiplications

ROOT = Path(__file__).resolve().parents[1]
PLAN = re.compile(r'(\d+) steps of (\d+) images x 1 an epoch; (\d+) steps')  # of an epoch, images, of the training
# After `step` steps: epochs, images and TFLOP computed, wall-clock and CPU seconds of the steps, top-1 in %, and loss.
Point = namedtuple('Point', 'step epoch images tflop seconds cpu_seconds top1 loss')


def scaled(path, epochs, first_epochs, image_size, own):
    """Options {name: text} that make the recipe at `path` a training of `epochs` epochs where the first recipe has
    `first_epochs`, with images of `image_size` pixels; `own` {name: text} last."""
    recipe = load_settings(['--config_path', str(path)])
    factor, smaller = epochs / first_epochs, image_size / recipe.image_size
    whole = {name: max(1, round(recipe[name] * factor)) for name in ('max_epochs', 'T_max')}
    parts = {name: f'{recipe[name] * factor:.4g}' for name in ('warmup_epochs', 'lr_decay_epochs')}
    options = {'image_size': image_size, **whole, **parts}
    if recipe.image_sizes:
        options['image_sizes'] = ','.join(str(max(75, round(size * smaller))) for size in recipe.image_sizes)
    return {'config_path': path, **options, **own}


def training_flop(size, block_counts):
    """Floating point operations of a training step for one image of `size` x `size` pixels: two for each multiplication of
    the forward pass's convolutions, and twice as many again for the gradients of their inputs and their weights."""
    return 6 * multiplications(size, block_counts)


def computed_images(step, stages, batch_size, block_counts):
    """(images, TFLOP) of the first `step` steps of a training with these `stages`."""
    steps = [(size, max(0, min(step, stop) - start)) for size, start, stop in stages]
    flop = sum(count * batch_size * training_flop(size, block_counts) for size, count in steps)
    return step * batch_size, flop / 1e12


def read_log(text, sizes, block_counts):
    """([Point] of the evaluations in a training's log, whether it is complete); `sizes` are those of its stages."""
    found = PLAN.search(text)
    if not found:
        return [], False
    per_epoch, batch_size, stop = map(int, found.groups())
    stages, points = make_stages(sizes, stop), []
    for timed, wall, cpu, step, top1, loss in EVALUATED.findall(text):
        step, scale = int(step), int(step) / int(timed)  # as if the steps that compiled had taken what the others did
        images = computed_images(step, stages, batch_size, block_counts)
        points.append(
            Point(step, step / per_epoch, *images, float(wall) * scale, float(cpu) * scale, float(top1), float(loss))
        )
    return points, bool(points) and points[-1].step >= stop


def train(folder, options, cores):
    """The [Point] of a training in `folder` with the options {name: text}, on one of the sets of cores in the queue `cores`;
    from its log if it is complete there, with the same options."""
    arguments = [f'--{name}={value}' for name, value in options.items()]
    config = load_settings(arguments)
    log, given = folder / config.log_name, folder / 'options.txt'
    evaluations = partial(read_log, sizes=tuple(config.image_sizes or [config.image_size]), block_counts=config.block_counts)
    if log.exists() and given.exists() and given.read_text().split('\n') == arguments:
        points, complete = evaluations(log.read_text())
        if complete:
            return points
    folder.mkdir(parents=True, exist_ok=True)
    given.write_text('\n'.join(arguments))
    environment, bound = {**os.environ, 'PYTHONPATH': str(ROOT)}, cores.get()
    command = ['taskset', '-c', ','.join(map(str, bound)), sys.executable, '-m', 'benchmarks.timed_training']
    command += [f'--log_dir={folder}', '--overwrite=true', *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    cores.put(bound)
    for path in folder.glob('*.ckpt'):
        path.unlink()
    if done.returncode:
        raise InputError(f'train.py ended with status {done.returncode}: {done.stderr.strip()[-300:]}')
    return evaluations(log.read_text())[0]


def first_at(points, target):
    """The first `Point` with a top-1 of at least `target`; None without one."""
    return next((point for point in points if point.top1 >= target), None)


def middle(values, digits=0):
    """`median (lowest to highest)` of `values`, in which None, for never, is more than any other."""
    ordered = sorted(math.inf if value is None else value for value in values)
    figures = (ordered[0], statistics.median(ordered), ordered[-1])
    lowest, median, highest = ('never' if value == math.inf else f'{value:.{digits}f}' for value in figures)
    return f'{median} ({lowest} to {highest})'


def table(trainings, target):
    """Lines of a Markdown table: each recipe of `trainings` {name: [[Point], one list for each seed]}, median of the seeds
    with lowest and highest; until the top-1 of `target` % was reached first, and of the whole training."""
    columns = [
        f'CPU s to {target:.1f} %',
        f'seconds to {target:.1f} %',
        f'TFLOP to {target:.1f} %',
        f'images to {target:.1f} %',
    ]
    columns += ['final top-1, %', 'CPU s', 'seconds', 'TFLOP', 'images']
    yield '| recipe | ' + ' | '.join(columns) + ' |'
    yield '| --- ' * (len(columns) + 1) + '|'
    for name, seeds in trainings.items():
        reached = [first_at(points, target) for points in seeds]
        cells = [
            middle([point and getattr(point, field) for point in reached], int(field == 'tflop'))
            for field in ('cpu_seconds', 'seconds', 'tflop', 'images')
        ]
        cells += [
            middle([getattr(points[-1], field) for points in seeds], int(field in ('tflop', 'top1')))
            for field in ('top1', 'cpu_seconds', 'seconds', 'tflop', 'images')
        ]
        yield f'| {name} | ' + ' | '.join(cells) + ' |'


def write_csv(trainings, seeds, path):
    """Every `Point` of `trainings`."""
    with replacing(path) as temporary, open(temporary, 'w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(['recipe', 'seed', *Point._fields])
        for name, found in trainings.items():
            for seed, points in zip(seeds, found):
                rows.writerows([name, seed, *(f'{value:.6g}' for value in point)] for point in points)


def plot(trainings, target, path):
    """Top-1 over CPU seconds and over wall-clock seconds: a line for the median of the seeds, a dot for each of them."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout='constrained')
    for axis, field, label in zip(axes, ('cpu_seconds', 'seconds'), ('CPU seconds', 'seconds')):
        for name, seeds in trainings.items():
            epochs = list(zip(*seeds))
            x = [statistics.median(getattr(point, field) for point in points) for points in epochs]
            (line,) = axis.plot(x, [statistics.median(point.top1 for point in points) for points in epochs], label=name)
            dots = [point for points in seeds for point in points]
            axis.plot([getattr(p, field) for p in dots], [p.top1 for p in dots], '.', color=line.get_color(), alpha=0.5)
        axis.axhline(target, color='grey', linewidth=0.8, linestyle='--')
        axis.set(xlabel=f'{label} of the training steps', xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel('top-1, %')
    axes[0].legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=90, format='png')
    pyplot.close(figure)


def options_of(texts):
    """{name: text} of texts `name=text`."""
    for text in texts:
        if '=' not in text:
            raise InputError(f'{text!r:.80}: expected OPTION=VALUE')
    return dict(text.split('=', 1) for text in texts)


def parse(argv):
    """The arguments, and the options {name: text} of all trainings."""
    parser = Parser(prog='python -m benchmarks.recipes', description=__doc__.partition(':')[0])
    parser.add_argument('data', help='records')
    parser.add_argument('--recipe', action='append', required=True, help='FILE[,OPTION=VALUE ...], once for each recipe')
    parser.add_argument('--epochs', type=float, required=True, help='epochs of the first recipe')
    parser.add_argument('--image_size', type=int, default=299, help='height and width in pixels (default: 299)')
    parser.add_argument('--train', type=int, default=0, help='training images a class at most; 0: all (default)')
    parser.add_argument('--seeds', default='1,2,3', help='default: 1,2,3')
    parser.add_argument('--target', type=float, default=0, help='top-1 in %%; 0: the median of the first recipe (default)')
    parser.add_argument(
        '--jobs', type=int, default=1, help='trainings at a time, each on its share of the cores (default: 1)'
    )
    parser.add_argument('--option', action='append', default=[], help='OPTION=VALUE of all trainings, as often as needed')
    parser.add_argument('--directory', default='recipes_compared', help='of logs and results (default: recipes_compared)')
    args = parser.parse_args(argv)
    common = {'mode': 'train_and_evaluate', 'epochs_between_evals': 1, 'keep_checkpoint_max': 1, 'num_workers': 1}
    return args, {**common, **options_of(args.option)}


@entry_point
def main(argv=None):
    args, common = parse(argv)
    recipes = {}
    for text in args.recipe:
        path, *own = text.split(',')
        own = options_of(own)
        recipes[f'{Path(path).stem}{"".join(f" {k}={v}" for k, v in own.items())}'] = Path(path).resolve(), own
    first_epochs = load_settings(['--config_path', str(next(iter(recipes.values()))[0])]).max_epochs
    seeds, directory = args.seeds.split(','), Path(args.directory).resolve()
    data = directory / 'data'
    print(machine('mindspore', 'numpy'), flush=True)
    print(copy_without_duplicates(args.data, data, {'train': args.train, 'validation': 0}), flush=True)
    cores, free = sorted(os.sched_getaffinity(0)), queue.Queue()
    for job in range(args.jobs):
        free.put(cores[job :: args.jobs])

    def run(name, seed):
        path, own = recipes[name]
        every = {**common, 'data_dir': data, 'seed': seed, **own}
        options = scaled(path, args.epochs, first_epochs, args.image_size, every)
        points = train(directory / re.sub(r'\W+', '_', f'{name}_{seed}'), options, free)
        accuracy = ' '.join(f'{point.top1:.1f}' for point in points)
        print(f'seed {seed}, {name}: top-1 {accuracy} %, {points[-1].cpu_seconds:.0f} CPU s', flush=True)
        return points

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        names = list(recipes)
        turns = [(names[(int(seed) + i) % len(names)], seed) for seed in seeds for i in range(len(names))]
        running = {turn: pool.submit(run, *turn) for turn in turns}
        trainings = {name: [running[name, seed].result() for seed in seeds] for name in names}
    target = args.target or statistics.median(points[-1].top1 for points in next(iter(trainings.values())))
    print('\n'.join(table(trainings, target)))
    write_csv(trainings, seeds, directory / 'recipes.csv')
    plot(trainings, target, directory / 'recipes.png')


if __name__ == '__main__':
    main()
