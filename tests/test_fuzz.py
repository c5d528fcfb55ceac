"""Files from strangers: each is read or ends in one clear error, in time and in memory, and none runs code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.compiles
@pytest.mark.parametrize('seed, count', [(1, 150), pytest.param(2, 3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', ['checkpoint', 'safetensors', 'tensorflow', 'shard'])
def test_damaged_files(kind, seed, count, tmp_path):
    """In a process of their own, which a fault in the memory of C++ would end."""
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tests/fuzz.py'), kind, str(seed), str(count)],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors='replace',
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'GLOG_v': '4'},
    )
    where = f'{kind} {seed} case {(tmp_path / "case").read_text()}'
    assert done.returncode == 0 and not done.stdout + done.stderr, f'{where}: {done.stdout[-5000:]}{done.stderr[-1000:]}'
    assert where.endswith(f' {count - 1}')


def test_no_source_can_run_what_a_file_says():
    """No loader that runs code out of a file; the restricted unpickler finds no class but those it lists."""
    unsafe = r'^\s*(import|from) (dill|cloudpickle|joblib|marshal|shelve)\b|yaml\.(unsafe_|full_)?load\(|pickle\.loads?\(|'
    unsafe += r'allow_pickle=True|torch\.load\(|(?<![\w.])(eval|exec)\('
    sources = [*ROOT.glob('*.py'), *ROOT.glob('src/**/*.py'), *ROOT.glob('scripts/**/*.py')]
    found = {str(path): re.findall(unsafe, path.read_text(), re.M) for path in sources}
    assert len(sources) > 20 and not {path: hits for path, hits in found.items() if hits}
