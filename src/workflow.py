"""Data, training, evaluation, export and predictions in one command, with the project's own programs.

`python -m src.workflow demo [OUTPUT_DIR] [--option value ...]` draws a data set and learns its classes;
`python -m src.workflow finetune PHOTOS WEIGHTS [OUTPUT] [--option value ...]` makes a classifier of one's own photos. The
options go to train.py and count more than those of scripts/demo.yaml and recipes/finetune.yaml. The same command continues
a fine-tuning where it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from src.data import demo_images
from src.data.convert import recorded
from src.data.records import Records, open_records
from src.data.split import open_list, open_photos
from src.deploy.formats import need_onnx
from src.errors import InputError, entry_point, reading
from src.heartbeat import end_with_parent
from src.options import load_settings
from src.training import curves, metrics
from src.training.plan import default_batch_size

ROOT = Path(__file__).resolve().parents[1]
DEMO = """usage: bash scripts/run_demo.sh [OUTPUT_DIR] [--seed N] [--option value ...]

Draws images, trains on them, evaluates, exports and predicts, in about six minutes on two idle cores.

  OUTPUT_DIR  where everything goes (default: demo)
  --seed N    other images, weights and order (default: 1)
  --option    any other of train.py, which `python train.py --help` lists; scripts/demo.yaml has the demo's own values"""
FINETUNE = 'bash scripts/run_finetune.sh PHOTOS WEIGHTS [OUTPUT] [--option value ...]'
NAME = 'finetune.json'  # what a directory OUTPUT is made from; a directory without it is somebody else's
SET_HERE = ('data_dir', 'log_dir', 'restore_path', 'mode', 'report')  # options
OF_WEIGHTS = ('block_counts', 'bn_scale', 'image_size')  # options that are as WEIGHTS record them, unless they are given
LENGTH = ('max_epochs', 'T_max', 'max_train_steps')  # options; where none of them is given, epochs by the number of photos
STEPS = 200  # that a training run has at least: three epochs of a hundred photos are too few
SHARDS, SHOWN = 4, 5  # shards for each part, and photos to predict, at most


def start(program: str, *arguments: object, good: tuple[int, ...] = (0,)) -> int:
    """Run an entry point (`train.py`) or a module (`src.data.check`) and return its exit status, one of `good`. With any
    other status this process ends, too, with the same. The output goes to the screen.

    SIGINT, SIGTERM and SIGHUP (not under nohup) are passed on to the program, which may have something to save.
    (`subprocess.run` would kill it.) If this process is killed, the program gets SIGTERM.
    """
    shown = [program] if program.endswith('.py') else ['-m', program]
    words = [str(argument) for argument in arguments]
    print(f'\n$ {shlex.join(["python", *shown, *words])}', flush=True)
    call = [str(ROOT / program)] if program.endswith('.py') else [str(ROOT / 'scripts/module.py'), program]
    child = subprocess.Popen([sys.executable, *call, *words], preexec_fn=end_with_parent(signal.SIGTERM))
    # After Ctrl-C the program gets the signal twice; training takes the second one as the same request.
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN))]
    earlier = [signal.signal(number, lambda number, _: child.send_signal(number)) for number in numbers]
    try:
        status = child.wait()
    finally:
        for number, handler in zip(numbers, earlier):
            signal.signal(number, handler)
    status = status if status >= 0 else 128 - status
    if status not in good:
        sys.exit(status)
    return status


def demo(arguments: list[str]) -> list[tuple[str, object]]:
    """Draw images and learn them, with the command line `arguments`. Rows of the table."""
    output = Path(arguments.pop(0) if arguments and not arguments[0].startswith('--') else 'demo').resolve()
    options = ['--config_path', str(ROOT / 'scripts/demo.yaml')]
    config = load_settings([*options, *arguments])
    print('the demo draws images, trains, evaluates, exports and predicts: about six minutes on two idle cores', flush=True)
    data, training = demo_images.make(output / 'data', seed=config.seed), output / 'training'
    anew = [] if config.resume else ['--overwrite', 'true']
    start('train.py', *options, '--data_dir', data, '--log_dir', training, *anew, *arguments)
    trained = max(training.glob('*.ckpt'), key=lambda path: path.stat().st_mtime)
    start('eval.py', '--ckpt_path', trained, '--data_dir', data)
    curves.at_end(training, lambda _: None)  # once more, now with the evaluation
    start('export.py', '--ckpt_path', trained, '--file_name', output / 'inceptionv4')
    images, page = one_of_each_class(open_records(data, 'validation'), output / 'images'), output / 'predictions.html'
    start('src.deploy.predict', *images, '--model', output / 'inceptionv4.mindir', '--top', 3, '--html', page)
    result = json.loads((training / 'evaluation.json').read_text())[0]
    page_of_curves = training / curves.PAGE
    return [
        ('images', f'{data} (10 classes, seed {config.seed})'),
        ('training', f'{curves.TrainingRun(training).summary()}, log in {training / config.log_name}'),
        ('checkpoint', trained),
        ('top-1, top-5', f'{result["top1"]:.1f} %, {result["top5"]:.1f} % of {result["images"]} held-out images'),
        ('MINDIR', output / 'inceptionv4.mindir'),
        ('predictions', page),
        ('curves', page_of_curves if page_of_curves.exists() else 'left out: pip install -r requirements-report.txt'),
    ]


