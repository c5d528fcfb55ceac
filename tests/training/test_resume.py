"""A training run that was killed, ended or moved resumes as if nothing had happened.

tests/cluster/test_faults.py does it at random moments.
"""

import re
import shutil
import signal
import subprocess
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

import train
from src import files
from src.data import demo_images
from src.data.records import open_records
from src.errors import InputError
from src.options import load_settings
from src.runtime import Run
from src.training import metrics, resume
from src.training.monitor import Monitor
from src.training.plan import make_plan
from src.weights import checkpoint
from tests.conftest import SMALL
from tests.processes import Program, wait
from tests.training.steps import names

STEPS = 9  # of 5 an epoch, so a training run goes through the end of one
RECIPE = f'--lr 0.001 --max_train_steps {STEPS} --save_checkpoint_steps 2 --display_every 1'.split()
RECIPE += '--ema_decay 0.9 --loss_scale dynamic --device_target CPU --optimizer momentum'.split()  # which compiles faster
SIZES = ['--image_sizes', '75,83,83']  # stages of 3 and 6 steps
HANGS_IN_A_SAVE = """
import time, mindspore, train
def save(stored, path, **more):
    write(stored, path, **more)
    if '-1_6.' in path:
        print('saving', flush=True)
        time.sleep(600)
write, mindspore.save_checkpoint = mindspore.save_checkpoint, save
train.main()
"""


def train_here(data, folder, *options):
    """A training run in this process. Returns its log directory."""
    train.main(['--data_dir', str(data), *SMALL, *RECIPE, '--log_dir', str(folder / 'log'), *options])
    return folder / 'log'


def assert_same(found, expected):
    """Bit for bit."""
    (found, found_info), (expected, info) = checkpoint.load(found), checkpoint.load(expected)
    assert found.keys() == expected.keys() and len(found) > 300
    different = [name for name, value in expected.items() if found[name].tobytes() != value.tobytes()]
    assert not different
    assert [found_info[key] for key in ('step', 'epoch', 'position')] == [info[key] for key in ('step', 'epoch', 'position')]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return demo_images.make(tmp_path_factory.mktemp('records'), train_per_class=2, validation_per_class=1)


@pytest.fixture(scope='module')
def uninterrupted(compiles, data, tmp_path_factory):
    """The log directory of a training run that nothing happened to."""
    log = train_here(data, tmp_path_factory.mktemp('uninterrupted'), *SIZES)
    text = (log / 'inception_v4.log').read_text()
    assert re.findall('^stage .*, steps (.*);', text, re.M) == ['1 to 3', '4 to 9']
    return log


def after(step, what):
    """A patch: `what(state)` is called when the line of a step is written."""

    def written(monitor, outputs, write_line=Monitor.write_line):
        write_line(monitor, outputs)
        if monitor.state.step == step:
            what(monitor.state)

    return mock.patch.object(Monitor, 'write_line', written)


def terminate(state):
    signal.raise_signal(signal.SIGTERM)
    assert wait(lambda: state.signals.number)


