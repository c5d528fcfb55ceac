"""A folder of photos and a weights file become a classifier, in a directory of its own; bad input is one line."""

import json
import os
import re
import signal
import sys
import time

import numpy as np
import pytest

from src import workflow
from src.data.split import split, write_list
from src.errors import InputError
from src.options import load_settings
from src.weights import checkpoint
from tests.data.samples import jpeg
from tests.processes import ROOT, Program
from tests.test_end_to_end import message_of, run

NAMES = ['New  York ', os.fsdecode(b'd\xf6g'), 'sea & sky', 'деревья']


def make_photos(path, names=NAMES[2:]):
    for number, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for k in range(6):
            file = path / name / f'{k}{" é" * (k % 2)}{NAMES[1] * (k == 0)}.png'
            file.write_bytes(jpeg([number, k], (90, 80), form='PNG'))
    (path / name / 'broken.jpg').write_bytes(b'x')
    return path


@pytest.mark.compiles
def test_from_photos_to_a_classifier(weights, tmp_path):
    photos, output = make_photos(tmp_path / 'my photos', NAMES), tmp_path / 'out put'
    content = {path: path.read_bytes() for path in photos.rglob('*') if path.is_file()}
    command = ['run_finetune.sh', photos, weights, output, '--max_epochs', 1, '--num_workers', 1]
    status, out, err = run(*command, cwd=tmp_path)
    assert status == 0, err
    assert 'broken.jpg: not an image' in err and out.startswith(f'fine-tunes {weights.name} on the photos in {photos}; ')
    for name, text in [
        ('classes', r'4: New  York , d\\udcf6g, sea & sky, деревья'),
        ('split', '20 to train with, 4 to validate with, .*'),
        ('training', '1 step.*'),
        ('top-1', r'[\d.]+ % of 4 validation images'),  # so few classes have no top-5
        *((name.upper(), output / f'inceptionv4.{name}') for name in ('mindir', 'onnx')),
        ('checkpoint', output / 'training/inceptionv4-best.ckpt'),
        ('predictions', output / 'predictions.html'),
        ('report', output / 'report/index.html'),
        ('curves', output / 'training/training.png'),
    ]:
        assert re.search(rf'^{name} +{text}$', out, re.M), (name, out)
        assert not isinstance(text, type(output)) or text.exists()
    # The training has evaluated its best weights, and there is one report; one checkpoint is kept.
    assert re.search(r'^ +1 +1.0 +[\d.]+ +- ', out, re.M) and 'eval.py' not in out
    assert [*output.rglob('report.json')] == [output / 'report/report.json']
    assert len([*output.rglob('inceptionv4-*_*.ckpt')]) == 1
    page = (output / 'predictions.html').read_text()
    assert str(photos) not in page and 'деревья/' in page
    described, report = (json.loads((output / f).read_text()) for f in ('inceptionv4.onnx.json', 'report/report.json'))
    assert described['classes'] == [one['name'] for one in report['per_class']] == NAMES
    assert page.count('wrong: its folder is ') == report['confident_mistakes']['count'] > 0
    assert described['input']['shape'][2:] == [75, 75] and '0 é' not in (output / 'report/images.csv').read_text()
    info = checkpoint.load(output / 'training/inceptionv4-best.ckpt')[1]
    assert info['class_names'] == ['background', *NAMES]
    # Everything but the classifier was restored, frozen layers stay, and one step is not another initialisation.
    assert re.search(r'parameters loaded, all but logits.weight, logits.bias$', out, re.M)
    before, after = checkpoint.load(weights)[0], checkpoint.load(output / 'training/inceptionv4-best.ckpt')[0]
    assert before['logits.weight'].shape == (7, 1536) and after['logits.weight'].shape == (4, 1536)
    assert all(np.array_equal(after[name], before[name]) for name in before if re.match('conv2d_|mixed_[3-6]', name))
    moved = 'mixed_7b.branch_0.conv2d_0a_1x1.conv.weight'
    assert 0 < np.linalg.norm(after[moved] - before[moved]) / np.linalg.norm(before[moved]) < 0.5
    config = info['config']
    assert (config['block_counts'], config['batch_size'], config['optimizer']) == ([1, 1, 1], 16, 'momentum')
    assert {path: path.read_bytes() for path in photos.rglob('*') if path.is_file()} == content

    # The same again does nothing twice.
    files = [path for path in output.rglob('*') if path.suffix in ('.ckpt', '.html', '.onnx', '.csv')]
    changed = {path: path.stat().st_mtime_ns for path in files}
    status, out, err = run(*command, cwd=tmp_path)
    assert status == 0, err
    assert re.findall(r'^\$ python (?:-m )?(\S+)', out, re.M) == ['src.data.convert', 'train.py']
    assert 'training is complete' in out and re.search(rf'^report +{output}/report/index.html$', out, re.M)
    assert all(path.stat().st_mtime_ns == when for path, when in changed.items())


