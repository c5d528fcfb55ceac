"""Random faults over trainings of two ranks: `python -m tests.faults --faults 50 --seed 1`.

A launcher trains with --max_restarts and --stall_timeout; every few seconds a rank, a data worker, the scheduler, the disk,
a checkpoint or the launcher itself meets a fault at a random moment. Each training must end by itself with status 0 and what
a training had that nothing happened to, bit for bit: all parameters and slots, and a history of each step once. Of its
processes, shared memory, message queues, locks and temporary files none may be left. After SIGTERM to the launcher, which
asks it to end, the same command is given again, as a batch system would.

The pauses between restarts are 1 and 2 s instead of 10 to 600.
"""

import atexit
import contextlib
import fcntl
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from src.data import demo_images
from src.errors import Parser
from src.training import metrics
from src.weights import checkpoint
from tests import processes
from tests.conftest import SMALL

ROOT = Path(__file__).resolve().parents[1]
STEPS, EACH = 24, 9  # steps of a training, and faults that it meets
STALL = 20  # seconds: --stall_timeout
LAUNCHER = 'from src.cluster import launch; launch.PAUSE, launch.LONGEST = 1, 2; launch.main()'
RECIPE = (
    '--lr 0.001 --save_checkpoint_steps 2 --display_every 1 --batch_size 2 --device_target CPU '
    f'--max_train_steps {STEPS} --keep_checkpoint_max 3 --num_workers 2 --resume auto '
    f'--max_restarts 99 --stall_timeout {STALL} --grace 20'
).split()
DISK = 900  # MB of the file system with the checkpoints
# Kind of fault: moments at which it may come.
KINDS = {
    'SIGKILL of a rank': ('start', 'compilation', 'step', 'save'),
    'SIGSTOP of a rank': ('compilation', 'step', 'save'),
    'SIGTERM of a rank': ('start', 'compilation', 'step', 'save'),
    'SIGKILL of a data worker': ('step', 'save'),
    'SIGKILL of the scheduler': ('start', 'compilation', 'step', 'save'),
    'newest checkpoint damaged, then SIGKILL of a rank': ('step',),
    'newest checkpoint damaged': ('pause',),
    'disk full for some seconds': ('step', 'save'),
    'disk full for some seconds, then SIGKILL of a rank': ('step', 'save', 'pause'),
    'SIGTERM of the launcher, the same command again': ('start', 'compilation', 'step', 'save', 'pause'),
}


