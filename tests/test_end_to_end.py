"""The real entry points on tiny generated data, and every kind of bad input: one line, exit status 2."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import eval as eval_entry
import export
import train
from src.data.records import open_records
from src.data.tfrecord import write_shards
from src.evaluation import evaluation
from src.evaluation.outcomes import Result
from src.inceptionv4 import InceptionV4
from src.training import metrics
from src.weights import checkpoint
from src.weights.__main__ import main as weights_entry
from src.weights.read import read_weights
from tests.conftest import SMALL
from tests.weights import tensorflow

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r'^step: \d+ epoch: [\d.]+ FPS: ([\d.]+|-) loss: [\d.]+ total_loss: [\d.]+ lr:[\d.]+$', re.M)


def run(script, *arguments, cwd, timeout=400):
    """Run a script as a user would; (status, stdout, stderr)."""
    command = [sys.executable, str(ROOT / script)] if script.endswith('.py') else ['bash', str(ROOT / script)]
    result = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, 'PYTHON': sys.executable},
    )
    return result.returncode, result.stdout, result.stderr


@pytest.fixture(scope='module')
def trained(compiles, data, tmp_path_factory):
    """Folder in which a training of 20 steps was run, and what it printed."""
    folder = tmp_path_factory.mktemp('a folder')
    status, out, err = run(
        'scripts/run_standalone_train.sh',
        '--data_dir',
        data,
        *SMALL,
        '--mode',
        'train_and_evaluate',
        '--max_train_steps',
        20,
        '--display_every',
        5,
        '--epochs_between_evals',
        1,
        '--lr',
        0.01,
        '--save_checkpoint_steps',
        4,
        '--keep_checkpoint_max',
        3,
        '--bn_decay',
        0.9,
        '--aux_logits',
        'true',
        '--use_nesterov',
        'true',
        cwd=folder,
    )
    assert status == 0, err
    return folder, out


def test_training(trained):
    folder, out = trained
    directory = folder / 'results/1p/0/ckpt'
    assert out.startswith('device: CPU (auto: MindSpore sees no NPU), rank 0 of 1, precision O0')
    assert out.index('compiling the training graph') < out.index('time to the first step') < out.index('step: 5 ')
    assert [line.split()[1] for line in out.splitlines() if line.startswith('step: ')] == ['5', '10', '15', '20']
    assert len(LINE.findall(out)) == 4 and '-' not in LINE.findall(out)
    assert 'use_nesterov True has no effect with optimizer rmsprop\n' in out
    assert len(re.findall(r'^ +(15|20) +1\.[03] ', out, re.M)) == 2  # evaluated after the epoch and at the end
    assert (directory / 'inception_v4.log').read_text() == out
    assert sorted(p.name for p in directory.iterdir() if p.is_file() and p.name != '.lock') == [
        'config.yaml',
        'inception_v4.log',
        'inceptionv4-1_15.ckpt',
        'inceptionv4-1_16.ckpt',
        'inceptionv4-1_20.ckpt',
        'inceptionv4-best.ckpt',
        'metrics.jsonl',
        *(['training.html'] if importlib.util.find_spec('matplotlib') else []),
    ]


def test_metrics_tell_what_the_log_tells(trained):
    folder, out = trained
    directory = folder / 'results/1p/0/ckpt'
    records = metrics.read(directory / metrics.NAME)
    of_kind = {kind: [one for one in records if one['kind'] == kind] for kind in {one['kind'] for one in records}}
    assert (records[0]['kind'], records[-1]['kind']) == ('start', 'end') and len(of_kind) == 5
    assert records[0]['config']['lr'] == 0.01 and records[0]['versions']['MindSpore'] == ms.__version__
    assert [f'{one["loss"]:.3f} {one["total_loss"]:.3f} {one["lr"]:.5f}' for one in of_kind['step']] == [
        ' '.join(found) for found in re.findall(r' loss: (\S+) total_loss: (\S+) lr:(\S+)', out)
    ]
    tables = re.findall(r'^ +(15|20) +1\.[03] +([\d.]+) +([\d.]+)', out, re.M)
    assert [(str(one['step']), f'{one["top1"]:.2f}', f'{one["top5"]:.2f}') for one in of_kind['evaluation']] == tables
    assert all(0 <= one['data_wait'] <= 1 and one['image_size'] == 75 for one in of_kind['step'])
    assert of_kind['checkpoint'][-1]['bytes'] == (directory / 'inceptionv4-1_20.ckpt').stat().st_size
    assert records[-1]['cause'] == 'done' and records[-1]['step'] == 20
    if importlib.util.find_spec('matplotlib'):
        assert 'curves: results/1p/0/ckpt/training.html\n' in out
        assert (directory / 'training.html').read_text().count('data:image/png') == 6


def test_checkpoint_holds_all(trained):
    parameters, info = checkpoint.load(trained[0] / 'results/1p/0/ckpt/inceptionv4-1_20.ckpt')
    assert (info['step'], info['epoch'], info['config']['num_classes']) == (20, 1, 10)
    assert info['config']['label_offset'] == '1'
    assert parameters['global_step'].tolist() == [20]
    for name in ('logits.weight', 'mean_square.logits.weight', 'moment.logits.weight'):
        assert parameters[name].shape == (10, 1536)
    assert not [name for name in parameters if 'learning_rate' in name]


def test_evaluation_is_exact(trained, data):
    """30 images in batches of 4 and of 30: the same figures, those of the training's own last evaluation."""
    folder, out = trained
    directory = folder / 'results/1p/0/ckpt'
    status, found, err = run(
        'scripts/run_eval.sh', '--ckpt_path', directory, '--data_dir', data, '--batch_size', 4, cwd=folder
    )
    assert status == 0, err
    results = json.loads((directory / 'evaluation.json').read_text())
    assert [r['step'] for r in results] == [15, 16, 20] and all(r['images'] == 30 for r in results)
    assert '30 validation images, each evaluated once' in found
    eval_entry.main(['--ckpt_path', str(directory / 'inceptionv4-1_20.ckpt'), '--data_dir', str(data), '--batch_size', '30'])
    (last,) = json.loads((directory / 'evaluation.json').read_text())
    assert (last['top1'], last['top5']) == (results[-1]['top1'], results[-1]['top5'])
    assert last['loss'] == pytest.approx(results[-1]['loss'], rel=1e-5)
    table = re.findall(r'^ +20 +1\.3 +([\d.]+) +([\d.]+) +([\d.]+)', out, re.M)
    assert [float(v) for v in table[0]] == pytest.approx([last['top1'], last['top5'], last['loss']], abs=0.01)


