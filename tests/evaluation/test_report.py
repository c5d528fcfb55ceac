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

from src.errors import InputError
from src.evaluation import evaluation, report
from src.runtime import Run
from tests.evaluation.test_outcomes import HAND, random_outcomes

ODD = ['<script>alert(1)</script>', 'bytes \udcff\udcfe', 'x' * 200, '$\\frac{a}{b}$', 'a & "b"', '猫', 'two\nlines', '=1+1']


class Records:
    """As many images as wanted, of which some cannot be read; with odd names."""

    upright = False

    def __init__(self, images, class_names=None):
        self.images, self.class_names, self.read_numbers = images, class_names, []
        file = io.BytesIO()
        Image.new('RGB', (500, 300), (200, 30, 30)).save(file, 'JPEG')
        self.encoded = file.getvalue()

    def __len__(self):
        return self.images

    def name(self, i):
        return f'{ODD[i % len(ODD)]} {i}.jpg'

    def read(self, i):
        self.read_numbers.append(i)
        if i % 5 == 4:
            raise InputError('gone')
        return self.encoded


def evaluated(outcomes, classes, records, offset=0):
    """An `Evaluation` that has found the `outcomes`."""
    found = {'outcomes': outcomes, 'best': {'step': 7, 'images': 1}}
    return SimpleNamespace(records=records, offset=offset, num_classes=classes, run=Run(log=lambda line: None), **found)


@pytest.mark.parametrize('classes', [2, 8, 1000])
def test_files(classes, tmp_path):
    records = Records(400, ODD)
    report.write(tmp_path, evaluated(random_outcomes(400, classes), classes, records), '<b>net</b>.ckpt')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['images.csv', 'index.html', 'report.json']
    page, figures = (tmp_path / 'index.html').read_text(), json.loads((tmp_path / 'report.json').read_text())
    rows = list(csv.DictReader(open(tmp_path / 'images.csv', encoding='utf-8', newline='')))
    tags, texts = Counter(re.findall(r'<(/?\w+)', page)), [*map(html.unescape, re.split('<[^>]*>', page))]
    assert all(tags[f'/{tag}'] == count for tag, count in tags.items() if tag[0] != '/' and tag not in ('meta', 'img', 'br'))
    assert (
        not tags['script'] and not tags['link'] and not re.search(r'(href|src)="(?!data:image/jpeg;base64,)| on\w+="', page)
    )
    text = ''.join(texts)
    assert 'Evaluation: <b>net</b>.ckpt' in text and ODD[0] in text and '\\udcff\\udcfe' in text
    # Everything that is shown is bounded, whatever the number of images and classes.
    assert max(len(cell) for cell in texts if 'x' * 20 in cell) <= report.LONGEST + 20
    assert ('top-5' in texts) == (classes > 5) and ('Confusion matrix' in text) == (classes <= report.OPEN)
    assert tags['tr'] <= report.PAIRS + 2 + classes + (classes + 2 if classes <= report.OPEN else 1) + 16
    # The three files agree.
    assert figures['step'] == 7 and figures['images'] == len(rows) == 400
    hits = sum(row['true'] == row['predicted'] for row in rows)
    assert figures['top1']['value'] == pytest.approx(100 * hits / 400) and f'{100 * hits / 400:.1f} %' in text
    assert figures['confident_mistakes']['count'] == 400 - hits
    assert sum(images for _, _, images in figures['confusion']) == 400 and len(figures['per_class']) == classes
    assert rows[6]['name'] == 'two\nlines 6.jpg' and rows[1]['name'] == 'bytes \\udcff\\udcfe 1.jpg'
    # Thumbnails are small, and there is a note where an image is gone.
    listed = [one['number'] for one in figures['confident_mistakes']['first']]
    gone = sum(number % 5 == 4 for number in listed)
    assert figures['confident_mistakes']['suspected'] >= text.count('perhaps labelled wrongly')
    assert records.read_numbers == listed and tags['figure'] == len(listed) <= report.SHOWN
    assert tags['img'] == len(listed) - gone and text.count('cannot be read any more') == gone
    image = Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]+)', page)[1])))
    assert image.size == (report.THUMBNAIL, report.THUMBNAIL * 3 // 5)


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
    assert report.class_labels(evaluated(None, 3, Records(0, names), offset), recorded) == labels


def test_best_evaluation_is_kept(monkeypatch):
    """Not the last one, as it is the best checkpoint that is kept. Of equals by top-1 the smaller loss counts."""
    made = object.__new__(evaluation.Evaluation)
    made.__dict__ = {
        **vars(evaluated(None, 3, Records(5))),
        'best': None,
        'step': SimpleNamespace(network=None),
        'data': None,
    }
    found = {10: (2, 2.0), 20: (3, 3.0), 30: (3, 1.0), 40: (2, 0.5)}
    outcomes = {
        step: HAND._replace(place=np.where(np.arange(5) < hits, 1, 2), loss=np.full(5, loss))
        for step, (hits, loss) in found.items()
    }
    monkeypatch.setattr(evaluation, 'take_weights', lambda *_: None)
    monkeypatch.setattr(evaluation, 'evaluate', lambda *_: outcomes[step])
    for step in found:
        assert made.of_training(None, step) == (20 * found[step][0], None, found[step][1], 5)
    assert made.best == {'step': 30, 'top1': 60, 'top5': None, 'loss': 1, 'images': 5} and made.outcomes is outcomes[30]


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'images.csv').mkdir()
    for directory in (tmp_path / 'file/out', tmp_path):
        with pytest.raises(InputError, match='; choose another directory'):
            report.write(directory, evaluated(HAND, 3, Records(5)), 'net')
