"""The decoder of crops."""

import io

import numpy as np
import pytest
from PIL import Image

from src.data import jpeg
from src.data.image import EncodedImage

needs_library = pytest.mark.skipif(not jpeg.library(), reason='no libturbojpeg of version 3 (requirements.txt has a wheel)')


BOXES = [(0, 0, 90, 123), (89, 122, 1, 1), (16, 16, 32, 32), (17, 31, 5, 60), (40, 70, 50, 53), (0, 100, 90, 3)]


def encode(mode='RGB', kind='JPEG', **options):
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((123, 90), Image.Resampling.BICUBIC).convert(mode).save(file, kind, **options)
    return file.getvalue()


def part(image, box):
    top, left, height, width = box
    return image[top : top + height, left : left + width]


@needs_library
@pytest.mark.parametrize(
    'options',
    [{'subsampling': 0}, {'subsampling': 1}, {'subsampling': 2}, {'mode': 'L'}, {'subsampling': 2, 'progressive': True}],
    ids=str,
)
def test_crop_is_part_of_the_whole(options):
    encoded = encode(**options)
    whole = jpeg.decode(encoded, (0, 0, *jpeg.read_header(encoded)[:2]))
    assert whole.shape == (90, 123, 3)
    # Fast and accurate DCT differ by a few levels.
    assert np.abs(whole - np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB')).astype(int)).max() <= 6
    for box in BOXES:
        assert np.array_equal(jpeg.decode(encoded, box), part(whole, box))


@pytest.mark.parametrize(
    'options', [{'mode': 'CMYK'}, {'kind': 'PNG'}, {'kind': 'BMP'}, {'kind': 'PNG', 'mode': 'L'}], ids=str
)
def test_crop_of_what_only_pillow_decodes(options):
    encoded = encode(**options)
    found = EncodedImage(encoded).decode(BOXES[3])
    expected = part(np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB')).astype(int), BOXES[3])
    assert np.abs(found - expected).max() <= (8 if 'kind' not in options else 0)


@needs_library
def test_without_the_library(monkeypatch):
    encoded = encode(subsampling=0)
    expected = EncodedImage(encoded).decode(BOXES[3])
    monkeypatch.setattr(jpeg, 'library', lambda: None)
    assert np.array_equal(EncodedImage(encoded).decode(BOXES[3]), expected)


@pytest.mark.parametrize('length', [0, 2, 300, -2, -500])
def test_cut_below_the_crop(length):
    """Also where the rows of the crop are there; and the next image is decoded as if nothing had been."""
    encoded = encode(quality=95)
    expected = EncodedImage(encoded).decode((0, 0, 8, 8))
    with pytest.raises(ValueError, match='not an image|cannot be decoded'):
        EncodedImage(encoded[:length]).decode((0, 0, 8, 8))
    assert np.array_equal(EncodedImage(encoded).decode((0, 0, 8, 8)), expected)


def test_bytes_after_the_end_do_no_harm():
    encoded = encode()
    assert np.array_equal(EncodedImage(encoded + b'\0' * 300).decode(), EncodedImage(encoded).decode())
