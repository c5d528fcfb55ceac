"""The files of a report: names of any bytes and length, any number of classes, no network, and what stops it."""

import base64
import csv
import html
import io
import json
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from src.evaluation import report
from src.runtime import Run
from tests.evaluation.test_outcomes import random_outcomes

ODD = ['<script>alert(1)</script>', 'bytes \udcff\udcfe', 'x' * 200, '$\\frac{a}{b}$', 'a & "b"', '猫', 'two\nlines', '=1+1']


class Records:
    """As many images as wanted, with odd names."""

    upright = False

    def __init__(self, class_names):
        self.class_names = class_names
        Image.new('RGB', (500, 300), (200, 30, 30)).save(file := io.BytesIO(), 'JPEG')
        self.encoded = file.getvalue()

    def name(self, i):
        return f'{ODD[i % len(ODD)]} {i}.jpg'

    def read(self, i):
        return self.encoded


def evaluated(outcomes, classes, class_names, offset=0):
    """An `Evaluation` that has found the `outcomes`, and looked at the middle of each image."""
    if outcomes:
        outcomes = outcomes._replace(activation=np.broadcast_to(np.pad(np.float32([[9]]), 1), (len(outcomes.label), 3, 3)))
    found = {'outcomes': outcomes, 'best': {'step': 7}, 'records': Records(class_names), 'offset': offset}
    found['images'] = SimpleNamespace(sample=lambda i: (np.full((3, 90, 90), 200, np.uint8),))
    return SimpleNamespace(**found, num_classes=classes, run=Run(log=lambda line: None))


@pytest.mark.parametrize('classes', [2, 8, 1000])
def test_files(classes, tmp_path):
    report.write(tmp_path, evaluated(random_outcomes(400, classes), classes, ODD), '<b>net</b>.ckpt')
    page, figures = (tmp_path / 'index.html').read_text(), json.loads((tmp_path / 'report.json').read_text())
    rows = list(csv.DictReader(open(tmp_path / 'images.csv', encoding='utf-8', newline='')))
    tags, texts = Counter(re.findall(r'<(/?\w+)', page)), [*map(html.unescape, re.split('<[^>]*>', page))]
    assert all(tags[f'/{tag}'] == count for tag, count in tags.items() if tag[0] != '/' and tag not in ('meta', 'img', 'br'))
    assert not tags['script'] and not re.search(r'(href|src)="(?!data:image/jpeg;base64,)| on\w+="', page)
    text = ''.join(texts)
    assert 'Evaluation: <b>net</b>.ckpt' in text and ODD[0] in text and '\\udcff\\udcfe' in text
    assert ('top-5' in texts) == (classes > 5) and ('Confusion matrix' in text) == (classes <= report.OPEN)
    # The three files agree.
    hits = sum(row['true'] == row['predicted'] for row in rows)
    assert figures['top1']['value'] == pytest.approx(100 * hits / 400) and f'{100 * hits / 400:.1f} %' in text
    assert figures['confident_mistakes']['count'] == 400 - hits and len(figures['per_class']) == classes
    assert rows[6]['name'] == 'two\nlines 6.jpg' and rows[1]['name'] == 'bytes \\udcff\\udcfe 1.jpg'
    # Thumbnails are small.
    assert tags['figure'] == tags['img'] / 2 == len(figures['confident_mistakes']['first']) == report.SHOWN
    photo, looked = (Image.open(io.BytesIO(base64.b64decode(one))) for one in re.findall('base64,([^"]+)', page)[:2])
    assert photo.size == (report.THUMBNAIL, report.THUMBNAIL * 3 // 5)
    assert min(looked.getpixel((45, 45))) > 180 and max(looked.getpixel((5, 5))) < 40


@pytest.mark.parametrize(
    'names, offset, recorded, labels',
    [
        (['background', 'cat', 'dog'], 1, None, ['cat', 'dog', 'class 2']),
        (['cat', 'dog', 'cat'], 0, ['x'], ['cat (0)', 'dog', 'cat (2)']),
        (None, 1, ['background', 'cat', 'dog', 'emu'], ['cat', 'dog', 'emu']),
        (['n01440764', 'n02012849', ''], 0, None, ['tench, Tinca tinca', 'crane', 'class 2']),
    ],
)
def test_class_labels(names, offset, recorded, labels):
    assert report.class_labels(evaluated(None, 3, names, offset), recorded) == labels
