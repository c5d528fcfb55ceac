"""Evaluation and training preprocessing against the original's figures. `-s` shows the deviations."""

import colorsys
import io
import struct
import warnings

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image, ImageOps

from src.data import jpeg
from src.data.preprocess import (
    NO_AUGMENTATION,
    Augment,
    central_crop,
    channels_first,
    decode,
    evaluation_picture,
    random_colour,
    random_crop,
    resize,
    training_picture,
)
from src.data.preprocess import augment as augment_on_host
from tests.reference import DATA, SHARED

PHOTOS = sorted((SHARED / 'golden').glob('*.JPEG'))
photos = pytest.mark.skipif(not PHOTOS, reason='needs photos that are not part of the project (../shared/golden)')


def encoded(picture, kind='PNG', mode='RGB'):
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def png(picture):
    return encoded(picture)


@pytest.fixture(scope='module')
def augment():
    ms.set_context(mode=ms.GRAPH_MODE)
    cell = Augment()
    return lambda image, draws: cell(Tensor(image.transpose(0, 3, 1, 2)), Tensor(np.asarray(draws, np.float32))).asnumpy()


def test_crop_distribution():
    """20,000 crops of a 375 x 500 picture; the reference's quantiles are 0.05 to 0.95."""
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


@pytest.mark.parametrize('height, width', [(1, 1), (3, 500), (500, 3), (75, 75), (4000, 30)])
def test_crop_of_odd_pictures(height, width):
    for seed in range(50):
        top, left, h, w = random_crop(np.random.default_rng(seed), height, width)
        assert 0 < h <= height - top and 0 < w <= width - left


def tensorflow_saturation(picture, factor):
    """By way of HSV, the definition: S times factor, cut to [0, 1]."""
    result = np.empty_like(picture)
    for index in np.ndindex(picture.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*picture[index])
        result[index] = colorsys.hsv_to_rgb(h, min(max(s * factor, 0), 1), v)
    return result


def test_augment_is_the_definition(augment):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 9, 9, 3), dtype=np.uint8)
    image[0], image[1], image[2, :, :, 1:] = 0, 255, 0  # black, white and pure red
    draws = np.array([[0.1 if i % 3 else -0.0, s] for i, s in enumerate((0.5, 1.5, 1.5, 0.5, 1, 1.2, 0.7, 1.5))])
    found = augment(image, draws)
    for i, (brightness, saturation) in enumerate(draws):
        expected = np.clip(tensorflow_saturation(image[i] / 255 + brightness, saturation), 0, 1) * 2 - 1
        assert np.abs(found[i].transpose(1, 2, 0) - expected).max() < 1e-5


def test_augment_below_black(augment):
    """Negative values after the brightness have no saturation in TensorFlow and end as black."""
    image = np.array([[[[0, 10, 20], [3, 2, 1], [200, 3, 2]]]], np.uint8)
    found = augment(image, [[-32 / 255, 1.5]])[0, :, 0].T
    assert (found[:2] == -1).all()
    value, chroma = 200 - 32, 200 - 2  # saturation above 1 is cut to 1, the ratios of value - x stay
    expected = [value - (200 - x) * value / chroma for x in (200, 3, 2)]
    assert np.abs((found[2] + 1) * 127.5 - expected).max() < 1e-3


def test_no_augmentation_is_scaling(augment):
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    found = augment(image, [NO_AUGMENTATION] * 2)
    assert np.abs(found - (image.transpose(0, 3, 1, 2) / 127.5 - 1)).max() < 1e-5


@pytest.mark.parametrize('flip', [False, True])
def test_channels_first(flip):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    found = channels_first(image, flip)
    assert found.flags.c_contiguous and found.shape == (3, 5, 7)
    assert all(np.array_equal(found[c, :, i], image[:, 6 - i if flip else i, c]) for c in range(3) for i in range(7))


