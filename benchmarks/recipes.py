"""Recipes side by side on the same records: `python -m benchmarks.recipes DATA --recipe FILE[,OPTION=VALUE ...] ...`.

A recipe is a file as `--config_path` takes it, and what differs from it here. Its epochs (`max_epochs`, `T_max`,
`warmup_epochs`) are scaled by `--epochs` over those of the first recipe, its `image_sizes` as `--image_size` is to its own.
Seed after seed, the recipes take turns; every training run is a process of its own and evaluates after each epoch. `--option
block_counts=1,1,1` goes to all of them. One that is complete in `--directory` is not done again.
"""

import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.rounds import machine, spread
from src.errors import InputError, Parser, entry_point
from src.options import load_settings
from src.training import metrics
from src.workflow import ROOT


def train(folder, options):
    """[(epoch, images trained, seconds of the training steps, top-1, loss)] at each evaluation of a training run in `folder`
    with the options {name: text}; from its records if they are there."""
    shown, records = '\n'.join(f'--{name}={value}' for name, value in options.items()), folder / metrics.NAME
    done = folder / 'done.txt'
    if not done.exists() or done.read_text() != shown:
        every = ['--mode=train_and_evaluate', '--epochs_between_evals=1', '--keep_checkpoint_max=1', f'--log_dir={folder}']
        command = [sys.executable, str(ROOT / 'train.py'), *shown.split('\n'), *every, '--overwrite=true']
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if ended.returncode:
            raise InputError(f'train.py ended with status {ended.returncode}: {ended.stderr.strip()[-300:]}')
        done.write_text(shown)
        for path in folder.glob('*.ckpt'):
            path.unlink()
    points, seconds, before, batch = [], 0.0, 0, 0
    for one in metrics.read(records):
        batch = one.get('global_batch', batch)
        if one['kind'] == 'step':
            seconds += (one['step'] - before) * batch / (one['images_per_second'] or float('inf'))
            before = one['step']
        elif one['kind'] == 'evaluation':
            points.append((one['epoch'], one['step'] * batch, seconds, one['top1'], one['loss']))
    return points


def scaled(path, own, a, first_epochs):
    """Options {name: text} that make the recipe at `path` one of `--epochs` and `--image_size`; `own` last."""
    recipe = load_settings(['--config_path', str(path)])
    factor, smaller = a.epochs / first_epochs, a.image_size / recipe.image_size
    options = {name: max(1, round(recipe[name] * factor)) for name in ('max_epochs', 'T_max')}
    options.update(warmup_epochs=f'{recipe.warmup_epochs * factor:.4g}', image_size=a.image_size, config_path=path)
    if recipe.image_sizes:
        options['image_sizes'] = ','.join(str(max(75, round(size * smaller))) for size in recipe.image_sizes)
    return {**options, **own}


def options_of(texts):
    """{name: text} of texts `name=text`."""
    if wrong := [text for text in texts if '=' not in text]:
        raise InputError(f'{wrong[0]!r:.80}: expected OPTION=VALUE')
    return dict(text.split('=', 1) for text in texts)


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.recipes', description=__doc__.partition(':')[0])
    parser.add_argument('data', help='records')
    parser.add_argument('--recipe', action='append', required=True, help='FILE[,OPTION=VALUE ...], once for each recipe')
    parser.add_argument('--epochs', type=float, required=True, help='epochs of the first recipe')
    parser.add_argument('--image_size', type=int, default=299, help='height and width in pixels (default: 299)')
    parser.add_argument('--seeds', default='1,2,3', help='default: 1,2,3')
    parser.add_argument('--option', action='append', default=[], help='OPTION=VALUE of all training runs')
    parser.add_argument('--directory', default='recipes_compared', help='of the runs (default: recipes_compared)')
    a = parser.parse_args(argv)
    common, found = {'data_dir': Path(a.data).resolve(), **options_of(a.option)}, {text: [] for text in a.recipe}
    first_epochs = load_settings(['--config_path', a.recipe[0].split(',')[0]]).max_epochs
    print(machine('mindspore', 'numpy'), flush=True)
    for seed in a.seeds.split(','):
        for number, text in enumerate(a.recipe):
            path, *own = text.split(',')
            options = scaled(Path(path).resolve(), {**common, 'seed': seed, **options_of(own)}, a, first_epochs)
            found[text].append(train(Path(a.directory, f'{number}_{seed}').resolve(), options))
            print(f'seed {seed}, {text}: top-1', *(f'{point[3]:.1f}' for point in found[text][-1]), flush=True)
    target = statistics.median(points[-1][3] for points in found[a.recipe[0]])
    for text, seeds in found.items():
        first = [next((point for point in points if point[3] >= target), None) for points in seeds]
        until = f'{target:.1f} % after {spread([point[2] for point in first], 0)} s' if all(first) else 'not always there'
        print(f'{text}: final top-1 {spread([points[-1][3] for points in seeds], 1)} %; {until}')


if __name__ == '__main__':
    main()
