"""The scripts: called by any shell, by a link, from any directory, as the model zoo's; what they install."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import eval as eval_entry
import export
import train
from src.deploy import predict
from tests.test_end_to_end import message_of

ROOT = Path(__file__).resolve().parents[2]
# Of each script its arguments, and those of the interpreter that it starts; ROOT is the project.
CALLS = {
    'run_standalone_train.sh --lr 1': 'ROOT/train.py --lr 1',
    'run_distribute_train.sh t.json --lr 1': 'ROOT/scripts/module.py src.cluster.launch t.json ROOT/train.py --lr 1',
    'run_eval.sh t.json /data c.ckpt': 'ROOT/scripts/module.py src.cluster.launch t.json ROOT/eval.py /data c.ckpt',
    'run_export.sh --file_format ONNX': 'ROOT/export.py --file_format ONNX',
    'run_predict.sh "my photo.jpg"': 'ROOT/scripts/module.py src.deploy.predict "my photo.jpg"',
    'run_finetune.sh photos': 'ROOT/scripts/module.py src.workflow finetune photos',
    'run_demo.sh out': 'ROOT/scripts/module.py src.workflow demo out',
}


def test_every_script_by_every_way(tmp_path):
    recorder = tmp_path / 'python'
    recorder.write_text('#!/bin/sh\nprintf "<%s>" "$@"\necho\n')
    recorder.chmod(0o755)
    environ = {'PATH': '/usr/bin:/bin', 'PYTHON': str(recorder), 'LD_PRELOAD': '', 'CDPATH': f'.:{ROOT}:/'}
    (tmp_path / 'my bin').mkdir()
    for text, expected in CALLS.items():
        script, *arguments = shlex.split(text)
        link = tmp_path / 'my bin' / script
        if not link.exists():
            link.symlink_to(os.path.relpath(ROOT / 'scripts' / script, link.parent))
        for start, cwd in (['bash', f'scripts/{script}'], ROOT), (['sh', f'./{script}'], ROOT / 'scripts'), ([link], '/'):
            done = subprocess.run([*start, *arguments], cwd=cwd, env=environ, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, '')
            assert re.findall('<(.*?)>', done.stdout) == shlex.split(expected.replace('ROOT', str(ROOT)))
    tried = {text.split()[0] for text in CALLS} | {'run_tests.sh', 'run_acceptance.sh'}
    assert tried == {path.name for path in (ROOT / 'scripts').glob('run_*.sh')}


# An interpreter without MindSpore, whose virtual environments have one that prints how it is called.
STUB = """#!/bin/bash
case "$*" in
*'metadata.distribution'*) exit 1 ;;
'-m venv '*)
    echo "venv: ${*:3}"
    mkdir -p "${!#}/bin" && printf '#!/bin/bash\\necho "called: $*"\\n' > "${!#}/bin/python"
    chmod +x "${!#}/bin/python" ;;