def test_training_ends_with_a_report(trained):
    """On its best evaluation."""
    folder, out = trained
    directory = folder / 'results/1p/0/ckpt/report'
    assert out.count('report: results/1p/0/ckpt/report/index.html\n') == 1
    figures = json.loads((directory / 'report.json').read_text())
    rows = re.findall(r'^ +(15|20) +1\.[03] +([\d.]+) +([\d.]+) +([\d.]+)', out, re.M)
    step, *best = max(rows, key=lambda row: (float(row[1]), -float(row[3])))
    assert [f'{figures[name]["value"]:.2f}' for name in ('top1', 'top5')] == best[:2]
    assert figures['loss']['value'] == pytest.approx(float(best[2]), rel=1e-6) and figures['step'] == int(step)
    assert f'training after step {step}' in (directory / 'index.html').read_text()


def test_report_on_the_best_checkpoint(trained, data, tmp_path, capsys):
    """The figures are those of the table without a report; every image is in the list under its class."""
    directory = trained[0] / 'results/1p/0/ckpt'
    given = ['--ckpt_path', str(directory), '--data_dir', str(data), '--batch_size', '30']
    eval_entry.main(given)
    without = json.loads((directory / 'evaluation.json').read_text())
    eval_entry.main([*given, '--report', str(tmp_path / 'a/report')])
    assert json.loads((directory / 'evaluation.json').read_text()) == without  # bit for bit
    best = max(without, key=lambda result: (result['top1'], -result['loss']))
    figures = json.loads((tmp_path / 'a/report/report.json').read_text())
    assert figures['checkpoint'] == best['checkpoint'] and f'report: {tmp_path}/a/report/' in capsys.readouterr().out
    assert [figures[name]['value'] for name in ('top1', 'top5')] == [best['top1'], best['top5']]
    assert figures['loss']['value'] == pytest.approx(best['loss'], rel=1e-6)
    records = open_records(str(data), 'validation')
    rows = list(csv.DictReader(open(tmp_path / 'a/report/images.csv', newline='')))
    assert [row['name'] for row in rows] == [records.name(i) for i in range(30)]
    assert [row['true'] for row in rows] == [records.class_names[label] for label in records.label]
    assert sum(row['place_true'] == '1' for row in rows) / 0.3 == pytest.approx(best['top1'])


