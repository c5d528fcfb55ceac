"""Encoded images: their size, any part of them as pixels, turned upright, and encoded again."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

from src.data import jpeg

_FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM')  # not EPS and the like, which run programs
MOST_PIXELS = 1 << 29  # of an image: 1.6 GB as RGB; from 2^31 bytes on MindSpore's resize cannot count them
_MOST_TEXT = 1 << 28  # bytes of a PNG's texts and colour profile, unpacked


class ImageError(ValueError):
    """An image that cannot be decoded, and why."""


@contextlib.contextmanager
def one_image() -> Iterator[None]:
    """Any failure within is that of this image and becomes an `ImageError`, also when it runs out of memory. Pillow's
    warnings about huge images, broken EXIF and the like are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except ImageError:
        raise
    except Exception as error:  # hostile bytes get nearly any out of Pillow
        raise ImageError(f'cannot be decoded ({error or type(error).__name__})') from None


class EncodedImage:
    """An encoded image of any of _FORMATS, of a JPEG only the header before `decode`; ImageError if there is no image in it,
    or only a part of one.

    `upright` is as people see it: turned as its EXIF orientation says, with white behind what is transparent. So are the
    attributes `height` and `width`, in pixels.
    """

    def __init__(self, encoded: bytes, upright: bool = False):
        self.encoded, self.upright = encoded, upright
        header = jpeg.read_header(encoded) if jpeg.has_end(encoded) else None
        self._opened = None if header else open_image(encoded)
        stored = header[:2] if header else self._opened.size[::-1]  # height and width before turning
        if stored[0] * stored[1] > MOST_PIXELS:
            raise ImageError(f'cannot be decoded (more than {MOST_PIXELS >> 20} x 2^20 pixels; make it smaller)')
        self.turn = orientation(encoded, self._opened) if upright else 1
        self.height, self.width = stored[::-1] if self.turn > 4 else stored

    def decode(self, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The part `box` (top, left, height, width), the whole image for None, as RGB uint8 (height, width, 3); ImageError
        on what cannot be decoded."""
        return self.decode_rgbx(box)[..., :3]

    def decode_rgbx(self, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """As `decode`, uint8 (height, width, 4), of which the last value says nothing: NumPy has no type of 3 bytes, and
        everything behind is faster with pixels of 4."""
        top, left, h, w = box or (0, 0, self.height, self.width)
        top = self.height - top - h if self.turn in (3, 4, 7, 8) else top
        left = self.width - left - w if self.turn in (2, 3, 6, 7) else left
        box = (left, top, w, h) if self.turn > 4 else (top, left, h, w)  # as it is stored
        part = None if self._opened else jpeg.decode(self.encoded, box)
        part = np.pad(self._by_pillow(*box), ((0, 0), (0, 0), (0, 1))) if part is None else part
        return turned(part, self.turn)

    def _by_pillow(self, top, left, height, width):
        opened = self._opened or open_image(self.encoded)
        # Pillow's draft mode at full size: libjpeg's fast DCT, which is what TensorFlow decodes with by default. It rounds
        # down, so with the accurate one red and blue would be more than a grey level above what the original saw. (It also
        # repeats the colours of 4:2:0 images instead of interpolating them, unlike TensorFlow and libturbojpeg.)
        if opened.format == 'JPEG':
            opened.decoderconfig = (1, 1)
        return pixels(opened, self.upright)[top : top + height, left : left + width]


def open_image(encoded: bytes) -> Image.Image:
    """Header of an encoded image as a lazy PIL image; ImageError if there is none, if a JPEG has no end, or if a byte of a
    PNG is missing or wrong: decoders ignore both."""
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # Pillow warns above it and refuses twice as many
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _MOST_TEXT
    if encoded.startswith(jpeg.START) and not jpeg.has_end(encoded):
        raise ImageError('cannot be decoded (truncated: the end of the image is missing)')
    with one_image():
        try:
            opened = Image.open(io.BytesIO(encoded), formats=_FORMATS)
        except Image.UnidentifiedImageError:  # whose own message is the address of an object
            size = f'{len(encoded)} bytes'
            raise ImageError(f'not an image, or HEIC, AVIF or JPEG 2000, which are not read ({size})') from None
        if opened.format == 'PNG':
            opened.verify()  # compares all checksums, and closes it
            opened = Image.open(io.BytesIO(encoded), formats=['PNG'])
        return opened


def pixels(opened: Image.Image, white: bool = False) -> np.ndarray:
    """A PIL image as RGB uint8 (height, width, 3); as in TensorFlow the upper 8 of 16 bits a sample count, and transparency
    is left out, but with `white` that is behind it. ImageError on what cannot be decoded, or is cut off."""
    with one_image():
        if opened.mode.startswith('I;16') or opened.mode == 'I' and opened.format in ('PNG', 'PPM'):
            return (np.asarray(opened) >> 8).clip(0, 255).astype(np.uint8)[..., None].repeat(3, 2)
        if opened.mode in ('I', 'F'):
            raise ImageError('cannot be decoded (32 bits a sample, of which none says what is white)')
        if white and (opened.mode.endswith(('A', 'a')) or 'transparency' in opened.info):
            opened = opened.convert('RGBA')
            opened = Image.alpha_composite(Image.new('RGBA', opened.size, 'white'), opened)
        return np.asarray(opened.convert('RGB'))


def orientation(encoded: bytes, opened: Image.Image | None = None) -> int:
    """EXIF orientation, 1 to 8, of an encoded image; 1 where there is none, or none that makes sense. `opened` is its PIL
    image, if there is one."""
    if encoded.startswith(jpeg.START) and encoded.find(b'Exif\0\0', 0, 1 << 16) < 0:
        return 1  # which spares most JPEGs Pillow's 60 microseconds
    found = 1
    with contextlib.suppress(ImageError), one_image():
        found = (opened or open_image(encoded)).getexif().get(0x0112)
    return found if found in range(1, 9) else 1


def turned(stored: np.ndarray, turn: int) -> np.ndarray:
    """An array (height, width, ...) as it was stored, turned upright from the EXIF orientation `turn`."""
    if turn == 1:
        return stored
    stored = stored.swapaxes(0, 1) if turn > 4 else stored
    return np.ascontiguousarray(stored[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1])


def as_jpeg(encoded: bytes, upright: bool = False, side: int = 0) -> bytes:
    """The image as an RGB JPEG without EXIF, of quality 95, or with `side` of quality 85 and at most `side` x `side` pixels.
    ImageError if it cannot be decoded."""
    with one_image():
        return encode_jpeg(EncodedImage(encoded, upright).decode(), side)


def encode_jpeg(pixels: np.ndarray, side: int = 0) -> bytes:
    """RGB uint8 (height, width, 3) as a JPEG, of a quality and a size as `as_jpeg` has them."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    if side:
        image.thumbnail((side, side))
    image.save(file, 'JPEG', quality=85 if side else 95)
    return file.getvalue()
