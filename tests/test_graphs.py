"""The cache of compiled graphs gives the graph that is asked for, or none."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src import graph_key, graphs, runtime
from src.errors import InputError
from src.options import load_settings
from src.weights import checkpoint

INPUT = Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))


class Scaled(nn.Cell):
    """A number and a tensor that are constants of the graph, and a parameter."""

    def __init__(self, factor, shift=0.0):
        super().__init__()
        self.factor, self.shift = factor, Tensor(np.full(3, shift, np.float32))
        self.weight = ms.Parameter(Tensor(np.ones(3, np.float32)), 'weight')

    def construct(self, x):
        return x * self.factor * self.weight + self.shift


@pytest.fixture
def said():
    return []


@pytest.fixture
def cache(tmp_path, said):
    ms.set_context(mode=ms.GRAPH_MODE)
    return graphs.Graphs(tmp_path / 'cache', 'options', said.append)


@pytest.fixture(autouse=True)
def directory(tmp_path):
    (tmp_path / 'cache').mkdir()
    return tmp_path / 'cache'


def run(cache, cell, x=INPUT, name='graph'):
    with cache.compiling(cell, [x], name):
        return cell(x).asnumpy()


@pytest.mark.compiles
def test_right_graph_in_any_order(cache, said, directory):
    """Another constant, tensor, shape or source is another graph; the same one comes from the cache, whatever was compiled
    before, and with the weights of now."""
    wanted = {(2.0, 0.0): INPUT * 2, (5.0, 0.0): INPUT * 5, (2.0, 1.0): INPUT * 2 + 1}
    for values, expected in wanted.items():
        assert (run(cache, Scaled(*values)) == expected.asnumpy()).all()
        assert said[-1].startswith('graph compiled') and said[-1].endswith('kept in the compile cache')
    Scaled(7.0)(INPUT)  # not through the cache
    for values, expected in reversed(wanted.items()):
        assert (run(cache, Scaled(*values)) == expected.asnumpy()).all()
        assert said[-1].startswith('graph from the compile cache') and 'loading the graph' in said[-2]
    assert len(list(directory.iterdir())) == 3
    cell = Scaled(2.0)
    cell.weight.set_data(Tensor(np.full(3, 10, np.float32)))
    assert (run(cache, cell) == INPUT.asnumpy() * 20).all() and 'from the compile cache' in said[-1]
    lines = len(said)
    assert (run(cache, cell) == INPUT.asnumpy() * 20).all() and len(said) == lines  # compiled already
    assert (run(cache, Scaled(2.0), INPUT[:1]) == INPUT[:1].asnumpy() * 2).all() and 'compiled' in said[-1]
    for result in ('graph compiled', 'graph from the compile cache'):  # also after the same cell's graph for another size
        for size in (2, 1):
            run(cache, cell := Scaled(9.0) if size == 2 else cell, INPUT[:size])
            assert said[-1].startswith(result)
    cache.made_from = 'other options'
    assert (run(cache, Scaled(2.0)) == INPUT.asnumpy() * 2).all() and 'graph compiled' in said[-1]
    assert not any(name in graphs.os.environ for name in runtime.GRAPH_CACHES)


@pytest.mark.compiles
def test_an_error_keeps_nothing(cache, directory):
    with pytest.raises(ZeroDivisionError), cache.compiling(cell := Scaled(4.0), [INPUT], 'graph'):
        cell(INPUT)
        raise ZeroDivisionError
    assert not list(directory.iterdir()) and not list(Path(graphs._directory().name).iterdir())


@pytest.mark.compiles
def test_a_cache_that_cannot_be_written(cache, said, directory):
    shutil.rmtree(directory)
    directory.write_text('')
    assert (run(cache, Scaled(6.0)) == INPUT.asnumpy() * 6).all()
    assert 'not kept in the compile cache' in said[-2] and 'compiled' in said[-1]


PROGRAM = """
import sys
from tests.test_graphs import *
ms.set_context(mode=ms.GRAPH_MODE)
made = graphs.Graphs(Path(sys.argv[1]), 'options')
for factor in range(1, 4):
    assert (run(made, Scaled(float(factor))) == INPUT.asnumpy() * factor).all()
