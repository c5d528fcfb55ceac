"""Data, training, evaluation, export and predictions in one command, with the project's own programs.

`scripts/run_demo.sh` draws a data set and learns its classes, `scripts/run_finetune.sh` makes a classifier of one's own
photos. The options go to train.py and count more than those of scripts/demo.yaml and recipes/finetune.yaml. The same command
continues a fine-tuning where it ended.
"""

from __future__ import annotations

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
from src.data.convert import read_note
from src.data.records import open_records
from src.data.split import open_list, open_photos
from src.deploy.formats import need_onnx
from src.errors import InputError, entry_point, reading
from src.evaluation.outcomes import FEW
from src.heartbeat import end_with_parent
from src.options import Settings, load_settings
from src.training import curves
from src.training.plan import default_batch_size

ROOT = Path(__file__).resolve().parents[1]
DEMO = """bash scripts/run_demo.sh [OUTPUT_DIR] [--seed N] [--option value ...]
Draws images, trains on them, evaluates, exports and predicts, in about six minutes on two idle cores. OUTPUT_DIR is where
everything goes (default: demo), --seed N means other images, weights and order; other options are those of train.py."""
FINETUNE = 'bash scripts/run_finetune.sh PHOTOS WEIGHTS [OUTPUT] [--option value ...]'
NOTE = 'finetune.json'  # what a directory OUTPUT is made from; a directory without it is somebody else's
STEPS = 200  # that a training run has at least: three epochs of a hundred photos are too few
SHOWN = 5  # photos to predict, at most


def start(program: str, *arguments: object) -> None:
    """Run an entry point (`train.py`) or a module (`src.data.split`); if it fails, this process ends with its status, too.
    SIGINT and SIGTERM are passed on to the program, which may have something to save. (`subprocess.run` would kill it.) If
    this process is killed, the program gets SIGTERM."""
    shown = [program] if program.endswith('.py') else ['-m', program]
    words = [str(argument) for argument in arguments]
    print(f'\n$ {shlex.join(["python", *shown, *words])}', flush=True)
    call = [str(ROOT / program)] if program.endswith('.py') else [str(ROOT / 'scripts/module.py'), program]
    child = subprocess.Popen([sys.executable, *call, *words], preexec_fn=end_with_parent(signal.SIGTERM))
    # After Ctrl-C the program gets the signal twice; training takes the second one as the same request.
    numbers = signal.SIGINT, signal.SIGTERM
    earlier = [signal.signal(number, lambda number, _: child.send_signal(number)) for number in numbers]
    try:
        status = child.wait()
    finally:
        for number, handler in zip(numbers, earlier):
            signal.signal(number, handler)
    if status:
        sys.exit(status if status > 0 else 128 - status)


def demo(arguments: list[str]) -> list[tuple[str, object]]:
    """Draw images and learn them, with the command line `arguments`. Rows of the table."""
    output = Path(arguments.pop(0) if arguments and not arguments[0].startswith('--') else 'demo').resolve()
    options = ['--config_path', str(ROOT / 'scripts/demo.yaml')]
    settings = load_settings([*options, *arguments])
    print('the demo draws images, trains, evaluates, exports and predicts: about six minutes on two idle cores', flush=True)
    data, training = demo_images.make(output / 'data', seed=settings.seed), output / 'training'
    anew = [] if settings.resume else ['--overwrite', 'true']
    start('train.py', *options, '--data_dir', data, '--log_dir', training, *anew, *arguments)
    records, images = open_records(data, 'validation'), []
    for label, k in zip(*np.unique(records.label, return_index=True)):
        images.append(output / 'images' / records.class_names[label] / f'{k}.jpg')  # its folder: the page marks wrong ones
        images[-1].parent.mkdir(parents=True, exist_ok=True)
        images[-1].write_bytes(records.read(k))
    return [('images', f'{data} (10 classes, seed {settings.seed})'), *use(output, settings, ('MINDIR',), images)]


def finetune(arguments: list[str]) -> list[tuple[str, object]]:
    """Train the network of a weights file on photos, as far as it is not done, with the command line `arguments`. Rows of
    the table."""
    from src.weights.read import main_file, read_weights  # here, as it imports MindSpore, for which the demo would wait

    photos, weights, output, options = parse(arguments)
    recipe = ['--config_path', str(ROOT / 'recipes/finetune.yaml')]
    settings = load_settings([*recipe, *options])
    print(f'fine-tunes {weights.name} on the photos in {photos}; everything goes to {output}', flush=True)
    made_from = {'photos': f'{photos} ({", ".join(records.fingerprint for records in open_photos(photos).values())})'}
    stored = read_weights(weights)[1].get('config', {})
    made_from |= {'weights': f'{weights} ({os.path.getsize(main_file(weights))} bytes)', 'seed': str(settings.seed)}
    with reading(output / NOTE, 'give another directory for OUTPUT, or remove this one'):
        output.mkdir(parents=True, exist_ok=True)
        read_note(output / NOTE, made_from, sorted({*os.listdir(output)} - {NOTE}))
        (output / NOTE).write_text(json.dumps(made_from, indent=1))
    data, training, listed = output / 'data', output / 'training', output / 'split.csv'
    if not listed.exists():
        start('src.data.split', photos, listed, '--seed', settings.seed)
    split = open_list(listed)
    count, shards = len(split['train']), min(4, *map(len, split.values()))
    start('src.data.convert', '--list', listed, '--dst', data, '--format', 'tfrecord', '--shards', shards, '--fix')
    batch = min(settings.batch_size or default_batch_size(1), count)
    more = ['--data_dir', data, '--log_dir', training, '--restore_path', weights, '--report', output / 'report']
    more += [] if settings.resume or settings.overwrite else ['--resume', 'auto']
    for name in {'block_counts', 'bn_scale', 'image_size'} & {*stored}:  # as WEIGHTS has them, if no option says otherwise
        more.append(f'--{name}={re.sub(r"[][ ]", "", str(stored[name])).lower()}')
    start('train.py', *recipe, *more, *epochs_for(count, batch, settings, options), *options, '--batch_size', batch)
    validation = split['validation']
    shown = [validation.where(k) for k in sorted({*np.linspace(0, len(validation) - 1, SHOWN, dtype=int).tolist()})]
    return [
        ('classes', f'{len(validation.class_names)}: {", ".join(validation.class_names[:SHOWN])}'),
        ('split', f'{count} to train with, {len(validation)} to validate with, listed in {listed}'),
        *use(output, settings, ('MINDIR', 'ONNX'), shown),
    ]


