"""Evaluation and training preprocessing against the original's figures. `-s` shows the deviations."""

import colorsys
import zlib

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.data.order import generator
from src.data.preprocess import (
    DRAWN,
    Augment,
    central_crop,
    channels_first,
    colour,
    draw_augmentation,
    dropout_mask,
    evaluation_image,
    random_crop,
    resize,
    training_image,
)
from tests.reference import DATA, SHARED

SAMPLES = sorted((SHARED / 'golden').glob('*.JPEG'))


def colours(image, draws):
    """uint8 (N, 3, H, W) and draws (N, 2) -> `colour` in float32, by NumPy."""
    brightness_and_saturation = (np.asarray(draws, np.float32) * DRAWN).T[..., None, None, None]
    return colour(image.astype(np.float32), *brightness_and_saturation, np.maximum, np.minimum)


def test_crop_distribution():
    """20,000 crops of a 375 x 500 image; the reference's quantiles are 0.05 to 0.95."""
    rng = np.random.default_rng(1)
    boxes = np.array([random_crop(rng, 375, 500) for _ in range(20000)])
    top, left, height, width = boxes.T
    assert top.min() >= 0 and left.min() >= 0 and (top + height).max() <= 375 and (left + width).max() <= 500
    quantiles = np.arange(1, 20) / 20
    figures = np.load(DATA / 'tf_crops.npz')
    for name, values in (('area', height * width / (375 * 500)), ('aspect', width / height)):
        deviation = np.abs(np.quantile(values, quantiles) - figures[f'{name}_quantiles']).max()
        print(f'\nparity: crop {name} quantiles: {deviation:.1e} (bound 2e-02)', end='')
        assert deviation < 0.02
    # every position is as likely as any other
    small = (height < 300) & (width < 400)
    assert abs((top[small] / (375 - height[small])).mean() - 0.5) < 0.02
    assert abs((left[small] / (500 - width[small])).mean() - 0.5) < 0.02
    for size in ((1, 1), (3, 500), (4000, 30)):
        top, left, height, width = random_crop(rng, *size)
        assert 0 < height <= size[0] - top and 0 < width <= size[1] - left


def test_draws_of_a_record_stay():
    """A resumed training must go on with the crops, colours and dropout of the version that started it."""
    rng = generator(seed=7, epoch=3, record=11)
    assert random_crop(rng, 375, 500) == (107, 63, 196, 187)
    flip, draws = draw_augmentation(rng)
    assert flip and np.array_equal(draws, np.float32([-0.12330153, 0.57129216]))
    mask = dropout_mask(rng, 0.8)
    assert (mask.shape, mask.dtype) == ((1536,), np.float32) and zlib.crc32(np.packbits(mask > 0).tobytes()) == 979075985


def test_distribution_of_draws():
    """The mean of dropout's factors is 1, so that features keep their size."""
    rng = np.random.default_rng(0)
    mask = np.stack([dropout_mask(rng, 0.3) for _ in range(100)])
    assert set(np.unique(mask)) == {0, np.float32(1 / 0.3)} and abs(mask.mean() - 1) < 0.02
    draws = np.array([(flip, *drawn) for flip, drawn in (draw_augmentation(rng) for _ in range(4000))])
    quartiles = np.quantile(draws, [0, 0.25, 0.5, 0.75, 1], 0).T
    assert set(draws[:, 0]) == {0, 1} and abs(draws[:, 0].mean() - 0.5) < 0.03
    assert np.abs(quartiles[1] - np.linspace(-32 / 255, 32 / 255, 5)).max() < 0.008
    assert np.abs(quartiles[2] - np.linspace(0.5, 1.5, 5)).max() < 0.03


def by_hsv(pixel, brightness, saturation):
    """What becomes of a pixel (R, G, B) by way of HSV, the definition in TensorFlow: S times `saturation`, cut to [0, 1]."""
    h, s, v = colorsys.rgb_to_hsv(*(pixel / 255 + brightness))
    return np.clip(colorsys.hsv_to_rgb(h, min(max(s * saturation, 0), 1), v), 0, 1) * 2 - 1


