"""The one definition of a picture's way from JPEG bytes to the network's input in [-1, 1].

The host decodes, crops, resizes and flips, all in uint8; `Augment`, the first cell in front of the network, does the rest
on the device in one pass. The random draws are made on the host from (seed, epoch, record), so any sample can be made again.
"""

import functools
import math
from collections import namedtuple

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.dataset import vision
from mindspore.dataset.vision import Inter
from PIL import Image

from src.data import jpeg
from src.data.image import open_image, orientation, pixels, stored_crop, turned
from src.errors import InputError

# What belongs to a set of weights: `mean` and `std` of R, G, B in pixel levels (network input = (pixel - mean) / std);
# `central_fraction` of height and width that evaluation looks at, of the shorter side if `square`; `interpolation`
# bilinear (TensorFlow's, without antialiasing) or bicubic (Pillow's, with).
Preprocessing = namedtuple('Preprocessing', 'mean std central_fraction interpolation square', defaults=[False])
PREPROCESSING = Preprocessing((127.5,) * 3, (127.5,) * 3, 0.875, 'bilinear')

AREA = (0.05, 1.0)  # of the picture, from which a crop's size is drawn
ASPECT = (0.75, 1.33)  # width / height
ATTEMPTS = 100
BRIGHTNESS = 32 / 255
SATURATION = (0.5, 1.5)
NO_AUGMENTATION = (0.0, 1.0)  # brightness, saturation


def recorded_preprocessing(recorded):
    """`Preprocessing` from the dict in a checkpoint (its `_asdict()`), `PREPROCESSING` for None; InputError if unfit."""
    if recorded is None:
        return PREPROCESSING
    try:
        found = Preprocessing(**recorded)
        mean, std = (tuple(float(level) for level in levels) for levels in (found.mean, found.std))
        found = found._replace(mean=mean, std=std, central_fraction=float(found.central_fraction))
        fit = (
            len(mean) == len(std) == 3
            and all(map(math.isfinite, mean))
            and all(0 < s < math.inf for s in std)
            and 0 < found.central_fraction <= 1
            and found.interpolation in ('bilinear', 'bicubic')
            and isinstance(found.square, bool)
        )
    except (TypeError, ValueError):
        fit = False
    if not fit:
        raise InputError(f'preprocessing {recorded!s:.150} in the checkpoint cannot be used; make the checkpoint again')
    return found


def random_crop(rng, height, width, min_covered=0.1):
    """Crop box as TensorFlow's `sample_distorted_bounding_box` draws it for a box that is the whole picture.

    The aspect is uniform, then the height is uniform over what area and picture allow (so areas are not uniform);
    without luck in 100 attempts the whole picture is taken.

    Args:
        rng (numpy.random.Generator): source of the draws.
        height, width (int): of the picture, pixels.
        min_covered (float): part of the picture that a crop must cover; smaller ones are drawn again.

    Returns:
        tuple of int: top, left, height, width of the crop.
    """
    area = height * width
    for _ in range(ATTEMPTS):
        aspect = rng.uniform(*ASPECT)
        lowest = round((AREA[0] * area / aspect) ** 0.5)
        highest = min(round((AREA[1] * area / aspect) ** 0.5), height, int((width + 0.5) / aspect))
        h = int(rng.integers(min(lowest, highest), highest + 1))
        w = round(h * aspect)
        if 0 < w <= width and max(AREA[0], min_covered) * area <= h * w <= AREA[1] * area:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, height, width


def random_colour(rng):
    """Whether to flip (bool); brightness (added, in parts of full scale) and saturation (factor), float32 (2,)."""
    return bool(rng.integers(2)), np.array([rng.uniform(-BRIGHTNESS, BRIGHTNESS), rng.uniform(*SATURATION)], np.float32)


def central_crop(height, width, fraction=PREPROCESSING.central_fraction):
    """Top, left, height, width of the central crop, rounded as `tf.image.central_crop` does."""
    top, left = int((height - height * fraction) / 2), int((width - width * fraction) / 2)
    return top, left, height - 2 * top, width - 2 * left


def decode(encoded, crop=lambda height, width: (0, 0, height, width), upright=False):
    """The part `crop(height, width)` -> (top, left, height, width) of any picture that Pillow reads (JPEG, PNG, BMP,
    CMYK, greyscale) as RGB uint8 (height, width, 3); `upright` turns it as its EXIF orientation says.

    Raises ValueError on what cannot be decoded, cut-off files included.
    """
    crop = functools.lru_cache(None)(crop)  # a second call would draw another one
    turn = orientation(encoded) if upright else 1
    picture = jpeg.decode(encoded, stored_crop(crop, turn))
    if picture is None:
        image = open_image(encoded)
        turn = orientation(encoded, image) if upright else 1
        # Pillow's draft mode at full size: libjpeg's fast DCT, which is what TensorFlow decodes with by default. It rounds
        # down, so with the accurate one red and blue would be more than a grey level above what the original saw. (It also
        # repeats the colours of 4:2:0 pictures instead of interpolating them, unlike TensorFlow and libturbojpeg.)
        if image.format == 'JPEG':
            image.decoderconfig = (1, 1)
        picture = pixels(image)
        top, left, height, width = stored_crop(crop, turn)(*picture.shape[:2])
        picture = picture[top : top + height, left : left + width]
    return turned(picture, turn)


