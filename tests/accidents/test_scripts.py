"""The scripts: called by any shell, by a link, from any directory, as the model zoo's; what they install; their images."""

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
RECORDER = '#!/bin/sh\nprintf "<%s>" "$@"\necho\n'
# Of each script its arguments, and those of the interpreter that it starts; ROOT is the project.
CALLS = {
    'run_standalone_train.sh --lr 1': 'ROOT/train.py --lr 1',
    'run_distribute_train.sh t.json --lr 1': 'ROOT/scripts/module.py src.cluster.launch t.json ROOT/train.py --lr 1',
    'run_eval.sh --report "a b"': 'ROOT/eval.py --report "a b"',
    'run_eval.sh 2 --lr 1': 'ROOT/scripts/module.py src.cluster.launch 2 ROOT/eval.py --lr 1',
    'run_eval.sh t.json /data c.ckpt': 'ROOT/scripts/module.py src.cluster.launch t.json ROOT/eval.py /data c.ckpt',
    'run_eval.sh 0 /data c.ckpt': 'ROOT/eval.py 0 /data c.ckpt',
    'run_export.sh --file_format ONNX': 'ROOT/export.py --file_format ONNX',
    'run_predict.sh a.jpg --model n.onnx': 'ROOT/scripts/module.py src.deploy.predict a.jpg --model n.onnx',
    'run_finetune.sh photos "my weights"': 'ROOT/scripts/module.py src.workflow finetune photos "my weights"',
    'run_demo.sh out': 'ROOT/scripts/module.py src.workflow demo out',
}


@pytest.fixture
def start(tmp_path):
    """Calls a script as given, with a recorder for an interpreter and CDPATH set, in a directory; what comes out."""
    recorder = tmp_path / 'python'
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    environ = {'PATH': '/usr/bin:/bin', 'PYTHON': str(recorder), 'LD_PRELOAD': '', 'CDPATH': f'.:{ROOT}:/'}

    def call(command, cwd):
        done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, '')
        return re.findall('<(.*?)>', done.stdout)

    return call


@pytest.mark.parametrize('text', CALLS)
def test_every_script_by_every_way(text, start, tmp_path):
    script, *arguments = shlex.split(text)
    expected = shlex.split(CALLS[text].replace('ROOT', str(ROOT)))
    link = tmp_path / 'my bin' / script
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(ROOT / 'scripts' / script, link.parent))
    for shell in (['bash'], ['sh'], []):
        assert start([*shell, f'scripts/{script}', *arguments], ROOT) == expected
        assert start([*shell, f'./{script}', *arguments], ROOT / 'scripts') == expected
        assert start([*shell, str(link), *arguments], '/') == expected


def test_all_scripts_are_tried():
    assert {text.split()[0] for text in CALLS} | {'run_tests.sh', 'run_acceptance.sh'} == {
        p.name for p in (ROOT / 'scripts').glob('run_*.sh')
    }


PIP = 'import os, sys\nprint("pip", *(w.rsplit("/", 1)[-1] for w in sys.argv[1:]))\nsys.exit("FAIL" in os.environ)\n'
INSTALLED = ('mindspore', 'numpy', 'easydict', 'pyyaml', 'tqdm', 'psutil', 'msgpack', 'matplotlib', 'tensorboardX')


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A project whose .venv has all requirements, but for ONNX; function: calls a script there, (status, lines, stderr)."""
    root = tmp_path_factory.mktemp('my project')
    for path in [*(ROOT / 'scripts').glob('*.sh'), *ROOT.glob('requirements*.txt')]:
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for program in ('scripts/module.py', 'export.py', 'eval.py'):
        (root / program).write_text('print("started")')
    (root / 'bin').mkdir()
    (root / 'bin/python3').write_text('#!/bin/sh\nexit 1\n')
    (root / 'bin/python3').chmod(0o755)
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', root / '.venv'], check=True)
    (packages,) = root.glob('.venv/lib/python*/site-packages')
    for name in INSTALLED:
        about = packages / f'{name}-2.8.0.dist-info'
        about.mkdir()
        (about / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 2.8.0\n')
        (about / 'RECORD').write_text('x,,\n')
        (packages / f'{name.replace("pyyaml", "yaml")}.py').touch()
    (packages / 'pip').mkdir()
    (packages / 'pip/__main__.py').write_text(PIP)

    def call(script, *arguments, path=root / 'bin', **environ):
        environ = {'PATH': f'{path}:/usr/bin:/bin', 'NPU_DEVICES': '/nowhere/davinci*', 'HOME': '/nowhere', **environ}
        command = ['sh', root / 'scripts' / script, *arguments]
        done = subprocess.run(command, cwd='/', env=environ, capture_output=True, text=True)
        return done.returncode, done.stdout.splitlines(), done.stderr

    call.root = root
    return call


INSTALLS = 'pip install -q -r requirements-export.txt'


@pytest.mark.parametrize(
    'command, installs',
    [
        ('run_finetune.sh photos w.ckpt', 'pip install -q -r requirements-report.txt -r requirements-export.txt'),
        ('run_export.sh --file_format ONNX', INSTALLS),
        ('run_export.sh --file_format MINDIR', None),
        ('run_predict.sh photo.jpg --model net.onnx', INSTALLS),
        ('run_predict.sh photo.jpg --model net.mindir', None),
        ('run_eval.sh --report r', None),  # matplotlib is there
    ],
)
def test_what_a_script_needs_is_installed_also_later(command, installs, project):
    status, lines, err = project(*command.split())
    assert (status, err, lines[-1]) == (0, '', 'started') and [line for line in lines if line.startswith('pip')] == (
        [installs] if installs else []
    )


def test_which_environments_are_changed(project, tmp_path):
    """The project's own, also when it is active; none that the user names, nothing that CANN forbids."""
    command = ['run_predict.sh', 'photo.jpg', '--model', 'net.onnx']
    assert INSTALLS in project(*command, path=project.root / '.venv/bin')[1]
    assert project(*command, PYTHON=sys.executable)[1] == ['started']
    (tmp_path / 'davinci0').touch()
    assert project(*command, NPU_DEVICES=str(tmp_path / 'davinci0'))[1] == ['started']


