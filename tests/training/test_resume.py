"""A training that was killed, stopped or moved goes on as if nothing had happened: real processes, real signals.

The slow part kills one training at 20 random moments.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import train
from src import files
from src.data import demo_images
from src.data.records import fingerprint, open_records
from src.errors import InputError
from src.options import load_settings
from src.runtime import Run
from src.training import metrics, resume
from src.training.plan import make_plan
from src.weights import checkpoint
from tests import processes
from tests.conftest import SMALL

ROOT = Path(__file__).resolve().parents[2]
STEPS = 9  # of 5 an epoch, so a training goes through the end of one
RECIPE = f'--lr 0.001 --max_train_steps {STEPS} --save_checkpoint_steps 2 --display_every 1'.split()
RECIPE += '--ema_decay 0.9 --loss_scale dynamic --device_target CPU'.split()
SIZES = ['--image_sizes', '75,83,83']  # stages of 3 and 6 steps


class Training:
    """`train.py` in a process of its own, its output in a file."""

    def __init__(self, data, folder, *options, script='train.py', arguments=()):
        command = [sys.executable, str(ROOT / script), *arguments, '--data_dir', str(data), *SMALL, *RECIPE, *options]
        self.output = folder / f'output.{time.monotonic_ns()}'
        with open(self.output, 'wb') as file:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**os.environ, 'PYTHONPATH': str(ROOT)},
            )

    @property
    def text(self):
        return self.output.read_text()

    def wait_for(self, condition, seconds=240):
        """True as soon as `condition()` is; False when the training ends before."""
        end = time.monotonic() + seconds
        while not (found := condition()) and self.process.poll() is None:
            assert time.monotonic() < end, self.text[-2000:]
            time.sleep(0.002)
        return bool(found)

    def end(self, seconds=240):
        return self.process.wait(seconds)

    def leftovers(self):
        """Processes of its session that still live 5 s after its end."""
        for _ in range(50):
            found = [p.name for p in Path('/proc').glob('[0-9]*') if _session(p) == self.process.pid]
            if not found:
                break
            time.sleep(0.1)
        return found


def _session(process):
    try:
        fields = (process / 'stat').read_text().rpartition(')')[2].split()
    except OSError:
        return None
    return int(fields[3]) if fields[0] != 'Z' else None


def steps_logged(text):
    return [int(step) for step in re.findall(r'^step: (\d+) ', text, re.M)]


def checkpoints(folder):
    return folder / 'results/1p/0/ckpt'


def assert_same(found, expected):
    """Bit for bit."""
    (found, found_info), (expected, info) = checkpoint.load(found), checkpoint.load(expected)
    assert found.keys() == expected.keys() and len(found) > 500
    different = [name for name, value in expected.items() if found[name].tobytes() != value.tobytes()]
    assert not different
    assert [found_info[key] for key in ('step', 'epoch', 'position')] == [info[key] for key in ('step', 'epoch', 'position')]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return demo_images.make(tmp_path_factory.mktemp('records'), train_per_class=2, validation_per_class=1)


@pytest.fixture(scope='module')
def uninterrupted(compiles, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('uninterrupted')
    training = Training(data, folder, *SIZES)
    assert training.end() == 0, training.text[-3000:]
    assert steps_logged(training.text) == list(range(1, STEPS + 1))
    assert re.findall('^stage .*', training.text, re.M) == [
        'stage 1 of 2: images of 75 x 75 pixels, epochs 0 to 0.6, steps 1 to 3; the graph is compiled anew',
        'stage 2 of 2: images of 83 x 83 pixels, epochs 0.6 to 1.8, steps 4 to 9; the graph is compiled anew',
    ]
    return checkpoints(folder) / f'inceptionv4-1_{STEPS}.ckpt'


def test_killed_in_a_save_then_damaged_then_stopped(data, uninterrupted, tmp_path):
    """SIGKILL while a checkpoint is being written, the newest whole one then damaged, SIGTERM to the training that goes on
    from the one before, and the last one ends with the weights of a training that nothing happened to. The training has
    stages of image sizes: it is killed in the second, goes on in the first, and is stopped in the second again."""
    directory = checkpoints(tmp_path)
    killed = Training(data, tmp_path, *SIZES, '--num_workers', '2')
    assert killed.wait_for(lambda: list(directory.glob('.inceptionv4-1_6.*')))
    killed.process.kill()
    killed.end()
    assert not killed.leftovers()
    assert [p.name for p in checkpoint.by_age(directory)] == ['inceptionv4-0_2.ckpt', 'inceptionv4-0_4.ckpt']
    newest = directory / 'inceptionv4-0_4.ckpt'
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)

    stopped = Training(data, tmp_path, *SIZES, '--resume', 'auto', '--num_workers', '2')
    assert stopped.wait_for(lambda: 4 in steps_logged(stopped.text)), stopped.text[-3000:]  # its second graph is compiled
    stopped.process.terminate()
    asked = time.monotonic()
    assert stopped.end() == 143, stopped.text[-3000:]
    assert time.monotonic() - asked < 30 and 'Traceback' not in stopped.text
    assert re.search(r'^warning: skipped: .*inceptionv4-0_4.ckpt: .*its checksum does not fit', stopped.text, re.M)
    assert f'resuming from step 2, 8 images into epoch 1; this run: step 2 of {STEPS}' in stopped.text
    [step] = re.findall(
        rf'^SIGTERM: stopped after step (\d+) of {STEPS}; checkpoints in results/1p/0/ckpt, '
        'resume with --resume auto$',
        stopped.text,
        re.M,
    )
    assert checkpoint.by_age(directory)[-1].name == f'inceptionv4-{int(step) // 5}_{step}.ckpt'
    assert not list(directory.glob('.inceptionv4*'))

    last = Training(data, tmp_path, *SIZES, '--resume', 'auto')
    assert last.end() == 0, last.text[-3000:]
    assert steps_logged(stopped.text) + steps_logged(last.text) == list(range(3, STEPS + 1))
    assert_same(directory / f'inceptionv4-1_{STEPS}.ckpt', uninterrupted)
    assert_one_history(directory, uninterrupted.parent, [0, 2, int(step)])


def assert_one_history(directory, reference, starts):
    """metrics.jsonl has each step once, with the values of a training that nothing happened to, and every start."""
    found, expected = (metrics.read(place / metrics.NAME) for place in (directory, reference))
    values = ('step', 'loss', 'total_loss', 'lr', 'gradient_norm', 'image_size')
    steps, uninterrupted = (
        [[one[v] for v in values] for one in each if one['kind'] == 'step'] for each in (found, expected)
    )
    assert [one[0] for one in steps] == list(range(1, STEPS + 1)) and steps == uninterrupted
    assert [one['step'] for one in found if one['kind'] == 'start'] == starts
    assert [(one['step'], one['status']) for one in found if one['kind'] == 'end'] == [(starts[-1], 143), (STEPS, 0)]


@pytest.mark.compiles
@pytest.mark.slow
def test_stalled_disk_then_a_killed_worker(data, tmp_path):
    """SIGTERM while no data come, then a data worker killed as for lack of memory, then the disk gone, then to the end, with
    the weights of a training that nothing happened to."""
    records, directory, reference = tmp_path / 'records', checkpoints(tmp_path), tmp_path / 'reference'
    shutil.copytree(data, records)
    reference.mkdir()
    options = ['--num_workers', '2', '--save_checkpoint_steps', '100', '--max_train_steps', '24']
    assert Training(data, reference, *options).end() == 0
    options += ['--resume', 'auto']

    def ended(training, status, line):
        assert training.end(60) == status and 'Traceback' not in training.text, training.text[-3000:]
        [step] = re.findall(line, training.text, re.M)
        assert checkpoint.by_age(directory)[-1].name == f'inceptionv4-{int(step) // 5}_{step}.ckpt'
        assert steps_logged(training.text)[-1] == int(step) and not training.leftovers()

    def swap(make):
        for shard in records.glob('train-*'):
            shard.unlink()
            make(shard)

    stalled = Training(records, tmp_path, *options)
    assert stalled.wait_for(lambda: steps_logged(stalled.text)), stalled.text[-3000:]
    swap(os.mkfifo)  # to open one waits for ever
    steps = []
    while steps != steps_logged(stalled.text):
        steps = steps_logged(stalled.text)
        time.sleep(3)
    stalled.process.terminate()
    asked = time.monotonic()
    ended(stalled, 143, r'^SIGTERM: stopped after step (\d+) of 24; checkpoints in ')
    assert time.monotonic() - asked < 10
    swap(lambda shard: shutil.copy(data / shard.name, shard))

    killed = Training(records, tmp_path, *options)
    assert killed.wait_for(lambda: steps_logged(killed.text)), killed.text[-3000:]
    worker = min(processes.children(killed.process.pid))
    os.kill(worker, signal.SIGKILL)
    ended(killed, 137, rf'^a data worker \(pid {worker}\) was killed .*: stopped after step (\d+) of 24; checkpoints in ')

    away = Training(records, tmp_path, *options)
    assert away.wait_for(lambda: steps_logged(away.text)), away.text[-3000:]
    swap(lambda shard: None)
    ended(away, 2, r'^error: .*cannot be read or decoded, .*(?:step|after step) (\d+) (?:is saved|of)')
    for shard in data.glob('train-*'):
        shutil.copy(shard, records)

    last = Training(records, tmp_path, *options)
    assert last.end() == 0, last.text[-3000:]
    assert_same(directory / 'inceptionv4-4_24.ckpt', checkpoints(reference) / 'inceptionv4-4_24.ckpt')


@pytest.mark.compiles
def test_two_ranks_stop_at_the_same_step(data, tmp_path):
    """The launcher passes the signal on; then one device goes on from as many images."""
    training = Training(
        data, tmp_path, '--batch_size', '2', script='src/cluster/launch.py', arguments=['2', str(ROOT / 'train.py')]
    )
    assert training.wait_for(lambda: 2 in steps_logged(training.text)), training.text[-3000:]
    training.process.send_signal(signal.SIGINT)
    assert training.end() == 130, training.text[-3000:]
    assert not training.leftovers()
    logs = [(tmp_path / f'results/2p/{rank}/train.log').read_text() for rank in (0, 1)]
    stopped = [re.findall(r'^SIGTERM: stopped after step (\d+) of ', log, re.M) for log in logs]
    assert len(stopped[0]) == 1 and stopped[0] == stopped[1], stopped
    step = int(stopped[0][0])
    assert (tmp_path / f'results/2p/0/ckpt/inceptionv4-{step // 5}_{step}.ckpt').is_file()
    resumed = Training(
        data, tmp_path, '--resume', 'results/2p/0/ckpt', '--resume_override', 'true', '--max_train_steps', str(step + 1)
    )
    assert resumed.end() == 0, resumed.text[-3000:]
    assert re.search(
        rf'resuming from step {step}, \d+ images into epoch {step // 5 + 1}; this run: step {step} of {step + 1} on '
        '1 d',
        resumed.text,
    ), resumed.text


@pytest.mark.compiles
@pytest.mark.slow
def test_two_ranks_go_on_by_themselves(data, tmp_path):
    """A rank is killed; the launcher starts both again from the newest checkpoint, and they end with the weights of a
    training that nothing happened to."""

    def launched(name):
        (tmp_path / name).mkdir()
        arguments = ['--max_restarts', '2', '2', str(ROOT / 'train.py')]
        return Training(data, tmp_path / name, '--batch_size', '2', script='src/cluster/launch.py', arguments=arguments)

    reference = launched('reference')
    assert reference.end() == 0, reference.text[-3000:]
    training = launched('killed')
    assert training.wait_for(lambda: 3 in steps_logged(training.text)), training.text[-3000:]
    ranks = {rank: pid for pid in processes.children(training.process.pid) if (rank := _rank(pid)) is not None}
    os.kill(ranks['1'], signal.SIGKILL)
    assert training.end() == 0, training.text[-3000:]
    assert re.search(
        r'^launch: restart 1 of 2 in 10 s, from the newest checkpoint: rank 1 failed first: signal SIGKILL',
        training.text,
        re.M,
    )
    assert re.search(r'resuming from step (2|4),', training.text) and not training.leftovers()
    name = f'results/2p/0/ckpt/inceptionv4-1_{STEPS}.ckpt'
    assert_same(tmp_path / 'killed' / name, tmp_path / 'reference' / name)


def _rank(pid):
    """RANK_ID of a rank that the launcher has started; None for the scheduler."""
    entries = Path(f'/proc/{pid}/environ').read_bytes().decode().split('\0')
    return next(
        (e.partition('=')[2] for e in entries if e.startswith('RANK_ID=') and 'MS_ROLE=MS_SCHED' not in entries), None
    )


@pytest.fixture
def old(data, tmp_path, monkeypatch):
    """A checkpoint of two devices with batches of 4, after 3 steps of 2 an epoch (20 records), without parameters."""
    monkeypatch.chdir(tmp_path)
    options = ['--data_dir', str(data), *SMALL, *RECIPE]
    config = {**load_settings(options), 'rank_size': 2, 'label_offset': '1', 'bn_decay': 0.9997}
    records = open_records(data, 'train')
    path = checkpoints(tmp_path) / 'inceptionv4-1_3.ckpt'
    path.parent.mkdir(parents=True)
    checkpoint.write(path, {}, {'step': 3, 'epoch': 1, 'position': 8, 'config': config, 'data': fingerprint(records)})
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
    return resume.find(settings, Run(directory=directory or old.path.parent, log=log), fingerprint(old.records))


def content(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name != files.LOCK}


@pytest.mark.parametrize(
    'options, message',
    [
        (
            [],
            r'ckpt holds the checkpoints of a training run \(inceptionv4-best.ckpt, inceptionv4-1_3.ckpt\); continue it by '
            '--resume auto, choose another --log_dir, or replace it by --overwrite true',
        ),
        (['--resume', 'elsewhere/inceptionv4-1_3.ckpt'], 'ckpt holds the checkpoints of a training run'),
        (['--resume', 'auto', '--overwrite', 'true'], '--resume auto and --overwrite contradict each other .*; pass one'),
        (['--resume', 'results/1p/0/ckpt/inceptionv4-1_3.ckpt', '--overwrite', 'true'], 'contradict each other'),
    ],
)
def test_no_training_over_another_one(old, capsys, options, message):
    """Another network, without a word of going on: nothing is touched."""
    directory = old.path.parent
    (directory / 'inception_v4.log').write_text('step: 3\n')
    for place in (directory / 'inceptionv4-best.ckpt', Path('elsewhere', old.path.name)):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(old.path.read_bytes())
    before = content(directory)
    assert re.search(message, refused(capsys, [*old.options, '--block_counts', '1,2,1', *options]))
    assert content(directory) == before


def test_best_checkpoint_alone_is_not_written_over(old, capsys):
    """And `--resume auto` goes on from it, if no numbered one is whole."""
    best = old.path.rename(old.path.with_name(checkpoint.BEST))
    assert 'ckpt holds the checkpoints of a training run (inceptionv4-best.ckpt); continue' in refused(capsys, old.options)
    old.path.write_bytes(b'damaged')
    assert found(old, resume='auto').path == best


def test_replaced_training_stays_until_the_first_new_checkpoint(old):
    directory = old.path.parent
    for name in ('inception_v4.log', 'metrics.jsonl'):
        (directory / name).write_text('step: 3\n')
    claim = resume.claim(load_settings([]).but(overwrite=True), Run(directory=directory))
    claim.lock.close()
    assert claim.replaced == [old.path] and old.path.exists()
    for name in ('inception_v4.log.1', 'metrics.jsonl.1'):
        assert (directory / name).read_text() == 'step: 3\n'
    assert not (directory / 'metrics.jsonl').exists()


def test_second_training_at_the_same_time_is_refused(old, capsys, monkeypatch):
    """Its files, the unfinished one of the save that it is making included, stay."""
    monkeypatch.setattr(resume, 'WAIT', 0)
    unfinished = old.path.with_name(f'.inceptionv4-1_3.ckpt.x{files.SUFFIX}')
    unfinished.mkdir()
    command = 'import sys, time; from src import files; f = files.lock_directory(sys.argv[1]); '
    command += 'print(1, flush=True); time.sleep(60)'
    first = subprocess.Popen([sys.executable, '-c', command, str(old.path.parent)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        first.stdout.readline()
        error = refused(capsys, [*old.options, '--resume', 'auto'])
        assert f'results/1p/0/ckpt is in use by pid {first.pid} on {socket.gethostname()}' in error
        assert unfinished.exists()
    finally:
        first.kill()
        first.wait()
    assert 'max_train_steps 9 -> 8' in refused(capsys, [*old.options, '--resume', 'auto', '--max_train_steps', '8'])
    assert not unfinished.exists()


@pytest.mark.compiles
def test_all_ranks_end_where_the_first_may_not_start(old, data, tmp_path):
    old.path.parents[2].rename(tmp_path / 'results/2p')
    training = Training(data, tmp_path, script='src/cluster/launch.py', arguments=['2', str(ROOT / 'train.py')])
    assert training.end() == 2, training.text[-3000:]
    errors = [re.findall('^error: .*', (tmp_path / f'results/2p/{rank}/train.log').read_text(), re.M) for rank in (0, 1)]
    assert len(errors[0]) == 1 and errors[0][0].startswith('error: results/2p/0/ckpt holds the checkpoints ')
    assert errors[1] == ['error: rank 0 cannot start (see its log)']
    assert 'rank 0 failed first' in training.text and not training.leftovers()


@pytest.mark.parametrize(
    'change, message',
    [
        (
            ['--lr', '0.5'],
            r'does not match this configuration \(lr 0.001 -> 0.5\); use the old values, .* --resume_override true',
        ),
        (['--num_classes', 'auto', '--lr', '0.5'], r'configuration \(lr 0.001 -> 0.5\)'),
        (['--bn_decay', '0.5', '--seed', '7'], r'\(seed 1 -> 7; bn_decay 0.9997 -> 0.5\)'),
        (['--max_train_steps', '8'], r'\(max_train_steps 9 -> 8\)'),
        (['--image_sizes', '75,83'], r'\(image_sizes \[\] -> \[75, 83\]\)'),
    ],
)
def test_another_training_is_refused(old, capsys, change, message):
    error = refused(capsys, [*old.options, '--resume', 'auto', *change])
    assert re.search(f'^error: .*inceptionv4-1_3.ckpt: .*{message}', error), error


@pytest.mark.parametrize(
    'change, line',
    [
        (
            {'max_epochs': 4, 'T_max': 4},
            'max_epochs 2 -> 4, T_max 2 -> 4: the learning rate is 0.05000 now; it would have been 0.00000',
        ),
        (
            {'max_epochs': 4},
            'max_epochs 2 -> 4, T_max stays 2: the learning rate is 0.00000 now and 0 after epoch 2; use '
            '--T_max 4 too for a cosine over all of it',
        ),
        ({'max_epochs': 1}, None),
        ({'T_max': 4}, None),
        ({'max_epochs': 4, 'T_max': 1}, None),
        ({'max_epochs': 4, 'T_max': 4, 'lr': 0.2}, None),
    ],
)
def test_more_epochs_are_the_same_training(change, line):
    before = load_settings(['--lr', '0.1', '--max_epochs', '2', '--T_max', '2', '--batch_size', '8'])
    info, lines = {'config': dict(before), 'epoch': 2, 'data': 'x'}, []
    if line:
        resume.require_same_training('old.ckpt', info, before.but(**change), 'x', lines.append)
        assert lines == [line]
    else:
        with pytest.raises(InputError, match='does not match this configuration'):
            resume.require_same_training('old.ckpt', info, before.but(**change), 'x', lines.append)


@pytest.mark.parametrize('schedule, rate', [('exponential', 0.094), ('constant', 0.1), ('cosine', 0.09990)])
def test_more_epochs_of_schedules_that_go_on(schedule, rate):
    """A cosine over the default 100 epochs is one of them."""
    before = load_settings(['--lr', '0.1', '--max_epochs', '2', '--batch_size', '8', '--lr_schedule', schedule])
    lines, after = [], before.but(max_epochs=9, image_sizes=[160, 299])
    resume.require_same_training('old.ckpt', {'config': {**after, 'max_epochs': 2}, 'epoch': 2}, after, 'x', lines.append)
    spread = ', over all of which image_sizes spread'
    assert lines == [f'max_epochs 2 -> 9{spread}: the learning rate continues from {rate:.5f} as its schedule says']


@pytest.mark.parametrize('recorded, found', [({'bn_decay': 0.848484848}, 0.848484848), ({}, 0.988888889), (None, 0.8)])
def test_decay_of_batch_norm_stays_when_a_training_becomes_longer(recorded, found, tmp_path):
    """The recorded one; by the steps if none is recorded, or there is no checkpoint."""
    config = load_settings(['--max_epochs', '2', '--T_max', '2', '--batch_size', '8'])
    if recorded is not None:
        before = {name: value for name, value in config.items() if name != 'bn_decay'}
        info = {'step': 4, 'epoch': 2, 'position': 0, 'config': {**before, **recorded}, 'data': 'x'}
        checkpoint.write(tmp_path / 'inceptionv4-2_4.ckpt', {}, info)
        config = config.but(max_epochs=900, T_max=900)
    lines = []
    run, config = Run(directory=tmp_path, checkpoints=tmp_path, log=lines.append), config.but(resume='auto')
    _, _, after, _ = resume.find_start(config, run, make_plan(16, config, 1), 'x')
    assert after == {**config, 'bn_decay': found} and lines[-1] == f'bn_decay {found:g} (auto)'


def test_other_records_are_refused(old):
    info = checkpoint.load(old.path)[1]
    settings = load_settings([]).but(**info['config'])
    with pytest.raises(InputError, match=r'records 20 with label checksum \w{8} and file checksum \w{8} -> 21 with'):
        resume.require_same_training(old.path, info, settings, '21 with label checksum 0')
    lines, override = [], settings.but(lr=1.0, resume_override=True)
    resume.require_same_training(old.path, info, override, '21 with', lines.append)
    assert [line.split(':')[0] for line in lines] == ['resume_override'] * 2
    # Earlier checkpoints have no checksum of the files.
    earlier = {**info, 'data': info['data'].partition(' and ')[0]}
    resume.require_same_training(old.path, earlier, settings, info['data'])
    # Earlier versions had options that are gone; another value than that of today is a difference.
    with pytest.raises(InputError, match=r'\(lr_head 0.002 -> 0.0\)'):
        resume.require_same_training(
            old.path, {**info, 'config': {**info['config'], 'lr_head': 0.002}}, settings, info['data']
        )


@pytest.mark.parametrize(
    'option, error',
    [('results/nowhere', 'no checkpoint there'), ('none.ckpt', 'no checkpoint there'), ('weights.ckpt', 'holds weights')],
)
def test_nothing_to_resume(old, tmp_path, option, error):
    checkpoint.write('weights.ckpt', {'logits.bias': np.zeros(3, np.float32)}, {})
    with pytest.raises(InputError, match=error):
        found(old, resume=option)
    assert found(old) is None
    lines = []
    assert found(old, tmp_path / 'new', lines.append, resume='auto') is None and 'a new training run' in lines[0]


def test_resume_auto_never_begins_anew_where_all_checkpoints_are_damaged(old):
    for name in ('inceptionv4-1_3.ckpt', 'inceptionv4-0_1.ckpt'):
        (old.path.parent / name).write_bytes(b'damaged')
    lines = []
    with pytest.raises(InputError, match='resume auto: all checkpoints in .* are damaged; restore a copy'):
        found(old, log=lines.append, resume='auto')
    assert [line[:16] for line in lines] == ['warning: skipped'] * 2


@pytest.mark.compiles
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason='mounting a file system of its own needs root')
def test_full_disk(data, tmp_path):
    """A disk with room for one checkpoint: the first stays whole, training goes on, the last failure is the exit status."""
    directory = checkpoints(tmp_path)
    directory.mkdir(parents=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=280m', 'tmpfs', str(directory)], check=True)
    try:
        training = Training(data, tmp_path)
        assert training.end() == 3, training.text[-3000:]
        assert steps_logged(training.text) == list(range(1, STEPS + 1))
        assert re.search(
            r'^warning: checkpoint of step 4 not saved: No space left on device; it needs 2\d\d.\d MB, [\d.]+ '
            'MB are free in results/1p/0/ckpt; training continues and tries again$',
            training.text,
            re.M,
        )
        assert re.search(rf'^error: checkpoint of step {STEPS} not saved: No space', training.text, re.M)
        assert [p.name for p in directory.glob('*.ckpt')] == ['inceptionv4-0_2.ckpt'] and not list(
            directory.glob('.inceptionv4*')
        )
        assert checkpoint.load(directory / 'inceptionv4-0_2.ckpt')[1]['step'] == 2
    finally:
        subprocess.run(['umount', str(directory)], check=True)


@pytest.mark.compiles
@pytest.mark.slow
def test_twenty_kills(data, tmp_path):
    """SIGKILL at a random moment, 20 times, then to the end: before or in compilation, in a save, or in the steps and saves
    that follow the first new checkpoint."""
    rng, directory, options, saving, resumed = random.Random(1), checkpoints(tmp_path), ['--max_train_steps', '24'], 0, set()
    (tmp_path / 'reference').mkdir()
    reference = Training(data, tmp_path / 'reference', *options, '--save_checkpoint_steps', '24')
    assert reference.end() == 0, reference.text[-3000:]
    options += ['--resume', 'auto', '--save_checkpoint_steps', '1']
    for kill in range(20):
        before = {p.name for p in checkpoint.by_age(directory)}
        training = Training(data, tmp_path, *options)
        if kill % 4 == 0:
            time.sleep(rng.uniform(0, 15))
        elif kill % 4 == 2:
            training.wait_for(lambda: list(directory.glob('.inceptionv4-*')))
            time.sleep(rng.uniform(0, 0.5))
        else:
            training.wait_for(lambda before=before: {p.name for p in checkpoint.by_age(directory)} - before)
            time.sleep(rng.uniform(0, 1.5))
        assert training.process.poll() is None, training.text[-3000:]
        training.process.kill()
        training.end()
        saving += bool(list(directory.glob('.inceptionv4-*')))
        resumed |= set(re.findall(r'resuming from step (\d+)', training.text))
    last = Training(data, tmp_path, *options)
    assert last.end() == 0, last.text[-3000:]
    print(f'\n20 kills, {saving} of them in a save; went on from steps {sorted(map(int, resumed))}')
    assert_same(directory / 'inceptionv4-4_24.ckpt', checkpoints(tmp_path / 'reference') / 'inceptionv4-4_24.ckpt')
