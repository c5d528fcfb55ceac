"""python -m src.deploy.predict with a model of NumPy: what is printed, what is skipped, what the page holds."""

import base64
import io
import json
import os
import re
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from src import runtime
from src.data.preprocess import PREPROCESSING
from src.deploy import formats, image_files, predict
from src.deploy.formats import Signature
from src.deploy.predict import Predictor

NAMES = ['low', '<b>"medium"</b>', 'high']


def brightness(images):
    """Three classes by how bright an image is; the calls are kept."""
    brightness.calls.append(len(images))
    share = formats.softmax(-8 * np.abs(images.mean((1, 2, 3))[:, None] / 255 - [0.1, 0.5, 0.9]))
    order = np.argsort(-share, 1)
    return np.take_along_axis(share, order, 1), order


@pytest.fixture(autouse=True)
def model(monkeypatch):
    """In place of what --model names; each test may replace fields of it."""
    brightness.calls = []
    made = {'batch_size': 0, 'class_names': NAMES}

    def opened(path='', labels=''):
        return Predictor(brightness, Signature(32, PREPROCESSING, batch_size=made['batch_size']), made['class_names'])

    monkeypatch.setattr(predict, 'open_model', opened)
    monkeypatch.setattr(runtime, 'start', lambda settings: None)
    return made


