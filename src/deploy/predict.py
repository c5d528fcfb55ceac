"""The most probable classes of images:

python -m src.deploy.predict IMAGE_OR_DIR ... --model F.mindir|F.onnx|CKPT [--top 5] [--json] [--csv F] [--html F]
"""

from __future__ import annotations

import base64
import csv
import itertools
import json
import sys
from argparse import Namespace
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from src import files, runtime
from src.data.classes import imagenet_classes, load_names, normal
from src.deploy import formats
from src.deploy.export import Served, load_network
from src.deploy.formats import LOADED, Signature, as_function, softmax
from src.deploy.image_files import find_images, from_standard_input, load_batches, load_image
from src.errors import InputError, Parser, counted, entry_point, reading
from src.evaluation.report import labels_of, percent, text, write_page
from src.options import load_settings

BATCH = 8


class Predictor(NamedTuple):
    """A model of any kind, ready to run."""

    # Images uint8 (N, size, size, 3), cropped and resized as the evaluation does -> float32 (N, k), best first, and their
    # class numbers (N, k). k is the number of classes, or 5 for some files.
    probabilities: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    signature: Signature  # whose scaling and output `probabilities` does
    class_names: list[str]  # by class number


def open_model(path: str, labels_path: str = '') -> Predictor:
    """`Predictor` of a checkpoint, or of a MINDIR or ONNX file with its description beside it.

    `labels_path` is a file of class names, for models that know none. InputError if something is missing or unfit.
    """
    if Path(path).suffix in LOADED:
        signature, about = formats.read_description(Path(path))
        call, names, num_classes = formats.load(path), about['classes'], about['num_classes']
    else:
        network, info, settings = load_network(path)
        signature = Signature(settings.image_size, info['preprocessing'], 'uint8', 'softmax')
        call = as_function(Served(network, signature).set_train(False))
        names, num_classes = info.get('class_names') or [], settings.num_classes
    if labels_path:
        with reading(labels_path, 'give a text file with one line for each class'):
            names = load_names(labels_path)[0]
            spare = len(names) - num_classes
            if spare and (spare != 1 or names[0] not in ('background', '')):
                raise ValueError(f'names the classes 0 to {len(names) - 1}, but the network has {num_classes} classes')

    def probabilities(images):
        outputs = call(signature.as_input(images))
        if signature.output == 'top5':
            return outputs
        values = softmax(outputs[0]) if signature.output == 'logits' else outputs[0]
        order = np.argsort(-values, 1, kind='stable')
        return np.take_along_axis(values, order, 1), order

    return Predictor(probabilities, signature, labels_of(names, num_classes))


class Prediction(NamedTuple):
    """The most probable classes of an image, or why it cannot be read."""

    path: str
    top: list[tuple[int, str, float]] | None  # class number, label, probability, best first
    error: str | None
    thumbnail: bytes | None  # JPEG, for a page


def predict(
    model: Predictor, paths: Iterable[str | None], top: int = 5, thumbnails: bool = False, batch_size: int = BATCH
) -> Iterator[Prediction]:
    """Yield a `Prediction` of the `top` most probable classes for each of `paths`, in their order; threads decode the next
    batches while one is in the network. At None among the `paths` those before it are predicted at once."""
    size, preprocessing, names = model.signature.image_size, model.signature.preprocessing, model.class_names
    load = partial(load_image, size=size, preprocessing=preprocessing, thumbnails=thumbnails)
    for batch in load_batches(paths, batch_size, load):
        good = [image for _, image, _, _ in batch if image is not None]
        # Always a whole batch: a graph is compiled for each shape.
        rows = zip(*model.probabilities(np.resize(good, (batch_size, size, size, 3)))) if good else iter(())
        for path, image, error, thumbnail in batch:
            best = None
            if image is not None:
                values, classes = next(rows)
                best = [(int(c), names[c], float(p)) for p, c in zip(values[:top], classes[:top])]
            yield Prediction(path, best, error, thumbnail)


def as_line(prediction: Prediction, as_json: bool) -> str:
    """The name of the image and a line for each class, or one line with the error; with `as_json` one line: {"file": ...,
    "top": [{"class": ..., "label": ..., "probability": ...}, ...]}, or "error" for "top"."""
    path, top, error, _ = prediction
    if as_json:
        if error:
            return json.dumps({'file': path, 'error': error})
        best = [{'class': c, 'label': label, 'probability': round(p, 6)} for c, label, p in top]
        return json.dumps({'file': path, 'top': best})
    return f'{path}: {error}; skipped' if error else '\n'.join([path, *(f'  {100 * p:6.2f} %  {n}' for _, n, p in top)])


