"""Part of a JPEG decoded by libjpeg-turbo 3 (through ctypes), bit by bit what TensorFlow's `decode_jpeg` gives.

Not by Pillow or MindSpore, because they decode whole images, or crops that they draw themselves, and a random crop is a
third of an image on average. The library is the system's libturbojpeg or that of the wheel `turbojpeg`; without either,
and for what it cannot do, `src.data.image` uses Pillow. https://libjpeg-turbo.org/Documentation (TurboJPEG C API, version 3)
"""

from __future__ import annotations

import ctypes
import functools
import glob
import os
import struct
import threading
from importlib.util import find_spec

import numpy as np

_DECOMPRESS, _RGB = 1, 0  # TJINIT, TJPF
_CMYK, _FOUR_INKS = 11, (3, 4)  # TJPF, TJCS
_SUBSAMPLING, _WIDTH, _HEIGHT, _COLOURS, _FAST_DCT = 4, 5, 6, 8, 10  # TJPARAM
_MCU_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}  # of 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1
MOST_PIXELS = 1 << 27  # beyond it Pillow decides, which refuses images made to exhaust the memory
OFFICIAL = '/opt/libjpeg-turbo/lib64/libturbojpeg.so.0'  # of libjpeg-turbo's own packages and of a build by its defaults
_thread = threading.local()


def orientation(encoded: bytes) -> int:
    """EXIF orientation (1 to 8) in the header of a JPEG; 1 where there is none, or none that makes sense.

    Only the lengths of the segments in front of the pixels are looked at: 5 microseconds, where Pillow takes 60.
    """
    position, end = 2, min(len(encoded) - 4, 1 << 18)
    while position < end and encoded[position] == 0xFF:
        marker, length = encoded[position + 1], encoded[position + 2] << 8 | encoded[position + 3]
        if marker == 0xE1 and encoded.startswith(b'Exif\0\0', position + 4):
            return _orientation(encoded[position + 10 : position + 2 + length])
        if marker == 0xDA:  # start of the pixels
            break
        position += 1 if marker == 0xFF else 2 + length  # any number of FF may stand in front of a marker
    return 1


def _orientation(tiff):
    """The orientation in the first directory of EXIF data (bytes), which have the layout of a TIFF file; 1 without."""
    order = {b'II': '<', b'MM': '>'}.get(tiff[:2], '<')
    try:
        (start,) = struct.unpack_from(order + 'I', tiff, 4)
        (count,) = struct.unpack_from(order + 'H', tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + 'HH', tiff, entry)
            if tag == 0x0112:
                (value,) = struct.unpack_from(order + ('I' if kind == 4 else 'H'), tiff, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ('x', 'y', 'w', 'h')]


class _Factor(ctypes.Structure):
    _fields_ = [('num', ctypes.c_int), ('denom', ctypes.c_int)]


