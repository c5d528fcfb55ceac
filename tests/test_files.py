"""Files are written whole or not at all, with the permissions of the umask, and nobody else can redirect them."""

import errno
import json
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src import files
from src.data import convert, tfrecord
from src.errors import InputError
from src.options import save_settings
from src.weights import checkpoint, torch_file

ROOT = Path(__file__).resolve().parents[1]
ONE = {'logits.bias': np.ones(3, np.float32)}


def _convert(layout):
    def write(path):
        for k in range(2):
            (path.parent / f'source/train/{k}').mkdir(parents=True)
            Image.new('RGB', (40, 40)).save(path.parent / f'source/train/{k}/a.jpg')
        convert.convert(path.parent / 'source', path.parent / 'target', layout, 1, workers=1)

    return write


def _best(path):
    made = path.with_name('inceptionv4-1_2.ckpt')
    checkpoint.write(made, ONE, {'step': 1})
    checkpoint.mark_best(made, {'top1': 50.0})
    return [made, path.with_name('inceptionv4-best.ckpt')]


WRITERS = {
    'config': lambda path: save_settings({'lr': 1.0}, path),
    'checkpoint': lambda path: checkpoint.write(path, ONE, {'step': 1}),
    'best': _best,
    'shards': lambda path: tfrecord.write_shards(path.parent, 'train', [(b'', n, '') for n in range(4)], 2),
    'tfrecord': _convert('tfrecord'),
    'mindrecord': _convert('mindrecord'),
    'safetensors': lambda path: torch_file.write_safetensors(path, ONE),
}


@pytest.mark.parametrize('name', WRITERS)
def test_umask(name, tmp_path):
    """MindSpore's files would be 0400, and a temporary file of Python's tempfile 0600."""
    before = os.umask(0o027)
    try:
        WRITERS[name](tmp_path / 'file')
    finally:
        os.umask(before)
    found = [path for path in tmp_path.rglob('*') if path.is_file()]
    assert found and {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o640}
    assert {path.name for path in tmp_path.rglob('.*')} <= {'.lock'}


@pytest.mark.parametrize('writer', ['config', 'safetensors'])
def test_a_link_is_replaced_and_not_followed(writer, tmp_path):
    (tmp_path / 'victim').write_text('precious')
    (tmp_path / 'file').symlink_to('victim')
    save_settings({'lr': 1.0}, tmp_path / 'file')
    assert (tmp_path / 'victim').read_text() == 'precious' and not (tmp_path / 'file').is_symlink()


