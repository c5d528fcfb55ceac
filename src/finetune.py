"""A classifier of one's own photos: split, convert, check, fine-tune, evaluate, export and predict with the project's own
programs, and show the results.

`python -m src.finetune PHOTOS WEIGHTS [OUTPUT] [--option value ...]`; the options go to train.py and count more than
those of recipes/finetune.yaml. The same command again goes on where it ended.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import sys
import time
from pathlib import Path

import numpy as np

from src.data import stamp
from src.data.split import open_list, open_photos
from src.deploy.formats import need_onnx
from src.errors import InputError, entry_point
from src.options import load_settings
from src.programs import ROOT, print_table, run
from src.training import metrics
from src.training.curves import PAGE, TrainingRun, number
from src.training.plan import default_batch_size
from src.weights import checkpoint
from src.weights.read import main_file, read_weights

USAGE = 'bash scripts/run_finetune.sh PHOTOS WEIGHTS [OUTPUT] [--option value ...]'
STAMP = 'finetune.json'  # what a directory OUTPUT is made from; a directory without it is somebody else's
SET_HERE = ('data_dir', 'log_dir', 'restore_path', 'mode', 'report')  # options
OF_WEIGHTS = ('block_counts', 'bn_scale', 'image_size')  # options that are as WEIGHTS record them, unless they are given
LENGTH = ('max_epochs', 'T_max', 'max_train_steps')  # options; where none of them is given, epochs by the number of photos
STEPS = 200  # that a training has at least: three epochs of a hundred photos are too few
SHARDS, SHOWN = 4, 5  # shards for each part, and photos to predict, at most


def claim(output: Path, made_from: dict) -> None:
    """Make the directory `output` that of a fine-tuning `made_from` {what: text}. InputError if it is that of another one,
    or holds anything else."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        there = sorted(os.listdir(output))
        if not {*there} - {STAMP}:  # also after a first attempt that got no further, for example for want of photos
            (output / STAMP).write_text(json.dumps(made_from, indent=1))
        earlier = json.loads((output / STAMP).read_text()) if (output / STAMP).exists() else None
    except OSError as error:
        raise InputError(f'{output}: {error.strerror}; give another directory for OUTPUT') from None
    except ValueError:
        raise InputError(f'{output / STAMP} is damaged; remove {output} or give another OUTPUT') from None
    if earlier is None:
        raise InputError(f'{output} holds {there[0]}, not made by a fine-tuning; give an empty or new directory for OUTPUT')
    for what, value in made_from.items():
        if earlier.get(what) != value:
            raise InputError(
                f'{output} holds a fine-tuning with the {what} {earlier.get(what)}, now {value}; give another OUTPUT, or '
                'remove it'
            )


def options_of(weights: Path, config: dict) -> list[str]:
    """Command line of the options that `config` leaves at their defaults and the file `weights` records. InputError if it
    cannot be read."""
    recorded, defaults = read_weights(weights)[1].get('config', {}), load_settings([])
    chosen = [name for name in OF_WEIGHTS if name in recorded and config[name] == defaults[name]]
    return [word for name in chosen for word in (f'--{name}', re.sub(r'[\[\] ]', '', str(recorded[name])).lower())]


