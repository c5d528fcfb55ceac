"""A folder of photos and a weights file become a classifier, in a directory of its own; bad input is one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from src import workflow
from src.data.split import open_list
from src.weights import checkpoint
from tests.data.samples import jpeg
from tests.test_end_to_end import ROOT, message_of, run


def make_photos(path):
    for number, name in enumerate(['sea & sky', 'деревья']):
        (path / name).mkdir(parents=True)
        for k in range(6):
            (path / name / f'{k}{" é" * (k % 2)}.png').write_bytes(jpeg([number, k], (90, 80), form='PNG'))
    (path / name / 'broken.jpg').write_bytes(b'x')
    return path


@pytest.mark.compiles
def test_from_photos_to_a_classifier(weights, tmp_path):
    photos, output = make_photos(tmp_path / 'my photos'), tmp_path / 'out put'
    before = {path: path.read_bytes() for path in photos.rglob('*') if path.is_file()}
    command = ['run_finetune.sh', photos, weights, output, '--max_epochs', 1, '--num_workers', 1]
    status, out, err = run(*command, cwd=tmp_path)
    assert status == 0, err
    assert 'broken.jpg: not an image' in err and out.startswith(f'fine-tunes {weights.name} on the photos in {photos}; ')
    for row in (
        'photos .*my photos',
        'classes +2: sea & sky, деревья',
        'split +10 to train with, 2 to validate',
        'training',
    ):
        assert re.search(rf'^{row}', out, re.M), out
    for name, file in [
        ('checkpoint', 'training/inceptionv4-best.ckpt'),
        ('MINDIR', 'inceptionv4.mindir'),
        ('ONNX', 'inceptionv4.onnx'),
        ('predictions', 'predictions.html'),
        ('report', 'report/index.html'),
        ('curves', 'training/training.html'),
    ]:
        assert re.search(rf'^{name} +{output / file}$', out, re.M) and (output / file).stat().st_size, out
    # Two classes have no top-5; the best was evaluated by the training, and there is one report; one checkpoint is kept.
    assert re.search(r'^top-1 +[\d.]+ % of 2 validation photos$', out, re.M) and not re.search('top-?5 .*100', out)
    assert re.search(r'^ +1 +1.0 +[\d.]+ +- ', out, re.M) and 'eval.py' not in out
    assert [*output.rglob('report.json')] == [output / 'report/report.json']
    assert len([*output.rglob('inceptionv4-*_*.ckpt')]) == 1
    page = (output / 'predictions.html').read_text()
    assert str(photos) not in page and 'деревья/' in page
    described = json.loads((output / 'inceptionv4.json').read_text())
    assert described['classes'] == ['sea & sky', 'деревья'] and described['input']['shape'][2:] == [75, 75]
    config = checkpoint.load(output / 'training/inceptionv4-best.ckpt')[1]['config']
    assert (config['block_counts'], config['batch_size'], config['optimizer']) == ([1, 1, 1], 10, 'momentum')
    parts = open_list(output / 'split.csv')
    assert sum(map(len, parts.values())) == 12 and len(parts['validation']) == 2
    assert {path: path.read_bytes() for path in photos.rglob('*') if path.is_file()} == before

    # The same again does nothing twice, whatever eval.py may have left.
    (output / 'training/evaluation.json').touch()
    changed = {
        path: path.stat().st_mtime_ns for path in output.rglob('*') if path.suffix in ('.ckpt', '.html', '.onnx', '.csv')
    }
    status, out, err = run(*command, cwd=tmp_path)
    assert status == 0, err
    assert re.findall(r'^\$ python (?:-m )?(\S+)', out, re.M) == ['src.data.convert', 'train.py']
    assert 'training is complete' in out and re.search(rf'^report +{output}/report/index.html$', out, re.M)
    assert all(path.stat().st_mtime_ns == when for path, when in changed.items())


@pytest.mark.parametrize(
    'photos, options, epochs',
    [
        (122, [], 29),  # 7 steps each
        (16, [], 200),
        (5000, [], 3),  # those of the recipe
        (122, ['--lr', '0.1'], 29),
        (122, ['--max_epochs=3'], None),
        (122, ['--max_train_steps', '9'], None),
    ],
)
def test_few_photos_are_seen_more_often(photos, options, epochs):
    """The cosine ends with the training. Who says how long is believed."""
    expected = [] if epochs is None else ['--max_epochs', f'{epochs}', '--T_max', f'{epochs}']
    assert workflow.epochs_for(photos, 16, {'max_epochs': 3}, options) == expected


@pytest.fixture
def attempt(weights, tmp_path, capsys, monkeypatch):
    """Runs the program on good photos and weights, or on others; gives its one line and sees that no output was begun."""
    photos = make_photos(tmp_path / 'photos')
    started = []
    monkeypatch.setattr(workflow, 'start', lambda *arguments, **_: started.append(arguments))

    def fail(*arguments):
        given = {'PHOTOS': photos, 'WEIGHTS': weights, 'OUT': tmp_path / 'out'}
        arguments = [str(given.get(a, a)).replace('PHOTOS', str(photos)) for a in arguments]
        monkeypatch.setattr(sys, 'argv', ['workflow', 'finetune', *arguments])
        line = message_of(lambda _: workflow.main(), (), capsys)
        assert not started
        return line

    return fail


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'nothing is given before the options; the usage is bash'),
        (['PHOTOS'], 'the usage is bash'),
        (['PHOTOS', 'WEIGHTS', 'OUT', 'more'], 'the usage is bash'),
        (['PHOTOS', 'WEIGHTS', 'OUT', '--lr', 'abc'], "lr is 'abc'"),
        (['PHOTOS', 'WEIGHTS', 'OUT', '--log_dir=x'], '--log_dir is set by the fine-tuning itself'),
        (['nowhere', 'WEIGHTS', 'OUT'], 'nowhere: No such file or directory'),
        (['WEIGHTS', 'WEIGHTS', 'OUT'], 'Not a directory'),
        (['PHOTOS/деревья', 'WEIGHTS', 'OUT'], 'no image in'),
        (['PHOTOS', 'nothing.ckpt', 'OUT'], 'nothing.ckpt: No such file'),
        (['PHOTOS', 'PHOTOS', 'OUT'], 'Is a directory'),
        (['PHOTOS', 'PHOTOS/деревья/broken.jpg', 'OUT'], 'broken.jpg: empty, or text'),
        (['PHOTOS', 'WEIGHTS', 'PHOTOS/out'], 'in the folder of the photos'),
    ],
)
def test_bad_input(arguments, message, attempt, tmp_path):
    assert message in attempt(*arguments)
    assert not (tmp_path / 'out').exists() and not (tmp_path / 'photos/out').exists()


def test_output_of_something_else(attempt, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/diary.txt').write_text('dear diary')
    assert 'finetune.json: is missing, but diary.txt is there' in attempt('PHOTOS', 'WEIGHTS', 'OUT')
    assert os.listdir(tmp_path / 'out') == ['diary.txt']
    (tmp_path / 'file').write_text('x')
    assert 'file: File exists' in attempt('PHOTOS', 'WEIGHTS', str(tmp_path / 'file'))


def test_output_of_another_fine_tuning(attempt, tmp_path):
    """Other photos, another seed: an error before anything is changed. What it was made from is noted first of all."""
    made_from = {'photos': '/elsewhere (3 with ...)', 'weights': 'w', 'seed': '1'}
    workflow.claim(tmp_path / 'out', {**made_from, 'seed': '2'})
    workflow.claim(tmp_path / 'out', made_from)  # nothing was begun with the other seed
    (tmp_path / 'out/split.csv').touch()
    workflow.claim(tmp_path / 'out', made_from)
    assert 'is of photos /elsewhere (3 with ...), now ' in attempt('PHOTOS', 'WEIGHTS', 'OUT')
    (tmp_path / 'out' / workflow.NAME).write_text('{')
    assert 'finetune.json: is damaged' in attempt('PHOTOS', 'WEIGHTS', 'OUT')


def test_missing_packages_and_figures(weights, tmp_path, monkeypatch):
    """A row says which package is missing, the rest is made; eval.py runs once where training has recorded no figures."""
    trained, started = tmp_path / 'training' / weights.name, []
    trained.parent.mkdir()
    weights.rename(trained)
    (tmp_path / 'training/evaluation.json').write_text('[1, {"step": 0, "top1": 9, "images": 2}, {"step": 1}]')

    def record(program, *arguments, **_):
        started.append(program)
        if program == 'eval.py':
            figures = [{'step': 1, 'top1': 50.0, 'top5': None, 'images': 2}]
            (tmp_path / 'training/evaluation.json').write_text(json.dumps(figures))
            (tmp_path / 'report').mkdir()
            (tmp_path / 'report/index.html').touch()

    monkeypatch.setattr(workflow, 'start', record)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    for _ in range(2):
        assert dict(workflow.evaluate(trained, tmp_path, 4))['top-1'] == '50.0 % of 2 validation photos'
    photo = type('Photos', (), {'__len__': lambda _: 1, 'where': lambda _, k: 'photo.jpg'})()
    rows = dict(workflow.export_and_predict(trained, tmp_path, photo))
    assert 'ONNX needs the package onnx; pip install' in rows['ONNX']
    assert started == ['eval.py', 'export.py', 'src.deploy.predict']
    trained.rename(weights)


PROGRAM = """
import signal, sys, time
def save(*_):
    time.sleep(1)  # longer than subprocess.run would wait
    print('saved', flush=True)
    sys.exit(77)
signal.signal(signal.SIGINT, save), signal.signal(signal.SIGTERM, save)
print('ready', flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.compiles
def test_a_signal_goes_to_the_program(number, tmp_path):
    """It ends in its own time, and its status is that of the program which has started it."""
    (tmp_path / 'started.py').write_text(PROGRAM)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    code = 'from src.workflow import start\nstart("started", "a b")\nprint("not reached")'
    child = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': path}
    )
    lines = [child.stdout.readline() for _ in range(3)]
    assert lines == ['\n', "$ python -m started 'a b'\n", 'ready\n']
    time.sleep(0.2)
    child.send_signal(number)
    assert (child.communicate(timeout=20)[0], child.returncode) == ('saved\n', 77)


def test_status_of_a_program(capfd, tmp_path, monkeypatch):
    (tmp_path / 'src.py').touch()  # of another project, in the present directory
    monkeypatch.chdir(tmp_path)
    assert workflow.start('src.data.check', '--help') == 0
    assert workflow.start('src.data.check', '/nowhere', good=(0, 2)) == 2
    with pytest.raises(SystemExit) as stopped:
        workflow.start('src.data.check', '/nowhere')
    assert stopped.value.code == 2 and '/nowhere: No such file' in capfd.readouterr().err
