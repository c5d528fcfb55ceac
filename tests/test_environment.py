"""The check of a server, whose interpreter, CANN and packages are files made here; and the environment of the scripts."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import train
from src import environment, runtime
from src.cluster import launch

ROOT = Path(__file__).resolve().parents[1]


class Server:
    """A sound one, in `root`."""

    def __init__(self, root):
        self.root, self.home, self.packages = root, root / 'Ascend/8.5.0', root / 'packages'
        for name in ('dev/davinci0', 'dev/davinci1', 'dev/davinci_manager', 'set_env.sh'):
            self.write(name)
        self.write('driver/version.info', 'package_version=25.5.0\nVersion=25.5.0\n')
        self.write('Ascend/8.5.0/compiler/version.info', 'Version=8.5.0\nversion_dir=8.5.0\n')
        for module in (*environment.PACKAGES.values(), *environment.OWN):
            self.write(f'packages/{module}/__init__.py')
        self.numpy('1.26.4')
        self.write('bin/g++').chmod(0o755)
        self.environ = {'PATH': str(root / 'bin'), 'ASCEND_HOME_PATH': str(self.home), 'PYTHONPATH': str(self.packages)}

    def write(self, name, text=''):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def numpy(self, version):
        about = f'Metadata-Version: 2.1\nName: numpy\nVersion: {version}\n'
        self.write('packages/numpy-1.26.4.dist-info/METADATA', about)

    def without(self, *modules):
        for module in modules:
            (self.packages / module / '__init__.py').unlink()
            (self.packages / module).rmdir()

    def wheels_only(self):
        self.without('te', 'hccl', 'attr')
        for name in ('te-0.4.0', 'hccl-0.1.0'):
            self.write(f'Ascend/8.5.0/lib64/{name}-py3-none-any.whl')

    def run(self):
        """(exit status, stdout, stderr) of `python -m src.environment` there."""
        code = (
            f'import sys; sys.path.insert(0, {str(ROOT)!r}); from src import environment as e; '
            f'e.NPUS = {str(self.root / "dev/davinci[0-9]*")!r}; e.SET_ENV = ({str(self.root / "set_env.sh")!r},); '
            f'e.DRIVER = {str(self.root / "driver/version.info")!r}; e.main()'
        )
        done = subprocess.run([sys.executable, '-S', '-c', code], env=self.environ, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path)


def test_sound_newer_and_without_npus(server):
    status, out, err = server.run()
    lines = dict(line.split(None, 1) for line in out.splitlines())
    assert (status, err, lines['driver']) == (0, '', '25.5.0') and lines['NPUs'] == '2: /dev/davinci0, /dev/davinci1'
    assert lines['CANN'] == f'8.5.0 in {server.home}' and lines['packages'] == 'all that CANN needs to compile'
    (server.home / 'compiler/version.info').unlink()
    server.write('Ascend/8.5.0/share/info/runtime/version.info', 'Version=9.1.0\n')
    assert f'CANN      9.1.0 in {server.home}; MindSpore 2.8 was made for 8.2, 8.3, 8.5' in server.run()[1]
    for path in (server.root / 'dev').glob('davinci?'):
        path.unlink()
    server.environ = {}
    status, out, err = server.run()
    assert (status, err) == (0, '') and out.startswith('no NPU here')


PIP = f'{sys.executable} -m pip install '


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda it: it.without('attr', 'decorator'), f'which lacks attrs, decorator: {PIP}attrs decorator'),
        (lambda it: it.numpy('2.3.1'), f"CANN compiles with this Python, which lacks numpy<2: {PIP}'numpy<2'"),
        (
            Server.wheels_only,
            f'which lacks attrs, te, hccl: {PIP}attrs HOME/lib64/te-0.4.0-py3-none-any.whl HOME/lib64/hccl-',
        ),
        (lambda it: it.without('te'), 'Python finds no te, packages of CANN: source its set_env.sh in this very shell'),
        (lambda it: os.remove(it.root / 'bin/g++'), 'CANN needs g++: apt-get install g++, or yum install gcc-c++'),
        (lambda it: it.environ.pop('ASCEND_HOME_PATH'), "CANN's environment is not set: source ROOT/set_env.sh"),
    ],
)
def test_one_line_that_mends_it(server, change, message):
    change(server)
    status, _, err = server.run()
    assert status == 2 and err.startswith('error: ') and err.count('\n') == 1
    assert message.replace('HOME', str(server.home)).replace('ROOT', str(server.root)) in err


def test_entry_points_check_before_mindspore_is_asked(server, monkeypatch, capsys):
    monkeypatch.setattr(environment, 'NPUS', str(server.root / 'dev/davinci[0-9]*'))
    monkeypatch.setattr(environment, 'SET_ENV', (str(server.root / 'set_env.sh'),))
    monkeypatch.delenv('ASCEND_HOME_PATH', raising=False)
    monkeypatch.setattr(runtime, 'ms', None)
    for main, arguments in (train.main, ['--data_dir', '.']), (launch.main, ['2', __file__]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert f"CANN's environment is not set: source {server.root}/set_env.sh" in capsys.readouterr().err
    lines = ''.join(Path(ROOT, f'requirements{name}.txt').read_text() for name in ('-ascend', '')).split('\n')
    assert {*environment.PACKAGES, '-r requirements.txt'} <= {*lines}


STUB = """#!/bin/bash
# As an interpreter without MindSpore; a virtual environment it makes has one that tells how it is called.
case "$*" in
*'metadata.distribution'*) exit 1 ;;
'-m venv '*)
    echo "venv: ${*:3}"
    mkdir -p "${!#}/bin" && printf '#!/bin/bash\\necho "called: $*"\\n' > "${!#}/bin/python"
    chmod +x "${!#}/bin/python" ;;
esac
"""


@pytest.mark.parametrize('device', ['davinci0', 'davinci_manager'])
def test_virtual_environment_sees_what_cann_needs(device, tmp_path):
    """scripts/environment.sh, where there is an NPU and where there is none."""
    script = tmp_path / 'root/scripts/environment.sh'
    for path in (script, tmp_path / 'bin/python3', tmp_path / 'dev' / device):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o755)
    script.write_text((ROOT / 'scripts/environment.sh').read_text())
    (tmp_path / 'bin/python3').write_text(STUB)
    environ = {'PATH': f'{tmp_path}/bin:/usr/bin:/bin', 'NPU_DEVICES': f'{tmp_path}/dev/davinci[0-9]*'}
    command = ['bash', '-c', f'set -e; source {script}; "$PYTHON" train.py']
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    root, npu = tmp_path / 'root', device == 'davinci0'
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.splitlines()[1:] == [
        f'venv: {"--system-site-packages " * npu}{root}/.venv',
        f'called: -m pip install -q -r {root}/requirements{"-ascend" * npu}.txt',
        'called: train.py',
    ]


@pytest.mark.parametrize('more, expected', [({}, True), ({'LD_PRELOAD': ''}, False), ({'NPU_DEVICES': '/dev/null'}, False)])
@pytest.mark.skipif(platform.machine() != 'x86_64', reason='the allocator is preloaded on x86-64 only')
def test_allocator(more, expected):
    """The scripts' programs run on the allocator of MindSpore's wheel, but beside an NPU or where the user says so."""
    environ = {'PATH': '/usr/bin:/bin', 'PYTHON': sys.executable, **more}
    command = f'set -e; source {ROOT}/scripts/environment.sh; "$PYTHON" -c "print(open(\'/proc/self/maps\').read())"'
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stderr, 'libjemalloc' in done.stdout) == (0, '', expected)