def epochs_for(photos: int, batch_size: int, config: dict, options: list[str]) -> list[str]:
    """Command line of the epochs for so many training `photos`: those of `config`, but at least `STEPS` steps. Empty if the
    command line `options` says how long."""
    if any(word[2:].partition('=')[0] in LENGTH for word in options):
        return []
    epochs = str(max(config['max_epochs'], -(-STEPS // (photos // batch_size))))
    return ['--max_epochs', epochs, '--T_max', epochs]


def make_data(photos: Path, output: Path, seed: int) -> dict:
    """The list and the shards in `output`, those that are not there yet. Returns {part: photos} of the list."""
    listed = output / 'split.csv'
    if not listed.exists():
        run('src.data.split', photos, listed, '--seed', seed)
    parts = open_list(listed)
    shards = min(SHARDS, *map(len, parts.values()))
    run('src.data.convert', '--list', listed, '--dst', output / 'data', '--format', 'tfrecord', '--shards', shards, '--fix')
    return parts


def trained_checkpoint(training: Path) -> Path:
    """The best checkpoint in `training`, or the newest where none was evaluated; InputError if there is none."""
    best = training / checkpoint.BEST
    found = [best] if best.exists() else checkpoint.of_training(training)
    if not found:
        raise InputError(f'{training} holds no checkpoint; remove it, so that the training begins again')
    if line := checkpoint.disagreement(found):
        print(line)
    return found[-1]


def is_newer(result: Path, source: Path) -> bool:
    """Whether `result` was made after `source`."""
    return result.exists() and result.stat().st_mtime >= source.stat().st_mtime


def evaluation_of(training: Path, step: int) -> dict | None:
    """The figures of the checkpoint of `step` that the training has recorded, or else eval.py beside it; None if neither."""
    found = []
    with contextlib.suppress(OSError):
        found += metrics.read(training / metrics.NAME)
    with contextlib.suppress(OSError, ValueError, TypeError):  # missing, damaged, or something else
        found += json.loads((training / 'evaluation.json').read_text())
    with_step = [one for one in found if isinstance(one, dict) and one.get('step') == step]
    return next((one for one in with_step if not math.isnan(number(one, 'top1') + number(one, 'images'))), None)


def reported_step(report: Path) -> int | None:
    """The step of the checkpoint that the report in the directory `report` is about; None if there is no whole report."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return json.loads((report / 'report.json').read_text())['step'] if (report / 'index.html').exists() else None


def evaluate(trained: Path, output: Path, batch_size: int) -> list[tuple[str, object]]:
    """Evaluate the checkpoint `trained` unless its training has left its figures and the report on it. Rows of the table."""
    step, report = checkpoint.load(trained)[1]['step'], output / 'report'
    result = evaluation_of(trained.parent, step)
    if not result or reported_step(report) != step:
        options = ['--report', report]
        run('eval.py', '--ckpt_path', trained, '--data_dir', output / 'data', '--batch_size', batch_size, *options)
        result = evaluation_of(trained.parent, step)
    if not result:
        raise InputError(f'{trained.parent}: eval.py could not leave evaluation.json there; see above')
    top5 = '' if result.get('top5') is None else f', {result["top5"]:.1f} %'
    return [
        ('checkpoint', trained),
        ('top-1, top-5' if top5 else 'top-1', f'{result["top1"]:.1f} %{top5} of {result["images"]} validation photos'),
        ('report', report / 'index.html'),
    ]


def export_and_predict(trained: Path, output: Path, shown: list[str]) -> list[tuple[str, object]]:
    """Export the checkpoint `trained`, and predict the photos `shown`, as far as it is not done. Rows of the table."""
    model, page, rows = output / 'inceptionv4', output / 'predictions.html', []
    for file_format in ('MINDIR', 'ONNX'):
        path = model.with_suffix(f'.{file_format.lower()}')
        if file_format == 'ONNX' and (reason := _missing(need_onnx)):
            rows.append((file_format, reason))
            continue
        if not is_newer(path, trained):
            run('export.py', '--ckpt_path', trained, '--file_format', file_format, '--file_name', model)
        rows.append((file_format, path))
    if not is_newer(page, model.with_suffix('.mindir')):
        run('src.deploy.predict', *shown, '--model', model.with_suffix('.mindir'), '--top', 3, '--html', page)
    return [*rows, ('predictions', page)]


def _missing(need):
    """What a row says where the packages that `need` asks for are not installed; None where they are."""
    try:
        need()
    except InputError as error:
        return f'left out: {error}'


def _speed(training):
    """[steps and speed of the training], empty where an older version trained, which recorded none."""
    try:
        return [TrainingRun(training).summary()]
    except InputError:
        return []


def parse(arguments: list[str]) -> tuple[Path, Path, Path, list[str]]:
    """(PHOTOS, WEIGHTS, OUTPUT, options) of the command line. InputError for other numbers of arguments, places that cannot
    be, and options that are set here."""
    count = next((n for n, word in enumerate(arguments) if word.startswith('-')), len(arguments))
    places, options = arguments[:count], arguments[count:]
    if count not in (2, 3):
        raise InputError(f'{shlex.join(places) or "nothing"} is given before the options; the usage is {USAGE}')
    for name in {word[2:].partition('=')[0] for word in options} & set(SET_HERE):
        raise InputError(f'--{name} is set by the fine-tuning itself; leave it out, or use train.py')
    photos, weights, output = (Path(os.path.abspath(place)) for place in (*places, 'finetuned')[:3])
    if photos in (output, *output.parents):
        raise InputError(f'{output} is in the folder of the photos; give another directory for OUTPUT')
    return photos, weights, output, options


@entry_point
def main():
    """The command line."""
    start, arguments, recipe = time.time(), sys.argv[1:], ['--config_path', str(ROOT / 'recipes/finetune.yaml')]
    if {'-h', '--help'} & {*arguments}:
        print(f'{USAGE}\n')
        load_settings(['--help'])
    photos, weights, output, options = parse(arguments)
    config = load_settings([*recipe, *options])
    print(f'fine-tunes {weights.name} on the photos in {photos}; everything goes to {output}', flush=True)
    found = open_photos(photos)
    network = options_of(weights, config)
    checksum = ', '.join(stamp.fingerprint(records)[:8] for records in found.values())
    claim(
        output,
        {
            'photos': f'{photos} ({sum(map(len, found.values()))}, checksum {checksum})',
            'weights': f'{weights} ({os.path.getsize(main_file(weights))} bytes)',
            'seed': str(config.seed),
        },
    )
    data, training = output / 'data', output / 'training'
    parts = make_data(photos, output, config.seed)
    held = parts['validation']
    if not checkpoint.of_training(training):
        run('src.data.check', data, good=(0, 1))  # 1: with problems, which it lists
    where = ['--data_dir', data, '--log_dir', training, '--restore_path', weights]
    going_on = [] if config.resume or config.overwrite else ['--resume', 'auto']
    batch = min(config.batch_size or default_batch_size(1), len(parts['train']))
    length = epochs_for(len(parts['train']), batch, config, options)
    report = ['--report', output / 'report']
    run('train.py', *recipe, *where, *going_on, *report, *network, *length, *options, '--batch_size', batch)
    shown = [held.where(k) for k in sorted({*np.linspace(0, len(held) - 1, SHOWN, dtype=int).tolist()})]
    trained = trained_checkpoint(training)
    names = held.class_names
    print_table(
        [
            ('photos', photos),
            ('classes', f'{len(names)}: {", ".join(names[:SHOWN])}{" ..." * (len(names) > SHOWN)}'),
            (
                'split',
                f'{len(parts["train"])} to train with, {len(held)} to validate with, listed in {output / "split.csv"}',
            ),
            ('training', ', '.join([*_speed(training), f'log in {training / config.log_name}'])),
            *evaluate(trained, output, config.batch_size),
            *export_and_predict(trained, output, shown),
            *([('curves', training / PAGE)] if (training / PAGE).exists() else []),
            ('wall time', f'{time.time() - start:.0f} s'),
        ]
    )


if __name__ == '__main__':
    main()