def test_report_that_cannot_be_written_is_refused_first(evaluated, tmp_path, capsys, monkeypatch):
    """Before anything is evaluated."""
    directory, _ = evaluated
    monkeypatch.setattr(evaluation, 'evaluate', lambda *_: pytest.fail('evaluated'))
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit) as stopped:
        eval_entry.main(['--ckpt_path', str(directory), '--data_dir', 'any', '--report', str(tmp_path / 'file/report')])
    assert stopped.value.code == 2
    assert re.fullmatch('error: .*file/report: .*; choose another directory\n', capsys.readouterr().err)


def test_mode_evaluate(trained, data, capsys, monkeypatch):
    """Like eval.py, with the network options of the checkpoint."""
    monkeypatch.chdir(trained[0])
    train.main(['--mode', 'evaluate', '--data_dir', str(data), '--batch_size', '4'])
    assert len(re.findall(r'^ +(15|16|20) ', capsys.readouterr().out, re.M)) == 3


@pytest.fixture
def evaluated(trained, data, tmp_path, monkeypatch):
    """Directory with two of the checkpoints and a newer one that is damaged, and a function that evaluates in it, with
    figures from nowhere: nothing is compiled."""
    for name in ('inceptionv4-1_16.ckpt', 'inceptionv4-1_20.ckpt'):
        os.link(trained[0] / 'results/1p/0/ckpt' / name, tmp_path / name)
    (tmp_path / 'inceptionv4-9_99.ckpt').write_bytes((tmp_path / name).read_bytes()[:200000])
    monkeypatch.setattr(evaluation, 'evaluate', lambda step, *_: Result(40.0, 60.0, 1.5, 30))
    return tmp_path, lambda path: eval_entry.main(['--ckpt_path', str(path), '--data_dir', str(data)])


def test_damaged_checkpoint_is_passed_over(evaluated, capsys):
    directory, evaluate = evaluated
    evaluate(directory)
    found = capsys.readouterr()
    assert re.search(r'warning: skipped: .*inceptionv4-9_99.ckpt: .*not a MindSpore checkpoint', found.out)
    assert len(re.findall(r'^ +(16|20) +1\.0 +40\.00 +60\.00 ', found.out, re.M)) == 2 and not found.err
    assert [result['step'] for result in json.loads((directory / 'evaluation.json').read_text())] == [16, 20]
    for path in (directory / 'inceptionv4-9_99.ckpt', directory):  # alone, or with nothing whole beside it
        with pytest.raises(SystemExit) as stopped:
            evaluate(path)
        assert stopped.value.code == 2 and re.match('error: .*9_99.ckpt: .*not a MindSpore', capsys.readouterr().err)
        for other in directory.glob('*-1_*.ckpt'):
            other.unlink()


def test_weights_of_other_programs(evaluated, capsys):
    """timm's and TensorFlow's files as they are, with the preprocessing that belongs to them."""
    directory, evaluate = evaluated
    source = str(directory / 'inceptionv4-1_20.ckpt')
    (directory / 'tf').mkdir()
    weights_entry(['export-timm', source, '--out', str(directory / 'timm.safetensors')])
    tensorflow.write(directory / 'tf/model.ckpt-7', tensorflow.to_tf_slim(read_weights(directory / 'timm.safetensors')[0]))
    for path, recorded in ((directory / 'timm.safetensors', directory), (directory / 'tf/model.ckpt-7', directory / 'tf')):
        evaluate(path)
        (result,) = json.loads((recorded / 'evaluation.json').read_text())
        assert (result['checkpoint'], result['top1']) == (str(path), 40) and ' 0     0.0   40.00 ' in capsys.readouterr().out


