"""Opening an encoded picture with Pillow, turning it upright, what is unusual about it, and re-encoding it."""
import contextlib
import io
import os
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from src import jpeg

TINY, HUGE = 32, 20e6  # pixels a side, pixels in all
UNREADABLE = ("undecodable", "truncated")
TO_FIX = ("cmyk", "png_in_jpeg", "other_format")  # greyscale JPEG needs none: every JPEG decoder reads it
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # not EPS and the like, which run programs
# Hostile bytes get nearly any exception out of Pillow.
_BROKEN = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
           SyntaxError, TypeError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)
_EXPECTED = {".png": "PNG", ".bmp": "BMP", ".gif": "GIF", ".webp": "WEBP"}


@contextlib.contextmanager
def _quiet():
    """Without Pillow's warnings about huge pictures, broken EXIF and the like."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_image(encoded):
    """Header of an encoded picture (bytes) as a lazy PIL image; ValueError when there is none."""
    try:
        with _quiet():
            return Image.open(io.BytesIO(encoded), formats=_FORMATS)
    except Image.UnidentifiedImageError:  # whose own message is the address of an object
        raise ValueError("not a picture" if encoded else "not a picture: no bytes") from None
    except _BROKEN as error:
        raise ValueError(f"not a picture ({error})") from None


def pixels(image):
    """A PIL image as RGB uint8 (height, width, 3); of 16 bits a sample the upper 8 count, as in TensorFlow.

    ValueError on what cannot be decoded, cut-off files included.
    """
    try:
        with _quiet():
            if image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM"):
                return (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)[..., None].repeat(3, 2)
            if image.mode in ("I", "F"):
                raise ValueError("32 bits a sample, of which none says what is white")
            return np.asarray(image.convert("RGB"))
    except _BROKEN as error:
        raise ValueError(f"cannot be decoded ({error})") from None


def orientation(encoded, image=None):
    """EXIF orientation, 1 to 8, of an encoded picture (bytes); of other formats than JPEG only its PIL `image` tells."""
    if encoded.startswith(b"\xff\xd8"):
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
    return np.ascontiguousarray(picture[::-1 if turn in (3, 4, 7, 8) else 1, ::-1 if turn in (2, 3, 6, 7) else 1])


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


def examine(encoded, name=""):
    """Findings about an encoded picture as a dict kind -> detail; `name` may allow for others than JPEG.

    Everything is decoded (a JPEG at an eighth of its size, which reads all of its bytes).
    """
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about huge pictures and broken EXIF
        try:
            picture = Image.open(io.BytesIO(encoded), formats=_FORMATS)
            width, height = picture.size
            size, form = f"{width} x {height}", picture.format.replace("MPO", "JPEG")
            if form != _EXPECTED.get(os.path.splitext(name)[1].lower(), "JPEG"):
                found["png_in_jpeg" if form == "PNG" else "other_format"] = form
            if picture.mode == "CMYK":
                found["cmyk"] = size
            if picture.mode in ("1", "L", "LA", "I;16", "I", "F"):
                found["greyscale"] = size
            if min(width, height) < TINY:
                found["tiny"] = size
            if width * height > HUGE:
                found["huge"] = size
            picture.draft(None, (1, 1))
            picture.load()
        except _BROKEN as error:
            detail = str(error) or type(error).__name__
            if isinstance(error, Image.UnidentifiedImageError):
                detail = "not a picture" if encoded else "no bytes"
            found["truncated" if "truncated" in detail.lower() else "undecodable"] = detail
            return found
        if (turn := orientation(encoded, picture)) > 1:
            found["exif_rotated"] = f"orientation {turn}"
        try:
            picture.getexif()
        except _BROKEN as error:
            found["exif_broken"] = str(error) or type(error).__name__
    return found


def rgb_jpeg(encoded, upright=False):
    """The picture as an RGB JPEG of quality 95 without EXIF, its pixels as they are stored or turned `upright`."""
    image, file = open_image(encoded), io.BytesIO()
    turn = orientation(encoded, image) if upright else 1
    Image.fromarray(turned(pixels(image), turn)).save(file, "JPEG", quality=95)
    return file.getvalue()