def test_without_a_network_the_rest_is_done(project):
    status, lines, err = project('run_predict.sh', 'photo.jpg', '--model', 'net.onnx', FAIL='1')
    assert (status, lines[-1]) == (0, 'started') and err.startswith('warning: not installed') and err.count('\n') == 1


def test_help_of_the_demo_is_its_own(tmp_path):
    """Also in a directory with a `src` and a `config.py` of its own."""
    (tmp_path / 'src').mkdir()
    for name in ('src/__init__.py', 'config.py', 'random.py'):
        (tmp_path / name).write_text('raise SystemExit("imported")')
    environ = {**os.environ, 'PYTHON': sys.executable}
    done = subprocess.run(['sh', ROOT / 'scripts/run_demo.sh', '--help'], cwd=tmp_path, env=environ, **TEXT)
    assert done.returncode == 0 and done.stdout.startswith('usage: bash scripts/run_demo.sh [OUTPUT_DIR] [--seed N]')
    assert '--rmsprop_epsilon' not in done.stdout and done.stderr == ''


TEXT = {'capture_output': True, 'text': True}


@pytest.mark.parametrize(
    'entry, arguments, message',
    [
        (train.main, ['0', '/data/none'], '/data/none'),
        (train.main, ['/data/none', '--lr', '1'], '/data/none'),
        (train.main, ['1', '2', '3'], "unexpected argument '1'"),
        (eval_entry.main, ['0', '/data', 'none.ckpt'], 'none.ckpt: No such file'),
        (eval_entry.main, ['/data', 'none.ckpt', '--seed', '2'], 'none.ckpt: No such file'),
    ],
)
def test_arguments_of_the_model_zoo(entry, arguments, message, capsys, tmp_path, monkeypatch):
    """`run_standalone_train.sh DEVICE DATA`, `run_distribute_train.sh TABLE DATA`, `run_eval.sh DEVICE DATA CKPT`."""
    monkeypatch.chdir(tmp_path)
    assert message in message_of(entry, arguments, capsys)


@pytest.mark.parametrize(
    'entry, arguments',
    [
        (eval_entry.main, ['--data_dir', '/data', '--ckpt_path', 'none.safetensors']),
        (export.main, ['--ckpt_path', 'none.safetensors']),
        (predict.main, [__file__, '--model', 'none.safetensors']),
    ],
)
def test_missing_weights_say_where_there_are_some(entry, arguments, capsys):
    line = message_of(entry, arguments, capsys)
    assert 'none.safetensors: No such file' in line and 'https://huggingface.co/timm/inception_v4.tf_in1k' in line
    assert '/toolkits/mindcv/inception_v4/inception_v4-56e798fc-910v2.ckpt' in line
    for page in ('README.md', 'README_CN.md', 'docs/weights.md'):
        text = (ROOT / page).read_text()
        assert all(address in text for address in re.findall(r'https://[^ \n]+', line)), page


def test_names_of_other_programs(capsys, tmp_path):
    line = message_of(train.main, ['--learning_rate', '1'], capsys)
    assert line == 'error: unknown option --learning_rate; did you mean --lr?\n'
    (tmp_path / 'other.yaml').write_text('weights: 1\n')
    line = message_of(train.main, ['--config_path', tmp_path / 'other.yaml'], capsys)
    assert 'line 1; did you mean restore_path or ckpt_path?' in line
