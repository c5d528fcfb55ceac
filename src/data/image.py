"""Opening an encoded picture with Pillow, turning it upright, what is unusual about it, and re-encoding it."""

import contextlib
import io
import os
import re
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from src.data import jpeg

TINY, HUGE = 32, 20e6  # pixels a side, pixels in all
UNREADABLE = ('undecodable', 'truncated')
TO_FIX = ('cmyk', 'png_in_jpeg', 'other_format')  # greyscale JPEG needs none: every JPEG decoder reads it
_FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM')  # not EPS and the like, which run programs
# Hostile bytes get nearly any exception out of Pillow.
_BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_HARMLESS = ('unknown JFIF revision', 'Unknown Adobe color transform', 'Invalid SOS parameters', 'bad ICC marker')
_EXPECTED = {'.png': 'PNG', '.bmp': 'BMP', '.gif': 'GIF', '.webp': 'WEBP'}


@contextlib.contextmanager
def _quiet():
    """Without Pillow's warnings about huge pictures, broken EXIF and the like."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def open_image(encoded):
    """Header of an encoded picture (bytes) as a lazy PIL image; ValueError when there is none."""
    try:
        with _quiet():
            return Image.open(io.BytesIO(encoded), formats=_FORMATS)
    except Image.UnidentifiedImageError:  # whose own message is the address of an object
        raise ValueError('not a picture' if encoded else 'not a picture: no bytes') from None
    except _BROKEN as error:
        raise ValueError(f'cannot be decoded ({error})') from None


def pixels(image):
    """A PIL image as RGB uint8 (height, width, 3); of 16 bits a sample the upper 8 count, as in TensorFlow.

    ValueError on what cannot be decoded, cut-off files included.
    """
    try:
        with _quiet():
            if image.mode.startswith('I;16') or image.mode == 'I' and image.format in ('PNG', 'PPM'):
                return (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)[..., None].repeat(3, 2)
            if image.mode in ('I', 'F'):
                raise ValueError('32 bits a sample, of which none says what is white')
            return np.asarray(image.convert('RGB'))
    except _BROKEN as error:
        raise ValueError(f'cannot be decoded ({error})') from None


def orientation(encoded, image=None):
    """EXIF orientation, 1 to 8, of an encoded picture (bytes); of other formats than JPEG only its PIL `image` tells."""
    if encoded.startswith(b'\xff\xd8'):
        return jpeg.orientation(encoded)
    try:
        with _quiet():
            found = image.getexif().get(0x0112, 1) if image else 1
    except _BROKEN:
        return 1
    return found if found in range(1, 9) else 1


def turned(picture, turn):
    """An array (height, width, ...) as it was stored, turned upright from the EXIF orientation `turn`."""
    if turn == 1:
        return picture
    picture = picture.swapaxes(0, 1) if turn > 4 else picture
    return np.ascontiguousarray(picture[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1])


def stored_crop(crop, turn):
    """`crop(height, width)` -> (top, left, height, width) of an upright picture as the same of the stored one."""

    def stored(height, width):
        if turn > 4:
            height, width = width, height
        top, left, h, w = crop(height, width)
        top = height - top - h if turn in (3, 4, 7, 8) else top
        left = width - left - w if turn in (2, 3, 6, 7) else left
        return (left, top, w, h) if turn > 4 else (top, left, h, w)

    return stored


def examine(encoded, name=''):
    """Findings about an encoded picture as a dict kind -> detail; `name` may allow for others than JPEG.

    Everything is decoded (a JPEG at an eighth of its size, which reads all of its bytes).
    """
    found = {}
    try:
        image = open_image(encoded)
        found = _unusual(image, name)
        warning = jpeg.warning(encoded)
        if image.format in ('JPEG', 'MPO') and warning != '':
            image.draft(None, (1, 1))
            with _quiet():
                image.load()
        elif warning is None:
            pixels(image)
    except _BROKEN as error:
        detail = re.sub(r'^cannot be decoded \((.*)\)$', r'\1', str(error) or type(error).__name__, flags=re.DOTALL)
        found['truncated' if 'truncated' in detail.lower() else 'undecodable'] = detail if encoded else 'no bytes'
        return found
    if warning:
        kind, detail = _damage(encoded, warning)
        found[kind] = detail
    if (turn := orientation(encoded, image)) > 1:
        found['exif_rotated'] = f'orientation {turn}'
    try:
        with _quiet():
            image.getexif()
    except _BROKEN as error:
        found['exif_broken'] = str(error) or type(error).__name__
    return found


def _unusual(image, name):
    """Findings about format, colours and size of an opened PIL image."""
    (width, height), form = image.size, image.format.replace('MPO', 'JPEG')
    size, ending, found = f'{width} x {height}', os.path.splitext(name)[1].lower(), {}
    if form != _EXPECTED.get(ending, form):
        found['misnamed'] = f'{form} in a file called {ending}'
    elif ending not in _EXPECTED and form != 'JPEG':
        found['png_in_jpeg' if form == 'PNG' else 'other_format'] = form
    if image.mode == 'CMYK':
        found['cmyk'] = size
    if image.mode in ('1', 'L', 'LA', 'I;16', 'I', 'F'):
        found['greyscale'] = size
    if min(width, height) < TINY:
        found['tiny'] = size
    if width * height > HUGE:
        found['huge'] = size
    return found


def _damage(encoded, warning):
    """(kind, detail) of what made libjpeg-turbo give `warning` (str): "corrupt", or "warned" where the pixels are sound."""
    data = encoded[: encoded.rfind(b'\xff\xd9')]
    zeros, left = len(data) - len(data.rstrip(b'\0')), re.search(r'(\d+) extraneous bytes before marker 0xd9', warning)
    count = int(left[1]) if left else 0
    if zeros - count > 16:  # more than the decoder reads ahead: they were taken for pixels
        return 'corrupt', f'the last {zeros} bytes of its data are zeros'
    # Left over where bytes were lost is what pixels were made of, and much of it; else it is padding.
    if left and (count <= 4 or len(set(data[-count:])) <= 2) or any(text in warning for text in _HARMLESS):
        return 'warned', warning
    return 'corrupt', warning


def rgb_jpeg(encoded, upright=False):
    """The picture as an RGB JPEG of quality 95 without EXIF, its pixels as they are stored or turned `upright`."""
    image, file = open_image(encoded), io.BytesIO()
    turn = orientation(encoded, image) if upright else 1
    Image.fromarray(turned(pixels(image), turn)).save(file, 'JPEG', quality=95)
    return file.getvalue()