def one_of_each_class(records: Records, directory: Path) -> list[Path]:
    """The first image of every class of `records`, as files in `directory`."""
    paths = []
    for label, k in zip(*np.unique(records.label, return_index=True)):
        paths.append(directory / records.class_names[label] / f'{k}.jpg')  # a folder of its class: the page marks wrong ones
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        paths[-1].write_bytes(records.read(k))
    return paths


def finetune(arguments: list[str]) -> list[tuple[str, object]]:
    """Train the network of a weights file on photos, as far as it is not done, with the command line `arguments`. Rows of
    the table."""
    from src.weights import checkpoint  # here, as it imports MindSpore, for which the demo would wait
    from src.weights.read import main_file, read_weights

    photos, weights, output, options = parse(arguments)
    recipe = ['--config_path', str(ROOT / 'recipes/finetune.yaml')]
    config = load_settings([*recipe, *options])
    print(f'fine-tunes {weights.name} on the photos in {photos}; everything goes to {output}', flush=True)
    found = open_photos(photos)
    stored, defaults = read_weights(weights)[1].get('config', {}), load_settings([])
    claim(
        output,
        {
            'photos': f'{photos} ({", ".join(records.fingerprint for records in found.values())})',
            'weights': f'{weights} ({os.path.getsize(main_file(weights))} bytes)',
            'seed': str(config.seed),
        },
    )
    data, training, listed = output / 'data', output / 'training', output / 'split.csv'
    if not listed.exists():
        start('src.data.split', photos, listed, '--seed', config.seed)
    parts = open_list(listed)
    shards = min(SHARDS, *map(len, parts.values()))
    start('src.data.convert', '--list', listed, '--dst', data, '--format', 'tfrecord', '--shards', shards, '--fix')
    if not checkpoint.of_training(training):
        start('src.data.check', data, good=(0, 1))  # 1: with problems, which it lists
    batch = min(config.batch_size or default_batch_size(1), len(parts['train']))
    more = [
        *('--data_dir', data, '--log_dir', training, '--restore_path', weights),
        *([] if config.resume or config.overwrite else ['--resume', 'auto']),
        *('--report', output / 'report'),
        *as_options({name: stored[name] for name in OF_WEIGHTS if name in stored and config[name] == defaults[name]}),
        *epochs_for(len(parts['train']), batch, config, options),
    ]
    start('train.py', *recipe, *more, *options, '--batch_size', batch)
    held_out, train_count = parts['validation'], len(parts['train'])
    names, best = held_out.class_names, training / checkpoint.BEST
    trained = best if best.exists() else checkpoint.of_training(training)[-1]  # train.py has ended well: there is one
    page_of_curves = training / curves.PAGE
    return [
        ('photos', photos),
        ('classes', f'{len(names)}: {", ".join(names[:SHOWN])}{" ..." * (len(names) > SHOWN)}'),
        ('split', f'{train_count} to train with, {len(held_out)} to validate with, listed in {listed}'),
        ('training', f'{curves.TrainingRun(training).summary()}, log in {training / config.log_name}'),
        *evaluate(trained, output, config.batch_size),
        *export_and_predict(trained, output, held_out),
        *([('curves', page_of_curves)] if page_of_curves.exists() else []),
    ]


def parse(arguments: list[str]) -> tuple[Path, Path, Path, list[str]]:
    """(PHOTOS, WEIGHTS, OUTPUT, options) of the command line. InputError for other numbers of arguments, places that cannot
    be, and options that are set here."""
    count = next((n for n, word in enumerate(arguments) if word.startswith('-')), len(arguments))
    places, options = arguments[:count], arguments[count:]
    if count not in (2, 3):
        raise InputError(f'{shlex.join(places) or "nothing"} is given before the options; the usage is {FINETUNE}')
    for name in {word[2:].partition('=')[0] for word in options} & set(SET_HERE):
        raise InputError(f'--{name} is set by the fine-tuning itself; leave it out, or use train.py')
    photos, weights, output = (Path(os.path.abspath(place)) for place in (*places, 'finetuned')[:3])
    if photos in (output, *output.parents):
        raise InputError(f'{output} is in the folder of the photos; give another directory for OUTPUT')
    return photos, weights, output, options


