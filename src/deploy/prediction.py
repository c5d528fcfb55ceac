"""What is said about an image: as text, as JSON, as an HTML page."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Callable, NamedTuple

from src import files
from src.errors import InputError


class Prediction(NamedTuple):
    """The likeliest classes of an image, or what is wrong with it."""

    path: str
    top: list[tuple[int, str, float]] | None  # class number, label, probability, best first; None with an `error`
    error: str | None
    thumbnail: bytes | None  # JPEG, if one was asked for
    folder: str | None = None  # label of the class whose name the image's folder has


def as_text(prediction: Prediction) -> str:
    """The name of the image and a line for each class, or one line with the error."""
    if prediction.error:
        return f'{prediction.path}: {prediction.error}; skipped'
    return '\n'.join([prediction.path, *(f'  {100 * p:6.2f} %  {label}' for _, label, p in prediction.top)])


def as_json(prediction: Prediction) -> str:
    """One line: {"file": ..., "top": [{"class": ..., "label": ..., "probability": ...}, ...]}, or "error" for "top"."""
    if prediction.error:
        return files.as_json({'file': prediction.path, 'error': prediction.error})
    return files.as_json(
        {
            'file': prediction.path,
            'top': [{'class': c, 'label': label, 'probability': round(p, 6)} for c, label, p in prediction.top],
        }
    )


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1em; color: #222; background: #fafafa; overflow-wrap: anywhere }}
h1 {{ font-size: 1.4em; margin: .3em 0 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 230px), 1fr)); gap: 1em; margin: 1em 0 }}
figure {{ margin: 0; padding: 12px; background: #fff; border: 1px solid #ddd; border-radius: 6px }}
img {{ display: block; height: 180px; max-width: 100%; margin: 0 auto 8px; object-fit: contain }}
figcaption {{ font-size: 12px; color: #666; overflow-wrap: anywhere; margin-bottom: 6px }}
.row {{ display: flex; justify-content: space-between; gap: 8px; padding: 1px 4px;
  background: linear-gradient(#cfe3f7, #cfe3f7) no-repeat 0 / var(--share) 100% }}
.row:first-of-type {{ font-weight: 600 }}
.row span {{ white-space: pre-wrap }}
.wrong {{ border: 2px solid #c2410c }} .wrong p {{ color: #c2410c; margin: 0 0 6px }}
.row span + span {{ white-space: nowrap }}
</style></head><body>
<h1>{title}</h1>
<p>{about}</p>
<main>
"""


def write_page(path: str | Path, predictions: Iterable[Prediction], title: str, about: str, summary: Callable[[], str]):
    """One HTML file with the thumbnails and the likeliest classes in it, whole or not at all, `about` below its `title`.
    `summary` is called after the last of the `predictions`. InputError if it cannot be written."""
    try:
        with files.replacing(path) as temporary, open(temporary, 'w', encoding='utf-8', errors='backslashreplace') as file:
            file.write(PAGE.format(title=html.escape(title), about=html.escape(about)))
            file.writelines(map(_figure, predictions))
            file.write(f'</main>\n<p>{html.escape(summary())}</p>\n</body></html>\n')
    except OSError as error:
        raise InputError(f'html {path}: cannot be written ({error.strerror}); choose another file') from None


def _figure(prediction):
    name = prediction.path.removeprefix(f'{os.getcwd()}/')
    if os.path.isabs(name):  # the page may go elsewhere
        name = os.path.join(*Path(name).parts[-2:])
    caption = f'<figcaption>{html.escape(name)}</figcaption>'
    if prediction.error:
        return f'<figure>{caption}{html.escape(prediction.error)}; skipped</figure>\n'
    image = base64.b64encode(prediction.thumbnail).decode()
    rows = ''.join(
        f'<div class="row" style="--share: {100 * p:.1f}%"><span>{html.escape(label)}</span>'
        f'<span>{100 * p:.1f} %</span></div>'
        for _, label, p in prediction.top
    )
    begin = '<figure>'
    if prediction.folder not in (None, prediction.top[0][1]):
        begin, caption = '<figure class="wrong">', f'{caption}<p>wrong: its folder is {html.escape(prediction.folder)}</p>'
    return f'{begin}<img alt="" src="data:image/jpeg;base64,{image}">{caption}{rows}</figure>\n'