def parse(arguments: list[str]) -> tuple[Path, Path, Path, list[str]]:
    """(PHOTOS, WEIGHTS, OUTPUT, options) of the command line. InputError if they cannot be."""
    count = next((n for n, word in enumerate(arguments) if word.startswith('-')), len(arguments))
    places, options = arguments[:count], arguments[count:]
    if count not in (2, 3):
        raise InputError(f'{shlex.join(places) or "nothing"} is given before the options; the usage is {FINETUNE}')
    for name in {'data_dir', 'log_dir', 'restore_path', 'mode', 'report'} & {word[2:].partition('=')[0] for word in options}:
        raise InputError(f'--{name} is set by the fine-tuning itself; leave it out, or use train.py')
    photos, weights, output = (Path(os.path.abspath(place)) for place in (*places, 'finetuned')[:3])
    if photos in (output, *output.parents):
        raise InputError(f'{output} is in the folder of the photos; give another directory for OUTPUT')
    return photos, weights, output, options


def epochs_for(photos: int, batch_size: int, settings: Settings, options: list[str]) -> list[str]:
    """Command line of the epochs for so many training `photos`: those of `settings`, but at least `STEPS` steps. Empty if
    the command line `options` says how long."""
    if {word[2:].partition('=')[0] for word in options} & {'max_epochs', 'T_max', 'max_train_steps'}:
        return []
    epochs = max(settings['max_epochs'], -(-STEPS // (photos // batch_size)))
    return [f'--max_epochs={epochs}', f'--T_max={epochs}']


def use(output: Path, settings: Settings, formats: tuple[str, ...], images: list) -> list[tuple[str, object]]:
    """Evaluate and export the best checkpoint in `output`/training, or else the newest, and predict the `images`, as far as
    that is not done. Rows of the table."""
    from src.weights import checkpoint

    training, model = output / 'training', output / 'inceptionv4'
    report, curve, page = output / 'report/index.html', training / curves.PICTURE, output / 'predictions.html'
    trained = max(training.glob('*.ckpt'), key=lambda path: (path.name == checkpoint.BEST, path.stat().st_mtime))

    def make(result, *command):
        if not result.exists() or result.stat().st_mtime < trained.stat().st_mtime:
            start(*command)
        return result

    evaluation = '--ckpt_path', trained, '--data_dir', output / 'data', '--batch_size', settings.batch_size
    make(report, 'eval.py', *evaluation, '--report', report.parent)
    with reading(report.with_name('report.json'), f'remove {report.parent}, it is made again', (TypeError,)):
        figures = json.loads(report.with_name('report.json').read_text())
        top5 = f', top-5 {figures["top5"]["value"]:.1f} %' if len(figures['per_class']) > FEW else ''
    rows = [
        ('training', f'{curves.summary(curves.records_of(training))}, log in {training / settings.log_name}'),
        ('curves', curve if curve.exists() else 'left out: pip install -r requirements-report.txt'),
        ('checkpoint', trained),
        ('top-1', f'{figures["top1"]["value"]:.1f} %{top5} of {figures["images"]} validation images'),
        ('report', report),
    ]
    for kind in formats:
        try:
            if kind == 'ONNX':
                need_onnx()
            export = 'export.py', '--ckpt_path', trained, '--file_format', kind, '--file_name', model
            rows.append((kind, make(model.with_suffix(f'.{kind.lower()}'), *export)))
        except InputError as error:
            rows.append((kind, f'left out: {error}'))
    make(page, 'src.deploy.predict', *images, '--model', model.with_suffix('.mindir'), '--top', 3, '--html', page)
    return [*rows, ('predictions', page)]


@entry_point
def main():
    """The command line."""
    began, (command, *arguments) = time.time(), sys.argv[1:] or ['']
    if command not in ('demo', 'finetune'):
        raise InputError(f'command {command!r}; use demo or finetune')
    if {'-h', '--help'} & {*arguments}:
        print('usage:', DEMO if command == 'demo' else FINETUNE + '\n')
        return None if command == 'demo' else load_settings(['--help'])
    rows = demo(arguments) if command == 'demo' else finetune(arguments)
    lines = [f'{name:<13} {value}' for name, value in [*rows, ('wall time', f'{time.time() - began:.0f} s')]]
    print('', *lines, '', sep='\n')
    print('open the pages (.html) in a browser; each is one file, which can be copied to another machine')


if __name__ == '__main__':
    main()