@pytest.fixture
def images(tmp_path):
    """Eleven good images, three levels in turns, in two directories, and three that cannot be read."""
    folder = tmp_path / 'images'
    (folder / 'a <i> ü').mkdir(parents=True)
    for i in range(11):
        level = (20, 128, 240)[i % 3]
        name = f'a <i> ü/{i:02}.PNG' if i < 4 else f'{i:02}.jpg'
        Image.new('RGB', (300 + 10 * i, 90), (level, level, level)).save(folder / name)
    whole = (folder / '05.jpg').read_bytes()
    for name, content in (('50_cut.jpg', whole[: len(whole) // 2]), ('51_text.png', b'text' * 50), ('52_empty.gif', b'')):
        (folder / name).write_bytes(content)
    (folder / 'notes.txt').write_text('no image')
    return folder


def run(capsys, *arguments):
    predict.main([str(a) for a in ('--model', 'net.mindir', *arguments)])
    return capsys.readouterr()


@pytest.mark.parametrize('needed, given, called', [(0, None, 8), (20, 5, 20)])
def test_directory(needed, given, called, images, model, capsys):
    """In the order of the names, whole batches only, bad images reported and skipped."""
    model['batch_size'] = needed
    found = run(capsys, images, '--json', *(['--batch_size', given] if given else []))
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert [row['file'] for row in rows] == sorted(row['file'] for row in rows) and len(rows) == 14
    good = [row for row in rows if 'top' in row]
    for row in good:
        number = int(row['file'][-6:-4])
        assert (row['top'][0]['class'], row['top'][0]['label']) == (number % 3, NAMES[number % 3])
    bad = [row for row in rows if 'error' in row]
    assert len(good) == 11 and [row['file'][-7:] for row in bad] == ['cut.jpg', 'ext.png', 'pty.gif']
    assert '11 images, 3 skipped' in found.err and set(brightness.calls) == {called}


def test_text(images, model, capsys):
    model['class_names'] = None
    found = run(capsys, images, '--top', 2)
    assert found.err.count('; skipped\n') == 3 and '51_text.png: not an image' in found.err
    assert re.match(rf'{images}/04.jpg\n   [89]\d\.\d\d %  class 1\n    \d\.\d\d %  class \d\n', found.out)
    assert re.search(r'\n11 images, 3 skipped, [\d.]+ images/s, decoding included\n$', found.out)


def test_page(images, tmp_path, monkeypatch, capsys):
    """One file that needs no other: every image scaled down, its classes, names escaped, without the present directory.
    What is wrong by its folder is marked, where that has the name of a class."""
    for folder in ('high', 'low', 'other'):
        (tmp_path / 'photos' / folder).mkdir(parents=True)
        Image.new('RGB', (90, 90), (240,) * 3).save(tmp_path / 'photos' / folder / 'a.png')
    run(capsys, tmp_path / 'photos', '--html', tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text()
    captions = ('<figcaption>high/a.png</figcaption><img', '<p class="wrong"><b>wrong: its folder is low</b></p>')
    assert all(caption in page for caption in captions) and page.count('"wrong"') == 1 and str(tmp_path) not in page

    monkeypatch.chdir(images)
    run(capsys, images, '--html', tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text()
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'base64,([^"]+)"', page)]
    assert len(thumbnails) == 11 and max(max(image.size) for image in thumbnails) == image_files.THUMBNAIL
    assert page.count('class="row"') == 33 and page.count('; skipped') == 3
    assert '<h1>Predictions of net.mindir</h1>' in page and '<figcaption>05.jpg<' in page
    assert 'a &lt;i&gt; ü/' in page and '&lt;b&gt;&quot;medium' in page and '<i>' not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_images_are_turned_upright(tmp_path):
    """As their EXIF says, for the network and on the page: a bright top that is stored at the left."""
    exif, stored = Image.Exif(), np.zeros((60, 90, 3), np.uint8)
    exif[0x112], stored[:, :45] = 6, 255
    Image.fromarray(stored).save(tmp_path / 'turned.jpg', exif=exif)
    _, image, _, thumbnail = image_files.load_image(str(tmp_path / 'turned.jpg'), 32, PREPROCESSING, True)
    assert image[:12].min() > 200 and image[-12:].max() < 50
    thumbnail = np.asarray(Image.open(io.BytesIO(thumbnail)))
    assert thumbnail.shape == (90, 60, 3) and thumbnail[:30].min() > 200


def test_memory_is_bounded(images):
    """However many images there are, those of four batches at most are decoded and not yet printed."""
    drawn = []

    def paths():
        for n in range(200):
            drawn.append(n)
            yield str(images / f'{4 + n % 7:02}.jpg')

    for n, prediction in enumerate(predict.predict(predict.open_model(), paths(), batch_size=4)):
        assert prediction.top and len(drawn) - n <= 4 * 4
    assert len(drawn) == 200 and brightness.calls == [4] * 50


def test_several_sources(images, capsys):
    """In the order given, of a directory or a pattern by name; lines of a list as they are."""
    lines = f'{images}/05.jpg\n\n{images}/0[46].jpg\r\n{images}/none.jpg\nfile://localhost{images}/05.jpg\n'
    (images / 'list.txt').write_text(lines)
    url = f'file://{images}/a%20%3Ci%3E%20%C3%BC'
    given = [images / '09.jpg', images / 'a <i> ü', url, images / 'list.txt', images / '**/*']
    found = [json.loads(line)['file'] for line in run(capsys, *given, '--json').out.splitlines()]
    folder = [f'a <i> ü/{i:02}.PNG' for i in range(4)]
    names = ['09.jpg', *folder, *folder, '05.jpg', '04.jpg', '06.jpg', 'none.jpg', '05.jpg']
    assert found[:14] == [f'{images}/{name}' for name in names] and len(found) == 28 and found[14:] == sorted(found[14:])


def test_standard_input(images, monkeypatch):
    """Lines as in a list. The answers to those that are there do not wait for another one: this program, whose output
    stands in for ours, asks its next question only when it has them."""
    kept, (reader, writer) = os.dup(0), os.pipe()
    questions = {0: f'{images}/05.jpg\n', 1: f'\n{images}/0[46].jpg\n', 3: f'{images}/none.jpg'}
    too_late = threading.Timer(60, os.close, [writer])

    class Answers(io.StringIO):
        def reconfigure(self, **_):
            pass

        def write(self, text):
            size = super().write(text)
            if question := questions.pop(self.getvalue().count('\n'), ''):
                os.write(writer, question.encode())
                if not questions:
                    os.close(writer)
            return size

    monkeypatch.setattr(sys, 'stdout', answers := Answers())
    os.dup2(reader, 0)
    answers.write('')
    too_late.start()
    try:
        predict.main(['-', '--json', '--model', 'net.mindir'])
    finally:
        too_late.cancel()
        os.dup2(kept, 0)
        os.close(reader)
        os.close(kept)
    rows = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [row['file'][-6:] for row in rows] == ['05.jpg', '04.jpg', '06.jpg', 'ne.jpg']
    assert rows[3]['error'] == 'No such file or directory' and brightness.calls == [8] * 3


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['{}/none'], 'none: No such file or directory; name an image'),
        (['{}/a'], 'a: no image in it'),
        (['{}/b.jpg', '{}/b.jpg'], 'b.jpg: no image that can be read, 2 in all'),
        (['{}/c.jpg', '--batch_size', 0], 'batch_size'),
        (['{}/c.jpg', '--html', '/proc/none/page'], '/proc/none/page: .*; choose another --html'),
    ],
)
def test_bad_input(arguments, message, tmp_path, capsys):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b.jpg').write_bytes(b'no image')
    Image.new('RGB', (90, 90)).save(tmp_path / 'c.jpg')
    with pytest.raises(SystemExit) as caught:
        run(capsys, *(str(a).format(tmp_path) for a in arguments))
    last = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and last.startswith('error: ') and re.search(message, last)
