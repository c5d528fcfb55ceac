"""Signals, closed terminals and kills: what they leave of a training, and what is made up for afterwards."""

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import train
from src.data import demo_images
from src.weights import checkpoint
from tests import processes
from tests.conftest import SMALL

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = [*SMALL, '--device_target', 'CPU', '--display_every', '1', '--log_dir', 'log', '--resume', 'auto']
# Like CANN's compile pool: a forkserver with a child, and another child, all with SIGTERM blocked.
WITH_CHILDREN = """
import multiprocessing, signal, time

def stubborn():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    print('children', flush=True)
    time.sleep(1000)

def started(self, *args, **kwargs):
    self.queue = multiprocessing.get_context('forkserver').Queue()
    for method, daemon in (('forkserver', True), ('fork', False)):
        multiprocessing.get_context(method).Process(target=stubborn, daemon=daemon).start()
    return model_train(self, *args, **kwargs)

if __name__ == '__main__':  # the forkserver's child imports the rest
    from mindspore.train import Model
    import train
    model_train, Model.train = Model.train, started
    train.main()
"""


def environment(**more):
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable, 'MARK': str(os.getpid()), **more}


def descendants(pid):
    """The living processes below `pid`."""
    return [one for child in processes.children(pid) for one in (child, *descendants(child))]


