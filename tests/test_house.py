"""Rules of the source tree, read from the syntax of its files: who imports whom, sizes, docstrings, annotations, words.

Every rule is a function `root -> list of violations`. It is held for this project, and seen to fail on a small made tree.
"""

import ast
import functools
import re
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENTRY_POINTS = ('train', 'eval', 'export')
# Folder of src: the folders that it may import from, beside its own. The modules directly in src are `base`.
MAY_IMPORT = {
    'base': '',
    'data': 'base',
    'weights': 'base data',
    'evaluation': 'base data weights',
    'training': 'base data weights evaluation',
    'deploy': 'base data weights',
    'cluster': 'base',
    'acceptance': 'base data weights evaluation training deploy cluster',
    'demo': 'base data training',  # src/demo.py, a program that starts the entry points
    'finetune': 'base data weights evaluation training deploy',  # src/finetune.py, another one
}
READS_CONFIGURATION = ('demo', 'acceptance', 'deploy')  # beside the entry points and the modules with a `main`
LIGHT = (
    'src.config',
    'src.cluster.rank_table',
    'src.training.report',
    'src.training.scaling',
    'src.weights.names',
    'src.environment',
)
FUNCTION_LINES, FILE_LINES = 50, 250
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

Module = namedtuple('Module', 'name path tree imports')  # imports: [(module name, imported name or None, alias)]


@functools.cache
def modules_of(root):
    """{name: Module} of the entry points and src below `root`; a package's name stands for its __init__.py."""
    paths = [root / f'{name}.py' for name in ENTRY_POINTS if (root / f'{name}.py').exists()]
    paths += sorted((root / 'src').rglob('*.py'))
    parts = {path: path.relative_to(root).with_suffix('').parts for path in paths}
    names = {path: '.'.join(p[:-1] if p[-1] == '__init__' else p) for path, p in parts.items()}
    trees = {path: ast.parse(path.read_text()) for path in paths}
    known = set(names.values())
    return {names[p]: Module(names[p], p, trees[p], list(imports(trees[p], names[p], p.stem, known))) for p in paths}


def imports(tree, name, stem, known):
    """(module, name in it or None for the module itself, local name) of every import in `tree`, those in functions too."""
    package = name.split('.') if stem == '__init__' else name.split('.')[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = '.'.join([*start, *filter(None, [node.module])])
            for alias in node.names:
                whole = f'{source}.{alias.name}'
                yield (
                    (whole, None, alias.asname or alias.name)
                    if whole in known
                    else (source, alias.name, alias.asname or alias.name)
                )


def folder_of(name):
    """Folder of a module's name: `base` for src/x.py, `entry point` for train.py and its like."""
    parts = name.split('.')
    if parts[0] != 'src':
        return 'entry point'
    return parts[1] if len(parts) > 1 and (len(parts) > 2 or parts[1] in MAY_IMPORT) else 'base'


def against_the_order(root):
    """Imports between folders that MAY_IMPORT does not list."""
    for module in modules_of(root).values():
        here = folder_of(module.name)
        for source, _, _ in module.imports if here != 'entry point' else ():
            there = folder_of(source)
            if source.startswith('src.') and there not in (here, *MAY_IMPORT[here].split()):
                yield f'{module.name} ({here}) imports {source} ({there})'


def imported_entry_points(root):
    """Imports of train, eval or export by a module of src."""
    for module in modules_of(root).values():
        if module.name.startswith('src'):
            yield from (f'{module.name} imports {source}' for source, _, _ in module.imports if source in ENTRY_POINTS)


def import_cycles(root):
    """Modules that import themselves by way of others."""
    modules = modules_of(root)
    direct = {name: {source for source, _, _ in module.imports} & modules.keys() for name, module in modules.items()}
    for name in modules:
        seen, left = set(), [*direct[name]]
        while left:
            if (found := left.pop()) not in seen:
                seen.add(found)
                left.extend(direct[found])
        if name in seen:
            yield f'{name} imports itself by way of {", ".join(sorted(direct[name] & seen))}'


def unexpected_readers(root):
    """Modules that read the configuration and are no program."""
    for module in modules_of(root).values():
        load = any((source, name) == ('src.config', 'load') for source, name, _ in module.imports) or 'load' in (
            attributes(module.tree, aliases(module, 'src.config'))
        )
        program = any(isinstance(node, ast.FunctionDef) and node.name == 'main' for node in module.tree.body)
        if load and not program and folder_of(module.name) not in (*READS_CONFIGURATION, 'entry point'):
            yield f'{module.name} reads the configuration'


def aliases(module, source):
    """Names by which `module` calls the module `source`."""
    return {local for found, name, local in module.imports if found == source and name is None}


def attributes(tree, names):
    """Attributes that `tree` takes of the local or dotted `names`."""
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and dotted(node.value) in names}


