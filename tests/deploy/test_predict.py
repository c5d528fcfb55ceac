"""python -m src.deploy.predict with a model of NumPy: what is printed, what is skipped, what the page holds."""

import base64
import io
import json
import os
import queue
import re
import sys

import numpy as np
import pytest
from PIL import Image

from src import runtime
from src.data import demo_images
from src.data.preprocess import PREPROCESSING
from src.deploy import decoding, predict, sources
from src.deploy.predictor import Predictor

NAMES = ['low', '<b>"medium"</b>', 'high']


def brightness(images):
    """Three classes by how bright an image is; the calls are kept."""
    brightness.calls.append(len(images))
    level = images.mean((1, 2, 3))[:, None] / 255
    weight = np.exp(-8 * np.abs(level - [0.1, 0.5, 0.9]))
    share = (weight / weight.sum(1, keepdims=True)).astype(np.float32)
    order = np.argsort(-share, 1)
    return np.take_along_axis(share, order, 1), order


@pytest.fixture(autouse=True)
def model(monkeypatch):
    """In place of what --model names; each test may replace fields of it."""
    brightness.calls = []
    made = {
        'probabilities': brightness,
        'size': 32,
        'preprocessing': PREPROCESSING,
        'batch_size': 0,
        'class_names': NAMES,
        'num_classes': 3,
    }
    monkeypatch.setattr(predict, 'open_model', lambda path, labels: Predictor(**made))
    monkeypatch.setattr(runtime, 'start', lambda: None)
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


def test_one_image(images, capsys):
    out = run(capsys, images / '05.jpg', '--top', 2).out
    lines = out.splitlines()
    assert lines[0] == str(images / '05.jpg')
    assert re.fullmatch(r'   [89]\d\.\d\d %  high', lines[1]) and re.fullmatch(r'    \d\.\d\d %  <b>"medium"</b>', lines[2])
    assert re.fullmatch(r'1 image, [\d.]+ images/s, decoding included', lines[3]) and len(lines) == 4
    assert brightness.calls == [1, 1]  # the first one compiles


@pytest.mark.parametrize('batch_size', [0, 1, 3, 20])
def test_directory(batch_size, images, model, capsys):
    """In the order of the names, whole batches only, bad images reported and skipped."""
    model['batch_size'] = batch_size
    found = run(capsys, images, '--json')
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert [row['file'] for row in rows] == sorted(row['file'] for row in rows) and len(rows) == 14
    good = [row for row in rows if 'top' in row]
    for row in good:
        number = int(re.search(r'(\d\d)\.\w+$', row['file'])[1])
        assert row['top'][0]['class'] == number % 3
        assert row['top'][0]['label'] == NAMES[number % 3]
        assert sum(entry['probability'] for entry in row['top']) == pytest.approx(1, abs=1e-5)
    bad = [row for row in rows if 'error' in row]
    assert len(good) == 11 and [row['file'][-12:] for row in bad] == ['s/50_cut.jpg', '/51_text.png', '52_empty.gif'][:3]
    assert '11 images, 3 skipped' in found.err
    assert set(brightness.calls) == {batch_size or 8}


def test_bad_images_as_text(images, capsys):
    found = run(capsys, images)
    assert found.err.count('; skipped\n') == 3 and '51_text.png: not an image' in found.err
    assert '11 images, 3 skipped' in found.out and 'skipped\n' not in found.out


def test_name_that_is_not_utf8(tmp_path, capsys):
    """Programs that take no half surrogate pairs can read the lines."""
    path = tmp_path / os.fsdecode(b'\xfc.png')
    Image.new('RGB', (90, 90)).save(path)
    line = run(capsys, path, '--json').out
    assert json.loads(line)['file'] == f'{tmp_path}/\\udcfc.png' and json.loads(line)['file'].encode()


def test_without_names(images, model, capsys):
    model['class_names'] = None
    assert '%  class 2\n' in run(capsys, images / '05.jpg').out