def test_host_and_device_compute_the_same(augment):
    """Within a grey level, in float16 too; and so far as they depend on nothing but the draws, repeatably."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (32, 40, 40, 3), dtype=np.uint8)
    image[:4], image[4:8], image[8:12] = image[:4] // 16 + 110, 0, (image[8:12] > 128) * 255
    draws = np.array([random_colour(rng)[1] for _ in range(32)])
    on_host = np.stack([augment_on_host(channels_first(one), drawn) for one, drawn in zip(image, draws)])
    assert on_host.dtype == np.float32 and on_host.shape == (32, 3, 40, 40)
    assert np.abs(augment(image, draws) - on_host).max() < 1e-5
    half = Augment(ms.float16)(Tensor(image.transpose(0, 3, 1, 2)), Tensor(draws)).asnumpy()
    assert half.dtype == np.float16 and np.abs(half - on_host).max() < 1 / 255


def test_colour_draws():
    rng = np.random.default_rng(0)
    flip, brightness, saturation = np.array([(flip, *draws) for flip, draws in (random_colour(rng) for _ in range(4000))]).T
    assert set(flip) == {0, 1} and abs(flip.mean() - 0.5) < 0.03
    for values, low, high in ((brightness, -32 / 255, 32 / 255), (saturation, 0.5, 1.5)):
        assert low <= values.min() and values.max() <= high
        assert np.abs(np.quantile(values, [0.25, 0.5, 0.75]) - np.linspace(low, high, 5)[1:4]).max() < 0.03 * (high - low)


@pytest.mark.parametrize(
    'size, expected', [((375, 500), (23, 31, 329, 438)), ((299, 299), (18, 18, 263, 263)), ((1, 1), (0, 0, 1, 1))]
)
def test_central_crop(size, expected):
    assert central_crop(*size) == expected


def test_resize_keeps_flat_and_linear_pictures():
    flat = np.full((40, 60, 3), 77, np.uint8)
    assert (resize(flat, 75) == 77).all()
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, 0).repeat(3, 2)
    assert np.abs(resize(ramp, 100)[5, 5:-5, 0] - (np.arange(100) * 2 + 0.5)[5:-5]).max() <= 1


@pytest.mark.parametrize(
    'kind, mode', [('JPEG', 'CMYK'), ('JPEG', 'L'), ('PNG', 'RGB'), ('PNG', 'RGBA'), ('BMP', 'RGB'), ('GIF', 'P')]
)
def test_decode(kind, mode):
    ramp = np.linspace(0, 255, 64 * 48 * 3).reshape(64, 48, 3).astype(np.uint8)
    data = encoded(ramp, kind, mode)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(int)
    # JPEG: the fast DCT may differ from the accurate one by a few levels
    assert np.abs(decode(data) - expected).max() <= (6 if kind == 'JPEG' else 0)
    assert evaluation_picture(data, 75).shape == training_picture(data, 75, np.random.default_rng(0)).shape == (75, 75, 3)


def test_sixteen_bits():
    """The upper eight count, as TensorFlow takes them."""
    ramp = np.linspace(0, 65535, 64 * 48).reshape(64, 48).astype(np.uint16)
    for kind in ('PNG', 'TIFF'):
        buffer = io.BytesIO()
        Image.fromarray(ramp).save(buffer, kind)
        found = decode(buffer.getvalue())
        assert found.dtype == np.uint8 and np.array_equal(found, (ramp // 256)[..., None].repeat(3, 2))
    buffer = io.BytesIO()
    Image.fromarray(ramp.astype(np.float32)).save(buffer, 'TIFF')
    with pytest.raises(ValueError, match='cannot be decoded .32 bits a sample'):
        decode(buffer.getvalue())


def photo(turn, kind='JPEG', **options):
    """An encoded picture of 123 x 90 pixels, with an EXIF orientation."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x112] = turn
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(noise).resize((123, 90), Image.Resampling.BICUBIC).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    'options',
    [{'subsampling': 0}, {'subsampling': 2, 'progressive': True}, {'kind': 'PNG'}, {'kind': 'WEBP', 'lossless': True}],
    ids=str,
)
@pytest.mark.parametrize('turn', range(1, 9))
def test_upright(turn, options):
    """As Pillow turns it; crops, of which only what they need is decoded, are parts of the upright picture."""
    encoded = photo(turn, **options)
    stored = decode(encoded)
    assert stored.shape == (90, 123, 3) and np.array_equal(stored, decode(photo(1, **options)))
    with_orientation = Image.fromarray(stored)
    with_orientation.getexif()[0x112] = turn
    expected = np.asarray(ImageOps.exif_transpose(with_orientation))
    assert np.array_equal(decode(encoded, upright=True), expected)
    for top, left, height, width in ((0, 0, 90, 90), (17, 31, 5, 50), (60, 3, 30, 40)):
        shapes = []
        found = decode(
            encoded, lambda *shape, box=(top, left, height, width), shapes=shapes: shapes.append(shape) or box, upright=True
        )
        assert np.array_equal(found, expected[top : top + height, left : left + width])
        assert shapes == [expected.shape[:2]]  # drawn once, for the upright picture
    again = png(expected)
    if 'kind' in options:
        assert np.array_equal(
            training_picture(encoded, 75, np.random.default_rng(1), upright=True),
            training_picture(again, 75, np.random.default_rng(1)),
        )
        assert np.array_equal(evaluation_picture(encoded, 75, upright=True), evaluation_picture(again, 75))


