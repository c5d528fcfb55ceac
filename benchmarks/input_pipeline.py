"""Speed of input pipelines, from records to batches: `python -m benchmarks.input_pipeline IMAGES`.

This pipeline and its peers (rewritten here from their documentation) read the same JPEGs in processes of their own, a worker
for each core, in turns. tf.data needs a Python with TensorFlow (requirements-bench.txt): `--tf_python PYTHON`.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
from mindspore import dtype as mstype
from mindspore.dataset import transforms, vision

from benchmarks import rounds
from src.data import jpeg
from src.data.convert import convert
from src.data.pipeline import training_dataset
from src.data.preprocess import random_crop
from src.data.records import open_records
from src.errors import InputError, entry_point
from src.options import load_settings
from src.runtime import Run

BATCHES, SKIPPED, SIZE = 24, 4 * rounds.cores(), 299  # in each turn; before them, to fill the stages; pixels


def make_records(directory, images, at_least):
    """The same images as folder, TFRecord and MindRecord below `directory`, repeated until there are `at_least` of them."""
    found = sorted(p for p in Path(images).rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg'))
    if not found:
        raise InputError(f'{images} holds no .jpg; choose another directory')
    for number in range(-(-at_least // len(found)) * len(found)):
        target = directory / 'folder/train' / f'{number % 10:02d}' / f'{number}.jpg'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(found[number % len(found)].read_bytes())
    for layout in ('tfrecord', 'mindrecord'):
        convert(str(directory / 'folder'), str(directory / layout), layout, 4, workers=1)


def ours(layout, a, batches):
    """This project's pipeline on records of `layout`."""
    settings = load_settings([f'--image_size={SIZE}', f'--batch_size={a.batch_size}', '--seed=1'])
    return training_dataset(open_records(a.place / layout, 'train'), 0, settings, range(batches), Run())


def in_folder(operations, a, batches):
    """Pipeline of `mindspore.dataset` that works in C++ only, as MindCV uses it."""
    workers = rounds.cores()
    data = ds.ImageFolderDataset(str(a.place / 'folder/train'), num_parallel_workers=workers, shuffle=True)
    data = data.repeat(-(-batches * a.batch_size // data.get_dataset_size()))
    data = data.map(operations(a), 'image', num_parallel_workers=workers)
    return data.map(transforms.TypeCast(mstype.int32), 'label').batch(a.batch_size, drop_remainder=True)


def mindcv(a):
    """`create_transforms(image_resize=299, is_training=True)`: crop, flip, normalise."""
    crop, flip = vision.RandomCropDecodeResize(SIZE, (0.08, 1.0), (3 / 4, 4 / 3)), vision.RandomHorizontalFlip(0.5)
    mean, std = [0.485 * 255, 0.456 * 255, 0.406 * 255], [0.229 * 255, 0.224 * 255, 0.225 * 255]
    return [crop, flip, vision.Normalize(mean, std), vision.HWC2CHW()]


def floor(a):
    """Crop-decode and resize alone, of crops as large as ours are on average."""
    rng = np.random.default_rng(0)
    area = float(np.mean([box[2] * box[3] / (375 * 500) for box in (random_crop(rng, 375, 500) for _ in range(1000))]))
    return [vision.RandomCropDecodeResize(SIZE, (area, area), (0.75, 1.33))]


PIPELINES = {
    'this pipeline, TFRecord': partial(ours, 'tfrecord'),
    'this pipeline, MindRecord': partial(ours, 'mindrecord'),
    'this pipeline, folder': partial(ours, 'folder'),
    'floor: crop-decode and resize alone': partial(in_folder, floor),
    'MindCV (crop, flip, normalise)': partial(in_folder, mindcv),
}


def work(make, a, begun):
    """[seconds of BATCHES batches] of a new iterator, which is appended to `begun`."""
    # The last batches of an iterator are made with idle workers, so there are some more.
    iterator = make(a, SKIPPED + BATCHES + 2 * rounds.cores()).create_tuple_iterator(num_epochs=1, output_numpy=True)
    for _ in range(SKIPPED):
        next(iterator)
    start = time.perf_counter()
    for _ in range(BATCHES):
        next(iterator)
    begun.append(iterator)
    return [time.perf_counter() - start]


@entry_point
def main():
    parser = rounds.parser('benchmarks.input_pipeline', __doc__, 5)
    parser.add_argument('images', help='directory with JPEGs, at any depth')
    parser.add_argument('--tf_python', help='python that has TensorFlow')
    parser.add_argument('--batch_size', type=int, default=128, help='images in a batch (default: 128)')
    a = parser.parse_args()
    if a.alone:
        begun = []
        return rounds.serve(partial(work, PIPELINES[a.alone], a, begun), lambda: [*begun.pop()])
    print(f'{rounds.machine("mindspore")}; {jpeg.describe()}', flush=True)
    with tempfile.TemporaryDirectory(prefix='input_pipeline_') as place:
        make_records(Path(place), a.images, a.batch_size)
        commands = rounds.alone('benchmarks.input_pipeline', PIPELINES, place)
        tf_data = [a.tf_python, 'benchmarks/tf_data.py', f'{place}/tfrecord', a.batch_size, SIZE, rounds.cores()]
        if a.tf_python:
            commands |= {f'tf.data, {kind}': [*tf_data, SKIPPED, BATCHES, kind] for kind in ('original', 'tuned')}
        rounds.compare(commands, a, BATCHES * a.batch_size, self_timed=True)


if __name__ == '__main__':
    main()
