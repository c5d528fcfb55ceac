"""The scripts: called by any shell, by a link, from any directory, as the model zoo's; what they install."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import eval as eval_entry
import train
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


@pytest.mark.parametrize('npu', [True, False])
def test_a_new_environment_has_what_the_machine_needs(npu, tmp_path):
    """Beside an NPU it sees the packages of CANN. The next script finds it."""
    for name in 'scripts', 'bin', 'dev':
        (tmp_path / name).mkdir()
    for script in (ROOT / 'scripts').glob('*.sh'):
        shutil.copy(script, tmp_path / 'scripts')
    (tmp_path / 'bin/python3').write_text(STUB)
    (tmp_path / 'bin/python3').chmod(0o755)
    (tmp_path / ('dev/davinci0' if npu else 'dev/davinci_manager')).touch()
    environ = {'PATH': f'{tmp_path}/bin:/usr/bin:/bin', 'NPU_DEVICES': f'{tmp_path}/dev/davinci[0-9]*'}
    done = [
        subprocess.run(['sh', tmp_path / 'scripts/run_eval.sh'], capture_output=True, text=True, env=environ) for _ in '12'
    ]
    assert [(one.returncode, one.stderr) for one in done] == [(0, '')] * 2
    assert done[0].stdout.splitlines()[1:] == [
        f'venv: {"--system-site-packages " * npu}{tmp_path}/.venv',
        f'called: -m pip install -q -r {tmp_path}/requirements-{"ascend" if npu else "export"}.txt '
        f'-r {tmp_path}/requirements-report.txt',
        f'called: {tmp_path}/eval.py',
    ]
    assert done[1].stdout == f'called: {tmp_path}/eval.py\n'


def test_arguments_of_the_model_zoo(capsys, tmp_path, monkeypatch):
    """`run_standalone_train.sh DEVICE DATA`, `run_distribute_train.sh TABLE DATA`, `run_eval.sh DEVICE DATA CKPT`."""
    monkeypatch.chdir(tmp_path)
    assert '/data/none' in message_of(train.main, ['0', '/data/none'], capsys)
    assert '/data/none' in message_of(train.main, ['/data/none', '--lr', '1'], capsys)
    assert "unexpected argument '1'" in message_of(train.main, ['1', '2', '3'], capsys)
    assert 'none.ckpt: No such file' in message_of(eval_entry.main, ['0', '/data', 'none.ckpt'], capsys)