class Training:
    """A launcher and its two ranks in `folder`; all processes carry a mark in their environment, and their pids are kept."""

    def __init__(self, folder, data, *options, script=ROOT / 'train.py'):
        self.folder, self.mark, self.pids, self.output = folder, secrets.token_hex(8), set(), ''
        self.directory = folder / 'results/2p/0/ckpt'
        (folder / 'tmp').mkdir(parents=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.command = [sys.executable, '-c', LAUNCHER, '2', str(script), '--data_dir', str(data), *SMALL]
        self.command += [*RECIPE, *options]
        self.log, self.ended = open(folder / 'launcher.log', 'ab'), threading.Event()
        threading.Thread(target=self._note_pids, daemon=True).start()
        self.start()
        atexit.register(lambda: self.process.kill())  # its ranks die with it

    def start(self):
        """Give the command, again after an end."""
        environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'MARK': self.mark, 'TMPDIR': str(self.folder / 'tmp')}
        self.process = subprocess.Popen(
            self.command, cwd=self.folder, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def marked(self):
        """The living processes of the training."""
        found = set()
        for path in Path('/proc').glob('[0-9]*/environ'):
            with contextlib.suppress(OSError):
                if f'MARK={self.mark}'.encode() in path.read_bytes() and processes.lives(pid := int(path.parent.name)):
                    found.add(pid)
        return found

    def _note_pids(self):
        while not self.ended.wait(0.2):
            self.pids |= self.marked()

    @property
    def text(self):
        """What the launcher and rank 0 have printed."""
        return (self.folder / 'launcher.log').read_text(errors='replace')

    def restarts(self):
        """Restarts so far, by the launcher or by giving the command again."""
        return len(re.findall(r'^launch: restart \d+ of', self.text, re.M))

    def ranks(self):
        """{'0' or '1' or 'scheduler': pid} of the present attempt."""
        found = {}
        for pid in processes.children(self.process.pid):
            with contextlib.suppress(OSError, KeyError):  # between fork and exec, or already gone
                entries = (entry.partition('=') for entry in Path(f'/proc/{pid}/environ').read_text().split('\0'))
                values = {name: value for name, _, value in entries}
                found['scheduler' if values.get('MS_ROLE') == 'MS_SCHED' else values['RANK_ID']] = pid
        return found


def said(pid):
    """The log of a living rank."""
    with contextlib.suppress(OSError), open(f'/proc/{pid}/fd/1', 'rb') as log:
        return log.read().decode(errors='replace')
    return ''


class Faults:
    """Does faults to a `Training`."""

    def __init__(self, training, rng):
        self.training, self.rng = training, rng

    def wait(self, condition, seconds=180):
        """Whether `condition()` became true before the launcher's end."""
        end = time.monotonic() + seconds
        while not condition() and self.training.process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        return bool(condition())

    def reach(self, moment):
        """Wait for a random moment of this name; False if the training has ended before."""
        training, there = self.training, {}
        if moment == 'pause':
            return self.sigkill() and self.wait(lambda: training.restarts() > self.before)

        def all_there():
            there.update(training.ranks())
            return len(there) == 3

        if not self.wait(all_there):
            return False
        if moment == 'start':
            time.sleep(self.rng.uniform(0, 5))
        elif moment == 'compilation':
            if not self.wait(lambda: re.search('^(?:compiling|loading) the training graph', said(there['0']), re.M)):
                return False
            time.sleep(self.rng.uniform(0, 4))
        else:
            steps = self.rng.randint(1, 3)
            if not self.wait(lambda: said(there['0']).count('\nstep: ') >= steps):
                return False
            if moment == 'save':
                self.wait(lambda: list(training.directory.glob('.inceptionv4-*')), 20)
                time.sleep(self.rng.uniform(0, 0.3))
            else:
                time.sleep(self.rng.uniform(0, 1))
        return training.process.poll() is None

    def sigkill(self, name=None):
        """SIGKILL of the process `name` of the launch, any rank if None."""
        ranks = self.training.ranks()
        name = name or self.rng.choice('01')
        if name in ranks:
            os.kill(ranks[name], signal.SIGKILL)
        return name in ranks

    def do(self, kind, moment):
        """Do it; gives a line on what came of it, or None if the training ended before."""
        training = self.training
        self.before = training.restarts()
        if not self.reach(moment):
            return None
        again = moment != 'pause'  # the fault has to end the ranks
        if kind in ('SIGKILL of a rank', 'SIGKILL of the scheduler'):
            done = self.sigkill('scheduler' if 'sched' in kind else None)
        elif kind in ('SIGSTOP of a rank', 'SIGTERM of a rank'):
            done = (pid := training.ranks().get(self.rng.choice('01'))) is not None
            if done:
                os.kill(pid, getattr(signal, kind.split()[0]))
        elif 'data worker' in kind:
            rank = training.ranks().get(self.rng.choice('01'), 0)
            done = bool(workers := processes.children(rank))
            if done:
                os.kill(self.rng.choice(workers), signal.SIGKILL)
        elif 'damaged' in kind:
            done = self.damage() and (not again or self.sigkill())
        elif 'disk full' in kind:
            filler, again = self.fill(), again and 'SIGKILL' in kind
            time.sleep(self.rng.uniform(10, 40) if moment == 'pause' else self.rng.uniform(0.5, 4))  # a start takes long
            done = not again or self.sigkill()
            time.sleep(self.rng.uniform(0, 4) if 'SIGKILL' in kind else 0)
            filler.unlink()
        else:
            done, again = True, False
            training.process.send_signal(signal.SIGTERM)
            status = training.process.wait(300)
            if status != 143:
                return f'the launcher ended with {status} instead of 143'
            training.start()
        if not done:
            return 'missed'
        if again and not self.wait(lambda: training.restarts() > self.before, 300):
            return f'no restart; status {training.process.poll()}'
        lines = re.findall(r'^launch: restart \d+ of .*', training.text, re.M)[self.before :]
        return ' | '.join(line[len('launch: ') :][:150] for line in lines) or 'went on'

    def damage(self):
        """Flip a bit of the newest of two whole checkpoints or more; gives whether there were."""
        found = checkpoint.by_age(self.training.directory)
        if len(found) < 2:
            return False
        with open(found[-1], 'r+b') as file:
            place = self.rng.randrange(os.path.getsize(found[-1]))
            byte = os.pread(file.fileno(), 1, place)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << self.rng.randrange(8)]), place)
        return True

    def fill(self):
        """A file that takes all room of the disk."""
        filler = self.training.directory / 'filler'
        with open(filler, 'wb') as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 20)):
                file.flush()
        return filler