"""


@pytest.mark.compiles
def test_two_processes_at_once(directory):
    """They share the cache while both fill it, and a third finds all graphs."""
    start = [sys.executable, '-c', PROGRAM, str(directory)]
    outputs = [subprocess.Popen(start, cwd=graph_key.ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.communicate()[0].count('run once'), process.returncode) for process in outputs] == [(3, 0)] * 2
    third = subprocess.run(start, cwd=graph_key.ROOT, capture_output=True, text=True)
    assert third.stdout.count('graph from the compile cache and run') == 3 and not third.returncode
    assert len(list(directory.iterdir())) == 3


@pytest.mark.compiles
def test_the_graphs_that_were_used_longest_ago_go(cache, directory, monkeypatch):
    monkeypatch.setattr(graphs, 'KEPT', 2)
    for age in 1, 2, 3:
        path = directory / f'{str(age) * 64}.graph'
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    (directory / 'other.graph').touch()
    run(cache, Scaled(8.0))
    assert {path.name[:1] for path in directory.iterdir() if path.name.endswith('.graph')} == {'1', 'o'}


def test_option(tmp_path, monkeypatch, said):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'user'))
    cpu, npu = runtime.Run(log=said.append), runtime.Run('Ascend', amp_level='O3')

    def opened(option, run):
        return graphs.open_cache(load_settings(['--compile_cache', str(option)]), run).directory

    assert opened('auto', cpu) == opened('auto', cpu._replace(world=2)) == tmp_path / 'user/inceptionv4-mindspore'
    assert opened('auto', npu) is None is opened('off', cpu)
    assert opened(tmp_path / 'mine', npu) == tmp_path / 'mine'
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert opened('auto', cpu) is None and 'every start' in said[0]
    with pytest.raises(InputError, match='Not a directory.*another directory or off'):
        opened(tmp_path / 'file/x', cpu)


def test_what_determines_a_result_counts(tmp_path):
    settings, run = load_settings(['--compile_cache', str(tmp_path)]), runtime.Run()
    before = graphs.open_cache(settings, run).made_from
    for other in {'lr': 0.5}, {'seed': 2}, {'num_classes': 7}, {'jit_level': 'O0'}:
        assert graphs.open_cache(settings.but(**other), run).made_from != before
    for other in {'resume': 'auto'}, {'max_epochs': 100}, {'data_dir': 'elsewhere'}:
        assert graphs.open_cache(settings.but(**other), run).made_from == before
    for other in {'world': 2}, {'rank': 1}, {'amp_level': 'O2'}, {'device_target': 'Ascend'}:
        assert graphs.open_cache(settings, run._replace(**other)).made_from != before


def test_source_and_versions_count(tmp_path, monkeypatch):
    (tmp_path / 'train.py').write_text('1')
    before = graph_key.versions('CPU')
    monkeypatch.setattr(graph_key, 'ROOT', tmp_path)
    one = graph_key.sources()
    (tmp_path / 'train.py').write_text('2')
    assert graph_key.sources() != one
    monkeypatch.setenv('MS_DEV_X', '1')
    assert graph_key.versions('CPU') != before


def test_structure():
    """Alike for two cells that are alike; differs with whatever changes the graph."""

    def key(cell):
        return graph_key.digest(graph_key.structure(cell))

    alike = key(Scaled(2.0))
    assert alike == key(Scaled(2.0))
    frozen = Scaled(2.0)
    frozen.weight.requires_grad = False
    wider = Scaled(2.0)
    wider.weight = ms.Parameter(Tensor(np.ones((1, 3), np.float32)), 'weight')
    for other in (Scaled(2.5), Scaled(2.0, 1.0), frozen, wider, Scaled(2.0).set_train()):
        assert key(other) != alike


def figures(root, cache, options, *more, launcher=()):
    """Start train.py of the project in `root`. Gives (lines of steps without their speed, whether from the cache)."""
    start = [sys.executable, *launcher, root / 'train.py', *options, '--display_every', 1, '--compile_cache', cache, *more]
    done = subprocess.run([*map(str, start)], capture_output=True, text=True, cwd=root)
    assert not done.returncode, done.stderr
    steps = [re.sub('FPS: [^ ]+ ', '', line) for line in done.stdout.splitlines() if line.startswith('step: ')]
    return steps, 'training graph from the compile cache and run' in done.stdout


@pytest.mark.slow
@pytest.mark.compiles
def test_trainings_get_their_own_graph(options, tmp_path, directory):
    """With options, sources and sizes changed after the cache was filled, the figures are those without a cache; unchanged
    they are bit for bit those of the compiled graph, also after a resumption."""

    def train(root, cache, *more):
        return figures(
            root, cache, options, '--max_train_steps', 2, '--overwrite', 'true', '--log_dir', tmp_path / 'x', *more
        )

    shutil.copytree(graph_key.ROOT / 'src', tmp_path / 'copy/src')
    for name in ('train.py', 'eval.py', 'export.py', 'default_config.yaml'):
        shutil.copy(graph_key.ROOT / name, tmp_path / 'copy' / name)
    first, hit = train(tmp_path / 'copy', directory)
    assert len(first) == 2 and not hit and train(tmp_path / 'copy', directory) == (first, True)
    seen = [first]
    for change in (
        ['--lr', 0.2],
        ['--label_smoothing', 0.2],
        ['--image_size', 80],
        ['--label_offset', 0, '--num_classes', 11],  # eleven classes in place of ten
        ['--clip_norm', 1],
    ):
        wanted, _ = train(tmp_path / 'copy', 'off', *change)
        assert wanted not in seen and train(tmp_path / 'copy', directory, *change) == (wanted, False)
        seen.append(wanted)
    source = tmp_path / 'copy/src/inceptionv4.py'
    source.write_text(source.read_text().replace('return -ops.ReduceSum()', 'return -3 * ops.ReduceSum()'))
    changed, hit = train(tmp_path / 'copy', directory)
    assert not hit and changed not in seen


@pytest.mark.slow
@pytest.mark.compiles
def test_resumption_is_the_same_with_the_cache(options, tmp_path, directory):
    recipe = ['--max_train_steps', 4, '--save_checkpoint_steps', 2, '--log_dir', tmp_path / 'x']
    whole, hit = figures(graph_key.ROOT, directory, options, *recipe)
    checkpoint.by_age(tmp_path / 'x')[-1].unlink()
    assert not hit and figures(graph_key.ROOT, directory, options, *recipe, '--resume', 'auto') == (whole[2:], True)


@pytest.mark.slow
@pytest.mark.compiles
def test_ranks_each_have_their_graph(options, tmp_path, directory):
    recipe = ['--max_train_steps', 2, '--log_dir', tmp_path / 'x', '--overwrite', 'true', '--device_target', 'CPU']
    launcher = ['-m', 'src.cluster.launch', '2']
    first, hit = figures(graph_key.ROOT, directory, options, *recipe, launcher=launcher)
    assert len(first) == 2 and not hit and len(list(directory.iterdir())) == 2
    assert figures(graph_key.ROOT, directory, options, *recipe, launcher=launcher) == (first, True)
