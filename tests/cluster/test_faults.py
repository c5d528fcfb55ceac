"""Random faults to a training run of two real ranks, which must end as one that nothing happened to, bit for bit."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from src.data import demo_images
from src.training import metrics
from src.weights import checkpoint
from tests import processes
from tests.conftest import SMALL
from tests.processes import ROOT

# The pauses between restarts are 1 and 2 s instead of 10 to 600.
LAUNCHER = 'from src.cluster import launch; launch.PAUSE, launch.LONGEST = 1, 2; launch.main()'
RECIPE = (
    '--lr 0.001 --save_checkpoint_steps 2 --display_every 1 --batch_size 2 --device_target CPU --keep_checkpoint_max 3 '
    '--max_train_steps 24 --num_workers 2 --resume auto --max_restarts 99 --stall_timeout 20 --grace 20'
).split()
FAULTS = [('rank', name) for name in ('SIGKILL', 'SIGSTOP', 'SIGTERM')]
FAULTS += [('worker', 'SIGKILL'), ('scheduler', 'SIGKILL'), ('checkpoint', 'SIGKILL'), ('launcher', 'SIGTERM')]


class Run:
    """A launcher and its two ranks in `folder`; all processes carry the folder in their environment."""

    def __init__(self, folder, data):
        self.folder, self.directory = folder, folder / 'results/2p/0/ckpt'
        (folder / 'tmp').mkdir(parents=True)
        command = [sys.executable, '-c', LAUNCHER, '2', ROOT / 'train.py', '--data_dir', data, *SMALL, *RECIPE]
        environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'TMPDIR': str(folder / 'tmp')}
        log = open(folder / 'log', 'ab')
        self.start = lambda: subprocess.Popen([*map(str, command)], cwd=folder, env=environment, stdout=log, stderr=log)
        self.process = self.start()

    def count(self, start):
        """How many lines of the launcher and rank 0 begin with `start`."""
        return (self.folder / 'log').read_text(errors='replace').count(f'\n{start} ')

    def jobs(self):
        """{RANK_ID, or 'scheduler': pid} of the launcher's children."""
        found = [(pid, psutil.Process(pid).environ()) for pid in processes.children(self.process.pid)]
        return {'scheduler' if one.get('MS_ROLE') == 'MS_SCHED' else one.get('RANK_ID'): pid for pid, one in found}

    def wait(self, condition):
        """Whether `condition()` became true before the launcher's end."""
        return processes.wait(lambda: condition() or self.process.poll() is not None, 600) and bool(condition())

    def fault(self, victim, name, rng):
        """Send the signal `name` at a random moment; returns whether it met what it was meant for."""
        steps, restarts = self.count('step:') + rng.randint(1, 2), self.count('launch: restart')
        # In steps and saves, or in start and compilation; a stopped rank is noticed after its first heartbeat.
        early = victim in ('rank', 'scheduler', 'launcher') and name != 'SIGSTOP' and rng.random() < 0.4
        assert self.wait(lambda: len(self.jobs()) == 3)
        assert self.wait(lambda: early or self.count('step:') >= steps)
        time.sleep(rng.uniform(0, 8 if early else 1))
        if victim == 'launcher':  # a batch system would give the command again
            self.process.terminate()
            assert self.process.wait(300) in (0, 143)
            self.process = self.start()
            return True
        if victim == 'checkpoint':
            newest = checkpoint.by_age(self.directory)[-1]
            data = bytearray(newest.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            newest.write_bytes(data)
        pid = self.jobs()['scheduler' if victim == 'scheduler' else rng.choice('01')]
        os.kill(rng.choice(processes.children(pid)) if victim == 'worker' else pid, getattr(signal, name))
        return self.wait(lambda: self.count('launch: restart') > restarts)

    def outcome(self):
        """What is left after the end: all parameters and slots, where the run is, each step once; no files, no processes."""
        assert self.process.wait(900) == 0, (self.folder / 'log').read_text()[-3000:]
        values, info = checkpoint.load(self.directory / 'inceptionv4-2_24.ckpt')
        rows = [row for row in metrics.read(self.directory / metrics.NAME) if row['kind'] == 'step']
        rows = [[row[key] for key in ('step', 'loss', 'total_loss', 'lr', 'gradient_norm')] for row in rows]
        left = [path for path in self.folder.rglob('.*') if not path.name.endswith('lock')]
        # Of the compile cache SIGKILL leaves an empty directory.
        left += [path for path in (self.folder / 'tmp').rglob('*') if not path.is_dir()]
        environments = [one.info['environ'] or {} for one in psutil.process_iter(['environ'])]
        left += [one for one in environments if one.get('TMPDIR') == str(self.folder / 'tmp')]
        place = [info[key] for key in ('step', 'epoch', 'position')]
        return {name: value.tobytes() for name, value in values.items()}, place, rows, left


@pytest.mark.compiles
@pytest.mark.slow
def test_random_faults(tmp_path):
    rng, met = random.Random(1), 0
    data = demo_images.make(tmp_path / 'records', train_per_class=4, validation_per_class=1)
    expected = Run(tmp_path / 'reference', data).outcome()
    run = Run(tmp_path / 'faults', data)
    try:
        for victim, name in rng.sample(FAULTS, len(FAULTS)):
            with contextlib.suppress(OSError, LookupError, ValueError, psutil.NoSuchProcess):  # it has just gone
                met += run.fault(victim, name, rng)
        assert run.outcome() == expected and not expected[-1] and met >= 5
    finally:
        run.process.kill()
