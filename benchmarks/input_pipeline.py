"""Speed of input pipelines, from records to batches: `python -m benchmarks.input_pipeline [--tf_python PYTHON]`.

This pipeline and its peers (rewritten here from their documentation) read the same JPEGs, in a new random order every round,
each after a pause in which the threads and processes of the one before it come to rest; the table shows medians, and the
threads at work (CPU over wall-clock seconds). A pipeline in which fewer threads worked than there are cores ends it. tf.data
needs a Python with TensorFlow (requirements-bench.txt), which cannot share one with MindSpore.
"""

import io
import operator
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
import psutil
from mindspore import dtype as mstype
from mindspore.dataset import transforms, vision
from PIL import Image

from benchmarks.rounds import Threads, cores, environment, machine, turns
from src.data import jpeg
from src.data.bad_records import BadRecords
from src.data.convert import convert
from src.data.pipeline import training_dataset, workers
from src.data.preprocess import random_crop
from src.data.records import open_records
from src.errors import InputError, Parser, entry_point
from src.options import load_settings
from src.runtime import Run

ROOT = Path(__file__).parents[1]
PAUSE = 1.0  # seconds; threads of MindSpore and TensorFlow look for work for a while after their last batch
LIKE_IMAGENET = 'synthetic images, 500 x 375, a quarter with 4:2:0 colours'


