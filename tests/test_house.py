"""Rules of the source tree that ruff (pyproject.toml) does not hold: who imports whom, sizes, names, nothing at import."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*ROOT.glob('*.py'), *sorted((ROOT / 'src').rglob('*.py'))]
WITHOUT_MINDSPORE = 'options environment cluster.rank_table training.plan weights.names data.convert'.split()


def test_folders_import_one_way(monkeypatch):
    """By the contracts in pyproject.toml; imports inside functions count."""
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0


def test_sizes():
    """A file fits an evening, a function a screen."""
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= 250, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, f'{path}: {node.name}'


def test_no_name_means_two_files():
    names = Counter(path.name for path in [*(ROOT / 'src').rglob('*.py'), *(ROOT / 'benchmarks').glob('*.py')])
    assert {name for name, count in names.items() if count > 1} <= {'__init__.py', '__main__.py'}


def test_nothing_happens_at_import():
    """No call for its effect at the top of a module, and what needs no MindSpore starts without it."""
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            assert not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)), f'{path}:{node.lineno}'
    code = f'import sys\nfor name in {WITHOUT_MINDSPORE}: __import__("src." + name)\nassert "mindspore" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
