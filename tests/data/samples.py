"""Encoded images and small data sets for the tests of src/data, and how its commands end."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.tfrecord import write_shards
from src.errors import InputError
from src.options import load_settings

ROOT = str(Path(__file__).resolve().parents[2])


def jpeg(seed=0, size=(48, 40), mode='RGB', form='JPEG', **kw):
    bands = np.random.default_rng(seed).integers(0, 256, (4, 5, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(bands, 'RGBX').convert('RGB').convert(mode).resize(size, 2).save(file, form, **kw)
    return file.getvalue()


def write_folder(path, split, classes, per_class, seed=0, extension='.jpg'):
    for c, name in enumerate(classes):
        (path / split / name).mkdir(parents=True, exist_ok=True)
        for k in range(per_class):
            (path / split / name / f'{name}_{k}{extension}').write_bytes(jpeg([seed, c, k]))
    return path


def content(records, shift=0):
    """All images and labels, sorted."""
    return sorted((records.read(i), int(records.label[i]) - shift) for i in range(len(records)))


def message(call, *args, **kw):
    """The one line of the InputError that the call raises."""
    with pytest.raises(InputError) as caught:
        call(*args, **kw)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def settings(**values):
    """The defaults, for small images in this process."""
    return load_settings([]).but(**{'image_size': 75, 'batch_size': 4, 'num_workers': 1, **values})


def cli(module, *args, **kw):
    command = [sys.executable, '-m', f'src.data.{module}', *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **kw)


def fails(run, *parts):
    """That a command ended with status 2 and one line with these parts."""
    last = run.stderr.splitlines()[-1]
    assert run.returncode == 2 and last.startswith('error: ') and 'Traceback' not in run.stderr, run.stderr
    assert all(part in last for part in parts), last


TURNED = Image.Exif()
TURNED[0x112] = 6
ODD = {
    'cmyk': jpeg(1, mode='CMYK'),
    'png_in_jpeg': jpeg(3, form='PNG'),
    'other_format': jpeg(4, form='BMP'),
    'tiny': jpeg(5, size=(31, 60)),
    'truncated': jpeg(7)[:-60],
    'undecodable': b'no image at all',
    'exif_rotated': jpeg(8, exif=TURNED),
    'two_labels': jpeg([0, 0, 0]),
}
JPEG = jpeg(size=(80, 80))


def folder(path, **classes):
    """Class folders below `path` with so many images each."""
    for name, count in classes.items():
        (path / name).mkdir(parents=True)
        for k in range(count):
            (path / name / f'{k}.jpg').write_bytes(JPEG)


def shards(path, split, labels, names=()):
    """A TFRecord shard of the same image with these labels, and labels.txt with the names."""
    path.mkdir(parents=True, exist_ok=True)
    write_shards(path, split, [(JPEG, label, '') for label in labels], 1)
    if names:
        (path / 'labels.txt').write_text(''.join(f'{label}:{name}\n' for label, name in enumerate(names) if name))