def test_page(images, tmp_path, capsys):
    """One file that needs no other: every image scaled down, its classes, names escaped."""
    run(capsys, images, '--html', tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text()
    thumbnails = [
        Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    ]
    assert len(thumbnails) == 11 and max(max(image.size) for image in thumbnails) == decoding.THUMBNAIL
    levels = [np.asarray(image).mean() for image in thumbnails]
    assert (
        np.abs(
            np.array(levels)
            - np.array(
                [
                    v[1]
                    for v in sorted(
                        (p.relative_to(images), np.asarray(Image.open(p)).mean()) for p in images.rglob('[01]*.*')
                    )
                ]
            )
        ).max()
        < 3
    )
    assert page.count('class="row"') == 33 and page.count('; skipped') == 3 and '11 images, 3 skipped' in page
    assert 'a &lt;i&gt; ü/' in page and '&lt;b&gt;&quot;medium' in page and '<i>' not in page
    assert not re.search(r'(src|href)="(?!data:)', page) and page.endswith('</html>\n')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['images', 'page.html']


def test_page_says_what_it_shows(images, tmp_path, monkeypatch, capsys):
    """The model, how many images, of how many classes; names without the present directory."""
    monkeypatch.chdir(images)
    run(capsys, '05.jpg', images / 'a <i> ü', '--top', 2, '--html', tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text()
    assert '<h1>Predictions of net.mindir for 5 images</h1>' in page
    assert '<p>The 2 likeliest of 3 classes, with their probabilities.</p>' in page
    assert '<figcaption>05.jpg<' in page and '<figcaption>a &lt;i&gt; ü/00.PNG<' in page
    run(capsys, images, '--html', tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text()
    assert '<h1>Predictions of net.mindir for images</h1>' in page and 'The 3 likeliest of 3 classes' in page


def test_several_sources(images, capsys):
    """In the order given, of a directory by name."""
    given = images / '09.jpg', images / 'a <i> ü', images / '05.jpg'
    found = run(capsys, *given, '--json')
    assert [json.loads(line)['file'] for line in found.out.splitlines()] == [
        str(given[0]),
        *(str(given[1] / f'{i:02}.PNG') for i in range(4)),
        str(given[2]),
    ]
    assert re.match(r'6 images, [\d.]+ images/s', found.err.splitlines()[-1])


def test_top_of_a_file_that_gives_the_five_best(images, model, capsys):
    model['num_classes'] = 1000
    with pytest.raises(SystemExit):
        run(capsys, images / '05.jpg', '--top', 7)
    assert capsys.readouterr().err == (
        'error: top 7: the model gives 3 classes; take fewer, or export it with --export_output softmax, which gives all\n'
    )
    model['num_classes'] = 6
    brightness.calls = []
    with pytest.raises(SystemExit):
        run(capsys, images / '05.jpg', '--top', 7)
    assert capsys.readouterr().err == 'error: top 7: the model gives 6 classes; take fewer\n' and not brightness.calls


def test_page_marks_what_is_wrong_by_the_folder(tmp_path, capsys):
    """Where an image lies in a folder that is called as a class. No path of this machine stands on the page."""
    for folder, level in (('high', 240), ('low', 240), ('other', 20)):
        (tmp_path / 'photos' / folder).mkdir(parents=True)
        Image.new('RGB', (90, 90), (level,) * 3).save(tmp_path / 'photos' / folder / 'a.png')
    run(capsys, tmp_path / 'photos', '--html', tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text()
    captions = [
        '<figcaption>high/a.png</figcaption><div',
        '<figcaption>low/a.png</figcaption><p>wrong: its folder is low</p>',
    ]
    assert all(caption in page for caption in captions) and page.count('"wrong"') == 1 and str(tmp_path) not in page


def test_page_is_made_although_nobody_reads_the_lines(images, tmp_path, monkeypatch):
    """Without a page to make, the end of the reader is the end."""

    def behind_a_closed_pipe(*arguments):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, 'w', 1) as closed:
            monkeypatch.setattr(sys, 'stdout', closed)
            predict.main([str(images), '--model', 'net.mindir', *arguments])

    behind_a_closed_pipe('--html', str(tmp_path / 'page.html'))
    assert (tmp_path / 'page.html').read_text().count('class="row"') == 33
    with pytest.raises(SystemExit) as stopped:
        behind_a_closed_pipe()
    assert stopped.value.code == 141 and len(brightness.calls) == 3 + 2


def test_whole_images_go_through_the_evaluation_preprocessing(tmp_path, model, capsys):
    """Only the central crop counts: a bright frame around a dark middle is dark."""
    image = np.full((400, 400, 3), 255, np.uint8)
    image[25:375, 25:375] = 10
    Image.fromarray(image).save(tmp_path / 'framed.png')
    assert json.loads(run(capsys, tmp_path / 'framed.png', '--json').out)['top'][0]['label'] == 'low'


def test_images_are_turned_upright(tmp_path, capsys):
    """As their EXIF says, for the network and on the page: a bright top that is stored at the left."""
    exif, stored = Image.Exif(), np.zeros((60, 90, 3), np.uint8)
    exif[0x112], stored[:, :45] = 6, 255
    Image.fromarray(stored).save(tmp_path / 'turned.jpg', exif=exif)
    _, image, _, thumbnail = decoding.load(str(tmp_path / 'turned.jpg'), 32, PREPROCESSING, True)
    assert image[:12].min() > 200 and image[-12:].max() < 50
    thumbnail = np.asarray(Image.open(io.BytesIO(thumbnail)))
    assert thumbnail.shape == (90, 60, 3) and thumbnail[:30].min() > 200


def test_next_batch_is_decoded_meanwhile(images, model, monkeypatch, capsys):
    """While a batch is in the network, all images of the next one are decoded."""
    load, loaded, calls = decoding.load, queue.Queue(), []

    def announced(path, **arguments):
        found = load(path, **arguments)
        loaded.put(path)
        return found

    def slow(images):
        calls.append(len(images))
        if len(calls) > 1:  # the first one only compiles
            for _ in range(8 if len(calls) == 2 else 4 if len(calls) < 4 else 0):
                loaded.get(timeout=20)
        return brightness(images)

    monkeypatch.setattr(decoding, 'load', announced)
    model.update(probabilities=slow, batch_size=4)
    images = images / 'a <i> ü'
    for i in range(4, 14):
        (images / f'{i:02}.PNG').write_bytes((images / '00.PNG').read_bytes())
    assert len(run(capsys, images, '--json').out.splitlines()) == 14


def test_memory_is_bounded(model, images):
    """However many images there are, those of four batches at most are decoded and not yet printed."""
    drawn = []

    def paths():
        for n in range(200):
            drawn.append(n)
            yield str(images / f'{4 + n % 7:02}.jpg')

    for n, prediction in enumerate(predict.predict(Predictor(**model), paths(), batch_size=4)):
        assert prediction.top and len(drawn) - n <= 4 * 4
    assert len(drawn) == 200 and brightness.calls == [4] * 50


def test_standard_input_of_a_program_that_waits_for_answers(model, images, monkeypatch):
    """Each line is answered before the next one comes, and an end in between does not wait for a line."""
    reader, writer = os.pipe()
    with open(reader) as lines, open(writer, 'w', 1) as program:
        monkeypatch.setattr(sys, 'stdin', lines)
        predictions = predict.predict(Predictor(**model), sources.standard_input(), batch_size=4)
        for line, path in (('05.jpg', '05.jpg'), (f'file://{images}/06.jpg', '06.jpg'), ('none.jpg', 'none.jpg')):
            program.write(f'{line if "://" in line else images / line}\n')
            found = next(predictions)
            assert found.path == str(images / path) and (found.error is None) == (path != 'none.jpg')
        predictions.close()


def test_standard_input_to_its_end(model, images, monkeypatch, capsys):
    reader, writer = os.pipe()
    with open(writer, 'w') as program:
        program.write(f'{images}\n\n{images}/0[56].jpg\n{images}/none.jpg')
    with open(reader) as lines:
        monkeypatch.setattr(sys, 'stdin', lines)
        found = run(capsys, '-', '--json')
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert len(rows) == 14 + 2 + 1 and [row['file'][-6:] for row in rows[-3:]] == ['05.jpg', '06.jpg', 'ne.jpg']
    assert rows[-1]['error'] == 'No such file or directory' and '13 images, 4 skipped' in found.err


@pytest.mark.parametrize(
    'source, expected',
    [
        ('{}/0*.jpg', [f'{i:02}.jpg' for i in range(4, 10)]),
        ('{}/**/*', [*(f'a <i> ü/{i:02}.PNG' for i in range(4))]),
        ('file://{}/a%20%3Ci%3E%20%C3%BC', [f'a <i> ü/{i:02}.PNG' for i in range(4)]),
        ('file://localhost{}/05.jpg', ['05.jpg']),
        ('{}/list.txt', ['05.jpg', '04.jpg', '06.jpg', 'none.jpg', '05.jpg']),
    ],
)
def test_sources(source, expected, images):
    (images / 'list.txt').write_text(f'{images}/05.jpg\n\n{images}/0[46].jpg\r\n{images}/none.jpg\nfile://{images}/05.jpg\n')
    found = sources.find_images(source.format(images))
    if '**' in source:  # at any depth, in the order of the names
        assert found == sorted(found) and len(found) == 14
        found = found[-4:]
    assert found == [f'{images}/{name}' for name in expected]


def test_batch_size(images, model, capsys):
    run(capsys, images, '--json', '--batch_size', 5)
    assert brightness.calls == [5] * 4  # with the first one
    model['batch_size'] = 2
    with pytest.raises(SystemExit):
        run(capsys, images, '--batch_size', 5)
    assert re.match('error: batch_size 5: net.mindir was exported for batches of 2; ', capsys.readouterr().err)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['{}/none'], 'none: no such image or directory'),
        (['{}/a'], 'a: no image in it'),
        (['{}/b.jpg'], 'b.jpg: no image that can be read'),
        (['{}/c.jpg', '{}/none'], 'none: no such image'),
        (['{}/b.jpg', '{}/b.jpg'], '2 images: no image that can be read'),
        (['{}/[xy].jpg'], 'no image fits it'),
        (['https://a.b/c.jpg'], 'https://a.b/c.jpg: only file:// URLs of this machine are read; download it first'),
        (['file://host/c.jpg'], 'only file:// URLs of this machine'),
        (['{}/list.txt'], 'list.txt: names no image; give one path a line'),
        (['-', '{}/c.jpg'], 'stands alone'),
        (['{}/c.jpg', '--batch_size', 0], 'batch_size'),
        (['{}/c.jpg', '--top', 9], 'top 9: the model gives 3 classes; take fewer$'),
        (['{}/c.jpg', '--html', '/proc/none/page'], 'html /proc/none/page: cannot be written'),
    ],
)
def test_bad_input(arguments, message, tmp_path, capsys):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'list.txt').write_text('\n')
    (tmp_path / 'b.jpg').write_bytes(b'no image')
    Image.fromarray(demo_images.draw('red', 'plain', 'disc', np.random.default_rng(0))).save(tmp_path / 'c.jpg')
    with pytest.raises(SystemExit) as stopped:
        run(capsys, *(str(a).format(tmp_path) for a in arguments))
    last = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and last.startswith('error: ') and re.search(message, last)
