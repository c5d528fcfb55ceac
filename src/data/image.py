"""Encoded images: their size, any part of them as pixels, turned upright, and encoded again."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from src.data import jpeg

_FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM')  # not EPS and the like, which run programs
BROKEN = (  # hostile bytes get nearly any exception out of Pillow
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


@contextlib.contextmanager
def quiet():
    """Without Pillow's warnings about huge images, broken EXIF and the like."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


class EncodedImage:
    """An encoded image of any format that Pillow reads (JPEG, PNG, BMP, ...). Only its header is read before `decode`.

    Args:
        encoded (bytes): the file.
        upright (bool): turn it as its EXIF orientation says.

    Attributes:
        height, width (int): pixels, of the upright image if `upright`.

    ValueError if there is no image in it.
    """

    def __init__(self, encoded: bytes, upright: bool = False):
        self.encoded = encoded
        self._stored = jpeg.size(encoded)  # height and width before turning
        self._opened = None if self._stored else open_image(encoded)
        if self._opened:
            self._stored = self._opened.size[::-1]
        self.turn = orientation(encoded, self._opened) if upright else 1
        self.height, self.width = self._stored[::-1] if self.turn > 4 else self._stored

    def decode(self, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The part `box` (top, left, height, width), the whole image for None, as RGB uint8 (height, width, 3).

        ValueError on what cannot be decoded, files that are cut off included.
        """
        box = _stored_box(box or (0, 0, self.height, self.width), self.height, self.width, self.turn)
        part = None if self._opened else jpeg.decode(self.encoded, box)
        return turned(self._by_pillow(box) if part is None else part, self.turn)

    def _by_pillow(self, box):
        opened = self._opened or open_image(self.encoded)
        if opened.size[::-1] != self._stored:
            raise ValueError(f'cannot be decoded (its header gives two sizes, {opened.size} and {self._stored[::-1]})')
        # Pillow's draft mode at full size: libjpeg's fast DCT, which is what TensorFlow decodes with by default. It rounds
        # down, so with the accurate one red and blue would be more than a grey level above what the original saw. (It also
        # repeats the colours of 4:2:0 images instead of interpolating them, unlike TensorFlow and libturbojpeg.)
        if opened.format == 'JPEG':
            opened.decoderconfig = (1, 1)
        top, left, height, width = box
        return pixels(opened)[top : top + height, left : left + width]


def open_image(encoded: bytes):
    """Header of an encoded image as a lazy PIL image; ValueError if there is none."""
    try:
        with quiet():
            return Image.open(io.BytesIO(encoded), formats=_FORMATS)
    except Image.UnidentifiedImageError:  # whose own message is the address of an object
        raise ValueError('not an image' if encoded else 'not an image: no bytes') from None
    except BROKEN as error:
        raise ValueError(f'cannot be decoded ({error})') from None


def pixels(opened) -> np.ndarray:
    """A PIL image as RGB uint8 (height, width, 3); of 16 bits a sample the upper 8 count, as in TensorFlow.

    ValueError on what cannot be decoded, files that are cut off included.
    """
    try:
        with quiet():
            if opened.mode.startswith('I;16') or opened.mode == 'I' and opened.format in ('PNG', 'PPM'):
                return (np.asarray(opened) >> 8).clip(0, 255).astype(np.uint8)[..., None].repeat(3, 2)
            if opened.mode in ('I', 'F'):
                raise ValueError('32 bits a sample, of which none says what is white')
            return np.asarray(opened.convert('RGB'))
    except BROKEN as error:
        raise ValueError(f'cannot be decoded ({error})') from None


def orientation(encoded: bytes, opened=None) -> int:
    """EXIF orientation, 1 to 8, of an encoded image; of other formats than JPEG only the PIL image `opened` tells it."""
    if encoded.startswith(b'\xff\xd8'):
        return jpeg.orientation(encoded)
    try:
        with quiet():
            found = opened.getexif().get(0x0112, 1) if opened else 1
    except BROKEN:
        return 1
    return found if found in range(1, 9) else 1


def turned(stored: np.ndarray, turn: int) -> np.ndarray:
    """An array (height, width, ...) as it was stored, turned upright from the EXIF orientation `turn`."""
    if turn == 1:
        return stored
    stored = stored.swapaxes(0, 1) if turn > 4 else stored
    return np.ascontiguousarray(stored[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1])


def _stored_box(box, height, width, turn):
    """The part `box` (top, left, height, width) of an upright image of `height` x `width` as a part of the stored one."""
    top, left, h, w = box
    top = height - top - h if turn in (3, 4, 7, 8) else top
    left = width - left - w if turn in (2, 3, 6, 7) else left
    return (left, top, w, h) if turn > 4 else (top, left, h, w)


def rgb_jpeg(encoded: bytes, upright: bool = False) -> bytes:
    """The image as an RGB JPEG of quality 95 without EXIF, its pixels as they are stored or turned `upright`.

    ValueError if it cannot be decoded.
    """
    opened, file = open_image(encoded), io.BytesIO()
    turn = orientation(encoded, opened) if upright else 1
    Image.fromarray(turned(pixels(opened), turn)).save(file, 'JPEG', quality=95)
    return file.getvalue()


def thumbnail(encoded: bytes, side: int, upright: bool = False) -> bytes:
    """The image as a JPEG of at most `side` x `side` pixels, `upright` as its EXIF orientation says.

    ValueError if it cannot be decoded.
    """
    image, file = Image.fromarray(EncodedImage(encoded, upright).decode()), io.BytesIO()
    image.thumbnail((side, side))
    image.save(file, 'JPEG', quality=85)
    return file.getvalue()
