"""Signals, closed terminals and kills: what they leave of a training, and what is made up for afterwards."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import termios

import pytest

import train
from src.data import demo_images
from src.weights import checkpoint
from tests import processes
from tests.conftest import SMALL
from tests.processes import ROOT, Program

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


class Running(Program):
    """A Python program in a terminal of its own; `text` is its output."""

    def __init__(self, folder, *command, ignored=()):
        self.terminal, inside = pty.openpty()

        def prepare():
            fcntl.ioctl(inside, termios.TIOCSCTTY, 0)
            for number in (signal.SIGHUP, signal.SIGINT):  # which nohup and a shell's & have ignored for the tests
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

        super().__init__(folder, *command, stdin=inside, stderr=inside, preexec_fn=prepare)
        os.close(inside)


@pytest.fixture
def running(tmp_path):
    with contextlib.ExitStack() as stack:
        yield lambda *command, **more: stack.enter_context(Running(tmp_path, *command, **more))


@pytest.mark.compiles
def test_signals_beside_a_forkserver_and_children_that_do_not_end(data, tmp_path, running):
    """Ctrl-C: saved before the end. A closed terminal under nohup, and the end of another child than a data worker: nothing.
    No process is left."""
    (tmp_path / 'start.py').write_text(WITH_CHILDREN)
    directory = tmp_path / 'results/1p/0/log'

    def start(**more):
        one = running('-u', 'start.py', '--data_dir', data, '--max_train_steps', '30', *OPTIONS, **more)
        one.reach(r'^step: \d')
        one.reach('(?s)children.*children')
        return one

    def ended(one, status):
        one.end(status)
        end = json.loads((directory / 'metrics.jsonl').read_text().splitlines()[-1])
        assert end['status'] == status and 'data worker' not in one.text
        assert checkpoint.by_age(directory)[-1].name == f'inceptionv4-{end["step"] // 15}_{end["step"]}.ckpt'

    one = start()
    os.write(one.terminal, b'\3')
    ended(one, 130)  # also within a graph, where MindSpore makes a SIGTERM of it

    one = start(ignored=[signal.SIGHUP])
    os.close(one.terminal)
    os.kill(one.process.pid, signal.SIGHUP)
    os.kill(max(processes.children(one.process.pid)), signal.SIGKILL)
    ended(one, 0)


@pytest.mark.compiles
def test_evaluation_that_was_cut_short_is_made_up(tmp_path, running, monkeypatch, capsys):
    """With its best mark and its report; once. By a signal with more to come, and by a kill with nothing left to train."""
    data = demo_images.make(tmp_path / 'data', train_per_class=1, validation_per_class=2)
    directory, options = tmp_path / 'results/1p/0/log', ['--data_dir', str(data), *OPTIONS, '--max_train_steps', '4']
    options += '--mode train_and_evaluate --report report --epochs_between_evals 1'.split()  # of 2 steps

    def evaluated():
        lines = map(json.loads, (directory / 'metrics.jsonl').read_text().splitlines())
        return [line['step'] for line in lines if line['kind'] == 'evaluation']

    def resumed():
        monkeypatch.chdir(tmp_path)
        train.main(options)
        return capsys.readouterr().out

    first = running('-u', ROOT / 'train.py', *options)
    first.reach(lambda: checkpoint.by_age(directory))
    os.write(first.terminal, b'\3')
    first.end(130)
    assert evaluated() == [] and not (directory / checkpoint.BEST).exists()

    resumed()
    assert evaluated() == [2, 4] and list(tmp_path.glob('**/report/index.html'))
    (directory / checkpoint.BEST).unlink()
    kept = [line for line in (directory / 'metrics.jsonl').read_text().splitlines() if '"evaluation"' not in line]
    (directory / 'metrics.jsonl').write_text('\n'.join(kept) + '\n')
    assert 'training is complete' in resumed() and evaluated() == [4]
    assert checkpoint.load(directory / checkpoint.BEST)[1]['step'] == 4
    assert 'top1' not in resumed() and evaluated() == [4]
