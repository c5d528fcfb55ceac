"""Speed of input pipelines, from records to batches: `python -m benchmarks.input_pipeline [--tf_python PYTHON]`.

This pipeline and its peers (rewritten here from their documentation) read the same JPEGs, in a new random order every round;
the table shows medians, and the threads at work (CPU over wall-clock seconds). A pipeline in which fewer threads worked than
there are cores ends it. tf.data needs a Python with TensorFlow (requirements-bench.txt).
"""

import io
import statistics
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
from mindspore import dtype as mstype
from mindspore.dataset import transforms, vision
from PIL import Image

from benchmarks.rounds import Threads, cores, environment, interleaved, machine
from src.data import jpeg
from src.data.convert import convert
from src.data.pipeline import training_dataset, workers
from src.data.preprocess import random_crop
from src.data.records import open_records
from src.errors import InputError, Parser, entry_point
from src.options import load_settings
from src.runtime import Run

LIKE_IMAGENET = 'synthetic images, 500 x 375, a quarter with 4:2:0 colours'


def synthetic_jpeg(rng, number, target=110_000):
    """JPEG of about `target` bytes with the spectrum of real images: noise of all scales, the finer the weaker."""
    height, width = (375, 500) if number % 4 else (500, 375)
    image = np.full((height, width, 3), 128, np.float32)
    for octave in range(1, 9):
        cells = rng.normal(0, 60 / 2 ** (0.75 * octave), (2**octave, 2**octave, 3))
        cells += rng.normal(0, 70 / 2 ** (0.5 * octave), (2**octave, 2**octave, 1))
        for channel in range(3):
            layer = Image.fromarray(cells[..., channel].astype(np.float32))
            image[..., channel] += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC))
    image = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    for quality in (70, 80, 86, 90, 93, 95, 96, 97):
        file = io.BytesIO()
        image.save(file, 'JPEG', quality=quality, subsampling=0 if number % 4 else 2)
        if file.tell() >= target:
            break
    return file.getvalue()


