"""Labels of images:

python -m src.deploy.predict IMAGE_OR_DIR ... --model F.mindir|F.onnx|CKPT [--top 5] [--json] [--html F]
"""

import base64
import contextlib
import html
import io
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from src import files, runtime
from src.data.folder import PICTURES
from src.data.preprocess import decode, evaluation_picture
from src.deploy.predictor import open_model
from src.errors import InputError, Parser, counted, entry_point

BATCH = 8
THUMBNAIL = 240  # pixels, longer side

# `top`: [(class number, label, probability)], best first; for an image that cannot be read, None and the `error`.
Prediction = namedtuple('Prediction', 'path top error thumbnail')


def find_pictures(path):
    """The image `path`, or all below the directory, by name (list of Path). InputError if there is none."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f'{path}: no such image or directory')
    found = sorted(p for p in path.rglob('*') if p.suffix.lower() in PICTURES and p.is_file())
    if not found:
        raise InputError(f'{path}: no image in it ({", ".join(PICTURES)})')
    return found


def load(paths, size, preprocessing, thumbnails=False):
    """For each path the image, uint8 (size, size, 3), or what is wrong with it, and a small JPEG (bytes or None)."""
    loaded = []
    for path in paths:
        try:
            encoded = path.read_bytes()
            picture = evaluation_picture(encoded, size, preprocessing, upright=True)
            loaded.append((picture, _thumbnail(encoded) if thumbnails else None))
        except (OSError, ValueError) as error:
            loaded.append((getattr(error, 'strerror', None) or str(error), None))
    return loaded


def _thumbnail(encoded):
    picture, file = Image.fromarray(decode(encoded, upright=True)), io.BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, 'JPEG', quality=85)
    return file.getvalue()


def predict(model, paths, top=5, thumbnails=False):
    """Yield a `Prediction` for each of `paths` (list of Path), in their order.

    A batch is decoded by a thread while the one before is in the network.
    """
    size = model.batch_size or min(BATCH, len(paths))
    batches = [paths[i : i + size] for i in range(0, len(paths), size)]
    with ThreadPoolExecutor(1) as decoder:

        def start(number):
            return decoder.submit(load, batches[number], model.size, model.preprocessing, thumbnails)

        ahead = start(0)
        for number, batch in enumerate(batches):
            loaded = ahead.result()
            if number + 1 < len(batches):
                ahead = start(number + 1)
            good = [picture for picture, _ in loaded if isinstance(picture, np.ndarray)]
            # Always a whole batch: a graph is compiled for a shape.
            rows = iter(zip(*model.probabilities(np.resize(good, (size, *good[0].shape))))) if good else iter(())
            for path, (picture, thumbnail) in zip(batch, loaded):
                if isinstance(picture, str):
                    yield Prediction(path, None, picture, None)
                    continue
                best = [
                    (int(c), model.class_names[c] if model.class_names else f'class {c}', float(p))
                    for p, c in zip(*(row[:top] for row in next(rows)))
                ]
                yield Prediction(path, best, None, thumbnail)


def as_text(prediction):
    if prediction.error:
        return f'{prediction.path}: {prediction.error}; skipped'
    return '\n'.join([str(prediction.path), *(f'  {100 * p:6.2f} %  {label}' for _, label, p in prediction.top)])


def as_json(prediction):
    if prediction.error:
        return files.as_json({'file': str(prediction.path), 'error': prediction.error})
    return files.as_json(
        {
            'file': str(prediction.path),
            'top': [{'class': c, 'label': label, 'probability': round(p, 6)} for c, label, p in prediction.top],
        }
    )


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fafafa }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 1em }}
figure {{ margin: 0; padding: 12px; background: #fff; border: 1px solid #ddd; border-radius: 6px }}
img {{ display: block; height: 180px; max-width: 100%; margin: 0 auto 8px; object-fit: contain }}
figcaption {{ font-size: 12px; color: #666; overflow-wrap: anywhere; margin-bottom: 6px }}
.row {{ display: flex; justify-content: space-between; gap: 8px; padding: 1px 4px;
  background: linear-gradient(#cfe3f7, #cfe3f7) no-repeat 0 / var(--share) 100% }}
.row:first-of-type {{ font-weight: 600 }}
.row span + span {{ white-space: nowrap }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
<main>
"""


def write_page(path, predictions, title, summary):
    """One HTML file with the images and their best classes in it; whole or not at all."""
    try:
        with files.replacing(path) as temporary, open(temporary, 'w', encoding='utf-8', errors='backslashreplace') as file:
            file.write(PAGE.format(title=html.escape(title), summary=html.escape(summary)))
            for prediction in predictions:
                caption = f'<figcaption>{html.escape(str(prediction.path))}</figcaption>'
                if prediction.error:
                    file.write(f'<figure>{caption}{html.escape(prediction.error)}; skipped</figure>\n')
                    continue
                picture = base64.b64encode(prediction.thumbnail).decode()
                rows = ''.join(
                    f'<div class="row" style="--share: {100 * p:.1f}%"><span>{html.escape(label)}</span>'
                    f'<span>{100 * p:.1f} %</span></div>'
                    for _, label, p in prediction.top
                )
                file.write(f'<figure><img alt="" src="data:image/jpeg;base64,{picture}">{caption}{rows}</figure>\n')
            file.write('</main></body></html>\n')
    except OSError as error:
        raise InputError(f'html {path}: cannot be written ({error.strerror}); choose another file') from None


def positive(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m src.deploy.predict', description='Labels for images.')
    parser.add_argument(
        'sources', nargs='+', metavar='IMAGE_OR_DIR', help='an image, or a directory with images at any depth'
    )
    parser.add_argument(
        '--model',
        required=True,
        metavar='FILE',
        help='MINDIR or ONNX file of export.py, or a checkpoint, also of timm (safetensors, .pth), TensorFlow or MindCV',
    )
    parser.add_argument('--top', type=positive, default=5, metavar='N', help='classes to show (default: 5)')
    parser.add_argument('--labels', default='', metavar='FILE', help='class names, lines `name` or `label:name`')
    parser.add_argument('--json', action='store_true', help='a JSON object per line and image')
    parser.add_argument('--html', default='', metavar='OUT', help='also write a page with the images')
    args = parser.parse_args(argv)
    paths = [path for source in args.sources for path in find_pictures(source)]
    runtime.start()
    model = open_model(args.model, args.labels)
    check_top(args.top, model.num_classes, model.num_classes)
    size = model.batch_size or min(BATCH, len(paths))
    blank, _ = model.probabilities(np.zeros((size, model.size, model.size, 3), np.uint8))  # the first call compiles
    check_top(args.top, blank.shape[1], model.num_classes)
    predictions, start = [], time.perf_counter()
    # The page is made even if nobody reads the lines any more.
    reading = contextlib.suppress(BrokenPipeError) if args.html else contextlib.nullcontext()
    with tqdm(total=len(paths), unit='image', leave=False, disable=True if len(paths) == 1 else None) as bar:
        for prediction in predict(model, paths, args.top, bool(args.html)):
            text = (as_json if args.json else as_text)(prediction)
            with reading:
                bar.write(text, sys.stderr if prediction.error and not args.json else sys.stdout)
            bar.update()
            predictions.append(prediction)
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


def check_top(top, given, num_classes):
    """InputError if the model, which gives `given` of its classes, cannot give `top`, nor that many by default."""
    if top > max(5, given):
        raise InputError(
            f'top {top}: the model gives {given} classes; '
            + ('take fewer' if given == num_classes else 'take fewer, or export it with --output softmax, which gives all')
        )


if __name__ == '__main__':
    main()
