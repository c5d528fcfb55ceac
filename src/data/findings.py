"""What is unusual or damaged about an encoded image."""

from __future__ import annotations

import os
import re

from src.data import jpeg
from src.data.image import (
    BROKEN,
    ImageError,
    UnsupportedError,
    as_jpeg,
    is_transparent,
    open_image,
    orientation,
    pixels,
    quiet,
)

TINY, HUGE = 32, 20e6  # pixels a side, pixels in all
UNREADABLE = ('undecodable', 'truncated', 'unsupported')
TO_FIX = ('cmyk', 'png_in_jpeg', 'other_format')  # greyscale JPEG needs none: every JPEG decoder reads it
_HARMLESS = ('unknown JFIF revision', 'Unknown Adobe color transform', 'Invalid SOS parameters', 'bad ICC marker')
_EXPECTED = {'.png': 'PNG', '.bmp': 'BMP', '.gif': 'GIF', '.webp': 'WEBP'}


def examine(encoded: bytes, name: str = '') -> dict[str, str]:
    """{kind: detail} of what was found about an encoded image; a file `name` that ends in .png, .bmp, .gif or .webp allows
    for that format.

    Everything is decoded (a JPEG at an eighth of its size, which reads all of its bytes).
    """
    found = {}
    try:
        opened = open_image(encoded)
        found = _unusual(opened, name)
        warning = jpeg.warning(encoded)
        if opened.format in ('JPEG', 'MPO') and warning != '':
            if jpeg.frame(encoded)[0] != jpeg.LOSSLESS:  # which has no smaller size
                opened.draft(None, (1, 1))
            with quiet():
                opened.load()
        elif warning is None:
            pixels(opened)
            if is_transparent(opened):
                found['transparent'] = opened.mode
    except UnsupportedError as error:
        return {'unsupported': str(error)}
    except BROKEN as error:
        detail = re.sub(r'^cannot be decoded \((.*)\)$', r'\1', str(error) or type(error).__name__, flags=re.DOTALL)
        found['truncated' if 'truncated' in detail.lower() else 'undecodable'] = detail if encoded else 'no bytes'
        return found
    if warning:
        kind, detail = _damage(encoded, warning)
        found[kind] = detail
    if (turn := orientation(encoded, opened)) > 1:
        found['exif_rotated'] = f'orientation {turn}'
    try:
        with quiet():
            opened.getexif()
    except BROKEN as error:
        found['exif_broken'] = str(error) or type(error).__name__
    return found


def for_shard(encoded: bytes, name: str, upright: bool, fix: bool) -> tuple[bytes, str, bool, bool]:
    """An image as a shard takes it: (encoded, file name, whether there is something `TO_FIX`, whether it was changed to
    be `upright` as in `EncodedImage`). What is to be fixed is encoded again only with `fix`. ImageError on what cannot be
    decoded.
    """
    found = examine(encoded)
    for kind in UNREADABLE:
        if kind in found:
            raise ImageError(found[kind])
    unfit = any(kind in found for kind in TO_FIX)
    changed = upright and ('exif_rotated' in found or 'transparent' in found)
    if unfit and fix or changed:
        encoded, name = as_jpeg(encoded, upright), os.path.splitext(name)[0] + '.jpg'
    return encoded, name, unfit, changed


def _unusual(opened, name):
    """Findings about format, colours and size of a PIL image."""
    (width, height), form = opened.size, opened.format.replace('MPO', 'JPEG')
    size, ending, found = f'{width} x {height}', os.path.splitext(name)[1].lower(), {}
    if form != _EXPECTED.get(ending, form):
        found['misnamed'] = f'{form} in a file called {ending}'
    elif ending not in _EXPECTED and form != 'JPEG':
        found['png_in_jpeg' if form == 'PNG' else 'other_format'] = form
    if opened.mode == 'CMYK':
        found['cmyk'] = size
    if opened.mode in ('1', 'L', 'LA', 'I;16', 'I', 'F'):
        found['greyscale'] = size
    if min(width, height) < TINY:
        found['tiny'] = size
    if width * height > HUGE:
        found['huge'] = size
    return found


def _damage(encoded, warning):
    """(kind, detail) for a `warning` (str) of libjpeg-turbo: "corrupt", or "warned" where the pixels are sound."""
    data = encoded[: encoded.rfind(b'\xff\xd9')]
    zeros, left = len(data) - len(data.rstrip(b'\0')), re.search(r'(\d+) extraneous bytes before marker 0xd9', warning)
    count = int(left[1]) if left else 0
    if zeros - count > 16:  # more than the decoder reads ahead: they were taken for pixels
        return 'corrupt', f'the last {zeros} bytes of its data are zeros'
    # Where bytes were lost, data of pixels are left over, and many of them; a few bytes or equal ones are padding.
    if left and (count <= 4 or len(set(data[-count:])) <= 2) or any(text in warning for text in _HARMLESS):
        return 'warned', warning
    return 'corrupt', warning
