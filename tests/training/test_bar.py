"""The progress bar: one line on a terminal of any width, nothing elsewhere (no graph is compiled)."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
from types import SimpleNamespace

import pytest

from src.log import Log
from src.training.bar import Bar
from src.training.plan import Plan

PLAN = Plan(batch_size=8, world=1, steps_per_epoch=10, stop=120, sizes=(75,))


class Terminal:
    """A terminal of 120 columns, and what came out of it."""

    def __init__(self):
        self.master, slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.text = ''
        self.resize(120)
        self.stream = open(slave, 'w')

    def resize(self, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))

    def getvalue(self):
        self.stream.flush()
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.master, 1 << 16):
                self.text += piece.decode()
        return self.text


@pytest.fixture
def terminal():
    made = Terminal()
    yield made
    made.stream.close()
    os.close(made.master)


def last_line(terminal):
    return terminal.getvalue().split('\r')[-1]


def test_what_it_shows(terminal, monkeypatch):
    """What the training waits for, by name; then epoch, loss, images per second and the time left."""
    monkeypatch.setattr(sys, 'stderr', terminal.stream)  # not in a fixture: pytest sets it anew before the test
    bar = Bar(PLAN, 20)
    assert last_line(terminal).startswith('compiling, 17%, ? left, epoch 2.0/12 ')
    bar.start_t -= 100  # seconds, of a compilation
    bar.done(1, 1.23456, None)
    bar.refresh()
    assert last_line(terminal).startswith('18%, ? left, epoch 2.1/12, loss 1.235 ')
    bar.start_t, bar.begin = bar.start_t - 30, (bar.begin[0] - 30, bar.begin[1])
    bar.done(9, 1.23456, 45.67)
    bar.refresh()
    assert re.match(
        r'25%, 05:0\d left, epoch 3\.0/12, loss 1\.235, 45\.7 images/s \|.*\| 30/120 \[02:1\d\]', last_line(terminal)
    )
    with bar.during('saving'):
        assert last_line(terminal).startswith('saving, 25%, ')
    assert last_line(terminal).startswith('25%, ')
    bar.close()


@pytest.mark.parametrize('columns', [20, 40, 80])
def test_narrow_terminals(terminal, monkeypatch, columns):
    """It is cut off rather than broken into lines."""
    terminal.resize(columns)
    monkeypatch.setattr(sys, 'stderr', terminal.stream)  # not in a fixture: pytest sets it anew before the test
    bar = Bar(PLAN, 0)
    bar.done(10, 1.2, 45.67)
    with bar.during('evaluating'):
        pass
    bar.close()
    lines = re.split(r'[\r\n]', terminal.getvalue())
    assert max(map(len, lines)) <= columns and 'evaluating' in terminal.getvalue()


def test_no_colour(terminal, monkeypatch):
    """Whatever NO_COLOR says: there is none."""
    monkeypatch.setattr(sys, 'stderr', terminal.stream)  # not in a fixture: pytest sets it anew before the test
    bar = Bar(PLAN, 0)
    bar.done(10, 1.2, 45.67)
    bar.close()
    assert '8%' in terminal.getvalue()
    assert '\x1b[3' not in terminal.getvalue() and '\x1b[0m' not in terminal.getvalue()


def test_nothing_in_a_file(monkeypatch, capsys, tmp_path):
    """Lines and nothing else where the output is no terminal."""
    monkeypatch.setattr(sys, 'stderr', made := io.StringIO())
    bar = Bar(PLAN, 0)
    bar.done(10, 1.2, None)
    with bar.during('saving'):
        Log(tmp_path / 'x.log')('step: 10')
    bar.close()
    assert made.getvalue() == '' and capsys.readouterr().out == (tmp_path / 'x.log').read_text() == 'step: 10\n'


def test_lines_do_not_break_the_bar(terminal, monkeypatch, capsys):
    """A log line goes above it: the bar is taken away and drawn again."""
    monkeypatch.setattr(sys, 'stderr', terminal.stream)  # not in a fixture: pytest sets it anew before the test
    bar = Bar(PLAN, 0)
    bar.done(10, 1.2, None)
    Log()('step: 10')
    bar.close()
    assert capsys.readouterr().out == 'step: 10\n' and terminal.getvalue().count('8%') >= 2


def test_monitor_without_a_bar():
    """Before the first step a wait has no bar to be named on."""
    from src.heartbeat import Heartbeat
    from src.training.monitor import TrainingMonitor

    with TrainingMonitor.during(SimpleNamespace(bar=None, heartbeat=Heartbeat({})), 'saving'):
        pass
