"""Which lines of the first rank's log are shown on the screen, and which stay in the file only."""

import pytest

from src.cluster.logs import Screen, last_lines

INFO = b'[INFO] DISTRIBUTED(5616,7fbd36ffd6c0,python):2026-11-24-06:50:48.843.535 [tcp_client.cc:269] Start] success!\n'
ERROR = b'[ERROR] KERNEL(9143,7fb0dffff6c0,python):2026-11-24-06:54:32.409.747 [allreduce.cc:89] Launch] failed.\n'
TRACEBACK = b'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\nRuntimeError: failed\n\n- C++ Stack\n'


@pytest.fixture
def written(tmp_path, capfdbinary, monkeypatch):
    """A function that writes to the log and gives what the screen shows."""
    monkeypatch.setenv('GLOG_v', '3')
    log = open(tmp_path / 'log', 'a+b')
    screen = Screen(log)

    def write(data, **how):
        log.write(data)
        log.flush()
        screen.show(**how)
        return capfdbinary.readouterr().out

    yield write
    log.close()


def test_lines_as_they_come(written):
    assert written(b'step: 1\nste') == b'step: 1\n' and written(b'p: 2\n') == b'step: 2\n'
    assert written(b'half\r') == b'half\r' and written(b'no end') == b'' and written(b'', final=True) == b'no end'


def test_last_words_of_mindspore_are_not_shown(written, monkeypatch):
    assert written(b'trained\n' + INFO[:9]) == b'trained\n' and written(INFO[9:] + INFO, final=True) == b''
    assert written(ERROR + TRACEBACK) == ERROR + TRACEBACK  # nobody else has failed
    monkeypatch.setenv('GLOG_v', '1')
    assert written(INFO) == INFO


def test_consequences_of_anothers_failure_are_not_shown(written):
    mixed = b'step: 1\n' + ERROR + b'checkpoint saved\n' + TRACEBACK
    assert written(mixed, others_failed=True) == b'step: 1\ncheckpoint saved\n'
    assert written(b'more\n', others_failed=True) == b''


def test_last_lines(tmp_path):
    with open(tmp_path / 'log', 'w+b') as log:
        log.write(b'x' * 70000 + b'\nfirst\nsecond \xff\n' + INFO)
        log.flush()
        assert last_lines(log, 2) == ['first', 'second \ufffd']