@functools.lru_cache(None)
def library() -> ctypes.CDLL | None:
    """libturbojpeg (ctypes.CDLL) with the functions used here, or None."""
    wheel = find_spec('turbojpeg')
    bundled = glob.glob(os.path.join(os.path.dirname(wheel.origin), 'turbojpeg.libs', 'libturbojpeg*')) if wheel else []
    for name in ('libturbojpeg.so.0', OFFICIAL, *bundled):
        try:
            found = ctypes.CDLL(name)
            found.tj3Init.restype = ctypes.c_void_p
            found.tj3SetCroppingRegion.argtypes = [ctypes.c_void_p, _Region]
        except (OSError, AttributeError):  # none of that name, or one of version 2
            continue
        buffer = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        found.tj3DecompressHeader.argtypes = buffer
        found.tj3Decompress8.argtypes = [*buffer, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        found.tj3Destroy.argtypes = [ctypes.c_void_p]
        found.tj3SetScalingFactor.argtypes = [ctypes.c_void_p, _Factor]
        found.tj3GetErrorCode.argtypes = found.tj3GetErrorStr.argtypes = [ctypes.c_void_p]
        found.tj3GetErrorStr.restype = ctypes.c_char_p
        found.tj3Get.argtypes = [ctypes.c_void_p, ctypes.c_int]
        found.tj3Set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        return found
    return None


def describe() -> str:
    """One line for the log: which library decodes JPEGs."""
    found = library()
    if found is None:
        return 'JPEG decoder: Pillow, slower; docs/input_pipeline.md says where libturbojpeg 3 comes from'
    return f'JPEG decoder: libturbojpeg 3 ({"of the wheel" if "turbojpeg.libs" in found._name else found._name})'


def size(encoded: bytes) -> tuple[int, int] | None:
    """Height and width in the header of a whole JPEG; None for anything else, for what `decode` cannot do, and without the
    library."""
    # Rows below a crop are not looked at, so a file cut off there would pass: only the start of a scan after the last
    # end of an image tells it.
    if (
        library() is None
        or not encoded.startswith(b'\xff\xd8')
        or (not encoded.endswith(b'\xff\xd9') and encoded.rfind(b'\xff\xd9') <= encoded.rfind(b'\xff\xda'))
    ):
        return None
    height, width, mcu = _read_header(encoded)
    return None if mcu is None or width * height > MOST_PIXELS else (height, width)


def _read_header(encoded):
    """(height, width, width of a block of samples) of a JPEG, which this thread's decoder then expects; the last is None if
    it cannot decode it."""
    lib = library()
    if not getattr(_thread, 'handle', None):  # a handle serves one thread
        _thread.handle = lib.tj3Init(_DECOMPRESS)
        lib.tj3Set(_thread.handle, _FAST_DCT, 1)
    handle = _thread.handle
    if lib.tj3SetCroppingRegion(handle, _Region()) or lib.tj3DecompressHeader(handle, encoded, len(encoded)):
        _forget()
        return 0, 0, None
    return lib.tj3Get(handle, _HEIGHT), lib.tj3Get(handle, _WIDTH), _MCU_WIDTH.get(lib.tj3Get(handle, _SUBSAMPLING))


def _forget():
    """After an error a decoder may hold on to the image: the next one gets a new decoder."""
    library().tj3Destroy(_thread.handle)
    _thread.handle = None


def decode(encoded: bytes, box: tuple[int, int, int, int]) -> np.ndarray | None:
    """The part `box` (top, left, height, width) of a JPEG of which `size` is known, RGB uint8 (height, width, 3).

    None if the JPEG is damaged or in other colours than RGB and grey.
    """
    lib, (_, width, mcu) = library(), _read_header(encoded)
    top, left, h, w = box
    # Regions start at a block of samples (MCU). One block more on both sides, because the upsampling of the colours looks
    # at neighbours: so a crop is exactly a part of the whole.
    start, stop = max(left // mcu * mcu - mcu, 0), min(left + w + mcu, width)
    pixels = np.empty((h, stop - start, 3), np.uint8)
    if lib.tj3SetCroppingRegion(_thread.handle, _Region(start, top, stop - start, h)) or lib.tj3Decompress8(
        _thread.handle, encoded, len(encoded), pixels.ctypes.data, 0, _RGB
    ):
        _forget()
        return None
    return pixels[:, left - start : left - start + w]


def warning(encoded: bytes) -> str | None:
    """The first warning of the decoder about a JPEG, '' if it has none, None if it cannot tell: without the library, or for
    what it cannot decode. All is read, at an eighth of the size."""
    lib = library()
    if lib is None or not encoded.startswith(b'\xff\xd8'):
        return None
    handle = lib.tj3Init(_DECOMPRESS)
    try:
        if lib.tj3DecompressHeader(handle, encoded, len(encoded)) or lib.tj3SetScalingFactor(handle, _Factor(1, 8)):
            return None
        form = _CMYK if lib.tj3Get(handle, _COLOURS) in _FOUR_INKS else _RGB
        pixels = np.empty((-(-lib.tj3Get(handle, _HEIGHT) // 8), -(-lib.tj3Get(handle, _WIDTH) // 8), 4), np.uint8)
        if not lib.tj3Decompress8(handle, encoded, len(encoded), pixels.ctypes.data, 0, form):
            return ''
        return None if lib.tj3GetErrorCode(handle) else lib.tj3GetErrorStr(handle).decode(errors='replace')
    finally:
        lib.tj3Destroy(handle)
