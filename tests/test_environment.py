"""The check of a server, whose NPUs, CANN and packages are made here; and the environment of the scripts."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import train
from src import environment, runtime
from src.cluster import launch
from tests.test_end_to_end import message_of

ROOT = Path(__file__).resolve().parents[1]


class Server:
    """A sound one, in `root`; `modules` are those that its Python finds."""

    def __init__(self, root, monkeypatch):
        self.root, self.home, self.modules = root, root / 'cann', {*environment.PACKAGES.values(), *environment.OWN}
        self.numpy = '1.26.4'
        for name in 'davinci0', 'davinci1', 'davinci_manager', 'set_env.sh', 'bin/g++':
            self.write(name).chmod(0o755)
        self.write('cann/compiler/version.info', 'Version=8.5.0\nversion_dir=8.5.0\n')
        monkeypatch.setattr(environment, 'NPUS', str(root / 'davinci[0-9]*'))
        monkeypatch.setattr(environment, 'SET_ENV', (str(root / 'set_env.sh'),))
        monkeypatch.setattr(environment, 'DRIVER', self.write('driver', 'package_version=25.5.0\nVersion=25.5.0\n'))
        monkeypatch.setattr(environment, 'find_spec', lambda name: name if name in self.modules else None)
        monkeypatch.setattr(environment.metadata, 'version', lambda name: self.numpy)
        monkeypatch.setenv('PATH', str(root / 'bin'))
        monkeypatch.setenv('ASCEND_HOME_PATH', str(self.home))

    def write(self, name, text=''):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@pytest.fixture
def server(tmp_path, monkeypatch):
    return Server(tmp_path, monkeypatch)


def test_sound_newer_and_without_npus(server, capsys):
    environment.main()
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert (lines['NPUs'], lines['driver']) == ('2: /dev/davinci0, /dev/davinci1', '25.5.0')
    assert lines['CANN'] == f'8.5.0 in {server.home}'
    for path in server.root.glob('davinci?'):
        path.unlink()
    environment.main()
    assert capsys.readouterr().out.startswith('no NPU here')


PIP = f'{sys.executable} -m pip install '


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda it: setattr(it, 'numpy', '2.3.1'), f"which lacks numpy<2: {PIP}'numpy<2'"),
        (lambda it: it.modules.remove('te'), 'no te, packages of CANN: source its set_env.sh'),
        (lambda it: os.remove(it.root / 'bin/g++'), 'CANN needs g++: apt-get install g++'),
        (lambda it: os.environ.pop('ASCEND_HOME_PATH'), "CANN's environment is not set: source ROOT/set_env.sh"),
    ],
)
def test_problems_name_their_remedy(server, change, message, capsys):
    change(server)
    err = message_of(lambda _: environment.main(), [], capsys)
    assert message.replace('ROOT', str(server.root)) in err


def test_programs_check_before_mindspore_is_loaded(server, monkeypatch, capsys):
    monkeypatch.delenv('ASCEND_HOME_PATH')
    monkeypatch.setattr(runtime, 'ms', None)
    for main, arguments in (train.main, ['--data_dir', '.']), (launch.main, ['2', __file__]):
        assert f'not set: source {server.root}/set_env.sh' in message_of(main, arguments, capsys)
    lines = ''.join(Path(ROOT, f'requirements{name}.txt').read_text() for name in ('-ascend', '')).split('\n')
    assert {*environment.PACKAGES, '-r requirements.txt'} <= {*lines}


@pytest.mark.parametrize('more, expected', [({}, True), ({'LD_PRELOAD': ''}, False), ({'NPU_DEVICES': '/dev/null'}, False)])
@pytest.mark.skipif(platform.machine() != 'x86_64', reason='the allocator is preloaded on x86-64 only')
def test_allocator(more, expected):
    """The scripts' programs run on the allocator of MindSpore's wheel, but beside an NPU or where the user says so."""
    environ = {'PATH': '/usr/bin:/bin', 'PYTHON': sys.executable, **more}
    command = f'set -e; . {ROOT}/scripts/environment.sh; "$PYTHON" -c "print(open(\'/proc/self/maps\').read())"'
    done = subprocess.run(['sh', '-c', command, f'{ROOT}/scripts/x'], capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stderr, 'libjemalloc' in done.stdout) == (0, '', expected)
