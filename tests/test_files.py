"""Files are written whole or not at all, with the permissions of the umask, and nobody else can redirect them; locks."""

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src import files
from src.errors import InputError
from src.options import save_settings
from src.weights import checkpoint

ROOT = Path(__file__).resolve().parents[1]


def test_permissions_and_order_of_writing(tmp_path, monkeypatch):
    """Permissions are of the umask: MindSpore's files would be 0400. Content is synced before the name, the name after."""
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda fd: (done.append(os.readlink(f'/proc/self/fd/{fd}')), sync(fd)))
    monkeypatch.setattr(os, 'replace', lambda a, b: (done.append(f'name {b}'), replace(a, b)))
    before = os.umask(0o027)
    try:
        with files.replacing(tmp_path / 'a') as a:
            a.write_text('a')
            a.chmod(0o400)
        checkpoint.write(tmp_path / 'inceptionv4-1_2.ckpt', {'logits.bias': np.ones(3, np.float32)}, {'step': 1})
        checkpoint.mark_best(tmp_path / 'inceptionv4-1_2.ckpt', {'top1': 50.0})
    finally:
        os.umask(before)
    assert done[:3] == [str(a), f'name {tmp_path / "a"}', str(tmp_path)]
    found = [*tmp_path.iterdir()]
    assert len(found) == 3 and {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o640}


def program(code, *arguments):
    """The beginning of Popen's arguments"""
    return [sys.executable, '-c', f'import os, signal, sys\nfrom src import files\n{code}', *arguments]


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    """By whoever writes there next, and nothing else: what a living process writes, and directories of other programs."""
    killed = "with files.replacing(sys.argv[1]) as path:\n    path.write_text('half')\n    os.kill(os.getpid(), 9)"
    subprocess.run(program(killed, tmp_path / 'inceptionv4-1_1.ckpt'), cwd=ROOT)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith('.inceptionv4-1_1.ckpt.') and stat.S_IMODE(left.stat().st_mode) == 0o700
    (tmp_path / '.other').mkdir()
    with files.replacing(tmp_path / 'm.mindir') as temporary:
        assert {*tmp_path.iterdir()} == {temporary.parent, tmp_path / '.other'}
        subprocess.run(program('with files.replacing(sys.argv[1]) as path: path.touch()', tmp_path / 'x'), cwd=ROOT)
        temporary.write_text('whole')
    assert {path.name for path in tmp_path.iterdir()} == {'.other', 'm.mindir', 'x'}


def test_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / ('x' * 255)  # the longest name there is
    path.write_text('old')
    with pytest.raises(KeyError), files.replacing(path) as temporary:
        temporary.write_text('half')
        raise KeyError
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
    with files.replacing(path) as temporary:
        temporary.write_text('new')
    assert path.read_text() == 'new' and list(tmp_path.iterdir()) == [path]


def test_links_and_pipes_are_not_written_through(tmp_path):
    (tmp_path / 'victim').write_text('precious')
    (tmp_path / 'link').symlink_to('victim')
    save_settings({'lr': 1.0}, tmp_path / 'link')
    assert (tmp_path / 'victim').read_text() == 'precious' and not (tmp_path / 'link').is_symlink()
    os.mkfifo(tmp_path / 'pipe')
    for name, number in (('pipe', errno.EINVAL), ('none/file', errno.ENOENT)):
        with pytest.raises(OSError) as error, files.replacing(tmp_path / name):
            raise AssertionError
        assert error.value.errno == number
    assert stat.S_ISFIFO((tmp_path / 'pipe').stat().st_mode)


# Locks the directory, and has a forked child that outlives it.
OWNER = """
file = files.lock_file(sys.argv[1], '')
if os.fork() == 0:
    os.setsid()
    signal.alarm(8)
    signal.pause()
print('locked', flush=True)
signal.pause()
"""


def test_a_locked_directory_is_refused_until_its_process_ends(tmp_path):
    """However it ends, and whatever its forked children do; one that is ending is waited for."""
    path = tmp_path / 'a/.lock'
    owner = subprocess.Popen(program(OWNER, path), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout.readline() == 'locked\n'
    with pytest.raises(InputError) as refused:
        files.lock_file(path, 'choose another')
    assert f'a is in use by pid {owner.pid} on {socket.gethostname()}; ' in str(refused.value)
    with files.lock_file(path, '', 60, log=lambda line: owner.kill()):
        assert path.read_text() == f'pid {os.getpid()} on {socket.gethostname()}\n'
    owner.wait()
