"""The likeliest classes of images:

python -m src.deploy.predict IMAGE_OR_DIR ... --model F.mindir|F.onnx|CKPT [--batch_size 8] [--top 5] [--json] [--html F]
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src import runtime
from src.data import imagenet
from src.deploy import decoding
from src.deploy.prediction import Prediction, as_json, as_text, write_page
from src.deploy.predictor import Predictor, open_model
from src.deploy.sources import STANDARD_INPUT, find_images, standard_input
from src.errors import InputError, Parser, counted, entry_point
from src.options import load_settings

BATCH = 8


def predict(
    model: Predictor, paths: Iterable[str], top: int = 5, thumbnails: bool = False, batch_size: int = BATCH
) -> Iterator[Prediction]:
    """Yield a `Prediction` of the `top` likeliest classes for each of `paths`, in their order, as soon as its batch is done.

    Threads decode the next batches while one is in the network.
    """
    load = partial(decoding.load, size=model.size, preprocessing=model.preprocessing, with_thumbnail=thumbnails)
    labels = {*(model.class_names or ())}
    with contextlib.closing(decoding.batches(paths, batch_size, load)) as batches:
        for batch in batches:
            good = [one.image for one in batch if one.error is None]
            # Always a whole batch: a graph is compiled for each shape.
            rows = iter(zip(*model.probabilities(np.resize(good, (batch_size, *good[0].shape))))) if good else iter(())
            for path, _, error, thumbnail in batch:
                best = None if error else _best(*next(rows), model.class_names, top)
                folder = imagenet.words(os.path.basename(os.path.dirname(os.path.abspath(path))))
                yield Prediction(path, best, error, thumbnail, folder if folder in labels else None)


def _best(probabilities, classes, names, top):
    """The first `top` of an image's classes as `Prediction.top` has them."""
    return [(int(c), names[c] if names else f'class {c}', float(p)) for p, c in zip(probabilities[:top], classes[:top])]


def positive(text: str) -> int:
    """A number of at least 1, as argparse wants it: ValueError for others."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def parse(argv: list[str] | None):
    """The command line (argparse.Namespace)."""
    parser = Parser(prog='python -m src.deploy.predict', description='Prints the likeliest classes of each image.')
    parser.add_argument(
        'sources',
        nargs='+',
        metavar='IMAGE_OR_DIR',
        help='an image, a directory with images at any depth, a quoted pattern, a file:// URL, a text file (.txt) '
        'with a line for each of those, or - for such lines on standard input',
    )
    parser.add_argument(
        '--model',
        required=True,
        metavar='FILE',
        help='MINDIR or ONNX file of export.py, or a checkpoint, also of timm (safetensors, .pth), TensorFlow or MindCV',
    )
    parser.add_argument(
        '--batch_size',
        type=positive,
        metavar='N',
        help=f'images in a call of the model (default: {BATCH}, or what it needs)',
    )
    parser.add_argument('--top', type=positive, default=5, metavar='N', help='classes to show of each image (default: 5)')
    parser.add_argument(
        '--labels',
        default='',
        metavar='FILE',
        help='class names, lines `name` or `label:name` (default: those of the model)',
    )
    parser.add_argument('--json', action='store_true', help='print a line of JSON for each image')
    parser.add_argument('--html', default='', metavar='OUT', help='also write a page with the images and their classes')
    return parser.parse_args(argv)


@entry_point
def main(argv: list[str] | None = None):
    """Run the command line `argv` (default: that of the process)."""
    args = parse(argv)
    left_out = []
    paths, count = all_images(args.sources, left_out.append)
    runtime.start(load_settings([]))
    model = open_model(args.model, args.labels)
    check_top(args.top, model.num_classes, model.num_classes)
    batch_size = _batch_size(model, args, count)
    for line in left_out:
        _say(line)
    blank = np.zeros((batch_size, model.size, model.size, 3), np.uint8)
    values, _ = model.probabilities(blank)  # the first call compiles, which is not to count as time of the images
    check_top(args.top, values.shape[1], model.num_classes)
    source = 'standard input' if count is None else args.sources[0] if len(args.sources) == 1 else counted(count, 'image')
    shown = Shown(predict(model, paths, args.top, bool(args.html), batch_size), count, args.json, bool(args.html), source)
    if args.html:
        title = f'Predictions of {Path(args.model).name} for {Path(source).name}'
        about = f'The {min(args.top, model.num_classes)} likeliest of {model.num_classes} classes, with their probabilities.'
        write_page(args.html, shown, title, about, shown.summary)
    else:
        for _ in shown:
            pass
    with shown.reading:
        print(shown.summary(), file=sys.stderr if args.json else sys.stdout)


def all_images(sources: list[str], say: Callable[[str], None]) -> tuple[Iterable[str], int | None]:
    """The images that `sources` name and their number, None with standard input. `say` gets lines on what is left out of
    directories. InputError if a source has no image."""
    if STANDARD_INPUT in sources:
        if len(sources) > 1:
            raise InputError('- (standard input) stands alone; write the other images to it, too')
        return standard_input(_say), None
    paths = [path for source in sources for path in find_images(source, say)]
    return paths, len(paths)


def _say(line):
    print(line, file=sys.stderr)


def _batch_size(model, args, count):
    """Images in a call. InputError if the option `batch_size` is not what the model needs."""
    if args.batch_size and model.batch_size not in (0, args.batch_size):
        raise InputError(
            f'batch_size {args.batch_size}: {args.model} was exported for batches of {model.batch_size}; leave the option '
            'out, or export with --batch_size 0'
        )
    return args.batch_size or model.batch_size or min(BATCH, count or BATCH)


class Shown:
    """Iterable of the `predictions`, each of which is printed as it comes: as JSON with `json`, else as text, and then what
    cannot be read on stderr. With `page` the end of the reader is not the end. `count` is their number, None if unknown."""

    def __init__(self, predictions: Iterator[Prediction], count: int | None, json: bool, page: bool, source: str):
        self.predictions, self.count, self.json, self.source = predictions, count, json, source
        self.reading = contextlib.suppress(BrokenPipeError) if page else contextlib.nullcontext()
        self.good = self.bad = 0
        self.seconds = 0.0

    def __iter__(self):
        start = time.perf_counter()
        with tqdm(total=self.count, unit='image', leave=False, disable=True if self.count == 1 else None) as bar:
            for prediction in self.predictions:
                self._print(prediction, bar)
                self.good, self.bad = self.good + (not prediction.error), self.bad + bool(prediction.error)
                bar.update()
                yield prediction
        self.seconds = time.perf_counter() - start

    def _print(self, prediction, bar):
        stream = sys.stderr if prediction.error and not self.json else sys.stdout
        with self.reading:
            bar.write((as_json if self.json else as_text)(prediction), stream)
            stream.flush()  # a program may wait for this line before it names the next image

    def summary(self) -> str:
        """One line on all of them. InputError if none could be read."""
        if not self.good:
            raise InputError(f'{self.source}: no image that can be read')
        skipped = f', {self.bad} skipped' if self.bad else ''
        rate = (self.good + self.bad) / self.seconds
        return f'{counted(self.good, "image")}{skipped}, {rate:.1f} images/s, decoding included'


def check_top(top: int, given: int, num_classes: int):
    """InputError if `top` is more than the model gives (`given` of its `num_classes`); the default of 5 is always right."""
    if top > max(5, given):
        raise InputError(
            f'top {top}: the model gives {given} classes; '
            + (
                'take fewer'
                if given == num_classes
                else 'take fewer, or export it with --export_output softmax, which gives all'
            )
        )


if __name__ == '__main__':
    main()