def test_orientation_in_odd_headers():
    plain, turned = photo(1), photo(6)
    start = turned.index(b'Exif')
    assert jpeg.orientation(turned) == 6 and jpeg.orientation(plain) == 1
    assert jpeg.orientation(turned[:2] + b'\xff\xe1\0\6http' + b'\xff' * 3 + turned[2:]) == 6  # XMP, fill bytes in front
    little = b'II*\0' + struct.pack('<IHHHIH', 8, 1, 0x112, 3, 1, 8)
    assert jpeg.orientation(b'\xff\xd8\xff\xe1' + struct.pack('>H', len(little) + 8) + b'Exif\0\0' + little) == 8
    for odd in (
        b'',
        b'\xff\xd8',
        turned[: start + 6],
        turned[: start + 20],
        plain[:2] + b'\xff' * 1000,
        b'\xff\xd8' + b'\xff\xe1\0\0' * 9,
        photo(9),
        turned.replace(struct.pack('>HH', 0x112, 3), struct.pack('>HH', 0x113, 3)),
    ):
        assert jpeg.orientation(odd) == 1
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(turned)
        for at in rng.integers(2, start + 60, 3):
            bad[at] = rng.integers(256)
        assert 1 <= jpeg.orientation(bytes(bad)) <= 8


def test_messages_are_plain(monkeypatch):
    """No address of an object in them, and no warning beside them."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 4000)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert decode(encoded(np.zeros((70, 70, 3), np.uint8))).shape == (70, 70, 3)
        for data in (b'', b'no picture', encoded(np.zeros((100, 100, 3), np.uint8)), photo(1, 'PNG')[:200]):
            with pytest.raises(ValueError, match='not a picture|cannot be decoded') as caught:
                decode(data)
            assert ' at 0x' not in str(caught.value)


@pytest.mark.parametrize('data', [b'', b'no picture', encoded(np.zeros((50, 50, 3), np.uint8), 'JPEG')[:300]])
def test_undecodable(data):
    with pytest.raises(ValueError, match='not a picture|cannot be decoded'):
        decode(data)


@photos
@pytest.mark.parametrize('path', PHOTOS, ids=lambda path: path.stem)
def test_evaluation_picture_of_photos(path):
    reference = np.load(SHARED / 'golden/tf_preprocess.npz')[f'{path.name}/eval_u8'].astype(np.float64)
    difference = evaluation_picture(path.read_bytes(), 299) - reference
    print(
        f'\nparity: {path.stem}, evaluation preprocessing: mean absolute difference {np.abs(difference).mean():.2f} '
        f'(bound 2), bias {difference.mean():+.3f} (bound 0.3) grey levels',
        end='',
    )
    assert np.abs(difference).mean() <= 2 and abs(difference.mean()) < 0.3


@photos
@pytest.mark.parametrize('path', PHOTOS, ids=lambda path: path.stem)
def test_training_pictures_of_photos(path, augment):
    """Channel means and spread of 300 pictures; both we and the reference have a sampling error of std / sqrt(300)."""
    figures = np.load(SHARED / 'golden/tf_preprocess.npz')
    mean, std, spread = (
        figures[f'{path.name}/train_{key}'] for key in ('channel_mean_mean', 'channel_mean_std', 'std_mean')
    )
    data, rng = path.read_bytes(), np.random.default_rng(3)

    def sample():
        picture = training_picture(data, 299, rng)
        flip, draws = random_colour(rng)
        return augment((picture[:, ::-1] if flip else picture)[None], draws[None])[0]

    images = [sample() for _ in range(300)]
    means = np.array([image.mean((1, 2)) for image in images])
    z = np.abs(means.mean(0) - mean) / (std * np.sqrt(2 / 300))
    spread_z = abs(np.mean([image.std() for image in images]) - spread) / (
        np.std([image.std() for image in images]) * np.sqrt(1 / 300 + 1 / 100)
    )
    ratio = means.std(0) / std
    print(
        f'\nparity: {path.stem}, training preprocessing: means {z.max():.1f}, spread {spread_z:.1f} standard errors '
        f"(bound 4), spread of the means {ratio.min():.2f} to {ratio.max():.2f} of the original's",
        end='',
    )
    assert z.max() < 4 and spread_z < 4 and (np.abs(ratio - 1) < 4 * np.sqrt(1 / 300)).all()
