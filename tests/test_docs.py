"""Every command in README.md, CONTRIBUTING.md and docs/ is run by a test, or stands on the list NOT_RUN with the reason.

The shell reads each command as it stands in the document, in a directory that looks like a user's. Instead of Python and the
device's programs it finds a recorder, so that the programs' arguments come out as the scripts pass them on. All of them are
checked: files, tests and options must exist. Those in RUN are then run on small files.
"""

import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import mindspore as ms
import pytest

from src import errors
from src.cluster import launch
from src.data import demo_images
from src.inceptionv4 import InceptionV4
from src.options import load_settings
from src.weights import checkpoint
from tests.weights import tensorflow

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').rglob('*.md'))]
# A recorder stands in for these.
PROGRAMS = ('python', 'pip', 'cmake', 'tar', 'npu-smi', 'hccn_tool', 'atc', 'docker', 'kubectl', 'sbatch')
STARTS = ('bash', 'setsid', 'source', *PROGRAMS)
PLACEHOLDERS = {'--dst DIR': '--dst converted', '--devices N': '--devices 8', ' ...': '', '/data/imagenet': 'demo/data'}

# Commands of this module that run here, on small files: start of the command, what it must leave or print, more arguments.
RUN = {
    'bash scripts/run_eval.sh --ckpt_path results': ('30 validation images, each evaluated once', ['--batch_size', '30']),
    'python -m src.weights import inception_v4.ckpt': ('imported.ckpt', []),
    'python eval.py --ckpt_path imported.ckpt': (
        '30 validation images, each evaluated once',
        ['--batch_size', '30', '--image_size', '75'],
    ),
    'bash scripts/run_export.sh --ckpt_path results': ('inceptionv4.mindir', []),
    'python export.py --ckpt_path CKPT --file_format ONNX --file_name inceptionv4 --export_input': ('inceptionv4.onnx', []),
    'python export.py --ckpt_path CKPT --file_format ONNX --file_name inceptionv4 --aipp': ('aipp.cfg', []),
    'python export.py --ckpt_path CKPT --file_format ONNX --file_name inceptionv4-int8': (
        'inceptionv4-int8.onnx',
        ['--calibration_images', '4', '--max_accuracy_loss', '100'],
    ),
    "bash scripts/run_predict.sh 'photos/**/*.jpg' --model inceptionv4-int8.onnx": ('1.jpg', []),
    'bash scripts/run_predict.sh photo.jpg --model inceptionv4.onnx': ('photo.jpg', []),
    'bash scripts/run_predict.sh photos/ more/*.jpg --model CKPT': ('"probability"', []),
    'bash scripts/run_predict.sh photos/ --model inceptionv4.mindir': ('page.html', []),
    'python -m src.environment': ('NPU', []),
    'python -m src.data.check DIR': ('0 problems', []),
    'python -m src.data.convert': ('converted', ['--workers', '1', '--shards', '2']),
    'python -m src.cluster.rank_table make --devices 8': ('rank_table.json', []),
    'python -m src.cluster.rank_table check rank_table.json --rank_size 8': ('8 ranks on 1 server(s)', []),
    'python train.py --help': ('--data_dir', []),
}
MERGED_TABLE = 'tests/cluster/test_launch.py::test_ascend_document'
# Commands that another test runs: what they begin with, and that test.
ELSEWHERE = {
    'bash scripts/run_demo.sh': 'tests/test_end_to_end.py::test_demo_path',
    'python train.py --data_dir photos --restore_path': 'tests/training/test_features.py::test_resume',
    'python eval.py --ckpt_path results': 'tests/test_end_to_end.py::test_report_on_the_best_checkpoint',
    'bash scripts/run_finetune.sh': 'tests/test_finetune.py::test_from_photos_to_a_classifier',
    'python -m src.data.split': 'tests/data/test_split.py::test_command_line',
    'python -m src.data.convert --list': 'tests/data/test_split.py::test_command_line',
    'python train.py --config_path recipes/finetune.yaml': 'tests/test_end_to_end.py::test_transfer_learning',
    'bash scripts/run_standalone_train.sh': 'tests/test_end_to_end.py::trained',
    'bash scripts/run_distribute_train.sh rank_table.json': 'tests/test_distributed.py::test_scripts_with_two_ranks',
    'bash scripts/run_distribute_train.sh 8 --conf': 'tests/test_runtime.py::test_model_is_called_with_sinks',
    'bash scripts/run_distribute_train.sh 8': 'tests/accidents/test_start_up.py::test_launcher_starts_a_dynamic_cluster',
    'bash scripts/run_distribute_train.sh rank_table.json --data_dir /data/imagenet --resume auto': (
        'tests/training/test_resume.py::test_two_ranks_go_on_by_themselves'
    ),
    'kubectl apply -f deploy/volcano_1x8.yaml': (
        'tests/cluster/test_deploy.py::test_one_pod_waits_for_its_rank_table_and_saves_when_it_is_deleted'
    ),
    'kubectl apply -f deploy/volcano_2x8.yaml': 'tests/cluster/test_deploy.py::test_two_pods_restart_together',
    'sbatch deploy/slurm.sh': 'tests/cluster/test_deploy.py::test_slurm',
    'bash scripts/run_acceptance.sh': 'tests/test_acceptance.py::test_rehearsal',
    'find photos': 'tests/deploy/test_predict.py::test_standard_input_to_its_end',
    'bash scripts/run_predict.sh photos/ --model inceptionv4.onnx': 'tests/deploy/test_predict.py::test_page',
    'python export.py --ckpt_path CKPT --file_format MINDIR': 'tests/test_end_to_end.py::test_export',
    'python export.py --ckpt_path CKPT --file_format AIR': 'tests/deploy/test_export.py::test_air_from_the_command_line',
    'python -m src.data.convert --src ILSVRC2012': 'tests/data/test_archives.py::test_fix',
    'python -m src.training.report': 'tests/training/test_training_report.py::test_command_line',
    'python -m src.training.scaling': 'tests/training/test_scaling.py::test_document',
    'python - server0.json': MERGED_TABLE,
    'python -m src.cluster.rank_table check rank_table.json --rank_size 16': MERGED_TABLE,
    'docker': 'tests/test_docker.py::test_documented_commands',
    'setsid python train.py': 'tests/training/test_resume.py::test_killed_in_a_save_then_damaged_then_stopped',
}
# Commands that no test can run: what they begin with, and why. Their files and options are checked all the same.
NOT_RUN = {
    'bash scripts/run_tests.sh': 'the tests themselves',
    'python -m pytest': 'the tests themselves',
    'python -m ruff': 'run_tests.sh does it',
    'bash scripts/run_distribute_train.sh /user/': 'a path that only MindCluster or ModelArts mounts',
    'python -m src.acceptance.reference': 'minutes of the whole network; it rewrites the stored figures',
    'python -m benchmarks.': 'minutes, and other programs beside this one',
    'python -m tests.faults': 'an hour of both cores; tests/cluster/test_faults.py does a tenth of it',
    'python -c "import mindspore': 'needs an NPU',
    'pip install': 'an installation',
    'source /usr/local/Ascend': 'a file of CANN',
    'source .venv/bin/activate': 'an environment that the scripts make',
    'npu-smi': 'needs an NPU',
    'hccn_tool': 'needs an NPU',
    'atc': 'comes with CANN',
    'tar': 'a download',
    'cmake': 'a download',
}
STARTING_OTHERS = ('src.demo', 'src.finetune')  # their options, after directories and files, are those of train.py
WITHOUT_OPTIONS = ('src.environment', 'src.acceptance.reference')
Command = namedtuple('Command', 'text path')


