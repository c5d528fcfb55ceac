"""Random faults over training runs of two ranks: `python -m tests.faults --faults 50 --seed 1`.

A launcher trains with --max_restarts and --stall_timeout; every few seconds a rank, a data worker, the scheduler, a
checkpoint or the launcher itself meets a fault at a random moment. Each run must end by itself with status 0 and what a run
had that nothing happened to, bit for bit: all parameters and slots, and a history of each step once. Of its processes and
temporary files none may be left. After SIGTERM to the launcher, which asks it to end, the same command is given again, as a
batch system would. The pauses between restarts are 1 and 2 s instead of 10 to 600.
"""

import contextlib
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from src.data import demo_images
from src.errors import Parser
from src.training import metrics
from src.weights import checkpoint
from tests.conftest import SMALL
from tests.processes import children

ROOT = Path(__file__).resolve().parents[1]
STEPS, EACH = 24, 9  # steps of a run, and faults that it meets
LAUNCHER = 'from src.cluster import launch; launch.PAUSE, launch.LONGEST = 1, 2; launch.main()'
RECIPE = (
    '--lr 0.001 --save_checkpoint_steps 2 --display_every 1 --batch_size 2 --device_target CPU --keep_checkpoint_max 3 '
    f'--max_train_steps {STEPS} --num_workers 2 --resume auto --max_restarts 99 --stall_timeout 20 --grace 20'
).split()
KINDS = (
    'SIGKILL of a rank',
    'SIGSTOP of a rank',
    'SIGTERM of a rank',
    'SIGKILL of a data worker',
    'SIGKILL of the scheduler',
    'newest checkpoint damaged, then SIGKILL of a rank',
    'SIGTERM of the launcher, the same command again',
)