def test_checkpoint_that_is_removed_meanwhile(evaluated, capsys, monkeypatch):
    """By a training that keeps only the newest."""
    directory, evaluate = evaluated
    found = evaluation.evaluate

    def prune(*arguments):
        (directory / 'inceptionv4-1_20.ckpt').unlink(missing_ok=True)
        return found(*arguments)

    monkeypatch.setattr(evaluation, 'evaluate', prune)
    evaluate(directory)
    assert [result['step'] for result in json.loads((directory / 'evaluation.json').read_text())] == [16]
    assert '1_20.ckpt: No such file' in capsys.readouterr().out


def test_figures_are_not_lost(evaluated, capsys, monkeypatch):
    """Without permission to write beside the checkpoint they are on the screen, with a closed pipe in the file."""
    directory, evaluate = evaluated
    path = directory / 'inceptionv4-1_20.ckpt'

    def behind_a_closed_pipe():
        reader, writer = os.pipe()
        os.close(reader)
        with monkeypatch.context() as patch, open(writer, 'w', 1) as closed:
            patch.setattr(sys, 'stdout', closed)
            with pytest.raises(SystemExit):
                evaluate(path)

    behind_a_closed_pipe()
    assert json.loads((directory / 'evaluation.json').read_text())[0]['top5'] == 60
    (directory / 'evaluation.json').unlink()
    (directory / 'evaluation.json').mkdir()  # root may write everywhere
    evaluate(path)
    assert re.search(
        r'^ +20 .* 40\.00 .*\n30 validation images.*\nno evaluation.json: .*not a regular file.*\n\Z',
        capsys.readouterr().out,
        re.M,
    )


def test_export(trained, tmp_path):
    path = trained[0] / 'results/1p/0/ckpt/inceptionv4-1_20.ckpt'
    status, out, err = run(
        'export.py', '--ckpt_path', path, '--file_name', tmp_path / 'models/net', '--batch_size', 2, cwd=tmp_path
    )
    assert status == 0, err
    assert sorted(p.name for p in (tmp_path / 'models').iterdir()) == ['net.json', 'net.mindir']
    assert re.search(r'net.mindir: \d+ MB, input float32 \(2, 3, 75, 75\), output logits \(2, 10\)\ndeviation', out)
    x = np.random.default_rng(5).uniform(-1, 1, (2, 3, 75, 75)).astype(np.float32)
    logits = nn.GraphCell(ms.load(str(tmp_path / 'models/net.mindir')))(Tensor(x)).asnumpy()
    assert logits.shape == (2, 10) and np.isfinite(logits).all()


@pytest.mark.compiles
def test_transfer_learning(data, tmp_path):
    """From 1000 classes to 10: everything but the classifiers restored, named parts held still."""
    source = InceptionV4(1000, block_counts=(1, 1, 1), aux_logits=True, image_size=75)
    path = checkpoint.save(tmp_path, source, step=7, epoch=0, config={})
    status, out, err = run(
        'train.py',
        '--data_dir',
        data,
        *SMALL,
        '--config_path',
        ROOT / 'recipes/finetune.yaml',
        '--mode',
        'train',
        '--epochs_between_evals',
        5,
        '--restore_path',
        path,
        '--freeze',
        'conv2d_1a_3x3,mixed_5b',
        '--bn_decay',
        'auto',
        '--max_train_steps',
        1,
        '--use_nesterov',
        'true',
        cwd=tmp_path,
    )
    assert status == 0, err
    assert re.search(
        rf'^{re.escape(str(path))}: (\d+) of \d+ parameters loaded, all but logits.weight, logits.bias$', out, re.M
    )
    assert '\ntrained 1 step; checkpoints in results' in out and 'nan' not in out  # its only step was the compilation
    assert 'no effect' not in out
    before, _ = checkpoint.load(path)
    after, _ = checkpoint.load(tmp_path / 'results/1p/0/ckpt/inceptionv4-0_1.ckpt')
    assert before['logits.weight'].shape == (1000, 1536) and after['logits.weight'].shape == (10, 1536)
    held = [n for n in after if n.startswith(('conv2d_1a_3x3.', 'mixed_5b.'))]
    moving = [n for n in after if n.endswith('moving_mean') and n in before and n not in held]
    assert moving and not any(np.array_equal(before[n], after[n]) for n in moving)
    assert any('moving' in n for n in held) and all(np.array_equal(before[n], after[n]) for n in held)
    # One step away from the source, not from another initialisation
    name = 'mixed_6b.branch_0.conv2d_0a_1x1.conv.weight'
    change = np.linalg.norm(after[name] - before[name]) / np.linalg.norm(before[name])
    assert 0 < change < 0.5