def test_killed_terminated_and_failed(data, uninterrupted, tmp_path, capsys):
    """SIGKILL while a checkpoint is being written, the newest whole one then damaged, SIGTERM to the run that resumes from
    the one before, a full disk and an error in the next: the last one ends with the weights of a training run that nothing
    happened to. It is killed in the second stage of image sizes, resumed in the first, terminated in the second again."""
    log = tmp_path / 'log'
    options = ['--data_dir', data, *SMALL, *RECIPE, *SIZES, '--log_dir', log, '--num_workers', '2']
    with Program(tmp_path, '-c', HANGS_IN_A_SAVE, *options) as killed:
        killed.reach('^saving')
        killed.process.kill()
        killed.end(-signal.SIGKILL)
    assert names(log) == ['inceptionv4-0_2.ckpt', 'inceptionv4-0_4.ckpt'] and list(log.glob('.inceptionv4-1_6.*'))
    damaged = bytearray((log / 'inceptionv4-0_4.ckpt').read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (log / 'inceptionv4-0_4.ckpt').write_bytes(damaged)

    with after(4, terminate), pytest.raises(SystemExit, match='143'):
        train_here(data, tmp_path, *SIZES, '--resume', 'auto')
    out, err = capsys.readouterr()
    assert re.search('^warning: skipped: .*inceptionv4-0_4.ckpt: .*checksum mismatch', out, re.M)
    assert err.endswith(f'SIGTERM: stopped after step 4 of {STEPS}; checkpoints in {log}, resume with --resume auto\n')
    assert names(log) == ['inceptionv4-0_2.ckpt', 'inceptionv4-0_4.ckpt'] and not list(log.glob('.inceptionv4*'))

    full = mock.patch.object(checkpoint, 'write', wraps=checkpoint.write, side_effect=[OSError(28, 'full'), mock.DEFAULT])
    fail = mock.Mock(side_effect=InputError('a.jpg is away'))
    with full, after(7, fail), pytest.raises(SystemExit, match='2'):
        train_here(data, tmp_path, *SIZES, '--resume', 'auto')
    out, err = capsys.readouterr()
    assert re.search('^warning: checkpoint of step 6 not saved: full; .*training continues', out, re.M)
    assert f'a.jpg is away; step 7 is saved in {log}/inceptionv4-1_7.ckpt' in err

    train_here(data, tmp_path, *SIZES, '--resume', 'auto')
    assert_same(log / f'inceptionv4-1_{STEPS}.ckpt', uninterrupted / f'inceptionv4-1_{STEPS}.ckpt')
    # metrics.jsonl has each step once, with the same values, and every start.
    found, expected = (metrics.read(place / metrics.NAME) for place in (log, uninterrupted))
    steps, reference = ([(one['step'], one['loss']) for one in each if one['kind'] == 'step'] for each in (found, expected))
    assert len(steps) == STEPS and steps == reference
    assert [one['step'] for one in found if one['kind'] == 'start'] == [0, 2, 4, 7]
    assert [(one['step'], one['status']) for one in found if one['kind'] == 'end'] == [(4, 143), (7, 2), (STEPS, 0)]


@pytest.fixture
def old(data, tmp_path, monkeypatch):
    """A checkpoint of two devices with batches of 4, after 3 steps of 2 an epoch (20 records), without parameters."""
    monkeypatch.chdir(tmp_path)
    options = ['--data_dir', str(data), *SMALL, *RECIPE]
    config = {**load_settings(options), 'rank_size': 2, 'label_offset': '1', 'bn_decay': 0.9997, 'amp_level': 'O0'}
    records = open_records(data, 'train')
    path = tmp_path / 'results/1p/0/ckpt/inceptionv4-1_3.ckpt'
    path.parent.mkdir(parents=True)
    checkpoint.write(path, {}, {'step': 3, 'epoch': 1, 'position': 8, 'config': config, 'data': records.fingerprint})
    return SimpleNamespace(path=path, options=options, records=records)


def refused(capsys, options):
    """The one line with which train.py ends."""
    with pytest.raises(SystemExit) as ended:
        train.main(options)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and error.startswith('error: ')
    return error


def found(old, directory=None, log=print, **options):
    """`resume.find` in the directory of `old` or another one."""
    settings = load_settings([*old.options, '--rank_size', '2', '--resume_override', 'true']).but(**options)
    return resume.find(settings, Run(directory=directory or old.path.parent, log=log), old.records.fingerprint)


HOLDS = r'ckpt holds the checkpoints of a training run \(inceptionv4-1_3.ckpt\); continue it by --resume auto'


@pytest.mark.parametrize(
    'options, message',
    [
        # Never over another training run.
        ('', HOLDS),
        ('--resume elsewhere.ckpt', HOLDS),
        ('--resume auto --overwrite true', '--resume auto and --overwrite contradict each other .*; pass one'),
        # Never with another network or recipe.
        ('--resume auto --lr 0.5 --amp_level O2', r'\(lr 0.001 -> 0.5; amp_level O0 -> O2\); .* --resume_override'),
        # Nothing to resume.
        ('--log_dir new --resume results/nowhere', 'no checkpoint there'),
        ('--log_dir new --resume weights.ckpt', 'holds weights'),
    ],
)
def test_refused(old, capsys, options, message):
    checkpoint.write('weights.ckpt', {'logits.bias': np.zeros(3, np.float32)}, {})
    shutil.copy(old.path, 'elsewhere.ckpt')
    before = old.path.read_bytes()
    assert re.search(f'^error: .*{message}', error := refused(capsys, [*old.options, *options.split()])), error
    assert old.path.read_bytes() == before and len(list(old.path.parent.glob('*.ckpt*'))) == 1


def test_resume_auto_takes_what_is_whole(old, tmp_path):
    """The best alone; nothing where there is nothing; but it never begins anew where all checkpoints are damaged."""
    best, lines = old.path.rename(old.path.with_name(checkpoint.BEST)), []
    old.path.write_bytes(b'damaged')
    assert found(old, log=lines.append, resume='auto').path == best and found(old) is None
    assert found(old, tmp_path / 'new', lines.append, resume='auto') is None
    best.write_bytes(b'damaged')
    with pytest.raises(InputError, match='resume auto: all checkpoints in .* are damaged; restore a copy'):
        found(old, log=lines.append, resume='auto')
    assert [line[:16] for line in lines][-3:] == ['resume auto: no ', 'warning: skipped', 'warning: skipped']


def test_directory_in_use(old, capsys, monkeypatch):
    """Its files, the unfinished one of the save that it is making included, stay."""
    monkeypatch.setattr(resume, 'WAIT', 0)
    unfinished = old.path.with_name(f'.inceptionv4-1_3.ckpt.x{files.SUFFIX}')
    unfinished.mkdir()
    command = 'import sys; from src import files; f = files.lock_file(sys.argv[1], ""); print(1, flush=True); input()'
    with Program(old.path.parents[4], '-c', command, old.path.parent / files.LOCK, stdin=subprocess.PIPE) as first:
        first.reach('1')
        error = refused(capsys, [*old.options, '--resume', 'auto'])
    assert f'results/1p/0/ckpt is in use by pid {first.process.pid} on ' in error and unfinished.exists()


def test_more_epochs_are_the_same_training():
    """If the learning rate's schedule is as long or longer; no other change of the two options."""
    before, lines = load_settings([]).but(max_epochs=2, T_max=2), []
    for change in ({'max_epochs': 4, 'T_max': 4}, {'max_epochs': 4}):
        resume.require_same_training('old.ckpt', {'config': dict(before)}, before.but(**change), 'x', lines.append)
    cold = ': the learning rate is 0 after epoch 2; use --T_max 4'
    assert lines == ['max_epochs 2 -> 4, T_max 2 -> 4', f'max_epochs 2 -> 4, T_max 2 -> 2{cold}']
    for change in ({'max_epochs': 1}, {'T_max': 4}, {'max_epochs': 4, 'T_max': 1}):
        with pytest.raises(InputError, match='does not match this configuration'):
            resume.require_same_training('old.ckpt', {'config': dict(before)}, before.but(**change), 'x')


def test_decay_of_batch_norm_stays_when_a_training_becomes_longer(tmp_path):
    """The recorded one; by the steps in a new training run."""
    config, run = load_settings('--max_epochs 2 --T_max 2 --batch_size 8 --resume auto'.split()), Run(directory=tmp_path)
    assert resume.find_start(config, run, make_plan(16, config, 1), 'x')[2].bn_decay == 0.8
    info = {'step': 4, 'epoch': 2, 'position': 0, 'config': {**config, 'bn_decay': 0.848484848}, 'data': 'x'}
    checkpoint.write(tmp_path / 'inceptionv4-2_4.ckpt', {}, info)
    config = config.but(max_epochs=900, T_max=900)
    assert resume.find_start(config, run, make_plan(16, config, 1), 'x')[2].bn_decay == 0.848484848


def test_other_records_are_refused(old):
    info = checkpoint.load(old.path)[1]
    settings = load_settings([]).but(**info['config'])
    with pytest.raises(InputError, match=r'records 20 with label checksum \w{8} and file checksum \w{8} -> 21 with'):
        resume.require_same_training(old.path, info, settings, '21 with label checksum 0')
    # Earlier checkpoints have no checksum of the files.
    resume.require_same_training(old.path, {**info, 'data': info['data'].partition(' and ')[0]}, settings, info['data'])