@pytest.mark.compiles
def test_augment_is_the_definition():
    """In float16 within a grey level."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 3, 20, 20), dtype=np.uint8)
    image[0], image[1], image[2, 1:] = 0, 255, 0  # black, white and pure red
    image[3:6], image[6:9] = image[3:6] // 16 + 110, (image[6:9] > 128) * 255
    draws = np.array([draw_augmentation(rng)[1] for _ in range(32)])
    draws[:3, 0] = 0.1
    expected = colours(image, draws)
    for i, (brightness, saturation) in enumerate(draws[:20]):
        if brightness >= 0:
            for y, x in rng.integers(0, 20, (30, 2)):
                assert np.abs(expected[i, :, y, x] - by_hsv(image[i, :, y, x], brightness, saturation)).max() < 1e-5
    for dtype, most in ((ms.float32, 1e-5), (ms.float16, 1 / 255)):
        found = Augment(dtype)(Tensor(image), Tensor(draws))
        assert found.dtype == dtype and np.abs(found.asnumpy() - expected).max() < most
    # Negative values after the brightness have no saturation in TensorFlow and end as black.
    image = np.array([[0, 10, 20], [3, 2, 1], [200, 3, 2]], np.uint8).T.reshape(1, 3, 1, 3)
    found = colours(image, [[-32 / 255, 1.5]])[0, :, 0].T
    value, chroma = 200 - 32, 200 - 2  # saturation above 1 is cut to 1, the ratios of value - x stay
    expected = [value - (200 - x) * value / chroma for x in (200, 3, 2)]
    assert (found[:2] == -1).all() and np.abs((found[2] + 1) * 127.5 - expected).max() < 1e-3


def test_crops_and_pixels_stay_where_they_are():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    plain, flipped = channels_first(image), channels_first(image, True)
    assert np.array_equal(plain, np.moveaxis(image[..., :3], 2, 0)) and np.array_equal(flipped, plain[:, :, ::-1])
    assert plain.flags.c_contiguous and flipped.flags.c_contiguous
    for size, expected in (((375, 500), (23, 31, 329, 438)), ((299, 299), (18, 18, 263, 263)), ((1, 1), (0, 0, 1, 1))):
        assert central_crop(*size) == expected
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, 0).repeat(4, 2)
    assert np.abs(resize(ramp, 100, 100)[5, 5:-5, 0] - (np.arange(100) * 2 + 0.5)[5:-5]).max() <= 1


@pytest.mark.skipif(not SAMPLES, reason='needs images that are not part of the project (../shared/golden)')
@pytest.mark.parametrize('path', SAMPLES, ids=lambda path: path.stem)
def test_images_of_samples(path):
    """The evaluation image; channel means and spread of 300 training images, of which both we and the reference have a
    sampling error of std / sqrt(300)."""
    figures, data, rng = np.load(SHARED / 'golden/tf_preprocess.npz'), path.read_bytes(), np.random.default_rng(3)
    difference = evaluation_image(data, 299)[..., :3] - figures[f'{path.name}/eval_u8'].astype(np.float64)
    print(
        f'\nparity: {path.stem}, evaluation preprocessing: mean absolute difference {np.abs(difference).mean():.2f} '
        f'(bound 2), bias {difference.mean():+.3f} (bound 0.3) grey levels',
        end='',
    )
    assert np.abs(difference).mean() <= 2 and abs(difference.mean()) < 0.3
    keys = ('channel_mean_mean', 'channel_mean_std', 'std_mean')
    mean, std, spread = (figures[f'{path.name}/train_{key}'] for key in keys)
    means, spreads = np.empty((300, 3)), np.empty(300)
    for k in range(300):
        image = training_image(data, 299, rng)
        flip, draws = draw_augmentation(rng)
        image = colours(channels_first(image, flip)[None], draws[None])[0]
        means[k], spreads[k] = image.mean((1, 2)), image.std()
    z = np.abs(means.mean(0) - mean) / (std * np.sqrt(2 / 300))
    spread_z = abs(spreads.mean() - spread) / (spreads.std() * np.sqrt(1 / 300 + 1 / 100))
    ratio = means.std(0) / std
    print(
        f'\nparity: {path.stem}, training preprocessing: means {z.max():.1f}, spread {spread_z:.1f} standard errors '
        f"(bound 4), spread of the means {ratio.min():.2f} to {ratio.max():.2f} of the original's",
        end='',
    )
    assert z.max() < 4 and spread_z < 4 and (np.abs(ratio - 1) < 4 * np.sqrt(1 / 300)).all()
