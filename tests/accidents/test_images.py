"""Images that crash a decoder, are damaged, transparent, huge, thin or of a format that is not read."""

import ctypes
import io
import os
import tracemalloc
from functools import partial

import numpy as np
import pytest
from PIL import Image

import train
from src.data import jpeg as decoder
from src.data.check import check
from src.data.image import EncodedImage
from src.data.preprocess import Preprocessing, evaluation_image, training_image
from src.data.records import open_records
from src.deploy.image_files import load_image
from tests.conftest import SMALL
from tests.data.samples import cli, jpeg, write_folder

needs_library = pytest.mark.skipif(
    not decoder.library(), reason='no libturbojpeg of version 3 (requirements.txt has a wheel)'
)
SQUARE = Preprocessing((127.5,) * 3, (127.5,) * 3, 0.875, 'bicubic', True)
COLOURS = np.array(Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).resize((400, 300), 2))


def encoded(image, form='PNG', **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


@needs_library
def test_lossless_jpegs():
    """One was written over the end of a buffer: split, check and convert ended with SIGSEGV."""
    lib, out, count = decoder.library(), ctypes.c_void_p(), ctypes.c_size_t()
    pixels, handle = np.ascontiguousarray(COLOURS), lib.tj3Init(0)
    lib.tj3Set(handle, 15, 1)
    lib.tj3Compress8.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int] * 4, ctypes.c_void_p, ctypes.c_void_p]
    assert not lib.tj3Compress8(handle, pixels.ctypes.data, 400, 0, 300, 0, ctypes.byref(out), ctypes.byref(count))
    data = ctypes.string_at(out.value, count.value)
    assert np.array_equal(EncodedImage(data, True).decode((10, 20, 30, 40)), COLOURS[10:40, 20:60])
    assert decoder.warning(data) is None  # for which all of it would be decoded at an eighth of its size


def test_damaged_pngs(tmp_path):
    """One wrong bit, or zeros for an end: training, evaluation, prediction and check find it. (The first error was swallowed
    in the search for the orientation, and the checksums were not compared.)"""
    folder, rng = write_folder(tmp_path, 'train', ['a', 'b'], 2) / 'train/b', np.random.default_rng(1)
    (folder / 'sound.png').write_bytes(encoded(COLOURS))
    for k in range(32):
        data = bytearray(encoded(COLOURS[: 20 + 200 * (k % 2), :24]))
        if k < 24:
            data[int(rng.integers(8, len(data) - 4))] ^= 1 << int(rng.integers(8))
        else:
            count = int(rng.integers(20, len(data) - 50))
            data[-count:] = bytes(count)
        for call in (partial(training_image, rng=rng), evaluation_image):
            with pytest.raises(ValueError, match='cannot be decoded|not an image'):
                call(bytes(data), 75, upright=True)
        (folder / f'bad_{k}.png').write_bytes(data)
        assert load_image(str(folder / f'bad_{k}.png'), 75, SQUARE)[2]
    assert [kind for kind, *_ in check(tmp_path, 2)[0]] == ['cannot be decoded'] * 32