esac
"""
PIP = 'import os, sys\nprint("pip", *(w.rsplit("/", 1)[-1] for w in sys.argv[1:]))\nsys.exit("FAIL" in os.environ)\n'
INSTALLED = ('mindspore', 'numpy', 'easydict', 'pyyaml', 'tqdm', 'psutil', 'msgpack', 'matplotlib', 'tensorboardX')


class Project:
    """A copy of the scripts in `root`, whose programs print "started"."""

    def __init__(self, root):
        self.root = root
        for path in [*(ROOT / 'scripts').glob('*.sh'), *ROOT.glob('requirements*.txt')]:
            self.write(path.relative_to(ROOT), path.read_text())
        for program in ('scripts/module.py', 'export.py', 'eval.py'):
            self.write(program, 'print("started")')
        self.write('bin/python3', STUB).chmod(0o755)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def call(self, script, *arguments, path='bin', **environ):
        """(status, lines, stderr) of a script"""
        environ = {'NPU_DEVICES': '/nowhere/davinci*', 'HOME': '/nowhere', **environ}
        environ['PATH'] = f'{self.root / path}:/usr/bin:/bin'
        command = ['sh', self.root / 'scripts' / script, *arguments]
        done = subprocess.run(command, cwd='/', env=environ, capture_output=True, text=True)
        return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.fixture
def project(tmp_path):
    """One whose .venv has all requirements, but for ONNX."""
    project = Project(tmp_path / 'my project')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', project.root / '.venv'], check=True)
    (packages,) = project.root.glob('.venv/lib/python*/site-packages')
    for name in INSTALLED:
        about = packages / f'{name}-2.8.0.dist-info'
        project.write(about / 'METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: 2.8.0\n')
        project.write(about / 'RECORD', 'x,,\n')
        project.write(packages / f'{name.replace("pyyaml", "yaml")}.py', '')
    project.write(packages / 'pip/__main__.py', PIP)
    return project


@pytest.mark.parametrize('npu', [True, False])
def test_a_new_environment_has_what_the_machine_needs(npu, tmp_path):
    """Beside an NPU it sees the packages of CANN."""
    project = Project(tmp_path)
    project.write('dev/davinci0' if npu else 'dev/davinci_manager', '')
    status, lines, err = project.call('run_eval.sh', NPU_DEVICES=f'{tmp_path}/dev/davinci[0-9]*')
    assert (status, err) == (0, '') and lines[1:] == [
        f'venv: {"--system-site-packages " * npu}{tmp_path}/.venv',
        f'called: -m pip install -q -r {tmp_path}/requirements{"-ascend" * npu}.txt',
        f'called: {tmp_path}/eval.py',
    ]


INSTALLS = 'pip install -q -r requirements-export.txt'


def test_what_a_script_needs_is_installed_also_later(project):
    """Into the project's own environment, also an active one; into none that the user names, nothing that CANN forbids."""

    def installs(command, **more):
        status, lines, err = project.call(*command.split(), **more)
        assert (status, lines[-1]) == (0, 'started') and err.count('\n') == ('FAIL' in more)
        return [line for line in lines if line.startswith('pip')]

    predict = 'run_predict.sh photo.jpg --model net.onnx'
    assert installs('run_export.sh --file_format ONNX') == [INSTALLS] == installs(predict, path='.venv/bin')
    assert installs('run_export.sh --file_format MINDIR') == []
    assert installs('run_finetune.sh photos w.ckpt') == [INSTALLS.replace('-r', '-r requirements-report.txt -r')]
    assert installs('run_eval.sh --report r') == []  # matplotlib is there
    assert installs(predict, PYTHON=sys.executable) == []
    assert installs(predict, NPU_DEVICES='/bin/sh') == []
    assert installs(predict, FAIL='1') == [INSTALLS]  # without a network: a warning


def test_arguments_of_the_model_zoo(capsys, tmp_path, monkeypatch):
    """`run_standalone_train.sh DEVICE DATA`, `run_distribute_train.sh TABLE DATA`, `run_eval.sh DEVICE DATA CKPT`."""
    monkeypatch.chdir(tmp_path)
    assert '/data/none' in message_of(train.main, ['0', '/data/none'], capsys)
    assert '/data/none' in message_of(train.main, ['/data/none', '--lr', '1'], capsys)
    assert "unexpected argument '1'" in message_of(train.main, ['1', '2', '3'], capsys)
    assert 'none.ckpt: No such file' in message_of(eval_entry.main, ['0', '/data', 'none.ckpt'], capsys)


@pytest.mark.parametrize('entry', [eval_entry, export, predict])
def test_missing_weights_say_where_there_are_some(entry, capsys):
    arguments = [__file__, '--model'] if entry is predict else ['--data_dir', '/data', '--ckpt_path']
    line = message_of(entry.main, [*arguments, 'none.safetensors'], capsys)
    assert 'none.safetensors: No such file' in line and 'docs/weights.md has published weights' in line
