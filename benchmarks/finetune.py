"""Fine-tuning by recipes/finetune.yaml beside the classifier alone and beside timm in PyTorch (benchmarks/finetune_timm.py):
`python -m benchmarks.finetune WEIGHTS DATA [DATA ...]`.

Every training is a process of its own, which evaluates after every epoch; of each data set, seed after seed, the ways
in turn, with the same images, epochs and batch. An image that stands several times in a data set is used once, in the
validation part if it is there. Further options go to all trainings as far as they concern them: `--max_epochs 5 --T_max 5`.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.rounds import environment, machine
from src.data.records import open_records, read_labels
from src.data.tfrecord import write_shards
from src.errors import InputError, Parser, entry_point
from src.options import load_settings

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / 'recipes/finetune.yaml'
ROW = re.compile(r' +\d+ +(\d+)\.0 +([\d.]+) +\S+ +([\d.]+)  \d{4}-')  # epoch, top-1 and loss of an evaluation


def copy_without_duplicates(source, target, most):
    """TFRecords of the images in `source`, none twice, at most `most` {split: number} of a class; 0: all. Line on them."""
    seen, line = set(), []
    for split in ('validation', 'train'):
        records, counts, kept = open_records(source, split), Counter(), []
        for i in range(len(records)):
            image, label = records.read(i), int(records.label[i])
            digest = hashlib.sha256(image).digest()
            if digest not in seen and not 0 < most[split] <= counts[label]:
                kept.append((image, label, records.name(i)))
                seen.add(digest)
                counts[label] += 1
        write_shards(target, split, kept, 1)
        line.append(f'{len(kept)} of {len(records)} {split} images')
    names = Path(source, 'labels.txt')
    if read_labels(source):
        Path(target, 'labels.txt').write_bytes(names.read_bytes())
    return ', '.join(line)


def run(program, *arguments):
    """(output of a Python program, CPU over wall-clock seconds of it); InputError if it fails."""
    command, start, before = [*map(str, [sys.executable, *program, *arguments])], time.perf_counter(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    after, seconds = os.times(), time.perf_counter() - start
    used = (after.children_user + after.children_system - before.children_user - before.children_system) / seconds
    if done.returncode:
        raise InputError(f'{program[-1]} ended with status {done.returncode}: {done.stderr.strip().splitlines()[-1]:.300}')
    return done.stdout, used


def train(data, folder, options):
    """([(top-1 %, loss)] after each epoch, threads at work) of a training by train.py with `options`."""
    out, used = run(['train.py'], '--config_path', RECIPE, '--data_dir', data, '--log_dir', folder, *options)
    return [(float(top1), float(loss)) for _, top1, loss in map(re.Match.groups, ROW.finditer(out))], used


def train_timm(data, weights, rate, seed, config):
    """The same of timm's network, with the epochs, the batch and so on of `config`."""
    shared = ('max_epochs', 'image_size', 'batch_size', 'min_object_covered', 'label_smoothing', 'weight_decay')
    options = [word for name in shared for word in (f'--{name}', config[name])]
    out, used = run(['-m', 'benchmarks.finetune_timm'], weights, data, '--lr', rate, '--seed', seed, *options)
    return [json.loads(line) for line in out.splitlines() if line.startswith('[')], used


def report(name, epochs, used):
    """One line on a training."""
    accuracy = [top1 for top1, _ in epochs]
    fall = max([0.0, *(before - after for before, after in zip(accuracy, accuracy[1:]))])
    figures = ' '.join(f'{top1:.1f}' for top1 in accuracy)
    print(
        f'{name}: top-1 {figures} %, largest fall {fall:.1f}, last loss {epochs[-1][1]:.3f}, {used:.2f} threads at work',
        flush=True,
    )


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.finetune', description=__doc__.partition(':')[0])
    parser.add_argument('weights', help='pretrained weights, as restore_path takes them')
    parser.add_argument('data', nargs='+', help='data sets')
    parser.add_argument('--seeds', default='1,2,3', help='default: 1,2,3')
    parser.add_argument('--train', type=int, default=0, help='training images a class at most; 0: all (default)')
    parser.add_argument('--validation', type=int, default=0, help='validation images a class at most; 0: all (default)')
    parser.add_argument('--timm_lr', default='0.01,0.003', help='learning rates of timm, each tried (default: 0.01,0.003)')
    args, options = parser.parse_known_args(argv)
    weights = Path(args.weights).resolve()
    config = load_settings(['--config_path', str(RECIPE), *options])
    # Frozen layers give the same features in every epoch's copy of an image, so they are computed once.
    alone = ['--freeze', 'conv2d_*,mixed_*', '--cache_features', config.max_epochs]
    options = ['--restore_path', weights, *options]
    print(f'{machine("mindspore", "torch", "timm")}, {config.image_size} px', flush=True)
    with tempfile.TemporaryDirectory() as place:
        for number, data in enumerate(args.data):
            copy = Path(place, str(number))
            print(f'{data}: {copy_without_duplicates(data, copy, vars(args))}', flush=True)
            for seed in args.seeds.split(','):
                for way, own in {'classifier only': alone, 'recipe': []}.items():
                    folder = Path(tempfile.mkdtemp(dir=place))
                    report(f'seed {seed}, {way}', *train(copy, folder, [*options, '--seed', seed, *own]))
                for rate in args.timm_lr.split(','):
                    report(f'seed {seed}, timm, rate {rate}', *train_timm(copy, weights, rate, seed, config))


if __name__ == '__main__':
    main()
