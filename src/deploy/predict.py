"""The likeliest classes of images:

python -m src.deploy.predict IMAGE_OR_DIR ... --model F.mindir|F.onnx|CKPT [--batch_size 8] [--top 5] [--json] [--html F]
"""

from __future__ import annotations

import base64
import html
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from src import files, runtime
from src.data.classes import imagenet_words
from src.deploy.image_files import find_images, load_batches, load_image
from src.deploy.predictor import Predictor, open_model
from src.errors import InputError, Parser, counted, entry_point, reading
from src.options import load_settings

BATCH = 8


class Prediction(NamedTuple):
    """The likeliest classes of an image, or why it cannot be read."""

    path: str
    top: list[tuple[int, str, float]] | None = None  # class number, label, probability, best first
    error: str | None = None
    thumbnail: bytes | None = None  # JPEG, for a page
    folder: str | None = None  # label of the class whose name the image's folder has


def predict(
    model: Predictor, paths: Iterable[str], top: int = 5, thumbnails: bool = False, batch_size: int = BATCH
) -> Iterator[Prediction]:
    """Yield a `Prediction` of the `top` likeliest classes for each of `paths`, in their order, as soon as its batch is done.

    Threads decode the next batches while one is in the network.
    """
    size, preprocessing, names = model.signature.image_size, model.signature.preprocessing, model.class_names or ()

    load = partial(load_image, size=size, preprocessing=preprocessing, thumbnails=thumbnails)
    for batch in load_batches(paths, batch_size, load):
        good = [image for _, image, _, _ in batch if image is not None]
        # Always a whole batch: a graph is compiled for each shape.
        rows = zip(*model.probabilities(np.resize(good, (batch_size, size, size, 3)))) if good else iter(())
        for path, _, error, jpeg in batch:
            if error:
                yield Prediction(path, error=error)
                continue
            values, classes = (found[:top] for found in next(rows))
            best = [(int(c), names[c] if names else f'class {c}', float(p)) for p, c in zip(values, classes)]
            folder = imagenet_words(os.path.basename(os.path.dirname(os.path.abspath(path))))
            yield Prediction(path, best, None, jpeg, folder if folder in names else None)