def claim(output: Path, made_from: dict[str, str]) -> None:
    """Make the directory `output` that of a fine-tuning `made_from` {what: text}. InputError if it is that of another one,
    or holds anything else."""
    with reading(output, 'give another directory for OUTPUT, or remove this one'):
        output.mkdir(parents=True, exist_ok=True)
        there = sorted(os.listdir(output))
        if not {*there} - {NAME}:  # also after a first attempt that got no further, for example for want of photos
            (output / NAME).write_text(json.dumps(made_from, indent=1))
    with reading(output / NAME, 'give another directory for OUTPUT'):
        recorded(output / NAME, made_from, there)


def as_options(values: dict) -> list[str]:
    """Command line of options {name: value}."""
    return [word for name, value in values.items() for word in (f'--{name}', re.sub(r'[\[\] ]', '', str(value)).lower())]


def epochs_for(photos: int, batch_size: int, config: dict, options: list[str]) -> list[str]:
    """Command line of the epochs for so many training `photos`: those of `config`, but at least `STEPS` steps. Empty if the
    command line `options` says how long."""
    if any(word[2:].partition('=')[0] in LENGTH for word in options):
        return []
    epochs = max(config['max_epochs'], -(-STEPS // (photos // batch_size)))
    return as_options({'max_epochs': epochs, 'T_max': epochs})


def is_newer(result: Path, source: Path) -> bool:
    """Whether `result` was made after `source`."""
    return result.exists() and result.stat().st_mtime >= source.stat().st_mtime


def evaluation_of(training: Path, step: int) -> dict | None:
    """The figures of the checkpoint of `step` that the training run has recorded, or else eval.py; None if neither."""
    found = []
    with contextlib.suppress(OSError):
        found += metrics.read(training / metrics.NAME)
    with contextlib.suppress(OSError, ValueError, TypeError):  # missing, damaged, or something else
        found += json.loads((training / 'evaluation.json').read_text())
    wanted = [one for one in found if isinstance(one, dict) and one.get('step') == step and {'top1', 'images'} <= {*one}]
    return next(iter(wanted), None)


def evaluate(trained: Path, output: Path, batch_size: int) -> list[tuple[str, object]]:
    """Evaluate the checkpoint `trained` unless its training run has left its figures and the report on it. Rows of the
    table."""
    from src.weights import checkpoint

    step, page = checkpoint.load(trained)[1]['step'], output / 'report/index.html'
    result = evaluation_of(trained.parent, step)
    if not result or not is_newer(page, trained):
        start(
            'eval.py',
            '--ckpt_path',
            trained,
            '--data_dir',
            output / 'data',
            '--batch_size',
            batch_size,
            '--report',
            page.parent,
        )
        result = evaluation_of(trained.parent, step)
    top5 = '' if result.get('top5') is None else f', {result["top5"]:.1f} %'
    return [
        ('checkpoint', trained),
        ('top-1, top-5' if top5 else 'top-1', f'{result["top1"]:.1f} %{top5} of {result["images"]} validation photos'),
        ('report', page),
    ]


def export_and_predict(trained: Path, output: Path, photos: Records) -> list[tuple[str, object]]:
    """Export the checkpoint `trained`, and predict some of the `photos`, as far as it is not done. Rows of the table."""
    model, page, rows = output / 'inceptionv4', output / 'predictions.html', []
    for file_format in ('MINDIR', 'ONNX'):
        path = model.with_suffix(f'.{file_format.lower()}')
        if file_format == 'ONNX' and (reason := missing(need_onnx)):
            rows.append((file_format, reason))
            continue
        if not is_newer(path, trained):
            start('export.py', '--ckpt_path', trained, '--file_format', file_format, '--file_name', model)
        rows.append((file_format, path))
    if not is_newer(page, model.with_suffix('.mindir')):
        shown = [photos.where(k) for k in sorted({*np.linspace(0, len(photos) - 1, SHOWN, dtype=int).tolist()})]
        start('src.deploy.predict', *shown, '--model', model.with_suffix('.mindir'), '--top', 3, '--html', page)
    return [*rows, ('predictions', page)]


def missing(need: object) -> str | None:
    """What a row says where the packages that the function `need` requires are not installed; None where they are."""
    try:
        need()
    except InputError as error:
        return f'left out: {error}'


@entry_point
def main():
    """The command line."""
    began, (command, *arguments) = time.time(), sys.argv[1:] or ['']
    if command not in ('demo', 'finetune'):
        raise InputError(f'command {command!r}; use demo or finetune')
    if {'-h', '--help'} & {*arguments}:
        print(DEMO if command == 'demo' else f'usage: {FINETUNE}\n')
        return None if command == 'demo' else load_settings(['--help'])
    rows = demo(arguments) if command == 'demo' else finetune(arguments)
    print()
    for name, value in [*rows, ('wall time', f'{time.time() - began:.0f} s')]:
        print(f'{name:<13} {value}')
    print('\nopen the pages (.html) in a browser; each is one file, which can be copied to another machine')


if __name__ == '__main__':
    main()
