"""One program at a time locks a directory; however it ends, the lock ends with it."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src import lock
from src.errors import InputError

# Locks the directory, and has a forked child that outlives it.
HOLDER = """
import os, sys, time
from src import lock
file = lock.hold(sys.argv[1])
if os.fork() == 0:
    os.setsid()
    time.sleep(float(sys.argv[2]))
    os._exit(0)
print('held', flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(tmp_path), '8'],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()


def test_second_is_refused_with_the_first_named(holder, tmp_path):
    with pytest.raises(
        InputError,
        match=f'{tmp_path} is in use by pid {holder.pid} on {re.escape(socket.gethostname())}; '
        rf'wait .* remove {tmp_path}/\.lock',
    ):
        lock.hold(tmp_path)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_free_after_any_end_whatever_forked_children_do(holder, tmp_path, number):
    holder.send_signal(number)
    holder.wait()
    with lock.hold(tmp_path):
        assert (tmp_path / lock.NAME).read_text() == f'pid {os.getpid()} on {socket.gethostname()}\n'


def test_holder_that_ends_is_waited_for(holder, tmp_path):
    lines = []

    def say(line):
        lines.append(line)
        holder.kill()

    begin = time.monotonic()
    lock.hold(tmp_path, 30, say).close()
    assert time.monotonic() - begin < 10
    assert len(lines) == 1 and f'is in use by pid {holder.pid} on ' in lines[0] and 'waiting 30 s' in lines[0]


def test_without_locks(tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr(lock.fcntl, 'lockf', lockf)
    lines = []
    assert lock.hold(tmp_path, say=lines.append) is None
    assert re.fullmatch(r'warning: .* cannot be locked \(Function not implemented\): .*', lines[0])


def test_full_disk(tmp_path, monkeypatch):
    """The lock holds; only its holder is not named."""

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(lock.os, 'write', full)
    assert lock.hold(tmp_path) is not None and (tmp_path / lock.NAME).read_text() == ''


def test_directory_that_cannot_be_written():
    with pytest.raises(InputError, match='choose another directory'):
        lock.hold('/proc')