def check_demo(out, folder, megabytes):
    for name in ('images', 'training', 'checkpoint', 'top-1, top-5', 'MINDIR', 'predictions', 'curves', 'wall time'):
        assert re.search(rf'^{name} +\S', out, re.M), name
    assert (folder / 'inceptionv4.mindir').stat().st_size > megabytes * 1e6
    assert '200 held-out images' in out and 'open the pages (.html)' in out
    if importlib.util.find_spec('matplotlib'):
        assert 'by eval.py after the training, of 200 images' in (folder / 'training/training.html').read_text()


@pytest.mark.compiles
def test_demo_path(tmp_path):
    """The demo with two steps of a small network; its own takes minutes to compile, see test_demo_learns."""
    status, out, err = run(
        'scripts/run_demo.sh',
        tmp_path / 'out',
        '--max_train_steps',
        2,
        '--block_counts',
        '1,1,1',
        '--image_size',
        75,
        '--batch_size',
        4,
        cwd=tmp_path,
    )
    assert status == 0, err
    check_demo(out, tmp_path / 'out', 50)


@pytest.mark.slow
@pytest.mark.parametrize('seed', [1, 2, 3])
def test_demo_learns(seed, tmp_path):
    """The whole demo with its own settings: at least 85 % top-1 on the held-out images (89.5 % with seed 1 on two cores;
    of 200 images one standard deviation is 2 points)."""
    status, out, err = run('scripts/run_demo.sh', tmp_path / 'out', '--seed', seed, cwd=tmp_path, timeout=1200)
    assert status == 0, err
    (result,) = json.loads((tmp_path / 'out/training/evaluation.json').read_text())
    assert result['top1'] >= 85 and result['images'] == 200
    check_demo(out, tmp_path / 'out', 150)


@pytest.mark.compiles
def test_predict_from_any_directory(tmp_path):
    status, _, err = run('scripts/run_predict.sh', 'photo.jpg', '--model', 'net.onnx', cwd=tmp_path)
    assert (status, err) == (
        2,
        'error: photo.jpg: no such image or directory; name an image, or a directory or a pattern of some\n',
    )


@pytest.mark.compiles
@pytest.mark.parametrize('script', ['run_standalone_train', 'run_eval', 'run_export', 'run_demo'])
def test_scripts_return_the_status(script, tmp_path):
    status, _, err = run(f'scripts/{script}.sh', '--lr', 'abc', cwd=tmp_path)
    assert (status, err) == (2, "error: lr is 'abc' on the command line; expected a finite number, > 0\n")


# Bad input. In this process, which saves the start of Python; each is caught before anything is compiled.


