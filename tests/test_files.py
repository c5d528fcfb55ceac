"""Files are written whole or not at all, with the permissions of the umask, and nobody else can redirect them; locks."""

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


def _mindrecord(path):
    for k in range(2):
        (path.parent / f'source/train/{k}').mkdir(parents=True)
        Image.new('RGB', (40, 40)).save(path.parent / f'source/train/{k}/a.jpg')
    convert.convert(path.parent / 'source', path.parent / 'target', 'mindrecord', 1, workers=1)


def _best(path):
    made = path.with_name('inceptionv4-1_2.ckpt')
    checkpoint.write(made, ONE, {'step': 1})
    checkpoint.mark_best(made, {'top1': 50.0})


WRITERS = {
    'config': lambda path: save_settings({'lr': 1.0}, path),
    'best': _best,
    'shards': lambda path: tfrecord.write_shards(path.parent, 'train', [(b'', n, '') for n in range(4)], 2),
    'mindrecord': _mindrecord,
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
    assert {path.name for path in tmp_path.rglob('.*')} <= {files.LOCK}


def program(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, '-c', f'import os, sys\nfrom src import files\n{code}', *arguments], cwd=ROOT, **options
    )


def test_what_is_being_written_is_kept_and_what_a_killed_process_was_writing_is_removed(tmp_path):
    killed = "with files.replacing(sys.argv[1]) as path:\n    path.write_text('half')\n    os.kill(os.getpid(), 9)"
    program(killed, tmp_path / 'inceptionv4-1_1.ckpt')
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(files.SUFFIX)
    (tmp_path / '.other').mkdir()
    with files.replacing(tmp_path / 'inceptionv4-1_2.ckpt') as temporary:
        directory = temporary.parent
        assert {*tmp_path.iterdir()} == {directory, tmp_path / '.other'}
        assert directory.name.startswith('.inceptionv4-1_2.ckpt.') and stat.S_IMODE(directory.stat().st_mode) == 0o700
        temporary.write_text('x')
        files.remove_abandoned(tmp_path)
        program('files.remove_abandoned(sys.argv[1])', tmp_path, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {'.other', 'inceptionv4-1_2.ckpt'}


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
    with files.replacing(tmp_path / 'a') as a:
        a.write_text('a')
    assert done == [str(a), f'name {tmp_path / "a"}', str(tmp_path)]


def test_links_and_pipes_are_not_written_through(tmp_path):
    (tmp_path / 'victim').write_text('precious')
    (tmp_path / 'link').symlink_to('victim')
    save_settings({'lr': 1.0}, tmp_path / 'link')
    assert (tmp_path / 'victim').read_text() == 'precious' and not (tmp_path / 'link').is_symlink()
    os.mkfifo(tmp_path / 'pipe')
    for name, number in (('pipe', errno.EINVAL), ('', errno.EINVAL), ('none/file', errno.ENOENT)):
        with pytest.raises(OSError) as error, files.replacing(tmp_path / name):
            raise AssertionError
        assert error.value.errno == number
    assert stat.S_ISFIFO((tmp_path / 'pipe').stat().st_mode)


@pytest.mark.parametrize(
    'name, expected', [(os.fsdecode(b'a\xff.jpg'), 'a\\udcff.jpg'), ('\\udcff', '\\udcff'), ('ü😀\n"', 'ü😀\n"')]
)
def test_any_name_in_json(name, expected):
    """ASCII without half a surrogate pair, which only Python accepts."""
    text = files.as_json({'file': [name]}, 1)
    assert text.isascii() and not re.search(r'(?<!\\)(\\\\)*\\ud[c-f]', text.replace('\\ud83d\\ude00', ''))
    assert json.loads(text) == {'file': [expected]} and json.loads(text)['file'][0].encode()


# Locks the directory, and has a forked child that outlives it.
OWNER = """
import signal
file = files.lock_file(sys.argv[1], 'choose another')
if os.fork() == 0:
    os.setsid()
    signal.alarm(8)
    signal.pause()
print('locked', flush=True)
signal.pause()
"""


def test_a_locked_directory_is_refused_until_its_process_ends(tmp_path):
    """However it ends, and whatever its forked children do; one that is ending is waited for."""
    start = [sys.executable, '-c', f'import os, sys\nfrom src import files\n{OWNER}', tmp_path / 'a/.lock']
    owner = subprocess.Popen(start, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout.readline() == 'locked\n'
    host, lines = socket.gethostname(), []
    with pytest.raises(InputError, match=f'a is in use by pid {owner.pid} on {re.escape(host)}; .* choose another '):
        files.lock_file(tmp_path / 'a/.lock', 'choose another')

    def log(line):
        lines.append(line)
        owner.kill()

    with files.lock_file(tmp_path / 'a/.lock', '', 60, log):
        assert (tmp_path / 'a/.lock').read_text() == f'pid {os.getpid()} on {host}\n'
    owner.wait()
    assert len(lines) == 1 and f'is in use by pid {owner.pid} on ' in lines[0] and 'waiting 60 s' in lines[0]


def test_where_locking_fails(tmp_path, monkeypatch):
    """A file system without locks is good enough, a full disk too."""
    lines = []
    monkeypatch.setattr(files.os, 'write', raising(errno.ENOSPC))
    assert files.lock_file(tmp_path / files.LOCK, '') and (tmp_path / files.LOCK).read_text() == ''
    monkeypatch.setattr(files.fcntl, 'lockf', raising(errno.ENOSYS))
    files.lock_file(tmp_path / files.LOCK, '', log=lines.append)
    assert re.fullmatch(r'warning: .* cannot be locked \(Function not implemented\): .*', lines[0])
    with pytest.raises(InputError, match='choose another'):
        files.lock_file('/proc/.lock', 'choose another')


def raising(number):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call