@pytest.mark.parametrize('form', ['PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'JPEG'])
def test_truncated(form, tmp_path):
    """Cut anywhere, every path says so; a JPEG also where zeros stand for its end."""
    data, rng = encoded(COLOURS, form), np.random.default_rng(0)
    for _ in range(10):
        count = int(rng.integers(len(data) // 50, len(data) - 10))
        for tail in (b'', bytes(count)) if form == 'JPEG' else (b'',):
            (tmp_path / 'x').write_bytes(data[:-count] + tail)
            with pytest.raises(ValueError, match='cannot be decoded|not an image'):
                evaluation_image(data[:-count] + tail, 75, upright=True)
            assert load_image(str(tmp_path / 'x'), 75, SQUARE)[2]


def test_jpegs_with_something_behind_the_end():
    """As telephones put a film there, in which any marker may stand."""
    data = encoded(COLOURS, 'JPEG', progressive=True)
    for behind in (b'\xff\xda' + bytes(100), b'\0' * 99, b'film' * 99 + b'\xff\xd8\xff\xda'):
        assert np.array_equal(EncodedImage(data + behind).decode(), EncodedImage(data).decode())
    for cut in (data[:-2] + bytes(40), data[: len(data) // 2] + b'\xff\xda' + bytes(40)):
        with pytest.raises(ValueError, match='cannot be decoded .truncated'):
            EncodedImage(cut).decode()


def test_transparent(tmp_path):
    """White in folders and in the shards that are made of them, left out elsewhere; counted by the check."""
    folder = write_folder(tmp_path, 'train', ['a'], 3) / 'train/a'
    grey = np.repeat(np.uint8([[0, 90]]), 32, 1).repeat(64, 0)  # the left half is transparent, black below it
    rgba = Image.fromarray(np.dstack([grey, grey, grey, np.minimum(grey, 1) * 255]))
    palette = Image.fromarray(grey // 90, 'P')
    palette.putpalette([0, 0, 0, 90, 90, 90])
    (folder / 'opaque.png').write_bytes(encoded(Image.fromarray(COLOURS).convert('RGBA')))
    for name, data in {
        'rgba.png': encoded(rgba),
        'palette.png': encoded(palette, transparency=0),
        'grey.png': encoded(grey, transparency=0),
        'rgb.png': encoded(np.dstack([grey] * 3), transparency=(0, 0, 0)),
        'rgba.webp': encoded(rgba, 'WEBP', lossless=True, exact=True),
        'palette.gif': encoded(palette, 'GIF', transparency=0),
    }.items():
        (folder / name).write_bytes(data)
        for upright, left in ((True, 255), (False, 0)):
            found = EncodedImage(data, upright).decode()
            assert (found[:, :32] == left).all() and (found[:, 32:] == 90).all(), name
    run = cli('check', tmp_path)
    assert run.returncode == 0 and 'note: transparent: 6\n' in run.stdout, run.stdout
    run = cli('convert', '--src', tmp_path, '--dst', tmp_path / 'dst', '--format', 'tfrecord', '--shards', 1)
    assert run.returncode == 0 and '6 images turned upright or put on white' in run.stdout, run.stdout + run.stderr
    both = open_records(tmp_path, 'train', 'folder'), open_records(tmp_path / 'dst', 'train')
    means = [sorted(EncodedImage(one.read(i), one.upright).decode().mean() for i in range(10)) for one in both]
    assert np.abs(np.subtract(*means)).max() < 1


def test_huge(tmp_path):
    """Above 179 million pixels and for large profiles Pillow speaks of an attack; little more than is needed is decoded."""
    data = encoded(Image.new('L', (14000, 13000), 90), 'JPEG')
    (tmp_path / 'train/a').mkdir(parents=True)
    (tmp_path / 'train/a/huge.jpg').write_bytes(data)
    image = EncodedImage(data, upright=True)
    assert (image.height, image.width) == (13000, 14000) and (image.decode((9000, 9000, 75, 75)) == 90).all()
    assert check(tmp_path, 1)[0] == []
    assert EncodedImage(encoded(COLOURS, icc_profile=bytes(range(256)) * 9999)).decode().shape == COLOURS.shape
    tracemalloc.start()
    assert evaluation_image(encoded(Image.new('L', (20000, 2), 90)), 75, SQUARE).shape == (75, 75, 4)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    with pytest.raises(ValueError, match='cannot be decoded .more than 512 x 2.20 pixels'):
        EncodedImage(encoded(Image.new('1', (40000, 20000)), compress_level=1))


def test_photos_of_telephones_in_other_formats(tmp_path):
    """Under their own name and as .jpg; endings that are seldom are read."""
    heic = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(200)
    folder = write_folder(tmp_path, 'train', ['a', 'b'], 2) / 'train/b'
    for name, data in {'a.jpg': heic, 'b.heic': heic, 'c.jfif': jpeg(1), 'd.JPE': jpeg(2)}.items():
        (folder / name).write_bytes(data)
    assert len(open_records(tmp_path, 'train', 'folder')) == 7
    run = cli('check', tmp_path)
    assert 'a.jpg: not an image, or HEIC, AVIF or JPEG 2000, which are not read (224 bytes)\n' in run.stdout, run.stdout
    assert 'b.heic: 1 x file .heic\n' in run.stdout


def test_no_regular_files(tmp_path):
    """A pipe was read for ever."""
    folder = write_folder(tmp_path, 'train', ['a', 'b'], 2) / 'train/b'
    os.mkfifo(folder / 'pipe.jpg')
    for name, target in (('link', folder / 'pipe.jpg'), ('zero', '/dev/zero'), ('gone', 'nothing'), ('good', 'b_0.jpg')):
        (folder / f'{name}.jpg').symlink_to(target)
    assert len(open_records(tmp_path, 'train', 'folder')) == 5
    run = cli('check', tmp_path, timeout=60)
    assert run.returncode == 1 and '4 x pipe, socket, device or link to nothing\n' in run.stdout, run.stdout
    for name in ('pipe.jpg', 'zero.jpg'):
        assert load_image(str(folder / name), 75, SQUARE)[2]


def test_damaged_validation_images_are_named_before_the_first_step(tmp_path, capsys, monkeypatch):
    """All of them in one line, not one after each epoch."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / 'photos', 'train', ['a', 'b'], 4)
    folder = write_folder(tmp_path / 'photos', 'validation', ['a', 'b'], 20) / 'validation'
    sound = (folder / 'a/a_0.jpg').read_bytes()
    odd = {'a/cut.jpg': sound[:-100], 'a/zeros.jpg': sound[:-100] + bytes(100), 'b/empty.gif': b''}
    odd |= {'b/cut.png': encoded(COLOURS)[:-9], 'b/cut.webp': encoded(COLOURS, 'WEBP')[:-9]}
    for name, data in {**odd, 'a/film.jpg': sound + b'film', 'a/x.gif': encoded(COLOURS, 'GIF')}.items():
        (folder / name).write_bytes(data)
    with pytest.raises(SystemExit) as stopped:
        train.main(['--data_dir', 'photos', *SMALL, '--num_classes', '2', '--mode', 'train_and_evaluate'])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and err.count('\n') == 1 and 'step:' not in out
    assert '5 validation images cannot be read or decoded; ' in err and all(name in err for name in odd), err
    assert 'film.jpg' not in err
