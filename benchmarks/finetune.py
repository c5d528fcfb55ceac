"""Fine-tuning by recipes/finetune.yaml beside the classifier alone: `python -m benchmarks.finetune WEIGHTS DATA [DATA ...]`.

Every training is a `train.py` in a process of its own, which evaluates after every epoch; of each data set, seed after seed,
both ways in turn. An image that stands several times in a data set is used once, in the validation part if it is there.
Further options go to both trainings: `--batch_size 8 --lr 0.001`.
"""

import hashlib
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import mindspore as ms

from src.data.records import open_records, read_labels
from src.data.tfrecord import write_shards
from src.errors import InputError, Parser, entry_point

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / 'recipes/finetune.yaml'
ROW = re.compile(r' +\d+ +(\d+)\.0 +([\d.]+) +[\d.]+ +([\d.]+)  \d{4}-')  # epoch, top-1 and loss of an evaluation


def copy_without_duplicates(source, target, most):
    """TFRecords of the images in `source`, none twice, at most `most` {split: number} of a class; 0: all. Line on them."""
    seen, line = set(), []
    for split in ('validation', 'train'):
        records, counts, kept = open_records(source, split, 'auto'), Counter(), []
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


def train(data, folder, options):
    """[(top-1 %, loss)] after each epoch of a training with `options`."""
    command = [sys.executable, ROOT / 'train.py', '--config_path', RECIPE, '--data_dir', data, '--log_dir', folder, *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise InputError(f'train.py ended with status {done.returncode}: {done.stderr.strip().splitlines()[-1]:.300}')
    return [(float(top1), float(loss)) for _, top1, loss in map(re.Match.groups, ROW.finditer(done.stdout))]


def report(name, epochs):
    """One line on a training."""
    accuracy = [top1 for top1, _ in epochs]
    fall = max([0.0, *(before - after for before, after in zip(accuracy, accuracy[1:]))])
    figures = ' '.join(f'{top1:.1f}' for top1 in accuracy)
    print(f'{name}: top-1 {figures} %, largest fall {fall:.1f}, last loss {epochs[-1][1]:.3f}', flush=True)


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.finetune', description=__doc__.partition(':')[0])
    parser.add_argument('weights', help='pretrained weights, as restore_path takes them')
    parser.add_argument('data', nargs='+', help='data sets')
    parser.add_argument('--seeds', default='1,2,3', help='default: 1,2,3')
    parser.add_argument('--image_size', default='299', help='height and width in pixels (default: 299)')
    parser.add_argument('--train', type=int, default=0, help='training images a class at most; 0: all (default)')
    parser.add_argument('--validation', type=int, default=0, help='validation images a class at most; 0: all (default)')
    args, options = parser.parse_known_args(argv)
    common = [
        '--restore_path',
        Path(args.weights).resolve(),
        '--image_size',
        args.image_size,
        '--mode',
        'train_and_evaluate',
    ]
    ways = {'classifier only': ['--freeze', 'conv2d_*,mixed_*'], 'recipe': []}
    print(
        f'MindSpore {ms.__version__}, Python {platform.python_version()}, {platform.machine()}, {args.image_size} px',
        flush=True,
    )
    with tempfile.TemporaryDirectory() as place:
        for number, data in enumerate(args.data):
            copy = Path(place, str(number))
            print(f'{data}: {copy_without_duplicates(data, copy, vars(args))}', flush=True)
            for seed in args.seeds.split(','):
                for way, own in ways.items():
                    folder = Path(tempfile.mkdtemp(dir=place))
                    report(f'seed {seed}, {way}', train(copy, folder, [*common, '--seed', seed, *own, *options]))


if __name__ == '__main__':
    main()