def as_line(prediction: Prediction, json: bool) -> str:
    """The name of the image and a line for each class, or one line with the error; with `json` one line: {"file": ...,
    "top": [{"class": ..., "label": ..., "probability": ...}, ...]}, or "error" for "top"."""
    path, top, error = prediction[:3]
    if json:
        best = [{'class': c, 'label': label, 'probability': round(p, 6)} for c, label, p in top or ()]
        return files.as_json({'file': path, **({'error': error} if error else {'top': best})})
    return f'{path}: {error}; skipped' if error else '\n'.join([path, *(f'  {100 * p:6.2f} %  {n}' for _, n, p in top)])


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1em; color: #222; background: #fafafa; overflow-wrap: anywhere }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 230px), 1fr)); gap: 1em }}
figure {{ margin: 0; padding: 12px; background: #fff; border: 1px solid #ddd; border-radius: 6px }}
img {{ display: block; height: 180px; max-width: 100%; margin: 0 auto 8px; object-fit: contain }}
.row {{ display: flex; justify-content: space-between; gap: 8px; white-space: pre-wrap;
  background: linear-gradient(#cfe3f7, #cfe3f7) no-repeat 0 / var(--share) 100% }}
.wrong {{ border: 2px solid #c2410c }} .wrong p {{ color: #c2410c }}
</style></head><body><h1>{title}</h1>
<main>
"""


def _figure(prediction):
    name = prediction.path.removeprefix(f'{os.getcwd()}/')
    if os.path.isabs(name):  # the page may go elsewhere
        name = os.path.join(*Path(name).parts[-2:])
    caption = f'<figcaption>{html.escape(name)}</figcaption>'
    if prediction.error:
        return f'<figure>{caption}{html.escape(prediction.error)}; skipped</figure>\n'
    wrong = prediction.folder not in (None, prediction.top[0][1])
    remark = f'<p>wrong: its folder is {html.escape(prediction.folder)}</p>' if wrong else ''
    rows = ''.join(
        f'<div class="row" style="--share: {p:.1%}"><span>{html.escape(label)}</span><span>{100 * p:.1f} %</span></div>'
        for _, label, p in prediction.top
    )
    image = base64.b64encode(prediction.thumbnail).decode()
    kind = ' class="wrong"' * wrong
    return f'<figure{kind}><img alt="" src="data:image/jpeg;base64,{image}">{caption}{remark}{rows}</figure>\n'


def positive(text: str) -> int:
    """A number of at least 1, as argparse wants it: ValueError for others."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse(argv: list[str] | None):
    """The command line (argparse.Namespace)."""
    parser = Parser(prog='python -m src.deploy.predict', description='Prints the likeliest classes of each image.')
    add, number = parser.add_argument, {'type': positive, 'metavar': 'N'}
    add('sources', nargs='+', metavar='IMAGE_OR_DIR', help='image, directory with images at any depth, or a quoted pattern')
    add(
        '--model', required=True, metavar='FILE', help='MINDIR or ONNX file of export.py, or weights as export.py reads them'
    )
    add('--batch_size', **number, help=f'images in a call of a model for any number (default: {BATCH})')
    add('--top', default=5, **number, help='classes of each image, as far as the model returns them (default: 5)')
    add('--labels', default='', metavar='FILE', help='class names, lines `name` or `label:name` (default: of the model)')
    add('--json', action='store_true', help='print a line of JSON for each image')
    add('--html', default='', metavar='OUT', help='also write a page with the images and their classes')
    return parser.parse_args(argv)


@entry_point
def main(argv: list[str] | None = None):
    """Run the command line `argv` (default: that of the process)."""
    args, left_out, bad = parse(argv), [], []
    paths = [path for source in args.sources for path in find_images(source, left_out.append)]
    runtime.start(load_settings([]))
    model = open_model(args.model, args.labels)
    for line in left_out:
        print(line, file=sys.stderr)
    batch_size, size = model.signature.batch_size or args.batch_size or min(BATCH, len(paths)), model.signature.image_size
    # The first call compiles, which is not to count as time of the images.
    model.probabilities(np.zeros((batch_size, size, size, 3), np.uint8))
    start, predictions = time.perf_counter(), predict(model, paths, args.top, bool(args.html), batch_size)
    shown = show(tqdm(predictions, total=len(paths), unit='image', leave=False, disable=None), args.json, bad)
    if args.html:
        with reading(args.html, 'choose another --html'), files.replacing(args.html) as temporary:
            with open(temporary, 'w', encoding='utf-8', errors='backslashreplace') as page:
                page.write(PAGE.format(title=html.escape(f'Predictions of {Path(args.model).name}')))
                page.writelines(map(_figure, shown))
                page.write('</main></body></html>\n')
    else:
        deque(shown, 0)
    if len(bad) == len(paths):
        raise InputError(f'{bad[0]}: no image that can be read, {len(bad)} in all; name others')
    rate = len(paths) / (time.perf_counter() - start)
    line = f'{counted(len(paths) - len(bad), "image")}{f", {len(bad)} skipped" if bad else ""}, {rate:.1f} images/s'
    print(f'{line}, decoding included', file=sys.stderr if args.json else sys.stdout)


def show(predictions: Iterable[Prediction], json: bool, bad: list[str]) -> Iterator[Prediction]:
    """Print each of the `predictions` as it comes, as JSON with `json`, else as text (what cannot be read on stderr), and
    yield it; `bad` gets the paths of those that cannot be read."""
    for prediction in predictions:
        tqdm.write(as_line(prediction, json), sys.stderr if prediction.error and not json else sys.stdout)
        bad += [prediction.path] * bool(prediction.error)
        yield prediction


if __name__ == '__main__':
    main()
