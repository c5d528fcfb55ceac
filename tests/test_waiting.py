import io
import sys
import time

from src import waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_in_a_log(monkeypatch):
    said = []
    monkeypatch.setattr(waiting, 'EVERY', 0.2)
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    with waiting.waiting(said.append, 'compiling'):
        time.sleep(0.5)
    assert said == ['compiling: 0 s so far'] * 2 and not sys.stderr.getvalue()
    time.sleep(0.3)
    assert len(said) == 2


def test_a_terminal_shows_moving_time(monkeypatch):
    said, terminal = [], Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    with waiting.waiting(said.append, 'compiling'):
        time.sleep(2.3)
    first, second, third, wiped = terminal.getvalue().split('\rcompiling: ')[1:] + ['']
    assert (first, second, third[:5]) == ('00:00', '00:01', '00:02') and not said
    assert third.endswith('\r') and not third[5:].strip() and not wiped
