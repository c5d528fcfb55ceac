"""The likeliest classes of images:

python -m src.deploy.predict IMAGE_OR_DIR ... --model F.mindir|F.onnx|CKPT [--top 5] [--json] [--html F]
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src import runtime
from src.data.folder import IMAGE_SUFFIXES
from src.data.image import thumbnail
from src.data.preprocess import Preprocessing, evaluation_image
from src.deploy.prediction import Prediction, as_json, as_text, write_page
from src.deploy.predictor import Predictor, open_model
from src.errors import InputError, Parser, counted, entry_point

BATCH = 8
THUMBNAIL = 240  # pixels, longer side


def find_images(path: str | Path) -> list[Path]:
    """The image `path`, or all below the directory `path`, sorted by name. InputError if there is none."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f'{path}: no such image or directory')
    found = sorted(p for p in path.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not found:
        raise InputError(f'{path}: no image in it ({", ".join(IMAGE_SUFFIXES)})')
    return found


def load(
    paths: list[Path], size: int, preprocessing: Preprocessing, thumbnails: bool = False
) -> list[tuple[np.ndarray | str, bytes | None]]:
    """For each path the image, uint8 (size, size, 3), or what is wrong with it (str), and its thumbnail as a JPEG."""
    loaded = []
    for path in paths:
        try:
            encoded = path.read_bytes()
            image = evaluation_image(encoded, size, preprocessing, upright=True)
            loaded.append((image, thumbnail(encoded, THUMBNAIL, upright=True) if thumbnails else None))
        except (OSError, ValueError) as error:
            loaded.append((getattr(error, 'strerror', None) or str(error), None))
    return loaded


def predict(model: Predictor, paths: list[Path], top: int = 5, thumbnails: bool = False) -> Iterator[Prediction]:
    """Yield a `Prediction` of the `top` likeliest classes for each of `paths`, in their order.

    A thread decodes a batch while the one before is in the network.
    """
    size = _batch_size(model, paths)
    batches = [paths[i : i + size] for i in range(0, len(paths), size)]
    with ThreadPoolExecutor(1) as decoder:

        def start(number):
            return decoder.submit(load, batches[number], model.size, model.preprocessing, thumbnails)

        ahead = start(0)
        for number, batch in enumerate(batches):
            loaded = ahead.result()
            if number + 1 < len(batches):
                ahead = start(number + 1)
            good = [image for image, _ in loaded if isinstance(image, np.ndarray)]
            # Always a whole batch: a graph is compiled for each shape.
            rows = iter(zip(*model.probabilities(np.resize(good, (size, *good[0].shape))))) if good else iter(())
            for path, (image, thumbnail) in zip(batch, loaded):
                if isinstance(image, str):
                    yield Prediction(path, None, image, None)
                else:
                    yield Prediction(path, _best(*next(rows), model.class_names, top), None, thumbnail)


def _batch_size(model, paths):
    return model.batch_size or min(BATCH, len(paths))


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
        'sources', nargs='+', metavar='IMAGE_OR_DIR', help='an image, or a directory with images at any depth'
    )
    parser.add_argument(
        '--model',
        required=True,
        metavar='FILE',
        help='MINDIR or ONNX file of export.py, or a checkpoint, also of timm (safetensors, .pth), TensorFlow or MindCV',
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
    paths = [path for source in args.sources for path in find_images(source)]
    runtime.start()
    model = open_model(args.model, args.labels)
    check_top(args.top, model.num_classes, model.num_classes)
    blank = np.zeros((_batch_size(model, paths), model.size, model.size, 3), np.uint8)
    values, _ = model.probabilities(blank)  # the first call compiles, which is not to count as time of the images
    check_top(args.top, values.shape[1], model.num_classes)
    # The page is made even if nobody reads the lines any more.
    reading = contextlib.suppress(BrokenPipeError) if args.html else contextlib.nullcontext()
    start = time.perf_counter()
    predictions = show(predict(model, paths, args.top, bool(args.html)), len(paths), args.json, reading)
    seconds = time.perf_counter() - start
    good = sum(not prediction.error for prediction in predictions)
    source = args.sources[0] if len(args.sources) == 1 else f'{len(args.sources)} images and directories'
    if not good:
        raise InputError(f'{source}: no image that can be read')
    skipped = f', {len(paths) - good} skipped' if good < len(paths) else ''
    summary = f'{counted(good, "image")}{skipped}, {len(paths) / seconds:.1f} images/s, decoding included'
    with reading:
        print(summary, file=sys.stderr if args.json else sys.stdout)
    if args.html:
        write_page(args.html, predictions, f'{Path(args.model).name} on {Path(source).name}', summary)


def show(predictions: Iterator[Prediction], count: int, json: bool, reading) -> list[Prediction]:
    """Print the `count` predictions as they come and return them; what cannot be read is reported on stderr, or with `json`
    among the others. `reading` is the context in which lines are printed."""
    shown = []
    with tqdm(total=count, unit='image', leave=False, disable=True if count == 1 else None) as bar:
        for prediction in predictions:
            text = (as_json if json else as_text)(prediction)
            with reading:
                bar.write(text, sys.stderr if prediction.error and not json else sys.stdout)
            bar.update()
            shown.append(prediction)
    return shown


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