class Run:
    """A launcher and its two ranks in `folder`; all processes carry a mark in their environment."""

    def __init__(self, folder, data, *options):
        self.folder, self.mark, self.directory = folder, secrets.token_hex(8), folder / 'results/2p/0/ckpt'
        (folder / 'tmp').mkdir(parents=True)
        command = [sys.executable, '-c', LAUNCHER, '2', ROOT / 'train.py', '--data_dir', data, *SMALL, *RECIPE, *options]
        self.command, self.log = [*map(str, command)], open(folder / 'launcher.log', 'ab')
        self.start()

    def start(self):
        environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'MARK': self.mark, 'TMPDIR': str(self.folder / 'tmp')}
        self.process = subprocess.Popen(
            self.command, cwd=self.folder, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def marked(self, above=None):
        """{environment's RANK_ID, or 'scheduler': pid} of this run's processes, of children of the process `above` only."""
        found = {}
        for one in psutil.process_iter(['ppid', 'environ', 'status']):
            values = one.info['environ'] or {}
            if values.get('MARK') == self.mark and one.info['ppid'] in (above, one.info['ppid'] if above is None else above):
                found['scheduler' if values.get('MS_ROLE') == 'MS_SCHED' else values.get('RANK_ID', one.pid)] = one.pid
        return found

    @property
    def text(self):
        """What the launcher and rank 0 have printed."""
        return (self.folder / 'launcher.log').read_text(errors='replace')

    def wait(self, condition, seconds=300):
        """Whether `condition()` became true before the launcher's end."""
        end = time.monotonic() + seconds
        while not condition() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        return bool(condition())

    def meet(self, kind, rng):
        """Do a fault at a random moment. Returns what came of it, None if the run had ended before."""
        steps, restarts = self.text.count('\nstep: '), self.text.count('\nlaunch: restart ')
        if not self.wait(lambda: len(self.marked(self.process.pid)) == 3):
            return None
        # In steps and saves, or in start and compilation; a stopped rank is noticed after its first heartbeat.
        moment = 'step' if rng.random() < 0.6 or 'STOP' in kind or 'worker' in kind or 'damaged' in kind else 'start'
        if moment == 'step' and not self.wait(lambda: self.text.count('\nstep: ') >= steps + rng.randint(1, 3)):
            return None
        time.sleep(rng.uniform(0, 1 if moment == 'step' else 8))
        processes = self.marked(self.process.pid)
        if 'launcher' in kind:
            self.process.terminate()
            status = self.process.wait(300)
            self.start()
            return f'{moment}: status {status}' if status in (0, 143) else f'{moment}: WRONG status {status}'
        if 'damaged' in kind and not self.damage(rng):
            return None
        rank = processes.get('scheduler' if 'scheduler' in kind else rng.choice('01'))
        victims = [rank] if 'worker' not in kind else children(rank)
        os.kill(rng.choice(victims), getattr(signal, re.search(r'SIG\w+', kind)[0]))
        self.wait(lambda: self.text.count('\nlaunch: restart ') > restarts)
        return f'{moment}: {self.text.rpartition("launch: restart ")[2].splitlines()[0]:.150}'

    def damage(self, rng):
        """Flip a bit of the newest of two whole checkpoints or more; returns whether there were."""
        found = checkpoint.by_age(self.directory)
        if len(found) >= 2:
            data = bytearray(found[-1].read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            found[-1].write_bytes(data)
        return len(found) >= 2

    def problems(self, reference):
        """What is wrong after the end, in words; `reference`: the directory of a run without faults."""
        end = time.monotonic() + 10
        while self.marked() and time.monotonic() < end:
            time.sleep(0.2)
        found = [f'status {self.process.returncode}'] * bool(self.process.returncode)
        found += [f'process {pid} is left' for pid in self.marked().values()]
        found += [f'{path} is left' for path in (self.folder / 'tmp').iterdir()]
        found += [f'{path} is left' for path in self.folder.rglob('.*') if not path.name.endswith('lock')]
        name = f'inceptionv4-{STEPS // 10}_{STEPS}.ckpt'
        if not (self.directory / name).exists():
            return [*found, f'no {name}']
        (values, info), (expected, other) = (checkpoint.load(place / name) for place in (self.directory, reference))
        different = [key for key in expected if key not in values or values[key].tobytes() != expected[key].tobytes()]
        found += [f'{len(different)} parameters differ, such as {different[:3]}'] * bool(different)
        found += [f'{key} differs' for key in ('step', 'epoch', 'position') if info[key] != other[key]]
        keys = ('step', 'loss', 'total_loss', 'lr', 'gradient_norm')
        one, other = (
            [[row[key] for key in keys] for row in metrics.read(place / metrics.NAME) if row['kind'] == 'step']
            for place in (self.directory, reference)
        )
        return [*found, *['the history differs'] * (one != other)]


def endure(folder, faults, seed, log=print):
    """Do `faults` faults to as many runs as that takes. Returns [(kind, outcome)] and what was wrong."""
    rng, done, wrong, bag = random.Random(seed), [], [], []
    data = demo_images.make(folder / 'records', train_per_class=4, validation_per_class=1)
    first = Run(folder / 'reference', data)
    first.process.wait(600)
    wrong += [f'run without faults: {problem}' for problem in first.problems(first.directory)]
    for number in range(faults):
        if len(done) >= faults or wrong:
            break
        run, count = Run(folder / str(number), data, '--compile_cache', str(folder / 'graphs') if number % 4 else 'off'), 0
        while count < EACH and len(done) < faults and run.process.poll() is None:
            bag = bag or rng.sample(KINDS, len(KINDS))
            kind, outcome = bag.pop(), None
            with contextlib.suppress(OSError, IndexError, TypeError):  # what it was to happen to has just gone
                outcome = run.meet(kind, rng)
            if outcome:
                count += 1
                done.append((kind, outcome))
                log(f'run {number}, fault {count}: {kind}, {outcome}')
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(600)
        wrong += [f'run {number}: {problem}' for problem in run.problems(first.directory)]
        run.process.kill()
    return done, wrong + [f'{kind}: {outcome}' for kind, outcome in done if 'WRONG' in outcome]


def main():
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('--faults', type=int, default=50)
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done, wrong = endure(Path(folder), args.faults, args.seed, lambda line: print(line, flush=True))
    print(f'{len(done)} faults; {len(wrong)} problems', *wrong, sep='\n')
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
