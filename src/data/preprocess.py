"""The one definition of an image's way from JPEG bytes to the network's input in [-1, 1].

The host decodes, crops, resizes and flips, all in uint8; `Augment`, the first cell in front of the network, does the rest
on the device in one pass. The random draws are made on the host from (seed, epoch, record), so any sample can be made again.
"""

from __future__ import annotations

import functools
from collections import namedtuple

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.dataset import vision
from mindspore.dataset.vision import Inter
from PIL import Image

from src.data.image import EncodedImage, one_image
from src.errors import reading

# What belongs to a set of weights: `mean` and `std` of R, G, B in pixel levels (network input = (pixel - mean) / std);
# `central_fraction` of height and width that evaluation looks at, of the shorter side if `square`; `interpolation`
# bilinear (TensorFlow's, without antialiasing) or bicubic (Pillow's, with).
Preprocessing = namedtuple('Preprocessing', 'mean std central_fraction interpolation square', defaults=[False])
PREPROCESSING = Preprocessing((127.5,) * 3, (127.5,) * 3, 0.875, 'bilinear')

AREA = (0.05, 1.0)  # of the image, from which a crop's size is drawn
ASPECT = (0.75, 1.33)  # width / height
ATTEMPTS = 100
BRIGHTNESS = 32 / 255
SATURATION = (0.5, 1.5)
SCALE = PREPROCESSING.std[0]  # pixel levels in 1.0 of the network's input
DRAWN = np.float32([255 / SCALE, 1 / SCALE])  # what `colour` wants of drawn brightness and saturation
THIN = 16  # longer side / shorter side, above which the ends do not count
POOLED_FEATURES = 1536  # of an image in the network, on which dropout acts


def recorded_preprocessing(recorded: dict | None) -> Preprocessing:
    """`Preprocessing` from the dict in a checkpoint (its `_asdict()`), `PREPROCESSING` for None; InputError if it is none.
    Its values are not looked at: train.py, the import of weights or export.py wrote them."""
    with reading('preprocessing', 'make the checkpoint again', (TypeError,)):
        found = PREPROCESSING if recorded is None else Preprocessing(**recorded)
        return found._replace(mean=tuple(found.mean), std=tuple(found.std))


def random_crop(
    rng: np.random.Generator, height: int, width: int, min_object_covered: float = 0.1
) -> tuple[int, int, int, int]:
    """Top, left, height, width of a crop as TensorFlow's `sample_distorted_bounding_box` draws it for an object that is the
    whole image: aspect and then height uniform over what area and image allow (so areas are not uniform), at least
    `min_object_covered` of the image; the whole image if none of ATTEMPTS fits."""
    area = height * width
    for _ in range(ATTEMPTS):
        aspect = rng.uniform(*ASPECT)
        lowest = round((AREA[0] * area / aspect) ** 0.5)
        highest = min(round((AREA[1] * area / aspect) ** 0.5), height, int((width + 0.5) / aspect))
        h = int(rng.integers(min(lowest, highest), highest + 1))
        w = round(h * aspect)
        if 0 < w <= width and max(AREA[0], min_object_covered) * area <= h * w <= AREA[1] * area:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, height, width


def draw_augmentation(rng: np.random.Generator) -> tuple[bool, np.ndarray]:
    """Whether to flip; brightness (added, in parts of full scale) and saturation (factor) as float32 (2,)."""
    return bool(rng.integers(2)), np.array([rng.uniform(-BRIGHTNESS, BRIGHTNESS), rng.uniform(*SATURATION)], np.float32)


def dropout_mask(rng: np.random.Generator, keep_prob: float) -> np.ndarray:
    """Factors for the pooled features of an image, float32 (1536,): 1 / `keep_prob` with that probability, else 0."""
    return (rng.random(POOLED_FEATURES, np.float32) < keep_prob) * np.float32(1 / keep_prob)


def central_crop(height: int, width: int, fraction: float = PREPROCESSING.central_fraction) -> tuple[int, int, int, int]:
    """Top, left, height, width of the central crop, rounded as `tf.image.central_crop` does."""
    top, left = int((height - height * fraction) / 2), int((width - width * fraction) / 2)
    return top, left, height - 2 * top, width - 2 * left


def resize(image: np.ndarray, height: int, width: int, interpolation: str = 'bilinear') -> np.ndarray:
    """uint8 RGBX (H, W, 4) -> (height, width, 4), bilinear without antialiasing, or bicubic as Pillow's.

    Pixel centres lie at half-integers here. The original's TF 1.15 resize puts them at integers, which shifts its
    images by (scale - 1) / 2 source pixels, a quarter of a pixel for most of them; MindSpore has no such mode.
    """
    if interpolation == 'bicubic':
        opened = Image.frombuffer('RGBX', image.shape[1::-1], image, 'raw', 'RGBX', 0, 1)
        return np.asarray(opened.resize((width, height), Image.Resampling.BICUBIC))
    return _resizer(height, width)(np.ascontiguousarray(image))


@functools.lru_cache(100)
def _resizer(height, width):  # MindSpore takes a tenth of a millisecond to check the arguments
    return vision.Resize((height, width), Inter.BILINEAR)


