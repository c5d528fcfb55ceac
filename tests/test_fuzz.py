"""Files from strangers: each is read or ends in one clear error, in time and in memory, and none runs code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KINDS = ['checkpoint', 'safetensors', 'tensorflow', 'config', 'rank_table', 'shard']


def check(kind, seed, folder, count):
    """`count` damaged files in a process of their own, which a fault in the memory of C++ would end."""
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tests/fuzz.py'), kind, str(seed), str(count)],
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
    assert where.endswith(f' {count - 1}')


@pytest.mark.compiles
@pytest.mark.parametrize('kind', KINDS)
def test_damaged_files(kind, tmp_path):
    check(kind, 1, tmp_path, 150)


@pytest.mark.compiles
@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_more_damaged_files(kind, tmp_path):
    check(kind, 2, tmp_path, 3000)


def test_no_source_can_run_what_a_file_says():
    """No loader that runs code out of a file; the restricted unpickler finds no class but those it lists."""
    unsafe = r'^\s*(import|from) (dill|cloudpickle|joblib|marshal|shelve)\b|yaml\.(unsafe_|full_)?load\(|pickle\.loads?\(|'
    unsafe += r'allow_pickle=True|torch\.load\(|(?<![\w.])(eval|exec)\('
    sources = [*ROOT.glob('*.py'), *ROOT.glob('src/**/*.py'), *ROOT.glob('scripts/**/*.py')]
    found = {str(path): re.findall(unsafe, path.read_text(), re.M) for path in sources}
    assert len(sources) > 20 and not {path: hits for path, hits in found.items() if hits}
