"""The one definition of a picture's way from JPEG bytes to the network's input in [-1, 1].

The host decodes, crops and resizes to uint8; `Augment`, the first cell in front of the network, does the rest on the
device in one pass. The random draws are made on the host from (seed, epoch, record), so any sample can be made again.
"""
import io

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.dataset import vision
from mindspore.dataset.vision import Inter
from PIL import Image


CENTRAL_FRACTION = 0.875
MEAN, STD = 127.5, 127.5  # network input = (pixel - MEAN) / STD

AREA = (0.05, 1.0)  # of the picture, from which a crop's size is drawn
ASPECT = (0.75, 1.33)  # width / height
ATTEMPTS = 100
BRIGHTNESS = 32 / 255
SATURATION = (0.5, 1.5)
NO_AUGMENTATION = (0.0, 0.0, 1.0)  # flip, brightness, saturation


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
    """Flip (0 or 1), brightness (added, in parts of full scale) and saturation (factor), float32 (3,)."""
    return np.array([rng.integers(2), rng.uniform(-BRIGHTNESS, BRIGHTNESS), rng.uniform(*SATURATION)], np.float32)


def central_crop(height, width, fraction=CENTRAL_FRACTION):
    """Top, left, height, width of the central crop, rounded as `tf.image.central_crop` does."""
    top, left = int((height - height * fraction) / 2), int((width - width * fraction) / 2)
    return top, left, height - 2 * top, width - 2 * left


def open_image(encoded):
    """Header of an encoded picture (bytes) as a lazy PIL image; ValueError when there is none."""
    try:
        return Image.open(io.BytesIO(encoded))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f'not a picture ({error})') from None


def decode(encoded):
    """Any picture that Pillow reads (JPEG, PNG, BMP, CMYK, greyscale) as RGB uint8 (height, width, 3).

    Raises ValueError on what cannot be decoded, cut-off files included.
    """
    picture = open_image(encoded)
    # Pillow's draft mode at full size: libjpeg's fast DCT, which is what TensorFlow decodes with by default. It rounds
    # down, so with the accurate one red and blue would be more than a grey level above what the original saw.
    if picture.format == 'JPEG':
        picture.decoderconfig = (1, 1)
    try:
        return np.asarray(picture.convert('RGB'))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f'cannot be decoded ({error})') from None


def resize(picture, size):
    """Bilinear without antialiasing, as TensorFlow's: uint8 (H, W, 3) -> uint8 (size, size, 3).

    Pixel centres lie at half-integers here. The original's TF 1.15 resize puts them at integers, which shifts its
    pictures by (scale - 1) / 2 source pixels, a quarter of a pixel for most photos; MindSpore has no such mode.
    """
    return vision.Resize((size, size), Inter.BILINEAR)(np.ascontiguousarray(picture))


def evaluation_picture(encoded, size):
    """Central crop of 87.5 %, bilinear to `size`: bytes -> uint8 (size, size, 3)."""
    picture = decode(encoded)
    top, left, height, width = central_crop(*picture.shape[:2])
    return resize(picture[top:top + height, left:left + width], size)


def training_picture(encoded, size, rng, min_covered=0.1):
    """Random crop, bilinear to `size`: bytes -> uint8 (size, size, 3)."""
    picture = decode(encoded)
    top, left, height, width = random_crop(rng, *picture.shape[:2], min_covered)
    return resize(picture[top:top + height, left:left + width], size)


class Augment(nn.Cell):
    """uint8 (N, H, W, 3) and draws (N, 3) of `random_colour` -> (N, 3, H, W) in [-1, 1].

    Horizontal flip; brightness added; saturation multiplied in HSV as TensorFlow defines it (S cut at 1; hue and value
    stay, so every channel moves towards or away from the value: no conversion is needed); cut to [0, 1]; scaled.
    """

    def __init__(self, dtype=ms.float32):
        super().__init__()
        self.dtype = dtype

    def construct(self, image, draws):
        draws = draws.astype(self.dtype)
        flip, brightness, saturation = (draws[:, i].reshape(-1, 1, 1, 1) for i in range(3))
        x = image.astype(self.dtype).transpose(0, 3, 1, 2) / 255
        x = ops.select(ops.broadcast_to(flip > 0.5, x.shape), ops.flip(x, (3,)), x) + brightness
        value = x.max(1, keepdims=True)
        chroma = value - x.min(1, keepdims=True)
        # S = chroma / value becomes min(S * saturation, 1); the factor on (value - x) is new S / S.
        factor = ops.minimum(saturation, value / ops.maximum(chroma, 1e-6))
        x = value - (value - x) * factor
        return scale(x.clip(0, 1) * 255)


def scale(pixels):
    """0..255 -> [-1, 1]."""
    return (pixels - MEAN) / STD