def message_of(entry, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        entry([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.err.count('\n') == 1 and captured.err.startswith('error: ')
    return captured.err


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--batchsize', '4'], 'did you mean --batch_size'),
        (['--lr', 'abc'], "lr is 'abc'"),
        (['--use_nesterov', 'maybe'], "'maybe'"),
        (['--image_size', '74'], '>= 75'),
        (['--mode', 'test'], 'train, train_and_evaluate, evaluate'),
        (['--device_target', 'Ascend'], 'sees no NPU'),
        (['--rank_size', '8'], 'run_distribute_train.sh'),
        (['--data_dir', ''], "data_dir is ''"),
        (['--data_dir', '/nowhere/at all'], '/nowhere/at all'),
        (['--batch_size', '61'], 'batch_size 61 .* has 60'),
        (['--num_classes', '9'], 'label 10 of .*record'),
        (['--label_offset', '0'], 'label 10 of .*--label_offset 1'),
        (['--log_dir', '/proc/none'], '--log_dir'),
        (['--restore_path', 'nothing.ckpt'], 'nothing.ckpt: cannot be read'),
        (['--freeze', 'mixed_9z'], 'freeze mixed_9z'),
        (['--mode', 'evaluate', '--eval_dir', '/nowhere'], '/nowhere: cannot be read'),
    ],
)
def test_bad_training_input(arguments, message, options, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, message_of(train.main, [*options, *arguments], capsys))
    assert not list(tmp_path.rglob('*.ckpt'))


@pytest.mark.parametrize(
    'shards, message',
    [
        ({}, 'empty'),
        ({'other.txt': b'x'}, r'train-\?\?\?\?\?-of-\?\?\?\?\?'),
        ({'train-00000-of-00001': b''}, 'train-00000-of-00001'),
        ({'train-00000-of-00001': b'this is no TFRecord' * 9}, 'train-00000-of-00001.*record 0'),
    ],
)
def test_bad_records(shards, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'records').mkdir()
    for name, content in shards.items():
        (tmp_path / 'records' / name).write_bytes(content)
    assert re.search(message, message_of(train.main, ['--data_dir', tmp_path / 'records'], capsys))


@pytest.fixture(scope='module')
def small_checkpoint(trained):
    return trained[0] / 'results/1p/0/ckpt/inceptionv4-1_20.ckpt'


@pytest.mark.parametrize('entry', [eval_entry.main, export.main], ids=['eval', 'export'])
@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda data: None, 'bad.ckpt: No such file or directory'),
        (lambda data: b'', 'bad.ckpt: empty, or text'),
        (lambda data: b'text' * 99, 'empty, or text'),
        (lambda data: data[: len(data) // 2], 'damaged|missing'),
    ],
    ids=['missing', 'empty', 'text', 'cut'],
)
def test_bad_checkpoints(entry, damage, message, small_checkpoint, options, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = damage(small_checkpoint.read_bytes())
    path = tmp_path / 'bad.ckpt'
    if content is not None:
        path.write_bytes(content)
    assert re.search(message, message_of(entry, [*options, '--ckpt_path', path], capsys))
    assert not (tmp_path / 'inceptionv4.mindir').exists()


@pytest.mark.parametrize('entry', [eval_entry.main, export.main], ids=['eval', 'export'])
@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--num_classes', '12'], 'use --num_classes 10'),
        (['--block_counts', '1,2,1'], 'Inception blocks: 1,2,1 here, 1,1,1 in the file; use --block_counts 1,1,1'),
        (['--ckpt_path', ''], 'ckpt_path'),
    ],
)
def test_checkpoint_of_another_network(entry, arguments, message, small_checkpoint, data, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ['--data_dir', data, '--ckpt_path', small_checkpoint, *arguments]
    assert re.search(message, message_of(entry, given, capsys))


@pytest.mark.parametrize('workers', [1, 2])
def test_bad_image_names_the_record(workers, data, small_checkpoint, capsys, tmp_path, monkeypatch):
    """In evaluation every record counts, so one that cannot be decoded is an error, also out of a worker process."""
    monkeypatch.chdir(tmp_path)
    good = open_records(str(data), 'validation').read(0)
    write_shards(tmp_path, 'validation', [(good, 1, ''), (good[:200], 2, '')], 1)
    found = message_of(
        eval_entry.main, ['--ckpt_path', small_checkpoint, '--data_dir', tmp_path, '--num_workers', workers], capsys
    )
    assert re.search(r'validation-00000-of-00001, record 1: (not an image|cannot be decoded)', found)
