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
import threading
from importlib.util import find_spec

import numpy as np

_DECOMPRESS, _RGB, _RGBX = 1, 0, 2  # TJINIT, TJPF
_SUBSAMPLING, _WIDTH, _HEIGHT, _FAST_DCT, _LOSSLESS = 4, 5, 6, 10, 15  # TJPARAM
_MCU_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}  # of 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1
START, _SCAN, _END = b'\xff\xd8', b'\xff\xda', b'\xff\xd9'  # markers: of the image, its pixels, its end
OFFICIAL = '/opt/libjpeg-turbo/lib64/libturbojpeg.so.0'  # of libjpeg-turbo's own packages and of a build by its defaults
_thread = threading.local()


def has_end(encoded: bytes) -> bool:
    """Whether a JPEG has the end of its image: nearly all end with it, in others it is looked for behind the header, where a
    telephone may have put a film behind the image, and which may have a small image in it."""
    position = len(encoded) - 2 if encoded.endswith(_END) else 2
    while encoded[position : position + 2] not in (_SCAN, _END):
        if encoded[position : position + 1] != b'\xff':
            return False
        # Any number of FF may stand in front of a marker; behind it stands the length of its data.
        fill = encoded[position + 1 : position + 2] == b'\xff'
        position += 1 if fill else 2 + int.from_bytes(encoded[position + 2 : position + 4], 'big')
    return encoded.find(_END, position) > 0


class _Handle(ctypes.c_void_p):
    """Of a decoder, which serves one thread. A class of its own, as ctypes makes an int of every plain pointer."""


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
            found.tj3Init.restype = _Handle
        except (OSError, AttributeError):  # none of that name, or one of version 2
            continue
        buffer = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        found.tj3DecompressHeader.argtypes = buffer
        found.tj3Decompress8.argtypes = [*buffer, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        found.tj3GetErrorStr.restype = ctypes.c_char_p
        return found
    return None


def describe() -> str:
    """One line for the log: which library decodes JPEGs."""
    if found := library():
        return f'JPEG decoder: libturbojpeg 3 ({found._name})'
    return 'JPEG decoder: Pillow, slower; docs/data.md says where libturbojpeg 3 comes from'


def read_header(encoded: bytes) -> tuple[int, int, int] | None:
    """(height, width, width of a block of samples) of a JPEG, which this thread's decoder then expects; None for anything
    else, for what `decode` cannot do, and without the library."""
    lib = library()
    if lib is None or not encoded.startswith(START):
        return None
    if not getattr(_thread, 'handle', None):
        _thread.handle = lib.tj3Init(_DECOMPRESS)
        lib.tj3Set(_thread.handle, _FAST_DCT, 1)
    handle = _thread.handle
    if lib.tj3SetCroppingRegion(handle, _Region()) or lib.tj3DecompressHeader(handle, encoded, len(encoded)):
        return _forget()
    # A lossless JPEG is written in full whatever the scale, over the end of a smaller buffer.
    mcu = None if lib.tj3Get(handle, _LOSSLESS) else _MCU_WIDTH.get(lib.tj3Get(handle, _SUBSAMPLING))
    return (lib.tj3Get(handle, _HEIGHT), lib.tj3Get(handle, _WIDTH), mcu) if mcu else None


def _forget():
    """After an error a decoder may hold on to the image: the next one gets a new decoder."""
    library().tj3Destroy(_thread.handle)
    _thread.handle = None


def decode(encoded: bytes, box: tuple[int, int, int, int]) -> np.ndarray | None:
    """The part `box` (top, left, height, width) of a JPEG with a sound header, RGBX uint8 (height, width, 4); None if it is
    damaged or in other colours than RGB and grey."""
    lib, (_, width, mcu), (top, left, h, w) = library(), read_header(encoded), box
    # Regions start at a block of samples (MCU). One block more on both sides, because the upsampling of the colours looks
    # at neighbours: so a crop is exactly a part of the whole.
    start, stop = max(left // mcu * mcu - mcu, 0), min(left + w + mcu, width)
    pixels, handle = np.empty((h, stop - start, 4), np.uint8), _thread.handle
    failed = lib.tj3SetCroppingRegion(handle, _Region(start, top, stop - start, h))
    if failed or lib.tj3Decompress8(handle, encoded, len(encoded), pixels.ctypes.data, 0, _RGBX):
        return _forget()
    return pixels[:, left - start : left - start + w]


def warning(encoded: bytes) -> str | None:
    """The first warning of the decoder about a JPEG, '' if it has none, None if it cannot tell: without the library, or for
    what it cannot decode. All is read, at an eighth of the size."""
    if (header := read_header(encoded)) is None:
        return None
    lib, handle = library(), _thread.handle
    pixels = np.empty((-(-header[0] // 8), -(-header[1] // 8), 3), np.uint8)
    try:
        lib.tj3SetScalingFactor(handle, _Factor(1, 8))
        if not lib.tj3Decompress8(handle, encoded, len(encoded), pixels.ctypes.data, 0, _RGB):
            return ''
        return None if lib.tj3GetErrorCode(handle) else lib.tj3GetErrorStr(handle).decode(errors='replace')
    finally:
        _forget()