@pytest.fixture
def attempt(weights, tmp_path, monkeypatch):
    """Runs the program on good photos and weights, or on others, as far as the training; the programs that it starts."""
    photos, started = make_photos(tmp_path / 'photos'), []

    def start(program, *arguments):
        started.append((program, *map(str, arguments)))
        if program == 'src.data.split':
            write_list(split(arguments[0], workers=1)[0], arguments[1])
        if program == 'train.py':
            raise SystemExit

    def call(*arguments):
        given = {'PHOTOS': photos, 'WEIGHTS': weights, 'OUT': tmp_path / 'out', 'PHOTOS/out': photos / 'out'}
        monkeypatch.setattr(workflow, 'start', start)
        monkeypatch.setattr(sys, 'argv', ['workflow', 'finetune', *(str(given.get(a, a)) for a in arguments)])
        workflow.main()

    call.started = started
    return call


GOOD = ('PHOTOS', 'WEIGHTS', 'OUT')


@pytest.mark.parametrize('batch_size, expected', [(0, 10), (999, 10), (4, 4)])
def test_a_batch_has_no_more_images_than_there_are(batch_size, expected, attempt):
    """Few images are seen more often, unless somebody says how long; the cosine ends with the training."""
    with pytest.raises(SystemExit):
        attempt(*GOOD, f'--batch_size={batch_size}')
    assert [program for program, *_ in attempt.started] == ['src.data.split', 'src.data.convert', 'train.py']
    words = attempt.started[-1]
    assert words[-2:] == ('--batch_size', f'{expected}') and {'--block_counts=1,1,1', '--image_size=75'} <= {*words}
    (epochs,) = (int(word.partition('=')[2]) for word in words if word.startswith('--max_epochs'))
    assert 200 <= 10 // expected * epochs < 200 + 10 // expected and f'--T_max={epochs}' in words
    assert workflow.epochs_for(5000, expected, {'max_epochs': 3}, []) == ['--max_epochs=3', '--T_max=3']


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'nothing is given before the options; the usage is bash'),
        ([*GOOD, '--log_dir=x'], '--log_dir is set by the fine-tuning itself'),
        (['nowhere', 'WEIGHTS', 'OUT'], 'nowhere: No such file or directory'),
        (['PHOTOS', 'nothing.ckpt', 'OUT'], 'begin with; docs/weights.md has published weights'),
        (['PHOTOS', 'nothing.ckpt', 'OUT'], 'nothing.ckpt: No such file or directory; name a checkpoint'),
        (['PHOTOS', 'WEIGHTS', 'PHOTOS/out'], 'in the folder of the photos'),
    ],
)
def test_bad_input(arguments, message, attempt, tmp_path, capsys):
    assert message in message_of(lambda words: attempt(*words), arguments, capsys)
    assert not attempt.started and not (tmp_path / 'out').exists() and not (tmp_path / 'photos/out').exists()


@pytest.mark.parametrize('noted', ['', '{"photos": "/elsewhere (3 with ...)", "weights": "w", "seed": "1"}'])
def test_output_of_something_else(noted, attempt, tmp_path, capsys):
    """Or of another fine-tuning: an error before anything is changed."""
    (tmp_path / 'out').mkdir()
    for name, content in {'diary.txt': 'dear diary', **({workflow.NOTE: noted} if noted else {})}.items():
        (tmp_path / 'out' / name).write_text(content)
    text = message_of(lambda words: attempt(*words), GOOD, capsys)
    assert 'finetune.json: diary.txt beside it was made by something else, or of another photos, now ' in text
    assert '; give another directory for OUTPUT, or remove this one' in text and not attempt.started
    assert os.listdir(tmp_path / 'out') == [*['finetune.json'] * bool(noted), 'diary.txt']


@pytest.mark.parametrize('content', ['', '[]', '{"top1": 99.0}'])
def test_report_that_is_empty_or_of_an_earlier_version(content, tmp_path):
    for name in ('training/inceptionv4-best.ckpt', 'report/report.json', 'report/index.html'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match='report/report.json: .*; remove .*/report, it is made again'):
        workflow.use(tmp_path, load_settings([]), (), [])


PROGRAM = """
import signal, sys, time
def save(*_):
    time.sleep(1)  # longer than subprocess.run would wait
    print('saved', flush=True)
    sys.exit(77)
signal.signal(signal.SIGINT, save), signal.signal(signal.SIGTERM, save)
print('ready', flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize('number, status', [(signal.SIGINT, 77), (signal.SIGTERM, 77), (signal.SIGKILL, -9)])
@pytest.mark.compiles
def test_a_signal_goes_to_the_program(number, status, tmp_path):
    """It ends in its own time, and its status is that of the program which has started it; also where that one is killed."""
    (tmp_path / 'started.py').write_text(PROGRAM)
    code = "from src.workflow import start; start('started', 'a b'); print('not reached')"
    with Program(tmp_path, '-c', code, environ={'PYTHONPATH': f'{ROOT}{os.pathsep}{tmp_path}'}) as child:
        child.reach('^ready$')
        time.sleep(0.5)  # in which `start` has long begun to wait
        child.process.send_signal(number)
        child.end(status)
        assert child.text == "\n$ python -m started 'a b'\nready\nsaved\n"
