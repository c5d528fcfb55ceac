"""Decoding of crops and of whole images of any format, upright, and what cannot be decoded."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from src.data import image, jpeg
from src.data.image import EncodedImage
from src.data.preprocess import evaluation_image, training_image

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
    whole = jpeg.decode(encoded, (0, 0, *jpeg.read_header(encoded)[:2]))
    assert whole.shape == (90, 123, 3)
    # Fast and accurate DCT differ by a few levels.
    assert np.abs(whole - np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB')).astype(int)).max() <= 6
    for box in BOXES:
        assert np.array_equal(jpeg.decode(encoded, box), part(whole, box))
    monkeypatch.setattr(jpeg, 'library', lambda: None)
    assert options.get('progressive') or np.array_equal(EncodedImage(encoded).decode(BOXES[3]), part(whole, BOXES[3]))


@pytest.mark.parametrize('kind, mode', [('JPEG', 'CMYK'), ('PNG', 'RGBA'), ('PNG', 'L'), ('BMP', 'RGB'), ('GIF', 'P')])
def test_what_only_pillow_decodes(kind, mode, monkeypatch):
    """It opens a file once, for the size and the pixels together."""
    opened, original, data = [], image.open_image, encode(mode, kind)
    monkeypatch.setattr(image, 'open_image', lambda data: opened.append(data) or original(data))
    lazy = EncodedImage(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(int)
    assert np.abs(lazy.decode(BOXES[3]) - part(expected, BOXES[3])).max() <= (8 if kind == 'JPEG' else 0)
    assert (lazy.height, lazy.width) == (90, 123) and opened == [data]
    assert evaluation_image(data, 75).shape == training_image(data, 75, np.random.default_rng(0)).shape == (75, 75, 3)


@pytest.mark.parametrize('length', [0, 2, 300, -2, -500])
def test_cut_below_the_crop(length):
    """Also where the rows of the crop are there; and the next image is decoded as if nothing had been."""
    encoded = encode(quality=95)
    expected = EncodedImage(encoded).decode((0, 0, 8, 8))
    with pytest.raises(ValueError, match='not an image|cannot be decoded'):
        EncodedImage(encoded[:length]).decode((0, 0, 8, 8))
    assert np.array_equal(EncodedImage(encoded).decode((0, 0, 8, 8)), expected)


def test_headers_that_contradict_each_other(monkeypatch):
    """A box drawn for one size is not cut out of another."""
    monkeypatch.setattr(image.jpeg, 'read_header', lambda data: (300, 400, 8))
    monkeypatch.setattr(image.jpeg, 'decode', lambda data, box: None)
    with pytest.raises(ValueError, match='cannot be decoded .its header has two sizes'):
        decode(encode())


def test_sixteen_bits():
    """The upper eight count, as TensorFlow takes them; what is white in 32 bits nobody knows."""
    ramp = np.linspace(0, 65535, 64 * 48).reshape(64, 48).astype(np.uint16)
    for kind in ('PNG', 'TIFF'):
        found = decode(encode('I;16', kind, image=Image.fromarray(ramp)))
        assert found.dtype == np.uint8 and np.array_equal(found, (ramp // 256)[..., None].repeat(3, 2))
    with pytest.raises(ValueError, match='cannot be decoded .32 bits a sample'):
        decode(encode('F', 'TIFF', image=Image.fromarray(ramp.astype(np.float32))))


@pytest.mark.parametrize('options', [{'subsampling': 0}, {'subsampling': 2}, {'kind': 'PNG'}], ids=str)
@pytest.mark.parametrize('turn', [2, 3, 6, 7])
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
    again = encode(kind='PNG', image=Image.fromarray(expected))
    assert np.array_equal(evaluation_image(encoded, 75, upright=True), evaluation_image(again, 75))


def test_messages_are_plain(monkeypatch):
    """No address of an object in them, and no warning beside them."""
    monkeypatch.setattr(image, 'MOST_PIXELS', 8000)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert decode(encode(kind='PNG', image=NOISE.resize((70, 70)))).shape == (70, 70, 3)
        for data in (b'', b'no image', encode(kind='PNG'), encode(kind='PNG')[:200], encode()[:300]):
            with pytest.raises(ValueError, match='not an image|cannot be decoded') as caught:
                decode(data)
            assert ' at 0x' not in str(caught.value)


def test_orientation_in_odd_headers():
    """As Pillow reads it; what makes no sense is upright."""
    plain, turned = encode(), encode(turn=6)
    start = turned.index(b'Exif')
    assert image.orientation(turned) == 6 and image.orientation(plain) == 1
    assert image.orientation(turned[:2] + b'\xff\xe1\0\6http' + b'\xff' * 3 + turned[2:]) == 6  # XMP, fill bytes in front
    little = b'II*\0' + struct.pack('<IHHHIHHI', 8, 1, 0x112, 3, 1, 8, 0, 0)
    segment = b'\xff\xe1' + struct.pack('>H', len(little) + 8) + b'Exif\0\0' + little
    assert image.orientation(plain[:2] + segment + plain[2:]) == 8
    for odd in (b'\xff\xd8', turned[: start + 20], b'\xff\xd8' + b'\xff\xe1\0\0' * 9, encode(turn=9)):
        assert image.orientation(odd) == 1
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(turned)
        for at in rng.integers(2, start + 60, 3):
            bad[at] = rng.integers(256)
        assert 1 <= image.orientation(bytes(bad)) <= 8