def dotted(node):
    """`a.b.c` of such an expression; None for another one."""
    if isinstance(node, ast.Attribute):
        return (start := dotted(node.value)) and f'{start}.{node.attr}'
    return node.id if isinstance(node, ast.Name) else None


def definitions(tree, public=False):
    """(dotted name, node) of the functions, methods and classes; `public`: without what a leading underscore or a function
    hides."""
    left = [('', node) for node in tree.body]
    while left:
        prefix, node = left.pop(0)
        if isinstance(node, DEFINITIONS):
            if public and node.name.startswith('_'):
                continue
            yield prefix + node.name, node
            prefix += node.name + '.'
            if public and not isinstance(node, ast.ClassDef):
                continue
        left.extend((prefix, child) for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))


def too_long(root):
    """Functions over FUNCTION_LINES and files over FILE_LINES."""
    for module in modules_of(root).values():
        if (lines := len(module.path.read_text().splitlines())) > FILE_LINES:
            yield f'{module.path.relative_to(root)}: {lines} lines'
        for name, node in definitions(module.tree):
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES and not isinstance(node, ast.ClassDef):
                yield f'{module.path.relative_to(root)}: {name} has {lines} lines'


def without_docstring(root):
    """Public functions, methods and classes that say nothing; what `construct` and `main` do, their place says."""
    for module in modules_of(root).values():
        for name, node in definitions(module.tree, public=True):
            if not ast.get_docstring(node) and node.name not in ('construct', 'main'):
                yield f'{module.path.relative_to(root)}:{node.lineno}: {name} has no docstring'


