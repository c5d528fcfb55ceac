"""How the entry points end: one line, a status, and no complaint about a standard output that is closed or full."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from src import errors
from src.errors import TrainingError, input_error

ROOT = Path(__file__).resolve().parents[1]
SCALING = '"$PYTHON" -m benchmarks.scaling --devices'
# A reader that has gone before anything is written
GONE = ' | true; exit ${PIPESTATUS[0]}'


def shell(command, cwd=ROOT, **environment):
    done = subprocess.run(
        ['bash', '-c', command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT), **environment},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    'command, status, message',
    [
        (f'{SCALING} 8 > /dev/full', 2, 'error: standard output: No space left on device\n'),
        (f'{SCALING} 9 > /dev/full', 2, 'error: --devices 9: must be 1, 2, 4, or a multiple of 8 up to 4096\n'),
        (f'{SCALING} 8 {GONE}', None, ''),
        (f'{SCALING} 8 --help {GONE}', None, ''),
        (f'PYTHONUNBUFFERED=1 {SCALING} 8 {GONE}', None, ''),
        (f'PYTHONUNBUFFERED=1 {SCALING} 8 > /dev/full', 2, 'error: standard output: No space left on device\n'),
    ],
)
def test_output_that_is_not_read_or_has_no_room(command, status, message):
    """A program may notice a dead pipe only at its end, which is then no failure."""
    found, _, err = shell(command)
    assert err == message and found in ((0, 141) if status is None else (status,))


def test_interruption_and_other_errors():
    """Ctrl-C is one line and 130; what no user can correct is shown whole."""
    code = 'from src.errors import entry_point\ndef main(): {}\nentry_point(main)()'
    status, _, err = shell(f"""\"$PYTHON\" -c '{code.format('raise KeyboardInterrupt')}'""")
    assert (status, err) == (130, 'interrupted\n')
    status, _, err = shell(f"""\"$PYTHON\" -c '{code.format('open("/none")')}'""")
    assert status == 1 and err.startswith('Traceback') and 'FileNotFoundError' in err


@pytest.mark.parametrize(
    'module',
    [
        'cluster.launch',
        'deploy.predict',
        'cluster.rank_table',
        'data.check',
        'data.convert',
        'data.demo_images',
        'training.curves',
        'weights.__main__',
    ],
)
def test_unusable_arguments_of_every_tool(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [module, '--nonsense'])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f'src.{module}').main()
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.startswith('error: ') and err.endswith('; --help lists the options\n')
    assert err.count('\n') == 1


def test_input_error_of_a_data_worker():
    """A subclass keeps its exit status; any other error is not taken for an InputError."""
    found = input_error(RuntimeError('------\nTraceback:\n  File "x.py"\nsrc.errors.TrainingError: no data\n------\nC++'))
    assert type(found) is TrainingError and (str(found), found.exit_status) == ('no data', 3)
    assert input_error(RuntimeError('ValueError: no')) is None is input_error(ValueError('src.errors.InputError: no'))


@pytest.mark.compiles
def test_input_error_of_a_data_worker_process():
    """In a process of its own: MindSpore's handler of SIGCHLD can lock up where one pipeline forks while another ends."""
    code = """
import mindspore.dataset as ds
from src.errors import InputError, entry_point

def fail(row):
    raise InputError('label is 7; give 0 to 6')

@entry_point
def main():
    data = ds.NumpySlicesDataset([[1], [2]], ['row'])
    list(data.map(fail, ['row'], num_parallel_workers=2, python_multiprocessing=True).create_tuple_iterator(num_epochs=1))

main()
"""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'GLOG_v': '4'}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=100, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (2, '', 'error: label is 7; give 0 to 6\n')


@pytest.mark.parametrize(
    'error, message',
    [
        (ValueError('row 3 has\n2 fields, not 3'), 'a.csv: row 3 has 2 fields, not 3; write it anew'),
        (KeyError('name'), "a.csv: 'name' is missing; write it anew"),
        (
            UnicodeDecodeError('utf-8', b'a\xff', 1, 2, 'invalid start byte'),
            "a.csv: 'utf-8' codec can't decode byte 0xff in position 1: invalid start byte; write it anew",
        ),
        (FileNotFoundError(2, 'No such file or directory', 'b.csv'), 'b.csv: No such file or directory; write it anew'),
        (PermissionError(13, 'Permission denied'), 'a.csv: Permission denied; write it anew'),
        (errors.InputError('lr is 0'), 'lr is 0'),
    ],
)
def test_plain_errors_at_the_edge_name_path_and_remedy(error, message):
    with pytest.raises(errors.InputError) as found, errors.reading('a.csv', 'write it anew'):
        raise error
    assert str(found.value) == message


def test_other_errors_pass_the_edge_and_a_full_disk_may_be_retried():
    with pytest.raises(TypeError), errors.reading('a.csv'):
        raise TypeError('a defect of ours')
    with pytest.raises(errors.InputError, match='^a.csv: broken$'), errors.reading('a.csv', also=(RuntimeError,)):
        raise RuntimeError('broken')
    with pytest.raises(errors.DiskFullError), errors.reading('a.csv'):
        raise OSError(28, 'No space left on device')
