"""Decoding of crops and of whole images of any format, upright, and what cannot be decoded."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from src.data import jpeg
from src.data.image import EncodedImage
from src.data.preprocess import evaluation_image

needs_library = pytest.mark.skipif(not jpeg.library(), reason='no libturbojpeg of version 3 (requirements.txt has a wheel)')
BOXES = [(0, 0, 90, 123), (89, 122, 1, 1), (16, 16, 32, 32), (17, 31, 5, 60), (40, 70, 50, 53), (0, 100, 90, 3)]
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).resize((123, 90), 3)


def encode(mode='RGB', kind='JPEG', turn=None, image=NOISE, **options):
    """An encoded image, by default of 123 x 90 pixels; with `turn` as its EXIF orientation."""
    file, exif = io.BytesIO(), Image.Exif()
    if turn:
        exif[0x112] = turn
        options['exif'] = exif
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


def part(image, box):
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def decode(encoded, upright=False):
    return EncodedImage(encoded, upright).decode()


@needs_library
@pytest.mark.parametrize('options', [{'subsampling': 0}, {'subsampling': 2, 'progressive': True}, {'mode': 'L'}], ids=str)
def test_crop_is_part_of_the_whole(options, monkeypatch):
    """Also that of Pillow, which decodes without the library."""
    encoded = encode(**options)
    whole = jpeg.decode(encoded, (0, 0, *jpeg.read_header(encoded)[:2]))[..., :3]
    assert whole.shape == (90, 123, 3)
    # Fast and accurate DCT differ by a few levels.
    assert np.abs(whole - np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB')).astype(int)).max() <= 6
    for box in BOXES:
        assert np.array_equal(jpeg.decode(encoded, box)[..., :3], part(whole, box))
    monkeypatch.setattr(jpeg, 'library', lambda: None)
    assert options.get('progressive') or np.array_equal(EncodedImage(encoded).decode(BOXES[3]), part(whole, BOXES[3]))


@pytest.mark.parametrize('kind, mode', [('JPEG', 'CMYK'), ('PNG', 'RGBA'), ('GIF', 'P')])
def test_what_only_pillow_decodes(kind, mode):
    image, whole = EncodedImage(encode(mode, kind)), Image.open(io.BytesIO(encode(mode, kind))).convert('RGB')
    assert (image.height, image.width) == (90, 123)
    difference = image.decode(BOXES[3]) - part(np.asarray(whole).astype(int), BOXES[3])
    assert np.abs(difference).max() <= (8 if kind == 'JPEG' else 0)


def test_an_error_leaves_nothing_behind():
    """The next image is decoded as if no damaged one had been."""
    encoded = encode(quality=95)
    expected = decode(encoded)
    for data in (b'', encoded[:300], encoded[:-500], encoded[:-500] + encoded[-2:]):
        with contextlib.suppress(ValueError):
            decode(data)
        assert np.array_equal(decode(encoded), expected)


def test_sixteen_bits():
    """The upper eight count, as TensorFlow takes them; what is white in 32 bits nobody knows."""
    ramp = np.linspace(0, 65535, 64 * 48).reshape(64, 48).astype(np.uint16)
    for kind in ('PNG', 'TIFF'):
        found = decode(encode('I;16', kind, image=Image.fromarray(ramp)))
        assert found.dtype == np.uint8 and np.array_equal(found, (ramp // 256)[..., None].repeat(3, 2))
    with pytest.raises(ValueError, match='cannot be decoded .32 bits a sample'):
        decode(encode('F', 'TIFF', image=Image.fromarray(ramp.astype(np.float32))))


@pytest.mark.parametrize('options', [{'subsampling': 0}, {'subsampling': 2}, {'kind': 'PNG'}], ids=str)
@pytest.mark.parametrize('turn', [3, 6, 7])
def test_upright(turn, options):
    """As Pillow turns it; crops, of which only what they need is decoded, are parts of the upright image."""
    encoded = encode(turn=turn, **options)
    stored = decode(encoded)
    with_orientation = Image.fromarray(stored)
    with_orientation.getexif()[0x112] = turn
    expected = np.asarray(ImageOps.exif_transpose(with_orientation))
    image = EncodedImage(encoded, upright=True)
    assert np.array_equal(image.decode(), expected) and (image.height, image.width) == expected.shape[:2]
    for box in ((0, 0, 90, 90), (17, 31, 5, 50), (60, 3, 30, 40)):
        assert np.array_equal(EncodedImage(encoded, upright=True).decode(box), part(expected, box))
    assert EncodedImage(encode(turn=9, **options), upright=True).turn == 1  # makes no sense
    again = encode(kind='PNG', image=Image.fromarray(expected))
    images = evaluation_image(encoded, 75, upright=True), evaluation_image(again, 75)
    assert np.array_equal(*(image[..., :3] for image in images))
