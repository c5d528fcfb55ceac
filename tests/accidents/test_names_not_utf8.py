"""Names that are not UTF-8, as of old cameras and archives: they look everywhere as on the screen, and end nothing."""

import csv
import json
import os
from pathlib import Path

import pytest

import eval as evaluation
import export
import train
from src.options import load_settings
from src.weights import checkpoint
from tests.accidents.test_lost_work import call
from tests.data.samples import cli, fails, jpeg

PHOTO, SHOWN = os.fsdecode(b'caf\xe9'), 'caf\\udce9'
CLASS, SHOWN_CLASS = os.fsdecode(b'd\xf6g'), 'd\\udcf6g'


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Class folders, in `data` in parts; one has a file that is no image, and one that is left out."""
    place = tmp_path_factory.mktemp('photos')
    for part, count in (('data/train', 4), ('data/validation', 2), ('all', 4)):
        for c, name in enumerate(('cat', CLASS)):
            (place / part / name).mkdir(parents=True)
            for k in range(count):
                (place / part / name / f'{PHOTO}{k}.jpg').write_bytes(jpeg([c, k]))
        (place / part / 'cat' / f'{PHOTO}.jpg').write_bytes(b'no image')
        (place / part / 'cat' / f'{PHOTO}.txt').write_bytes(b'a note')
    return place


def test_programs_for_data(photos, tmp_path):
    listed, records = tmp_path / f'{PHOTO}.csv', tmp_path / f'{PHOTO}.tfrecord'
    done = cli('split', photos / 'all', listed)
    assert done.returncode == 0 and f'cat/{SHOWN}.jpg: not an image' in done.stdout + done.stderr, done.stderr
    done = cli('check', photos / 'data')
    assert done.returncode == 1 and f'cat/{SHOWN}.jpg' in done.stdout + done.stderr, done.stderr
    done = cli('convert', '--list', listed, '--dst', records, '--format', 'tfrecord', '--shards', 1, '--fix')
    assert done.returncode == 0 and f'{SHOWN}.tfrecord: train, ' in done.stdout + done.stderr, done.stderr
    assert cli('check', records).returncode == 0
    other = tmp_path / f'{PHOTO}.mindrecord'
    fails(cli('convert', '--list', listed, '--dst', other, '--format', 'mindrecord', '--shards', 1), SHOWN, 'not UTF-8')


@pytest.mark.slow
@pytest.mark.compiles
def test_training_evaluation_export_and_prediction(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / PHOTO
    small = '--image_size 75 --block_counts 1,1,1 --batch_size 4 --device_target CPU --num_workers 1 --lr 0.001'.split()
    options = ['--data_dir', photos / 'data', *small, '--log_dir', log]
    more = ['--mode', 'train_and_evaluate', '--epochs_between_evals', '1', '--max_train_steps', '4', '--display_every', '1']
    (photos / 'data/validation/cat' / f'{PHOTO}.jpg').unlink(missing_ok=True)  # a validation image must be one
    status, text = call(train.main, [*options, *more], capsys)
    assert status == 0, text
    lines = (log / 'inception_v4.log').read_text()
    assert f'cat/{SHOWN}.txt' in lines and f'cat/{SHOWN}.jpg' in lines and f'checkpoints in {tmp_path}/{SHOWN}' in lines
    records = [json.loads(line) for line in (log / 'metrics.jsonl').read_text().splitlines()]
    assert records[0]['config']['log_dir'] == str(tmp_path / SHOWN)
    assert load_settings(['--config_path', str(log / 'config.yaml')]).log_dir == str(log)

    evaluated = ['--data_dir', photos / 'data', *small, '--ckpt_path', log / checkpoint.BEST, '--report', f'report{PHOTO}']
    status, text = call(evaluation.main, evaluated, capsys)
    assert status == 0 and f'report: report{SHOWN}/index.html' in text, text
    with open(f'report{PHOTO}/images.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert {row['true'] for row in rows} == {'cat', SHOWN_CLASS} and rows[0]['name'] == f'{SHOWN}0.jpg'
    assert SHOWN_CLASS in [one['name'] for one in json.loads(Path(f'report{PHOTO}/report.json').read_text())['per_class']]
    assert json.loads((log / 'evaluation.json').read_text())[0]['checkpoint'] == f'{tmp_path}/{SHOWN}/{checkpoint.BEST}'

    exported = ['--ckpt_path', log / checkpoint.BEST, '--file_name', 'model', '--device_target', 'CPU']
    status, text = call(export.main, exported, capsys)
    assert status == 0, text
    assert json.loads(Path('model.json').read_text())['classes'] == ['cat', SHOWN_CLASS]

    # The name of its source is recorded in a checkpoint.
    from src.weights.__main__ import main as weights

    for command in (
        ['export-timm', log / checkpoint.BEST, '--out', f'{PHOTO}.safetensors'],
        ['import', f'{PHOTO}.safetensors', '--out', f'{PHOTO}.ckpt'],
    ):
        status, text = call(weights, command, capsys)
        assert status == 0, text
    assert checkpoint.load(f'{PHOTO}.ckpt')[1]['source'].endswith(f' {SHOWN}.safetensors')
