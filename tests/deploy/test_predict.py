"""python -m src.deploy.predict with a model of NumPy: what is printed, what is skipped, what the page holds."""

import base64
import csv
import io
import json
import os
import re
import select
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
    """In place of what --model names: `F.onnx` takes any number of images, `20.onnx` takes 20."""
    brightness.calls = []

    def opened(path, labels=''):
        return Predictor(brightness, Signature(32, PREPROCESSING, batch_size=20 * path.startswith('20')), NAMES)

    monkeypatch.setattr(predict, 'open_model', opened)
    monkeypatch.setattr(runtime, 'start', lambda settings: None)


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


def run(capsys, *arguments, model='F.onnx'):
    predict.main([str(a) for a in ('--model', model, *arguments)])
    return capsys.readouterr()


@pytest.mark.parametrize('file, given, called', [('F.onnx', [], 8), ('F.onnx', ['--batch_size', 3], 3), ('20.onnx', [], 20)])
def test_directory(file, given, called, images, capsys):
    """In the order of the names, whole batches only, bad images reported and skipped."""
    found = run(capsys, images, '--json', *given, model=file)
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert [row['file'] for row in rows] == sorted(row['file'] for row in rows) and len(rows) == 14
    good = [row for row in rows if 'top' in row]
    for row in good:
        number = int(row['file'][-6:-4])
        assert (row['top'][0]['class'], row['top'][0]['label']) == (number % 3, NAMES[number % 3])
    bad = [row for row in rows if 'error' in row]
    assert len(good) == 11 and [row['file'][-7:] for row in bad] == ['cut.jpg', 'ext.png', 'pty.gif']
    assert '11 images, 3 skipped' in found.err and set(brightness.calls) == {called}


def test_text_and_table(images, tmp_path, capsys):
    found = run(capsys, images, '--top', 2, '--csv', tmp_path / 'table.csv')
    head, *rows = csv.reader(open(tmp_path / 'table.csv', encoding='utf-8'))
    assert head[:4] == ['file', 'error', 'label', 'probability'] and len(rows) == 14
    assert [rows[0][0], *rows[0][2:4:2]] == [f'{images}/04.jpg', NAMES[1]] and float(rows[0][3]) + float(rows[0][5]) > 0.8
    text = next(row for row in rows if '51_text' in row[0])
    assert text[1].startswith('not an image') and len(text) == 2
    assert found.err.count('; skipped\n') == 3 and '51_text.png: not an image' in found.err
    assert re.match(rf'{images}/04.jpg\n   [89]\d\.\d\d %  <b>"medium"</b>\n    \d\.\d\d %  \w+\n', found.out)
    assert found.out.endswith('\n11 images, 3 skipped\n')


def test_page(images, tmp_path, capsys):
    """One file that needs no other: every image scaled down, its classes, names escaped, without the directories above."""
    run(capsys, images, '--html', tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text()
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'base64,([^"]+)"', page)]
    assert len(thumbnails) == 11 and max(max(image.size) for image in thumbnails) == image_files.THUMBNAIL
    assert page.count('class="row"') == 33 and page.count('; skipped') == 3
    assert '<h1>Predictions of F.onnx</h1>' in page and '<figcaption>images/05.jpg<' in page and str(tmp_path) not in page
    assert 'a &lt;i&gt; ü/' in page and '&lt;b&gt;&quot;medium' in page and '<i>' not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_page_marks_what_is_wrong(tmp_path, capsys):
    """By the folder of an image, where that has the name of a class."""
    for folder in ('high', 'low', 'other'):
        (tmp_path / folder).mkdir()
        Image.new('RGB', (90, 90), (240,) * 3).save(tmp_path / folder / 'a.png')
    run(capsys, tmp_path, '--html', tmp_path / 'page.html')
    captions = re.findall(
        r'<figcaption>(.*?)</figcaption><img .*?>(?:<p><b>(.*?)</b>)?', (tmp_path / 'page.html').read_text()
    )
    assert captions == [('high/a.png', ''), ('low/a.png', 'wrong: its folder is low'), ('other/a.png', '')]


def test_images_are_turned_upright(tmp_path):
    """By their EXIF, for the network and on the page: a bright top that is stored at the left."""
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
    paths = (drawn.append(n) or str(images / f'{4 + n % 7:02}.jpg') for n in range(200))
    for n, prediction in enumerate(predict.predict(predict.open_model('F.onnx'), paths, batch_size=4)):
        assert prediction.top and len(drawn) - n <= 4 * 4
    assert len(drawn) == 200 and brightness.calls == [4] * 50


def test_several_sources(images, capsys):
    """In the order given, of a directory or a pattern by name."""
    given = [images / '09.jpg', images / 'a <i> ü', images / '0[46].jpg', images / '**/*']
    found = [json.loads(line)['file'] for line in run(capsys, *given, '--json').out.splitlines()]
    names = ['09.jpg', *(f'a <i> ü/{i:02}.PNG' for i in range(4)), '04.jpg', '06.jpg']
    assert found[:7] == [f'{images}/{name}' for name in names] and len(found) == 21 and found[7:] == sorted(found[7:])


def test_standard_input(images, monkeypatch):
    """A program may wait for the answers to its lines before it writes the next one."""
    kept, (stdin, questions), (answers, stdout) = os.dup(0), os.pipe(), os.pipe()
    os.dup2(stdin, 0)
    monkeypatch.setattr(sys, 'stdout', open(stdout, 'w'))
    program = threading.Thread(target=predict.main, args=[['-', '--json', '--model', 'F.onnx']], daemon=True)
    program.start()
    for question, expected in (('05.jpg\n', ['05.jpg']), ('0[46].jpg\n', ['04.jpg', '06.jpg']), ('none.jpg', [])):
        os.write(questions, f'{images}/{question}'.encode())
        found = b''
        while found.count(b'\n') < len(expected) and select.select([answers], [], [], 60)[0]:
            found += os.read(answers, 1 << 16)
        assert [json.loads(line)['file'] for line in found.splitlines()] == [f'{images}/{name}' for name in expected]
    os.close(questions)
    program.join(60)
    os.dup2(kept, 0)
    (last,) = os.read(answers, 1 << 16).splitlines()
    assert json.loads(last) == {'file': f'{images}/none.jpg', 'error': 'No such file or directory'}
    assert brightness.calls == [8] * 2


@pytest.mark.parametrize(
    'arguments, message',
    [
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