def make_records(directory, images, count, at_least):
    """The same images as folder, TFRecord and MindRecord below `directory`, repeated until there are `at_least` of them.
    Returns the mean part of an image that a random crop covers."""
    found = sorted(p for p in Path(images).rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg')) if images else range(count)
    if not found:
        raise InputError(f'--images {images} holds no .jpg; choose another directory')
    found, areas, rng = [*found] * -(-at_least // len(found)), [], np.random.default_rng(0)
    for number, source in enumerate(found):
        encoded = source.read_bytes() if images else synthetic_jpeg(np.random.default_rng(number), number)
        target = directory / 'folder/train' / f'{number % 10:02d}' / f'{number}.jpg'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded)
        width, height = Image.open(target).size
        areas += [box[2] * box[3] / (height * width) for box in (random_crop(rng, height, width) for _ in range(20))]
    for layout in ('tfrecord', 'mindrecord'):
        convert(str(directory / 'folder'), str(directory / layout), layout, min(4, len(found)), workers=1)
    print(f'{len(found)} images: {images or LIKE_IMAGENET}; crops {np.mean(areas):.2f} of an image on average')
    return float(np.mean(areas))


def ours(layout, a, batches):
    """This project's pipeline on records of `layout`."""
    options = {'image_size': a.size, 'batch_size': a.batch_size, 'num_workers': a.workers, 'seed': 1}
    settings = load_settings([f'--{name}={value}' for name, value in options.items()])
    return training_dataset(open_records(a.records / layout, 'train'), 0, settings, range(batches), Run())


def in_folder(operations, a, batches):
    """Pipeline of `mindspore.dataset` that works in C++ only, as MindCV and the model zoo use it."""
    data = ds.ImageFolderDataset(str(a.records / 'folder/train'), num_parallel_workers=a.workers, shuffle=True)
    data = data.repeat(-(-batches * a.batch_size // data.get_dataset_size()))
    data = data.map(operations(a), 'image', num_parallel_workers=a.workers)
    return data.map(transforms.TypeCast(mstype.int32), 'label').batch(a.batch_size, drop_remainder=True)


def mindcv(a):
    """`create_transforms(image_resize=299, is_training=True)`: crop, flip, normalise."""
    crop, flip = vision.RandomCropDecodeResize(a.size, (0.08, 1.0), (3 / 4, 4 / 3)), vision.RandomHorizontalFlip(0.5)
    mean, std = [0.485 * 255, 0.456 * 255, 0.406 * 255], [0.229 * 255, 0.224 * 255, 0.225 * 255]
    return [crop, flip, vision.Normalize(mean, std), vision.HWC2CHW()]


def model_zoo(a):
    """Transforms of its InceptionV4 entry: crop, flip, colour jitter of 0.4, normalise."""
    crop, flip, normalise, transpose = mindcv(a)
    return [crop, flip, vision.RandomColorAdjust(0.4, 0.4, 0.4), normalise, transpose]


def floor(a):
    """Crop-decode and resize alone, of crops as large as ours are on average."""
    return [vision.RandomCropDecodeResize(a.size, (a.area, a.area), (0.75, 1.33))]


PIPELINES = {
    'this pipeline, TFRecord': partial(ours, 'tfrecord'),
    'this pipeline, MindRecord': partial(ours, 'mindrecord'),
    'this pipeline, folder': partial(ours, 'folder'),
    'floor: crop-decode and resize alone': partial(in_folder, floor),
    'MindCV (crop, flip, normalise)': partial(in_folder, mindcv),
    'model zoo (crop, flip, jitter, normalise)': partial(in_folder, model_zoo),
}
TF_PIPELINES = {'tf.data as the original': 'original', 'tf.data tuned by hand': 'tuned'}


def measure(make, a, threads):
    """One round of a pipeline; `threads` watches the batches that count."""
    # `skip` batches fill the stages, and the last ones would be made with idle workers.
    iterator = make(a, a.skip + a.batches + 2 * a.workers).create_tuple_iterator(num_epochs=1, output_numpy=True)
    for _ in range(a.skip):
        next(iterator)
    with threads.timed():
        for _ in range(a.batches):
            next(iterator)
    for _ in iterator:
        pass


def measure_tf(process, name, a, threads):
    """One round of the pipeline `name` in the `process` of tf_data.py."""
    print(name, a.skip, a.batches, file=process.stdin, flush=True)
    process.stdout.readline()
    with threads.timed():
        print(file=process.stdin, flush=True)
        process.stdout.readline()


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.input_pipeline', description=__doc__.partition(':')[0])
    parser.add_argument('--images', help='directory with JPEGs, at any depth; default: synthetic ones')
    parser.add_argument('--tf_python', help='python that has TensorFlow')
    numbers = {'count': (200, 'synthetic images'), 'rounds': (5, 'of each'), 'batches': (24, 'measured in a round')}
    numbers.update(
        batch_size=(128, 'images in a batch'), size=(299, 'pixels'), workers=(0, 'that decode; 0: one for each core')
    )
    for name, (default, text) in numbers.items():
        parser.add_argument(f'--{name}', type=int, default=default, help=f'{text} (default: {default})')
    a = parser.parse_args(argv)
    a.workers = workers(a.workers)
    a.skip, process = 4 * a.workers, None  # as many as the stages can hold
    print(
        f'{machine("mindspore")}, decoder {"libjpeg-turbo" if jpeg.library() else "Pillow"}, {a.workers} workers', flush=True
    )
    with tempfile.TemporaryDirectory(prefix='input_pipeline_') as place:
        a.records = Path(place)
        a.area = make_records(a.records, a.images, a.count, a.batch_size)
        threads = {name: Threads() for name in PIPELINES}
        calls = {name: partial(measure, make, a, threads[name]) for name, make in PIPELINES.items()}
        if a.tf_python:
            command = [a.tf_python, 'benchmarks/tf_data.py', str(a.records / 'tfrecord'), a.batch_size, a.size, a.workers]
            pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': subprocess.DEVNULL, 'text': True}
            process = subprocess.Popen([*map(str, command)], env=environment(), cwd=Path(__file__).parents[1], **pipes)
            print(f'TensorFlow {process.stdout.readline().strip() or "cannot be imported"}', flush=True)
            threads.update({name: Threads(process.pid) for name in TF_PIPELINES})
            calls.update({name: partial(measure_tf, process, kind, a, threads[name]) for name, kind in TF_PIPELINES.items()})
        try:
            interleaved(calls, a.rounds, warm_up=0, pause=1.0)
        finally:
            if process:
                process.kill()
    images, reference = a.batches * a.batch_size, statistics.median(threads['this pipeline, TFRecord'].rounds)
    print(f'{f"medians of {a.rounds} rounds":46s} images/s    low   high  this/that  threads')
    for name, found in threads.items():
        found.require(name, min(a.workers, cores()))
        middle, low, high = statistics.median(found.rounds), max(found.rounds), min(found.rounds)
        speeds = f'{images / middle:8.0f} {images / low:6.0f} {images / high:6.0f}'
        print(f'{name:46s} {speeds} {middle / reference:10.2f} {found.used:8.2f}')


if __name__ == '__main__':
    main()
