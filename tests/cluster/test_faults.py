"""Random faults to a training run of two real ranks, which must end as one that nothing happened to, bit for bit."""

import contextlib
import os
import random
import signal
import time

import psutil
import pytest

from src.data import demo_images
from src.training import metrics
from src.weights import checkpoint
from tests.conftest import SMALL
from tests.processes import ROOT, Program, children, wait

# The pauses between restarts are 1 and 2 s instead of 10 to 600.
LAUNCHER = 'from src.cluster import launch; launch.PAUSE, launch.LONGEST = 1, 2; launch.main()'
RECIPE = (
    '--lr 0.001 --save_checkpoint_steps 2 --display_every 1 --batch_size 2 --device_target CPU --keep_checkpoint_max 3 '
    '--max_train_steps 24 --num_workers 2 --resume auto --max_restarts 99 --stall_timeout 20 --grace 20'
).split()
FAULTS = [('rank', name) for name in ('SIGKILL', 'SIGSTOP', 'SIGTERM')]
FAULTS += [('worker', 'SIGKILL'), ('scheduler', 'SIGKILL'), ('checkpoint', 'SIGKILL'), ('launcher', 'SIGTERM')]


def start(folder):
    """A launcher of two ranks in `folder`, on the data set beside it."""
    return Program(folder, '-c', LAUNCHER, '2', ROOT / 'train.py', '--data_dir', folder.parent / 'data', *SMALL, *RECIPE)


def jobs(run):
    """{RANK_ID, or 'scheduler': pid} of the launcher's children."""
    found = [(pid, psutil.Process(pid).environ()) for pid in children(run.process.pid)]
    return {'scheduler' if one.get('MS_ROLE') == 'MS_SCHED' else one.get('RANK_ID'): pid for pid, one in found}


def send(run, victim, name, rng):
    """Send the signal `name` to a process of the victim at a random moment; whether the ranks were started again for it."""
    steps, restarts = len(run.found('^step:')) + rng.randint(1, 2), len(run.found('^launch: restart'))
    # In steps and saves, or in start and compilation; a stopped rank is noticed after its first heartbeat.
    early = victim in ('rank', 'scheduler', 'launcher') and name != 'SIGSTOP' and rng.random() < 0.4
    run.reach(lambda: len(jobs(run)) == 3 and (early or len(run.found('^step:')) >= steps), 600)
    time.sleep(rng.uniform(0, 8 if early else 1))
    if victim == 'launcher':
        run.process.terminate()
        return run.process.wait(300) in (0, 143)
    if victim == 'checkpoint':
        newest = checkpoint.by_age(run.output.parent / 'results/2p/0/ckpt')[-1]
        data = bytearray(newest.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        newest.write_bytes(data)
    pid = jobs(run)['scheduler' if victim == 'scheduler' else rng.choice('01')]
    os.kill(rng.choice(children(pid)) if victim == 'worker' else pid, getattr(signal, name))
    wait(lambda: len(run.found('^launch: restart')) > restarts or run.process.poll() is not None, 600)
    return len(run.found('^launch: restart')) > restarts


def outcome(folder):
    """What a run left: all parameters and slots, where it was, each step once; and hidden files."""
    values, info = checkpoint.load(folder / 'results/2p/0/ckpt/inceptionv4-2_24.ckpt')
    rows = [row for row in metrics.read(folder / 'results/2p/0/ckpt' / metrics.NAME) if row['kind'] == 'step']
    rows = [[row[key] for key in ('step', 'loss', 'total_loss', 'lr', 'gradient_norm')] for row in rows]
    left = [path for path in folder.rglob('.*') if not path.name.endswith('lock')]
    place = [info[key] for key in ('step', 'epoch', 'position')]
    return {name: value.tobytes() for name, value in values.items()}, place, rows, left


@pytest.mark.compiles
@pytest.mark.slow
def test_random_faults(tmp_path):
    rng, met = random.Random(1), 0
    demo_images.make(tmp_path / 'data', train_per_class=4, validation_per_class=1)
    reference, faults = (tmp_path / name for name in ('reference', 'faults'))
    reference.mkdir(), faults.mkdir()
    with start(reference) as run:
        assert run.process.wait(900) == 0, run.text[-3000:]
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(start(faults))
        for victim, name in rng.sample(FAULTS, len(FAULTS)):
            with contextlib.suppress(OSError, LookupError, ValueError, psutil.NoSuchProcess):  # it has just gone
                met += send(run, victim, name, rng)
            if victim == 'launcher':  # a batch system would give the command again
                run = stack.enter_context(start(faults))
        assert run.process.wait(900) == 0, run.text[-3000:]
    assert outcome(faults) == outcome(reference) and not outcome(faults)[-1] and met >= 5