def wait(condition, seconds=120):
    """The first value of `condition()` that is true; of a process that does not get there, None."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


class Running:
    """A command in a terminal of its own; `text` is its output."""

    def __init__(self, folder, *command, ignored=(), **more):
        self.terminal, inside = pty.openpty()
        self.output = folder / f'output.{time.monotonic_ns()}'

        def prepare():
            fcntl.ioctl(inside, termios.TIOCSCTTY, 0)
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)

        with open(self.output, 'wb') as file:
            self.process = subprocess.Popen(
                [*map(str, command)],
                cwd=folder,
                env=environment(**more),
                stdin=inside,
                stdout=file,
                stderr=inside,
                start_new_session=True,
                preexec_fn=prepare,
            )
        os.close(inside)

    @property
    def text(self):
        return self.output.read_text(errors='replace')

    def reach(self, pattern):
        """Wait for a line."""
        assert wait(lambda: re.search(pattern, self.text, re.M) or self.process.poll() is not None), self.text[-2000:]
        assert re.search(pattern, self.text, re.M), self.text[-2000:]

    def end(self, seconds=60):
        """Exit status."""
        return self.process.wait(seconds)


@pytest.fixture
def running():
    made = []

    def make(*args, **more):
        made.append(Running(*args, **more))
        return made[-1]

    yield make
    for one in made:
        left = descendants(one.process.pid)
        for pid in (one.process.pid, *left):
            if processes.lives(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.compiles
def test_signals_beside_a_forkserver_and_children_that_do_not_end(data, tmp_path, running):
    """Each is saved and ends with its status, and the last run with 0, within 30 s of its last step. The end of another
    child than a data worker is nothing, nor is SIGHUP under nohup."""
    (tmp_path / 'start.py').write_text(WITH_CHILDREN)
    directory, options = tmp_path / 'results/1p/0/log', ['--data_dir', data, '--max_train_steps', '40', *OPTIONS]

    def start(**more):
        one = running(tmp_path, sys.executable, '-u', 'start.py', *options, **more)
        one.reach(r'^step: \d')
        one.reach('(?s)children.*children')
        one.children = descendants(one.process.pid)
        return one

    def ended(one, status, name):
        assert one.end(30) == status, one.text[-2000:]
        assert 'data worker' not in one.text and 'Traceback' not in one.text, one.text[-2000:]
        log = (directory / 'inception_v4.log').read_text()
        end = json.loads((directory / 'metrics.jsonl').read_text().splitlines()[-1])
        assert end['status'] == status and end['cause'].startswith(f'{name}: stopped after step ' if status else 'done')
        assert checkpoint.by_age(directory)[-1].name == f'inceptionv4-{end["step"] // 15}_{end["step"]}.ckpt'
        assert wait(lambda: not any(map(processes.lives, one.children)), 10)
        return log

    one = start(ignored=[signal.SIGHUP])
    os.close(one.terminal)
    os.kill(one.process.pid, signal.SIGHUP)
    steps = one.text.count('step:')
    wait(lambda: one.text.count('step:') >= steps + 3)
    stubborn = max(pid for pid in processes.children(one.process.pid))
    os.kill(stubborn, signal.SIGKILL)
    time.sleep(0.5)
    one.process.terminate()
    log = ended(one, 143, 'SIGTERM')
    assert 'SIGTERM: saving after this step; ' in log

    one = start()
    os.write(one.terminal, b'\3')  # Ctrl-C
    ended(one, 130, 'SIGINT')

    one = start()
    os.close(one.terminal)
    ended(one, 129, 'SIGHUP')

    last = start()
    last.reach('^trained ')
    ended(last, 0, 'no signal')


def test_killed_program_leaves_none_of_its_own(tmp_path, running):
    """Of one that runs others, with SIGKILL; a closed terminal ends both."""
    for number, status in ((signal.SIGKILL, -9), (signal.SIGHUP, 129)):
        ignored = [signal.SIGHUP] * (number == signal.SIGKILL)  # which the kernel sends as this one owns the terminal
        demo = running(
            tmp_path, sys.executable, '-m', 'src.workflow', 'demo', 'out', '--device_target', 'CPU', ignored=ignored
        )
        child = wait(lambda demo=demo: processes.children(demo.process.pid) and 'train.py' in demo.text)
        assert child, demo.text
        [child] = processes.children(demo.process.pid)
        time.sleep(0.5)
        demo.process.send_signal(number)
        assert demo.end(30) == status
        assert wait(lambda child=child: not processes.lives(child), 20)


@pytest.mark.compiles
def test_evaluation_that_was_cut_short_is_made_up(tmp_path, running, monkeypatch, capsys):
    """With its best mark and its report; once. By a signal with nothing left to train, and by a kill with more to come."""
    data, directory = (
        demo_images.make(tmp_path / 'data', train_per_class=1, validation_per_class=2),
        tmp_path / 'results/1p/0/log',
    )
    options = [
        '--data_dir',
        str(data),
        *OPTIONS,
        '--mode',
        'train_and_evaluate',
        '--report',
        'report',
        '--epochs_between_evals',
        '1',
    ]

    def evaluated():
        lines = map(json.loads, (directory / 'metrics.jsonl').read_text().splitlines())
        return [line['step'] for line in lines if line['kind'] == 'evaluation']

    def resumed(*more):
        monkeypatch.chdir(tmp_path)
        train.main([*options, *more])
        return capsys.readouterr().out

    first = running(tmp_path, sys.executable, '-u', ROOT / 'train.py', *options, '--max_train_steps', '2')
    assert wait(lambda: checkpoint.by_age(directory)), first.text
    first.process.terminate()
    assert first.end() == 143 and evaluated() == [] and not (directory / checkpoint.BEST).exists()

    out = resumed('--max_train_steps', '2')
    assert 'training is complete' in out and evaluated() == [2] and 'trained' not in out
    assert checkpoint.load(directory / checkpoint.BEST)[1]['step'] == 2 and (directory / 'training.html').exists()
    assert list(tmp_path.glob('**/report/index.html'))
    assert 'top1' not in resumed('--max_train_steps', '2') and evaluated() == [2]

    kept = [line for line in (directory / 'metrics.jsonl').read_text().splitlines() if '"evaluation"' not in line]
    (directory / 'metrics.jsonl').write_text('\n'.join(kept) + '\n')
    resumed('--max_train_steps', '4', '--resume_override', 'true')
    assert evaluated() == [2, 4]