def commands_of(path):
    """The commands in a document: lines of ```bash blocks, lines `$ ...` of other blocks, and inline code that begins with
    one of STARTS. Continued lines are joined. Comments, here-documents and optional parts in brackets are dropped."""
    text = path.read_text()
    for kind, block in re.findall(r'^```(\w*)\n(.*?)^```', text, re.M | re.S):
        block = re.sub(r"<< '(\w+)'\n.*?^\1$", '', block.replace('\\\n', ' '), flags=re.M | re.S)
        for line in block.splitlines():
            line = re.sub(r'(^|\s)#.*', '', line) if kind == 'bash' else line[2:] if line.startswith('$ ') else ''
            if line.strip():
                yield Command(' '.join(line.split()), path.name)
    for inline in re.findall(r'`([^`]+)`', re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)):
        if inline.split()[0] in STARTS and len(inline.split()) > 1:
            yield Command(re.sub(r' \[.*?\]', '', ' '.join(inline.split())), path.name)


COMMANDS = sorted({command for path in DOCUMENTS for command in commands_of(path)})


def found(table, text):
    """The longest beginning of the command `text` in `table`, or None."""
    return max((start for start in table if text.startswith(start)), key=len, default=None)


def treatment(text):
    """(table, key) of the longest beginning in the three tables, or None."""
    keys = [(table, key) for table in (RUN, ELSEWHERE, NOT_RUN) if (key := found(table, text))]
    return max(keys, key=lambda pair: len(pair[1]), default=None)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A directory as the documents take it for granted: the project, records, checkpoints of small networks, photos, and a
    recorder for all of PROGRAMS in `bin`."""
    folder = tmp_path_factory.mktemp('documents')
    for path in ROOT.iterdir():
        if path.name not in ('demo', 'results', 'bin', '.venv', '.git'):
            (folder / path.name).symlink_to(path)
    (folder / 'demo').mkdir()
    (folder / 'bin').mkdir()
    data = demo_images.make(folder / 'demo/data', train_per_class=2, validation_per_class=3)
    (data / 'labels.txt').unlink()  # its names are not ImageNet's, which imported weights have
    (folder / 'DIR').symlink_to(data)
    ms.set_seed(1)
    network = InceptionV4(10, block_counts=(1, 1, 1), image_size=75)
    about = {'num_classes': 10, 'block_counts': [1, 1, 1], 'image_size': 75, 'label_offset': '1'}
    (folder / 'results/1p/0/ckpt').mkdir(parents=True)
    saved = checkpoint.save(folder / 'results/1p/0/ckpt', network, step=1000900, epoch=100, config=about)
    (folder / 'CKPT').symlink_to(saved)
    foreign = InceptionV4(1001, block_counts=(1, 1, 1), image_size=75)
    foreign = checkpoint.save(folder / 'bin', foreign, step=0, epoch=0, config={**about, 'num_classes': 1001})
    tensorflow.write(folder / 'inception_v4.ckpt', tensorflow.to_tf_slim(checkpoint.load(foreign)[0]))
    (folder / 'photos').mkdir()
    (folder / 'more').mkdir()
    encoded = open_image(data)
    for name in ('photo.jpg', 'photos/1.jpg', 'more/2.jpg', 'more/3.jpg'):
        (folder / name).write_bytes(encoded)
    for name in PROGRAMS:
        recorder = folder / 'bin' / name
        recorder.write_text(f'#!/bin/bash\nprintf "%s\\0" {name} "$@" "" >> "$RECORD"\n')
        recorder.chmod(0o755)
    return folder


def open_image(data):
    """One of the validation images, encoded."""
    from src.data.records import open_records

    return bytes(open_records(str(data), 'validation').read(0))


def recorded(text, place, tmp_path):
    """[[program, argument, ...]] that bash starts for the command `text`."""
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    record = tmp_path / 'record'
    record.touch()
    environment = {'PATH': f'{place}/bin:{os.environ["PATH"]}', 'PYTHON': f'{place}/bin/python', 'RECORD': str(record)}
    environment['LD_PRELOAD'] = ''  # the recorder knows of no allocator
    done = subprocess.run(
        ['bash', '-c', text.partition(' &')[0]], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [call.split('\0') for call in record.read_text().split('\0\0')[:-1]]


class Parsed(Exception):
    """The arguments are good; nothing else is done."""


def parse_only(parser, *args, real=errors.Parser.parse_args, **kwargs):
    raise Parsed(real(parser, *args, **kwargs))


def check_options(program, arguments, place, monkeypatch):
    """The options of a script or module exist, and their values are good."""
    if program.endswith('scripts/module.py'):
        program, *arguments = arguments
    if program == 'src.cluster.launch':
        args, arguments = launch._arguments(arguments)
        program = args.script
    if Path(program).suffix == '.py' or program in STARTING_OTHERS:
        assert program in STARTING_OTHERS or (place / program).is_file()
        while program in STARTING_OTHERS and arguments and not arguments[0].startswith('-'):
            arguments = arguments[1:]
        if arguments != ['--help']:
            load_settings(arguments)
    elif program in WITHOUT_OPTIONS:
        assert not arguments
    else:
        package = importlib.util.find_spec(program).submodule_search_locations
        module = importlib.import_module(f'{program}.__main__' if package else program)
        monkeypatch.setattr(errors.Parser, 'parse_args', parse_only)
        monkeypatch.setattr(sys, 'argv', [program, *arguments])
        with pytest.raises(Parsed):
            module.main()


def check(call, place, monkeypatch):
    """What the recorded `call` names exists."""
    program, *arguments = call
    if program == 'pip':
        assert (ROOT / arguments[arguments.index('-r') + 1]).is_file()
    if program in ('kubectl', 'sbatch'):
        assert (ROOT / arguments[2 if program == 'kubectl' else 0]).is_file()
    if program != 'python' or arguments == ['-'] or arguments[0] == '-':
        return
    if arguments[0] == '-c':
        compile(arguments[1], 'command', 'exec')
    elif arguments[:2] in (['-m', 'pytest'], ['-m', 'ruff']):
        for path in (a.partition('::')[0] for a in arguments[2:] if re.match(r'(tests|src)/|\w+\.py', a)):
            assert (ROOT / path).exists(), path
    elif arguments[0] == '-m':
        check_options(arguments[1], arguments[2:], place, monkeypatch)
    else:
        check_options(arguments[0], arguments[1:], place, monkeypatch)


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: f'{command.path}: {command.text[:90]}')
def test_command_names_what_exists(command, place, tmp_path, monkeypatch):
    assert treatment(command.text), f'{command.path}: neither run by a test nor on a list of test_docs.py: {command.text}'
    if not command.text.startswith('source '):
        calls = recorded(command.text, place, tmp_path)
        assert calls
        for call in calls:
            check(call, place, monkeypatch)


def run(call, place, more, monkeypatch, capfd):
    """Run a recorded call of Python in this process, as `python` would; what it prints."""
    arguments = [*call[1:], *more]
    monkeypatch.chdir(place)
    module = arguments[0] == '-m' and arguments.pop(0)
    program = arguments[0]
    monkeypatch.setattr(sys, 'argv', arguments)
    try:
        if module:
            runpy.run_module(program, run_name='__main__', alter_sys=True)
        else:
            runpy.run_path(str(place / program), run_name='__main__')
    except SystemExit as end:
        assert not end.code, capfd.readouterr().err
    return capfd.readouterr().out


@pytest.mark.compiles
@pytest.mark.filterwarnings('ignore:.*found in sys.modules')  # of runpy: this process has imported the module before
@pytest.mark.parametrize('start', RUN)
def test_command_runs(start, place, tmp_path, monkeypatch, capfd):
    """In the order of RUN: some take what those before them have left."""
    text = next(c.text for c in COMMANDS if treatment(c.text) == (RUN, start))
    (call,) = recorded(text, place, tmp_path)
    expected, more = RUN[start]
    shown = run(call, place, more, monkeypatch, capfd)
    assert expected in shown or (place / expected).exists(), shown


def test_lists_are_not_longer_than_needed():
    """No entry without a command, and the tests named in ELSEWHERE exist."""
    used = {key for command in COMMANDS for _, key in filter(None, [treatment(command.text)])}
    assert [key for table in (RUN, ELSEWHERE, NOT_RUN) for key in table if key not in used] == []
    for test in set(ELSEWHERE.values()):
        path, _, function = test.partition('::')
        names_there = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, 'name')}
        assert function in names_there, test


def test_new_commands_are_found(tmp_path):
    path = tmp_path / 'new.md'
    path.write_text(
        "Type `python new.py --x [FILE]`, not `x = 1`.\n```bash\nbash a.sh \\\n  --b  # why\ncat << 'END'\nx\nEND\n```\n"
        '```\n$ python shown.py\nits output\n```\n'
    )
    assert [c.text for c in commands_of(path)] == ['bash a.sh --b', 'cat', 'python shown.py', 'python new.py --x']
    assert treatment('python new.py --x') is None


@pytest.mark.parametrize(
    'text, problem',
    [
        ('bash scripts/run_eval.sh --ckpt_pth x', errors.InputError),
        ('python evaluate.py', AssertionError),
        ('bash scripts/run_nothing.sh', AssertionError),
        ('python -m src.data.check --nothing DIR', SystemExit),
        ('python -m pytest tests/test_nothing.py', AssertionError),
        ('pip install -r nothing.txt', AssertionError),
        ('bash scripts/run_distribute_train.sh 8 --data_dri x', errors.InputError),
    ],
)
def test_wrong_commands_are_found(text, problem, place, tmp_path, monkeypatch):
    with pytest.raises(problem):
        for call in recorded(text, place, tmp_path):
            check(call, place, monkeypatch)


@pytest.mark.parametrize('name', ['README.md', 'README_CN.md'])
def test_readme_is_short(name):
    assert len((ROOT / name).read_text().splitlines()) <= 180


def test_paths_in_the_documents_exist():
    for path in DOCUMENTS:
        named = set(
            re.findall(
                r'(?<![\w/.-])(?:scripts|src|tests|docs|docker|deploy|benchmarks|recipes)/[\w./]*\w', path.read_text()
            )
        )
        assert [name for name in named if not (ROOT / name).exists() and '.git' not in name] == [], path.name
