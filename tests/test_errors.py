"""How the entry points end: one line, a status, and no complaint about a standard output that is closed or full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from src import errors
from src.cluster import launch
from src.data import check, convert
from src.deploy import predict
from src.errors import TrainingError, input_error
from src.weights import __main__ as weights
from tests.test_end_to_end import message_of

ROOT = Path(__file__).resolve().parents[1]
TOOL = 'python -m src.environment'
GONE = ' | true; exit ${PIPESTATUS[0]}'  # a reader that has gone before anything is written


def code(body):
    return f"""python -c 'from src.errors import *\ndef main(): {body}\nentry_point(main)()'"""


@pytest.mark.parametrize(
    'command, statuses, message',
    [
        (TOOL + GONE, (0, 141), ''),
        (f'PYTHONUNBUFFERED=1 {TOOL}' + GONE, (0, 141), ''),
        (code('raise TrainingError("no\\nend")') + ' > /dev/full', (3,), 'error: no end\n'),
        (code('raise KeyboardInterrupt'), (130,), 'interrupted\n'),
        (code('open("/none")'), (1,), None),  # what no user can correct is shown whole
    ],
)
def test_end_of_a_program(command, statuses, message):
    environment = {**os.environ, 'PATH': f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'}
    done = subprocess.run(['bash', '-c', command], cwd=ROOT, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode in statuses
    assert done.stderr == message or message is None and done.stderr.startswith('Traceback'), done.stderr


def test_unusable_arguments_of_every_tool(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['tool', '--nonsense'])
    for tool in launch, predict, check, convert, weights:
        assert message_of(lambda _, tool=tool: tool.main(), [], capsys).endswith('; --help lists the options\n')


def test_input_error_of_a_data_worker():
    """A subclass keeps its exit status; any other error is not taken for an InputError."""
    found = input_error(RuntimeError('------\nTraceback:\n  File "x.py"\nsrc.errors.TrainingError: no data\n------\nC++'))
    assert type(found) is TrainingError and (str(found), found.exit_status) == ('no data', 3)
    assert input_error(RuntimeError('ValueError: no')) is None is input_error(ValueError('src.errors.InputError: no'))


@pytest.mark.parametrize(
    'error, message',
    [
        (ValueError('row 3 has\n2 fields, not 3'), 'a.csv: row 3 has 2 fields, not 3; write it anew'),
        (KeyError('name'), "a.csv: 'name' is missing; write it anew"),
        (FileNotFoundError(2, 'No such file', 'b.csv'), 'b.csv: No such file; write it anew'),
        (RuntimeError('broken'), 'a.csv: broken; write it anew'),
    ],
)
def test_plain_errors_at_the_edge_name_path_and_remedy(error, message):
    with pytest.raises(errors.InputError) as found, errors.reading('a.csv', 'write it anew', also=(RuntimeError,)):
        raise error
    assert str(found.value) == message
    with pytest.raises(TypeError), errors.reading('a.csv'):
        raise TypeError('a defect of ours')