def test_what_is_being_written_is_kept(tmp_path):
    """Also by a cleaning in between, of this process or of another one."""
    with files.replacing(tmp_path / 'inceptionv4-1_2.ckpt') as temporary:
        (directory,) = tmp_path.iterdir()
        assert directory.name.startswith('.inceptionv4-1_2.ckpt.') and temporary.parent == directory
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        temporary.write_text('x')
        files.remove_abandoned(tmp_path)
        subprocess.run(
            [sys.executable, '-c', 'import sys; from src import files; files.remove_abandoned(sys.argv[1])', tmp_path],
            cwd=ROOT,
            check=True,
        )
    assert [p.name for p in tmp_path.iterdir()] == ['inceptionv4-1_2.ckpt']


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    code = """
import os, sys
from src import files
with files.replacing(sys.argv[1] + '/inceptionv4-1_2.ckpt') as path:
    path.write_text('half')
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], cwd=ROOT)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(files.SUFFIX)
    (tmp_path / '.other').mkdir()
    with files.replacing(tmp_path / 'inceptionv4-1_3.ckpt') as path:
        path.write_text('whole')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.other', 'inceptionv4-1_3.ckpt']


@pytest.mark.parametrize('name', ['name', 'ü' * 120, 'x' * 255])
def test_failure_leaves_the_old_file(name, tmp_path):
    path = tmp_path / name
    path.write_text('old')
    with pytest.raises(KeyError), files.replacing(path) as temporary:
        temporary.write_text('half')
        raise KeyError
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
    with files.replacing(path) as temporary:
        temporary.write_text('new')
    assert path.read_text() == 'new' and list(tmp_path.iterdir()) == [path]


def test_content_is_synced_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda fd: (done.append(os.readlink(f'/proc/self/fd/{fd}')), sync(fd)))
    monkeypatch.setattr(os, 'replace', lambda a, b: (done.append(f'name {b}'), replace(a, b)))
    with files.replacing(tmp_path / 'a') as a, files.replacing(tmp_path / 'b') as b:
        a.write_text('a')
        b.write_text('b')
    assert done == [str(b), f'name {tmp_path / "b"}', str(tmp_path), str(a), f'name {tmp_path / "a"}', str(tmp_path)]


@pytest.mark.parametrize(
    'name, expected',
    [
        (os.fsdecode(b'a\xff.jpg'), 'a\\udcff.jpg'),
        ('\\udcff', '\\udcff'),
        (os.fsdecode('ü😀'.encode('latin-1', 'ignore') + b'\n"'), '\\udcfc\n"'),
    ],
)
def test_any_name_in_json(name, expected):
    """ASCII without half a surrogate pair, which only Python accepts."""
    text = files.as_json({'file': [name]}, 1)
    assert text.isascii() and not re.search(r'(?<!\\)(\\\\)*\\ud[c-f]', text.replace('\\ud83d\\ude00', ''))
    assert json.loads(text) == {'file': [expected]} and json.loads(text)['file'][0].encode()


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for name, number in (('pipe', errno.EINVAL), ('', errno.EINVAL), ('none/file', errno.ENOENT)):
        with pytest.raises(OSError) as error, files.replacing(tmp_path / name):
            raise AssertionError
        assert error.value.errno == number
    assert [p.name for p in tmp_path.iterdir()] == ['pipe'] and stat.S_ISFIFO((tmp_path / 'pipe').stat().st_mode)


# Locks the directory, and has a forked child that outlives it.
OWNER = """
import os, sys, time
from src import files
file = files.lock_directory(sys.argv[1])
if os.fork() == 0:
    os.setsid()
    time.sleep(8)
    os._exit(0)
print('locked', flush=True)
time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-c', OWNER, str(tmp_path / 'a')], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == 'locked\n'
    yield process
    process.kill()
    process.wait()


def test_a_locked_directory_is_refused_until_its_process_ends(owner, tmp_path):
    """However it ends, and whatever its forked children do; one that is ending is waited for."""
    host = re.escape(socket.gethostname())
    with pytest.raises(InputError, match=f'a is in use by pid {owner.pid} on {host}; .* choose another directory '):
        files.lock_directory(tmp_path / 'a')
    lines = []

    def log(line):
        lines.append(line)
        owner.kill()

    with files.lock_directory(tmp_path / 'a', wait=60, log=log):
        assert (tmp_path / 'a/.lock').read_text() == f'pid {os.getpid()} on {socket.gethostname()}\n'
    assert len(lines) == 1 and f'is in use by pid {owner.pid} on ' in lines[0] and 'waiting 60 s' in lines[0]


def test_without_locks(tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(files.fcntl, 'lockf', lockf)
    lines = []
    assert files.lock_directory(tmp_path, log=lines.append) is None
    assert re.fullmatch(r'warning: .* cannot be locked \(Function not implemented\): .*', lines[0])


def test_a_full_disk_takes_a_lock(tmp_path, monkeypatch):
    """Only its owner is not named."""

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(files.os, 'write', full)
    assert files.lock_directory(tmp_path) is not None and (tmp_path / files.LOCK).read_text() == ''


def test_directory_that_cannot_be_locked():
    with pytest.raises(InputError, match='choose another directory'):
        files.lock_directory('/proc')