def tabulated(predictions: Iterable[Prediction], path: str) -> Iterator[Prediction]:
    """Write the `predictions` to a CSV file, a line for each image, and yield them. InputError if it cannot be written."""
    with reading(path, 'choose another --csv'), files.replacing(path) as temporary:
        with open(temporary, 'w', encoding='utf-8', errors='backslashreplace') as file:
            rows = csv.writer(file, lineterminator='\n')
            rows.writerow(['file', 'error', 'label', 'probability', '(the next classes)'])
            for prediction in predictions:
                best = [cell for _, label, p in prediction.top or () for cell in (files.as_cell(label), f'{p:.6f}')]
                rows.writerow([files.as_cell(prediction.path), prediction.error or '', *best])
                yield prediction


def page(predictions: Iterable[Prediction], class_names: list[str]) -> Iterator[str]:
    """Yield the HTML of a page that holds the images, with the share of each class as a bar; an image in a folder that has
    the name of another one of the classes is marked as wrong."""
    yield '<div class="grid">\n'
    for path, top, error, thumbnail in predictions:
        yield f'<figure><figcaption>{text("/".join(path.split("/")[-2:]))}</figcaption>'  # the page may go elsewhere
        if error:
            yield f'{text(error)}; skipped</figure>\n'
            continue
        yield f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(thumbnail).decode()}">'
        folder = normal(Path(path).absolute().parent.name)
        true = imagenet_classes().get(folder, folder)
        if true in class_names and true != top[0][1]:
            yield f'<p><b>wrong: its folder is {text(true)}</b></p>'
        for _, label, p in top:
            bar = f'background: linear-gradient(90deg, #cfe3f7 {p:.1%}, #fff 0)'
            yield f'<div class="row" style="{bar}">{percent(p)} {text(label)}</div>'
        yield '</figure>\n'
    yield '</div>\n'


def show(predictions: Iterable[Prediction], args: Namespace, outcomes: Counter) -> Iterator[Prediction]:
    """Print each of the `predictions` as it comes, as JSON with `args.json`, else as text (what cannot be read on stderr),
    and yield it; `outcomes` counts those that can be read (True) or not."""
    for prediction in predictions:
        stream = sys.stderr if prediction.error and not args.json else sys.stdout
        tqdm.write(as_line(prediction, args.json), stream)
        stream.flush()  # a program may wait for this line
        outcomes[not prediction.error] += 1
        yield prediction


def parse(argv: list[str] | None) -> Namespace:
    """The options of a command line."""
    parser = Parser(prog='python -m src.deploy.predict', description='Prints the most probable classes of each image.')
    add = parser.add_argument
    add(
        'sources',
        nargs='+',
        metavar='IMAGE_OR_DIR',
        help='image, directory with images at any depth, quoted pattern, or - for such lines on standard input',
    )
    add('--model', required=True, metavar='FILE', help='file of export.py, or weights as export.py reads them')
    add('--batch_size', type=positive, metavar='N', help=f'images in a call of a model for any number (default: {BATCH})')
    add('--top', default=5, type=positive, metavar='N', help='classes of each image, at most (default: 5)')
    add('--labels', default='', metavar='FILE', help='class names, lines `name` or `label:name` (default: of the model)')
    add('--json', action='store_true', help='print a line of JSON for each image')
    add('--csv', default='', metavar='OUT', help='also write a table, a line for each image')
    add('--html', default='', metavar='OUT', help='also write a page with the images and their classes')
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """A number of at least 1, as argparse wants it: ValueError for others."""
    if int(text) < 1:
        raise ValueError
    return int(text)


@entry_point
def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv` (default: that of the process)."""
    args, outcomes = parse(argv), Counter()
    found = [from_standard_input() if source == '-' else find_images(source) for source in args.sources]
    paths, total = itertools.chain.from_iterable(found), None if '-' in args.sources else sum(map(len, found))
    runtime.start(load_settings([]))
    model = open_model(args.model, args.labels)
    batch_size = model.signature.batch_size or args.batch_size or min(BATCH, total or BATCH)
    predictions = predict(model, paths, args.top, bool(args.html), batch_size)
    shown = show(tqdm(predictions, total=total, unit='image', leave=False, disable=None), args, outcomes)
    shown = tabulated(shown, args.csv) if args.csv else shown
    if args.html:
        with reading(args.html, 'choose another --html'):
            write_page(args.html, f'Predictions of {Path(args.model).name}', page(shown, model.class_names))
    deque(shown, 0)  # without a page
    good, bad = outcomes[True], outcomes[False]
    if not good:
        raise InputError(f'{args.sources[0]}: no image that can be read, {bad} in all; name others')
    print(counted(good, 'image') + f', {bad} skipped' * (bad > 0), file=sys.stderr if args.json else sys.stdout)


if __name__ == '__main__':
    main()
