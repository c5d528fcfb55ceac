"""Files from strangers: each gives success or one clear error, in time and in memory, and none runs code."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KINDS = ['checkpoint', 'safetensors', 'tensorflow', 'config', 'rank_table', 'shard']


def check(kind, seed, folder):
    """500 damaged files in a process of their own, which a fault in the memory of C++ would end."""
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tests/fuzz.py'), kind, str(seed), '500'],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        errors='replace',
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'GLOG_v': '4'},
    )
    where = f'{kind} {seed} case {(folder / "case").read_text()}'
    assert done.returncode in (0, 1), f'{where}: ended by signal {-done.returncode}; {done.stderr[-1000:]}'
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert 'Traceback' not in done.stderr, done.stderr[-3000:]
    assert where.endswith(' 499')


@pytest.mark.compiles
@pytest.mark.parametrize('kind', KINDS)
def test_damaged_files(kind, tmp_path):
    check(kind, 1, tmp_path)


@pytest.mark.compiles
@pytest.mark.slow
@pytest.mark.parametrize('seed', range(2, 12))
@pytest.mark.parametrize('kind', KINDS)
def test_more_damaged_files(kind, seed, tmp_path):
    check(kind, seed, tmp_path)


def unsafe(source):
    """Line and name of all in the Python `source` that could run code out of a file."""
    modules = {'pickle', 'cPickle', '_pickle', 'dill', 'cloudpickle', 'joblib', 'marshal', 'shelve', 'jsonpickle'}
    loaders = {
        'load',
        'load_all',
        'unsafe_load',
        'unsafe_load_all',
        'full_load',
        'full_load_all',
        'Loader',
        'UnsafeLoader',
        'FullLoader',
    }
    calls = {'eval', 'exec', '__import__'}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, 'module', None) or '']
            yield from ((node.lineno, name) for name in names if name.split('.')[0] in modules)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (
                node.value.id == 'yaml'
                and node.attr in loaders
                or node.value.id == 'torch'
                and node.attr == 'load'
                or node.value.id in ('builtins', '__builtins__')
            ):
                yield node.lineno, f'{node.value.id}.{node.attr}'
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in calls:
            yield node.lineno, node.func.id
        elif isinstance(node, ast.keyword) and node.arg == 'allow_pickle':
            yield node.value.lineno, 'allow_pickle'


def test_no_source_can_run_what_a_file_says():
    sources = [*ROOT.glob('*.py'), *ROOT.glob('src/**/*.py'), *ROOT.glob('scripts/**/*.py')]
    assert len(sources) > 20
    assert {str(path): found for path in sources if (found := list(unsafe(path.read_text())))} == {}


@pytest.mark.parametrize(
    'source',
    [
        'import pickle',
        'from pickle import loads',
        'import yaml\nyaml.load(f)',
        'yaml.unsafe_load(f)',
        'eval(text)',
        'np.load(f, allow_pickle=True)',
        'torch.load(f)',
        'class L(yaml.FullLoader): pass',
        'import a.b, dill as d',
    ],
)
def test_the_search_finds(source):
    assert list(unsafe(source))