@one_image()
def training_image(
    encoded: bytes, size: int, rng: np.random.Generator, min_object_covered: float = 0.1, upright: bool = False
) -> np.ndarray:
    """Random crop, bilinear to `size`: bytes -> RGBX uint8 (size, size, 4); ImageError on what cannot be decoded."""
    image = EncodedImage(encoded, upright)
    box = random_crop(rng, image.height, image.width, min_object_covered)
    return resize(image.decode_rgbx(box), size, size)


@one_image()
def evaluation_image(
    encoded: bytes, size: int, preprocessing: Preprocessing = PREPROCESSING, upright: bool = False
) -> np.ndarray:
    """Central crop, resized to `size`: bytes -> RGBX uint8 (size, size, 4); ImageError on what cannot be decoded. With
    `preprocessing.square` as torchvision and MindCV do it: the shorter side to size / central_fraction, then the middle."""
    fraction, interpolation = preprocessing.central_fraction, preprocessing.interpolation
    image = EncodedImage(encoded, upright)
    if not preprocessing.square:
        crop = image.decode_rgbx(central_crop(image.height, image.width, fraction))
        return resize(crop, size, size, interpolation)
    shorter = min(image.height, image.width)
    # Of a thin image the middle alone: all of 1 x 20,000 pixels, resized, would take 6 GB.
    h, w = (min(side, THIN * shorter) for side in (image.height, image.width))
    part = image.decode_rgbx(((image.height - h) // 2, (image.width - w) // 2, h, w))
    height, width = (int(size / fraction) * side // shorter for side in (h, w))
    resized = resize(part, height, width, interpolation)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resized[top : top + size, left : left + size]


def channels_first(image: np.ndarray, flip: bool = False) -> np.ndarray:
    """RGBX uint8 (H, W, 4) -> RGB (3, H, W), with `flip` left and right exchanged. On the host because NPUs are slow at it:
    their vectors lie along the last axis, and 3 values do not fill one. As numbers of 32 bits (X is the highest byte on
    x86-64 and aarch64), which NumPy shifts and cuts many at a time, but copies every third byte one by one."""
    pixels = np.ascontiguousarray(image.view(np.uint32)[:, :: -1 if flip else 1, 0])
    channels = np.empty((3, *pixels.shape), np.uint8)
    for i, channel in enumerate(channels):
        np.right_shift(pixels, 8 * i, out=channel, casting='unsafe')
    return channels


def colour(x, brightness, saturation, maximum, minimum):
    """Pixel levels `x`, floating point, channels on axis -3, with brightness and saturation, drawn numbers times DRAWN,
    changed as in TensorFlow, scaled to [-1, 1] and cut there. `maximum` and `minimum` are NumPy's or MindSpore's functions.

    `brightness` is added. `saturation` is a factor of the S of HSV, which is cut at 1; hue and value stay, so every channel
    moves towards or away from the value, and no conversion to HSV is needed. (Reductions over an axis of 3 are slow on an
    NPU.) The scaling is in the factors of one channel and of an image: of all three channels there is only a difference of
    whole levels, which float16 holds exactly, one multiplication, one subtraction, and the cut.
    """
    red, green, blue = x[..., 0:1, :, :], x[..., 1:2, :, :], x[..., 2:3, :, :]
    largest = maximum(maximum(red, green), blue)
    chroma = largest - minimum(minimum(red, green), blue)
    value = largest * (1 / SCALE) + brightness
    # S = chroma / value becomes min(S * saturation, 1); the factor on (largest - x) is new S / S. A chroma that is not 0 is
    # at least 1.
    factor = minimum(value / maximum(chroma, 1), saturation)
    return minimum(maximum((value - 1) - (largest - x) * factor, -1), 1)


class Augment(nn.Cell):
    """uint8 (N, 3, H, W) and draws (N, 2) of `draw_augmentation` -> (N, 3, H, W) in [-1, 1]: `colour`. In float16 within
    1 / 255 of the float32 result (0.0023 measured; rounding it alone costs 0.0002)."""

    def __init__(self, dtype: ms.Type = ms.float32):
        super().__init__()
        self.dtype, self.drawn = dtype, ms.Tensor(DRAWN)

    def construct(self, image, draws):
        """See the class."""
        draws = (draws * self.drawn).astype(self.dtype)
        brightness, saturation = draws[:, 0].reshape(-1, 1, 1, 1), draws[:, 1].reshape(-1, 1, 1, 1)
        return colour(image.astype(self.dtype), brightness, saturation, ops.maximum, ops.minimum)


def scale(pixels: np.ndarray | ms.Tensor, preprocessing: Preprocessing = PREPROCESSING) -> np.ndarray | ms.Tensor:
    """Pixel levels (N, 3, H, W), array or Tensor -> what the network takes, [-1, 1] in its own training."""
    mean, std = preprocessing.mean, preprocessing.std
    if len(set(mean)) == len(set(std)) == 1:
        return (pixels - mean[0]) / std[0]
    # A tuple of slices, because the exporter for ONNX knows neither lists nor ops.stack
    return ops.concat(tuple([(pixels[:, i : i + 1] - mean[i]) / std[i] for i in range(3)]), 1)