def problems(training, reference, filled=False):
    """What is wrong after the end of a training, in words."""
    training.ended.set()
    end, found = time.monotonic() + 5, []
    while training.marked() and time.monotonic() < end:
        time.sleep(0.2)
    found += [f'process {pid} is left' for pid in training.marked()]
    found += [f'{path} is left' for path in (training.folder / 'tmp').iterdir()]
    found += [f'{path} is left' for path in training.folder.rglob('.*') if not path.name.endswith('lock')]
    for path in training.folder.rglob('.*lock'):
        with open(path, 'a+') as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                found.append(f'{path} is held')
    if reference is None:
        return found
    name = f'inceptionv4-{STEPS // 10}_{STEPS}.ckpt'
    if not (training.directory / name).exists():
        return [*found, f'no {name}']
    (values, info), (expected, expected_info) = (checkpoint.load(place / name) for place in (training.directory, reference))
    different = [key for key in expected if key not in values or values[key].tobytes() != expected[key].tobytes()]
    if different or values.keys() != expected.keys():
        found.append(f'{len(different)} of {len(expected)} parameters differ, e.g. {different[:3]}')
    found += [f'{key} differs' for key in ('step', 'epoch', 'position') if info[key] != expected_info[key]]
    history, expected = (metrics.read(place / metrics.NAME) for place in (training.directory, reference))
    keys = ('step', 'loss', 'total_loss', 'lr', 'gradient_norm')
    one, other = ([[row[key] for key in keys] for row in rows if row['kind'] == 'step'] for rows in (history, expected))
    # A full disk costs lines.
    missing = [row for row in other if row not in one]
    if [row for row in other if row in one] != one or missing and not filled:
        found.append(f'the history differs ({len(one)} steps, {len(other)} expected)')
    return found


@contextlib.contextmanager
def disk(directory):
    """A file system of its own at `directory`, if this user may mount one."""
    done = os.geteuid() == 0 and not subprocess.call(
        ['mount', '-t', 'tmpfs', '-o', f'size={DISK}m', 'tmpfs', str(directory)], stderr=subprocess.DEVNULL
    )
    try:
        yield done
    finally:
        if done:
            subprocess.run(['umount', '-l', str(directory)], check=True)


def run(folder, faults, seed, say=print):
    """Do `faults` faults to as many trainings as that takes. Gives [(kind, moment, outcome)] and what was wrong."""
    rng, done, wrong = random.Random(seed), [], []
    data = demo_images.make(folder / 'records', train_per_class=4, validation_per_class=1)
    reference = folder / 'reference/results/2p/0/ckpt'
    if not reference.exists():  # of an earlier run in the same directory
        first = Training(folder / 'reference', data, '--compile_cache', 'off')
        if first.process.wait(600):
            return done, [f'the training without faults ended with {first.process.returncode}: {first.text[-2000:]}']
        wrong += [f'training without faults: {problem}' for problem in problems(first, None)]
    say(f'seed {seed}; a training of {STEPS} steps without faults is the reference')
    bag, number = [], 0
    while len(done) < faults and number < faults:
        number += 1
        cache = 'off' if number % 4 == 2 else str(folder / 'graphs')
        (folder / str(number) / 'results/2p/0/ckpt').mkdir(parents=True)
        with disk(folder / str(number) / 'results/2p/0/ckpt') as full:
            training = Training(folder / str(number), data, '--compile_cache', cache)
            injector, count = Faults(training, rng), 0
            while count < EACH and len(done) < faults and training.process.poll() is None:
                bag = bag or rng.sample([kind for kind in KINDS if full or 'disk' not in kind], len(KINDS) - 2 * (not full))
                moment = rng.choice(KINDS[kind := bag.pop()])
                try:
                    outcome = injector.do(kind, moment)
                except OSError:  # what it was to happen to has just gone
                    outcome = 'missed'
                if outcome not in (None, 'missed'):
                    count += 1
                    done.append((kind, moment, outcome))
                    say(f'training {number}, fault {count}: {kind}, {moment}: {outcome}')
            try:
                status = training.process.wait(600)
            except subprocess.TimeoutExpired:
                status = 'no end in 600 s'
                training.process.kill()
            filled = any('disk full' in kind for kind, _, _ in done[-count:])
            found = [f'status {status}'] * bool(status) + problems(training, reference, filled)
            cached = '' if cache == 'off' else ', compile cache'
            say(
                f'training {number}{cached}: {count} faults, {training.restarts()} restarts by '
                f'the launcher; {"; ".join(found) if found else "status 0, equal bit for bit, nothing left"}'
            )
            wrong += [f'training {number}: {problem}' for problem in found]
    return done, wrong


def main(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('--faults', type=int, default=50)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--keep', help='directory for the trainings, kept; default: a temporary one')
    args = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        folder = Path(args.keep or stack.enter_context(tempfile.TemporaryDirectory())).absolute()
        begun = time.monotonic()
        done, wrong = run(
            folder, args.faults, args.seed, lambda line: print(f'{time.monotonic() - begun:5.0f} s {line}', flush=True)
        )
    for kind in KINDS:
        moments = Counter(moment for one, moment, _ in done if one == kind)
        print(f'{sum(moments.values()):3} {kind}: {", ".join(f"{count} {moment}" for moment, count in moments.items())}')
    print(f'{len(done)} faults; {len(wrong)} problems', *wrong, sep='\n')
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
