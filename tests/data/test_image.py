"""Decoding of any format, upright, and what cannot be decoded."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from src.data import image
from src.data.image import EncodedImage
from src.data.preprocess import evaluation_image, training_image


def encoded(image, kind='PNG', mode='RGB'):
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def png(image):
    return encoded(image)


def decode(encoded, upright=False):
    return EncodedImage(encoded, upright).decode()


@pytest.mark.parametrize(
    'kind, mode', [('JPEG', 'CMYK'), ('JPEG', 'L'), ('PNG', 'RGB'), ('PNG', 'RGBA'), ('BMP', 'RGB'), ('GIF', 'P')]
)
def test_decode(kind, mode):
    ramp = np.linspace(0, 255, 64 * 48 * 3).reshape(64, 48, 3).astype(np.uint8)
    data = encoded(ramp, kind, mode)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(int)
    # JPEG: the fast DCT may differ from the accurate one by a few levels
    assert np.abs(decode(data) - expected).max() <= (6 if kind == 'JPEG' else 0)
    assert evaluation_image(data, 75).shape == training_image(data, 75, np.random.default_rng(0)).shape == (75, 75, 3)


@pytest.mark.parametrize('kind, mode', [('JPEG', 'CMYK'), ('PNG', 'RGB')])
def test_pillow_opens_a_file_once(kind, mode, monkeypatch):
    """Where it has to decode, too: for the size and the pixels together."""
    opened, original = [], image.open_image
    monkeypatch.setattr(image, 'open_image', lambda data: opened.append(data) or original(data))
    data = encoded(np.zeros((64, 48, 3), np.uint8), kind, mode)
    lazy = EncodedImage(data)
    assert (lazy.height, lazy.width) == (64, 48) and lazy.decode((3, 4, 5, 6)).shape == (5, 6, 3) and opened == [data]


def test_headers_that_contradict_each_other(monkeypatch):
    """A box drawn for one size is not cut out of another."""
    monkeypatch.setattr(image.jpeg, 'read_header', lambda data: (300, 400, 8))
    monkeypatch.setattr(image.jpeg, 'decode', lambda data, box: None)
    with pytest.raises(ValueError, match='cannot be decoded .its header has two sizes'):
        decode(encoded(np.zeros((50, 50, 3), np.uint8), 'JPEG'))


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


def rotated(turn, kind='JPEG', **options):
    """An encoded image of 123 x 90 pixels, with an EXIF orientation."""
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
@pytest.mark.parametrize('turn', [2, 3, 6, 7])
def test_upright(turn, options):
    """As Pillow turns it; crops, of which only what they need is decoded, are parts of the upright image."""
    encoded = rotated(turn, **options)
    stored = decode(encoded)
    assert stored.shape == (90, 123, 3) and np.array_equal(stored, decode(rotated(1, **options)))
    with_orientation = Image.fromarray(stored)
    with_orientation.getexif()[0x112] = turn
    expected = np.asarray(ImageOps.exif_transpose(with_orientation))
    assert np.array_equal(decode(encoded, upright=True), expected)
    image = EncodedImage(encoded, upright=True)
    assert (image.height, image.width) == expected.shape[:2]
    for top, left, height, width in ((0, 0, 90, 90), (17, 31, 5, 50), (60, 3, 30, 40)):
        found = EncodedImage(encoded, upright=True).decode((top, left, height, width))
        assert np.array_equal(found, expected[top : top + height, left : left + width])
    again = png(expected)
    if 'kind' in options:
        assert np.array_equal(
            training_image(encoded, 75, np.random.default_rng(1), upright=True),
            training_image(again, 75, np.random.default_rng(1)),
        )
        assert np.array_equal(evaluation_image(encoded, 75, upright=True), evaluation_image(again, 75))


def test_messages_are_plain(monkeypatch):
    """No address of an object in them, and no warning beside them."""
    monkeypatch.setattr(image, 'MOST_PIXELS', 8000)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert decode(encoded(np.zeros((70, 70, 3), np.uint8))).shape == (70, 70, 3)
        for data in (
            b'',
            b'no image',
            encoded(np.zeros((100, 100, 3), np.uint8)),
            rotated(1, 'PNG')[:200],
            rotated(1)[:300],
        ):
            with pytest.raises(ValueError, match='not an image|cannot be decoded') as caught:
                decode(data)
            assert ' at 0x' not in str(caught.value)


def test_orientation_in_odd_headers():
    """As Pillow reads it; what makes no sense is upright."""
    plain, turned = rotated(1), rotated(6)
    start = turned.index(b'Exif')
    assert image.orientation(turned) == 6 and image.orientation(plain) == 1
    assert image.orientation(turned[:2] + b'\xff\xe1\0\6http' + b'\xff' * 3 + turned[2:]) == 6  # XMP, fill bytes in front
    little = b'II*\0' + struct.pack('<IHHHIHHI', 8, 1, 0x112, 3, 1, 8, 0, 0)
    segment = b'\xff\xe1' + struct.pack('>H', len(little) + 8) + b'Exif\0\0' + little
    assert image.orientation(plain[:2] + segment + plain[2:]) == 8
    for odd in (
        b'',
        b'\xff\xd8',
        turned[: start + 20],
        plain[:2] + b'\xff' * 1000,
        b'\xff\xd8' + b'\xff\xe1\0\0' * 9,
        rotated(9),
    ):
        assert odd[:2] != b'\xff\xd8' or image.orientation(odd) == 1
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(turned)
        for at in rng.integers(2, start + 60, 3):
            bad[at] = rng.integers(256)
        assert 1 <= image.orientation(bytes(bad)) <= 8
