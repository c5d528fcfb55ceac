"""What is found out about a single encoded image."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from src.data import jpeg as jpeg_decoder
from src.data.findings import examine
from tests.data.samples import ODD


@pytest.mark.skipif(not jpeg_decoder.library(), reason='no libturbojpeg of version 3 (requirements.txt has a wheel)')
def test_examine_damaged_data():
    """What decoders pass over: zeros or noise in place of data; padding in front of the end is none."""
    rng, kinds = np.random.default_rng(0), []
    for _ in range(20):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((400, 300), 2).save(file, 'JPEG', quality=90)
        encoded = file.getvalue()
        start = encoded.rindex(b'\xff\xda') + 14
        at = int(rng.integers(start, len(encoded) - 600))
        assert examine(encoded) == {}
        zeros = examine(encoded[:at] + bytes(len(encoded) - at - 2) + encoded[-2:])
        assert re.fullmatch(r'the last \d{3,} bytes of its data are zeros', zeros.get('corrupt', '')), zeros
        noise = rng.integers(0, 256, 64, np.uint8).tobytes()
        kinds += examine(encoded[:at] + noise + encoded[at + 64 :]) or ['unnoticed']
    assert sum(kind in ('corrupt', 'undecodable', 'truncated') for kind in kinds) >= 15, kinds
    for padding in (b'\0' * 30, b'\xaa' * 30):
        assert list(examine(encoded[:-2] + padding + encoded[-2:])) == ['warned']


def test_examine_never_raises():
    rng = np.random.default_rng(0)
    for encoded in [ODD[kind] for kind in ('cmyk', 'png_in_jpeg', 'other_format', 'exif_rotated')]:
        for _ in range(150):
            bad = bytearray(encoded)
            for at in rng.integers(0, min(len(bad), 600), 4):
                bad[at] = rng.integers(256)
            assert isinstance(examine(bytes(bad)), dict)
    assert examine(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n') == {'undecodable': 'not an image'}
