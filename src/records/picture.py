"""What is unusual about an encoded picture, and re-encoding it."""
import io
import os
import struct
import warnings
import zlib

from PIL import Image

TINY, HUGE = 32, 20e6  # pixels a side, pixels in all
UNREADABLE = ("undecodable", "truncated")
TO_FIX = ("cmyk", "png_in_jpeg", "other_format")  # greyscale JPEG needs none: every JPEG decoder reads it
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # not EPS and the like, which run programs
# Hostile bytes get nearly any exception out of Pillow.
_BROKEN = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
           SyntaxError, TypeError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)
_EXPECTED = {".png": "PNG", ".bmp": "BMP", ".gif": "GIF", ".webp": "WEBP"}


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
        try:
            turned = picture.getexif().get(0x0112, 1)  # Orientation
            if turned in range(2, 9):
                found["exif_rotated"] = f"orientation {turned}"
        except _BROKEN as error:
            found["exif_broken"] = str(error) or type(error).__name__
    return found


def rgb_jpeg(encoded):
    """The picture as an RGB JPEG of quality 95: its pixels as `convert("RGB")` gives them, unrotated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = Image.open(io.BytesIO(encoded), formats=_FORMATS).convert("RGB")
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return file.getvalue()