def resize(picture, size):
    """Bilinear without antialiasing, as TensorFlow's: uint8 (H, W, 3) -> uint8 (size, size, 3).

    Pixel centres lie at half-integers here. The original's TF 1.15 resize puts them at integers, which shifts its
    pictures by (scale - 1) / 2 source pixels, a quarter of a pixel for most photos; MindSpore has no such mode.
    """
    return _resizer(size)(np.ascontiguousarray(picture))


@functools.lru_cache(None)
def _resizer(size):  # MindSpore takes a tenth of a millisecond to check the arguments
    return vision.Resize((size, size), Inter.BILINEAR)


def evaluation_picture(encoded, size, preprocessing=PREPROCESSING, upright=False):
    """Central crop, resized to `size`: bytes -> uint8 (size, size, 3); `upright` as in `decode`.

    With `square` as torchvision and MindCV do it: the shorter side to size / central_fraction, then the middle of that.
    """
    _, _, fraction, interpolation, square = preprocessing
    if not square:
        picture = decode(encoded, lambda *shape: central_crop(*shape, fraction), upright)
        return _resized(picture, size, size, interpolation)
    picture = decode(encoded, upright=upright)
    height, width = (int(size / fraction) * length // min(picture.shape[:2]) for length in picture.shape[:2])
    picture = _resized(picture, height, width, interpolation)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return picture[top : top + size, left : left + size]


def _resized(picture, height, width, interpolation):
    if interpolation == 'bicubic':
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    if height == width:
        return resize(picture, height)
    return vision.Resize((height, width), Inter.BILINEAR)(np.ascontiguousarray(picture))


def training_picture(encoded, size, rng, min_covered=0.1, upright=False):
    """Random crop, bilinear to `size`: bytes -> uint8 (size, size, 3); `upright` as in `decode`."""
    return resize(decode(encoded, lambda height, width: random_crop(rng, height, width, min_covered), upright), size)


def channels_first(image, flip=False):
    """uint8 (H, W, 3) -> (3, H, W), with `flip` left and right exchanged; one copy does both.

    On the host because NPUs are slow at it: their vectors lie along the last axis, and 3 values do not fill one.
    """
    return np.ascontiguousarray((image[:, ::-1] if flip else image).transpose(2, 0, 1))


def colour(x, brightness, saturation, maximum, minimum):
    """Brightness added; saturation multiplied in HSV as TensorFlow defines it (S cut at 1; hue and value stay, so every
    channel moves towards or away from the value: no conversion is needed); cut to [0, 1]; scaled to [-1, 1].

    `x`, in [0, 1], has its three channels on axis -3. For arrays and Tensors, with the `maximum` and `minimum` of two that
    belong to them: host and device compute the same. (Reductions over an axis of 3 are slow on an NPU.)
    """
    x = x + brightness
    red, green, blue = x[..., 0:1, :, :], x[..., 1:2, :, :], x[..., 2:3, :, :]
    value = maximum(maximum(red, green), blue)
    chroma = value - minimum(minimum(red, green), blue)
    # S = chroma / value becomes min(S * saturation, 1); the factor on (value - x) is new S / S. A chroma that is not 0
    # is at least 1 / 255; 1e-3 can be told from 0 in float16 too.
    factor = minimum(value / maximum(chroma, 1e-3), saturation)
    return scale(minimum(maximum(value - (value - x) * factor, 0), 1) * 255)


def augment(image, draws):
    """What `Augment` does, on the host: uint8 (3, H, W), draws (2,) -> float32 (3, H, W)."""
    result = np.empty(image.shape, np.float32)
    for row in range(0, image.shape[1], 32):  # strips that stay in the cache: half the time
        rows = slice(row, row + 32)
        result[:, rows] = colour(image[:, rows].astype(np.float32) / 255, *draws, np.maximum, np.minimum)
    return result


class Augment(nn.Cell):
    """uint8 (N, 3, H, W) and draws (N, 2) of `random_colour` -> (N, 3, H, W) in [-1, 1]: `colour`.

    In float16 the result is within 1 / 255 of the float32 one (0.0025 measured; rounding it alone costs 0.0002).
    """

    def __init__(self, dtype=ms.float32):
        super().__init__()
        self.dtype = dtype

    def construct(self, image, draws):
        draws = draws.astype(self.dtype)
        brightness, saturation = draws[:, 0].reshape(-1, 1, 1, 1), draws[:, 1].reshape(-1, 1, 1, 1)
        return colour(image.astype(self.dtype) / 255, brightness, saturation, ops.maximum, ops.minimum)


def scale(pixels, preprocessing=PREPROCESSING):
    """Pixel levels (N, 3, H, W) -> what the network takes, [-1, 1] in its own training."""
    mean, std = preprocessing.mean, preprocessing.std
    if len(set(mean)) == len(set(std)) == 1:
        return (pixels - mean[0]) / std[0]
    # A tuple of slices, because the exporter for ONNX knows neither lists nor ops.stack
    return ops.concat(tuple([(pixels[:, i : i + 1] - mean[i]) / std[i] for i in range(3)]), 1)