def without_annotations(root):
    """Functions, classes' constructors and methods that another folder or an entry point calls, with an argument or a result
    of no type. A method counts as called where its class, or a function beside it, is imported and its name is called."""
    modules, wanted = modules_of(root), set()
    for module in modules.values():
        methods = {
            n.func.attr for n in ast.walk(module.tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
        }
        for source, name, _ in module.imports:
            if source in modules and folder_of(source) != folder_of(module.name):
                used = {name} if name else attributes(module.tree, aliases(module, source))
                wanted |= {(source, function) for function in used}
                wanted |= {(source, f'{used_class}.{method}') for used_class in used for method in {*methods, '__init__'}}
    for source, name in sorted(wanted):
        for node in (node for found, node in members(modules[source].tree) if found == name):
            if not annotated(node, constructor=name.endswith('.__init__')):
                yield f'{modules[source].path.relative_to(root)}:{node.lineno}: {name} lacks annotations'


def members(tree):
    """(name, node) of the functions of a module and (class.name, node) of its public methods and constructors."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith('_') and node.name != 'main':
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                public = isinstance(method, ast.FunctionDef) and (method.name[0] != '_' or method.name == '__init__')
                if public and method.name != 'construct':
                    yield f'{node.name}.{method.name}', method


def annotated(function, constructor):
    """Whether all arguments of `function` have types, and its result, which of a constructor goes without saying."""
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    typed = all(a.annotation for i, a in enumerate(arguments) if not (i == 0 and a.arg in ('self', 'cls')))
    return typed and bool(constructor or function.returns)


def at_import(root):
    """Calls that stand alone at the top of a module: they can only be there for what they change. A module may build its own
    constants in steps: `TABLE.update(...)`."""
    for module in modules_of(root).values():
        own = {ast.unparse(t) for node in module.tree.body if isinstance(node, ast.Assign) for t in node.targets}
        for node in module.tree.body:
            alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            if alone and (dotted(node.value.func) or '').rpartition('.')[0] not in own:
                yield f'{module.path.relative_to(root)}:{node.lineno}: {ast.unparse(node.value)} at import'


def light_modules(root):
    """Modules of src that import MindSpore neither themselves nor by way of others, except inside functions."""
    modules = modules_of(root)
    direct = {
        name: {
            source
            for node in module.tree.body
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for source, _, _ in imports(ast.Module([node], []), name, module.path.stem, modules.keys())
        }
        for name, module in modules.items()
    }
    heavy, size = {'mindspore'}, 0
    while len(heavy) != size:
        size = len(heavy)
        heavy |= {name for name, used in direct.items() if any(u in heavy or u.startswith('mindspore.') for u in used)}
    return sorted(name for name in modules.keys() - heavy if name.startswith('src') and not name.endswith('__main__'))


def strange_words(root):
    """Lines with another word for an image."""
    folders = [*(root / 'src').rglob('*.py'), *(root / 'docs').rglob('*.md'), *(root / 'scripts').glob('*')]
    for path in [
        *root.glob('*.md'),
        *root.glob('*.py'),
        *root.glob('*.yaml'),
        *(root / 'benchmarks').glob('*.py'),
        *folders,
    ]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search('picture', line, re.IGNORECASE) and "entry.get('pictures')" not in line:  # a key of old files
                yield f'{path.relative_to(root)}:{number}: {line.strip()}'


# ---- this project


def test_folders_import_one_way():
    assert list(against_the_order(ROOT)) == []


def test_every_folder_has_its_place():
    found = {folder_of(name) for name in modules_of(ROOT)} - {'entry point'}
    assert found == MAY_IMPORT.keys()


def test_no_entry_point_is_imported():
    assert list(imported_entry_points(ROOT)) == []


def test_no_import_cycle():
    assert list(import_cycles(ROOT)) == []


def test_only_programs_read_the_configuration():
    assert list(unexpected_readers(ROOT)) == []


def test_sizes():
    assert list(too_long(ROOT)) == []


def test_docstrings():
    assert list(without_docstring(ROOT)) == []


def test_annotations_between_folders():
    assert list(without_annotations(ROOT)) == []


def test_words():
    assert list(strange_words(ROOT)) == []


def test_nothing_happens_at_import():
    """No call for its effect in any module; those without MindSpore are imported, which costs less than MindSpore."""
    assert list(at_import(ROOT)) == []
    light = light_modules(ROOT)
    assert set(LIGHT) <= set(light)
    code = (
        'import importlib, os, random, sys\n'
        'import numpy\n'
        'def state(): return dict(os.environ), random.getstate(), str(numpy.random.get_state()), sys.argv[:]\n'
        'before = state()\n'
        f'for name in {light}: importlib.import_module(name)\n'
        'assert "mindspore" not in sys.modules, "mindspore imported"\n'
        'assert state() == before, "environment or seed changed"\n'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


# ---- made trees


def long_function(lines):
    return 'def f():\n    """Doc."""\n' + '    x = 1\n' * (lines - 2)


BAD = [
    (against_the_order, {'src/data/a.py': 'from src.weights import b', 'src/weights/b.py': ''}, 'src.data.a (data) imports'),
    (against_the_order, {'src/config.py': 'def f():\n    import src.data.a', 'src/data/a.py': ''}, 'src.config (base)'),
    (against_the_order, {'src/deploy/a.py': 'from ..training.b import c', 'src/training/b.py': ''}, 'src.training.b'),
    (against_the_order, {'src/cluster/a.py': 'from src.data import a', 'src/data/a.py': ''}, '(cluster)'),
    (against_the_order, {'src/config.py': 'from src import demo', 'src/demo.py': ''}, '(demo)'),
    (
        imported_entry_points,
        {'train.py': '', 'src/demo.py': 'def f():\n    from train import main'},
        'src.demo imports train',
    ),
    (
        import_cycles,
        {'src/a.py': 'from src import b', 'src/b.py': 'def f():\n    from src.a import x'},
        'src.a imports itself',
    ),
    (import_cycles, {'src/data/a.py': 'from . import b', 'src/data/b.py': 'import src.data.a'}, 'src.data.a imports itself'),
    (unexpected_readers, {'src/config.py': '', 'src/data/a.py': 'from src import config as c\nc.load([])'}, 'src.data.a'),
    (unexpected_readers, {'src/config.py': '', 'src/data/a.py': 'from src.config import load'}, 'src.data.a'),
    (too_long, {'src/a.py': long_function(51)}, 'f has 51 lines'),
    (too_long, {'src/a.py': 'class A:\n' + textwrap.indent(long_function(51), '    ')}, 'A.f has 51 lines'),
    (too_long, {'src/a.py': 'x = 1\n' * 251}, '251 lines'),
    (without_docstring, {'src/a.py': 'def f():\n    pass'}, 'f has no docstring'),
    (without_docstring, {'src/a.py': 'class A:\n    """Doc."""\n    def f(self):\n        pass'}, 'A.f has no docstring'),
    (without_docstring, {'train.py': 'class A:\n    pass'}, 'train.py:1: A'),
    (without_annotations, {'src/a.py': 'def f(x) -> int: ...', 'src/data/b.py': 'from src.a import f'}, 'f lacks'),
    (without_annotations, {'src/a.py': 'def f(x: int): ...', 'train.py': 'from src import a\na.f(1)'}, 'f lacks'),
    (without_annotations, {'src/a.py': 'def f(*x) -> int: ...', 'train.py': 'import src.a\nsrc.a.f(1)'}, 'f lacks'),
    (
        without_annotations,
        {'src/a.py': 'class A:\n    def __init__(self, x): ...', 'train.py': 'from src.a import A'},
        'A.__init__ lacks',
    ),
    (
        without_annotations,
        {'src/a.py': 'class A:\n    def read(self, i): ...', 'train.py': 'from src.a import A\nA().read(1)'},
        'A.read lacks',
    ),
    (at_import, {'src/a.py': 'import mindspore\nmindspore.set_seed(1)'}, 'mindspore.set_seed(1) at import'),
    (at_import, {'train.py': 'print("hello")'}, 'at import'),
    (strange_words, {'src/a.py': '# one Picture'}, 'src/a.py:1'),
    (strange_words, {'docs/zh/a.md': '\npictures'}, 'docs/zh/a.md:2'),
]


@pytest.mark.parametrize('rule, files, violation', BAD, ids=[f'{rule.__name__}{i}' for i, (rule, _, _) in enumerate(BAD)])
def test_violations_are_found(rule, files, violation, tmp_path):
    write(tmp_path, files)
    found = list(rule(tmp_path))
    assert any(violation in line for line in found), found


def test_a_sound_tree_passes(tmp_path):
    files = {
        'train.py': 'from src.data.a import f\nfrom src import config\ndef main():\n    config.load([])\n    f(1)',
        'src/config.py': 'def load(argv: list) -> dict:\n    """Options."""\n    def inner(x): ...\ndef _hidden(x): ...',
        'src/data/a.py': 'from src import config\n\ndef f(x: int) -> int:\n    """Doc."""\n    return g(x)\n\n'
        'def g(x):\n    """Of this module only."""\nclass Net:\n    """Doc."""\n    def construct(self, x): ...',
        'src/deploy/b.py': 'from src import config\ndef f(argv):\n    """Doc."""\n    return config.load(argv)',
        'src/c.py': 'TABLE = {}\nTABLE.update(a=1)\n' + long_function(50),
    }
    write(tmp_path, files)
    for rule in {rule for rule, _, _ in BAD}:
        assert list(rule(tmp_path)) == [], rule.__name__


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_heavy_modules_are_told_from_light_ones(tmp_path):
    write(
        tmp_path,
        {'src/a.py': 'import mindspore.nn', 'src/b.py': 'from src import a', 'src/c.py': 'def f():\n    import src.a'},
    )
    assert light_modules(tmp_path) == ['src.c']