def synthetic_jpeg(rng, number, target=110_000):
    """JPEG of about `target` bytes with the spectrum of real images: noise of all scales, the finer the weaker."""
    height, width = (375, 500) if number % 4 else (500, 375)
    image = np.full((height, width, 3), 128, np.float32)
    for octave in range(1, 9):
        cells = rng.normal(0, 60 / 2 ** (0.75 * octave), (2**octave, 2**octave, 3)) + rng.normal(
            0, 70 / 2 ** (0.5 * octave), (2**octave, 2**octave, 1)
        )
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
    """The same images as folder, TFRecord and MindRecord below `directory`, repeated until there are `at_least` of them;
    returns [(width, height, bytes)]."""
    folder = directory / 'folder' / 'train'
    found = sorted(p for p in Path(images).rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg')) if images else range(count)
    if not found:
        raise InputError(f'--images {images} holds no .jpg; give another directory')
    found, sizes = [*found] * -(-at_least // len(found)), []
    for number, source in enumerate(found):
        encoded = source.read_bytes() if images else synthetic_jpeg(np.random.default_rng(number), number)
        target = folder / f'{number % 10:02d}' / f'{number}.jpg'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded)
        sizes.append((*Image.open(io.BytesIO(encoded)).size, len(encoded)))
    for layout in ('tfrecord', 'mindrecord'):
        convert(str(directory / 'folder'), str(directory / layout), layout, min(4, len(found)), workers=1)
    print(
        f'{len(found)} images: {images or LIKE_IMAGENET}; medians of width, height, bytes: '
        f'{", ".join(f"{np.median(column):.0f}" for column in zip(*sizes))}'
    )
    return sizes


def ours(layout):
    """Function of the arguments and a number of batches that gives this project's pipeline on records of `layout`."""

    def make(a, batches):
        records = open_records(a.records / layout, 'train')
        settings = load_settings([]).but(image_size=a.size, batch_size=a.batch_size, num_workers=a.workers)
        bad = BadRecords(len(records), -(-batches * a.batch_size // len(records)) + 1)
        return training_dataset(records, 0, settings, range(batches), Run(), bad)

    return make


def folder_pipeline(operations, label=True):
    """Pipeline of `mindspore.dataset` that works in C++ only, as MindCV and the model zoo use it."""

    def make(a, batches):
        data = ds.ImageFolderDataset(str(a.records / 'folder' / 'train'), num_parallel_workers=a.workers, shuffle=True)
        data = data.repeat(-(-batches * a.batch_size // data.get_dataset_size()))
        data = data.map(operations(a), 'image', num_parallel_workers=a.workers)
        data = data.map(transforms.TypeCast(mstype.int32), 'label', num_parallel_workers=1)
        return data.batch(a.batch_size, drop_remainder=True)

    return make


def mindcv(a):
    """`create_transforms(image_resize=299, is_training=True)`: crop, flip, normalise."""
    return [
        vision.RandomCropDecodeResize(a.size, (0.08, 1.0), (3 / 4, 4 / 3)),
        vision.RandomHorizontalFlip(0.5),
        vision.Normalize([0.485 * 255, 0.456 * 255, 0.406 * 255], [0.229 * 255, 0.224 * 255, 0.225 * 255]),
        vision.HWC2CHW(),
    ]


def model_zoo(a):
    """Transforms of its InceptionV4 entry: crop, flip, colour jitter of 0.4, normalise."""
    return [
        vision.RandomCropDecodeResize(a.size, (0.08, 1.0), (0.75, 1.333)),
        vision.RandomHorizontalFlip(0.5),
        vision.RandomColorAdjust(0.4, 0.4, 0.4),
        vision.Rescale(1 / 255, 0.0),
        vision.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        vision.HWC2CHW(),
    ]


def floor(a):
    """Crop-decode and resize alone, of crops as large as ours are on average."""
    return [vision.RandomCropDecodeResize(a.size, (a.area, a.area), (0.75, 1.33))]


PIPELINES = {
    'this pipeline, TFRecord': ours('tfrecord'),
    'this pipeline, MindRecord': ours('mindrecord'),
    'this pipeline, folder': ours('folder'),
    'floor: crop-decode and resize alone': folder_pipeline(floor),
    'MindCV (crop, flip, normalise)': folder_pipeline(mindcv),
    'model zoo (crop, flip, jitter, normalise)': folder_pipeline(model_zoo),
}
NO_TENSORFLOW = 'tf.data left out: give --tf_python'
TF_PIPELINES = {'tf.data as the original': 'original', 'tf.data tuned by hand': 'tuned'}


def cpu_seconds():
    """CPU seconds that this process and its workers have used."""
    here = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [here, *here.children()] if process.is_running())


def measure(make, a, threads):
    """Images a second, CPU seconds an image, bytes an image to the device; `threads` watches."""
    batches = a.skip + a.batches + 2 * a.workers  # the last ones would be made with idle workers
    iterator = make(a, batches).create_tuple_iterator(num_epochs=1, output_numpy=True)
    for _ in range(a.skip):
        next(iterator)
    start, cpu = time.perf_counter(), cpu_seconds()
    with threads.timed():
        for _ in range(a.batches):
            batch = next(iterator)
    seconds, cpu, images = time.perf_counter() - start, cpu_seconds() - cpu, a.batches * a.batch_size
    for _ in iterator:
        pass
    return images / seconds, cpu / images, sum(array.nbytes for array in batch) / a.batch_size


class TensorFlow:
    """The process that runs the tf.data pipelines, idle while others are measured."""

    def __init__(self, python, a):
        command = [python, str(ROOT / 'benchmarks' / 'tf_data.py'), str(a.records / 'tfrecord')]
        self.process = subprocess.Popen(
            [*command, *map(str, (a.batch_size, a.size, a.workers))],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        self.version = self.process.stdout.readline().strip()
        if not self.version:
            raise InputError(f'--tf_python {python} cannot import TensorFlow; see requirements-bench.txt')

    def measure(self, name, a):
        """As `measure`, for the pipeline `name` of tf_data.py."""
        print(name, a.skip, a.batches, file=self.process.stdin, flush=True)
        seconds, cpu, size = map(float, self.process.stdout.readline().split())
        return a.batches * a.batch_size / seconds, cpu / (a.batches * a.batch_size), size


def memory(a, images=20000):
    """Proportional memory (PSS) of this process and its workers while `images` go through."""
    steps, here = images // a.batch_size, psutil.Process()
    for number, _ in enumerate(
        PIPELINES['this pipeline, TFRecord'](a, steps).create_tuple_iterator(num_epochs=1, output_numpy=True), 1
    ):
        if number % max(1, steps // 10) == 0:
            tree = [here, *here.children(recursive=True)]
            pss = sum(process.memory_full_info().pss for process in tree if process.is_running())
            print(f'{number * a.batch_size:6d} images: {pss / 1e6:.0f} MB in {len(tree)} processes', flush=True)


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.input_pipeline', description=__doc__.partition(':')[0])
    parser.add_argument('--images', help='directory with JPEGs, at any depth; default: synthetic photos')
    parser.add_argument('--count', type=int, default=200, help='number of synthetic photos')
    parser.add_argument('--tf_python', help='python that has TensorFlow')
    parser.add_argument('--rounds', type=int, default=5, help='default: 5')
    parser.add_argument('--batches', type=int, default=24, help='measured in a round (default: 24)')
    parser.add_argument('--batch_size', type=int, default=128, help='images in a batch (default: 128)')
    parser.add_argument('--size', type=int, default=299, help='height and width in pixels (default: 299)')
    parser.add_argument('--workers', type=int, default=0, help='processes or threads that decode; 0: as many as cores')
    parser.add_argument('--memory', action='store_true', help='memory over 20,000 images instead')
    a = parser.parse_args(argv)
    a.workers = workers(a.workers)
    a.skip = 4 * a.workers  # as many as the stages can hold, so that what is measured is made while it is measured
    a.records = Path(tempfile.mkdtemp(prefix='input_pipeline_'))
    tensorflow = None
    try:
        sizes, rng = make_records(a.records, a.images, a.count, a.batch_size), np.random.default_rng(0)
        crops = [(random_crop(rng, h, w), h * w) for w, h, _ in sizes for _ in range(20)]
        a.area = float(np.mean([box[2] * box[3] / area for box, area in crops]))
        print(
            f'{a.size} x {a.size}, batches of {a.batch_size}, {a.workers} workers on {cores()} cores, JPEG decoder '
            f'{"libjpeg-turbo" if jpeg.library() else "Pillow"}, crops {a.area:.2f} of an image on average',
            flush=True,
        )
        if a.memory:
            return memory(a)
        tensorflow = TensorFlow(a.tf_python, a) if a.tf_python else None
        print(f'{machine("mindspore")}, {f"TensorFlow {tensorflow.version}" if tensorflow else NO_TENSORFLOW}', flush=True)
        found = {name: [] for name in (*PIPELINES, *(TF_PIPELINES if tensorflow else ()))}
        threads = {name: Threads(None if name in PIPELINES else tensorflow.process.pid) for name in found}
        for name, _ in turns(found, a.rounds, pause=PAUSE):
            if name in PIPELINES:
                found[name].append(measure(PIPELINES[name], a, threads[name]))
            else:
                with threads[name].timed():
                    found[name].append(tensorflow.measure(TF_PIPELINES[name], a))
        for name, used in threads.items():
            used.require(name, min(a.workers, cores()))
    finally:
        if tensorflow:
            tensorflow.process.kill()
        shutil.rmtree(a.records)
    reference = statistics.median(speed for speed, *_ in found['this pipeline, TFRecord'])
    print(f'{f"medians of {a.rounds} rounds":46s} images/s  a core    low   high  this/that  CPU ms  threads  MB an image')
    for name, rounds in found.items():
        speeds, cpu, size = zip(*rounds)
        median, used = statistics.median(speeds), statistics.median(map(operator.mul, speeds, cpu))
        print(
            f'{name:46s} {median:8.0f} {median / cores():7.0f} {min(speeds):6.0f} {max(speeds):6.0f} '
            f'{reference / median:10.2f} {statistics.median(cpu) * 1e3:7.2f} {used:8.2f} {size[0] / 1e6:12.3f}'
        )


if __name__ == '__main__':
    main(sys.argv[1:])
