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

from src import graphs, runtime
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
def lines():
    return []


@pytest.fixture
def cache(directory, lines):
    ms.set_context(mode=ms.GRAPH_MODE)
    return graphs.Graphs(directory, 'options', lines.append)


@pytest.fixture
def directory(tmp_path):
    (tmp_path / 'cache').mkdir()
    return tmp_path / 'cache'


def run(cache, cell, x=INPUT):
    with cache.compiling(cell, [x], 'graph'):
        return cell(x).asnumpy()


@pytest.mark.compiles
def test_right_graph_in_any_order(cache, lines, directory):
    """Another constant, tensor, shape or source is another graph; the same one comes from the cache, whatever was compiled
    before, and with the weights of now."""
    wanted = {(2.0, 0.0): INPUT * 2, (5.0, 0.0): INPUT * 5, (2.0, 1.0): INPUT * 2 + 1}
    for values, expected in wanted.items():
        assert (run(cache, Scaled(*values)) == expected.asnumpy()).all() and lines[-1].startswith('graph compiled')
    Scaled(7.0)(INPUT)  # not through the cache
    for values, expected in reversed(wanted.items()):
        assert (run(cache, Scaled(*values)) == expected.asnumpy()).all()
        assert lines[-1].startswith('graph from the compile cache') and 'loading the graph' in lines[-2]
    assert len(list(directory.iterdir())) == 3
    cell = Scaled(2.0)
    cell.weight.set_data(Tensor(np.full(3, 10, np.float32)))
    for count in (2, 0):  # compiled already the second time
        before = len(lines)
        assert (run(cache, cell) == INPUT.asnumpy() * 20).all() and len(lines) == before + count
    for result in ('graph compiled', 'graph from the compile cache'):  # also after the same cell's graph for another size
        cell = Scaled(9.0)
        for size in (2, 1):
            run(cache, cell, INPUT[:size])
            assert lines[-1].startswith(result)
    cache.made_from = 'other options'
    assert (run(cache, Scaled(2.0)) == INPUT.asnumpy() * 2).all() and 'graph compiled' in lines[-1]
    assert not any(name in os.environ for name in runtime.GRAPH_CACHES)


@pytest.mark.compiles
def test_failures_and_the_graphs_that_were_used_longest_ago_go(cache, lines, directory, monkeypatch):
    with pytest.raises(ZeroDivisionError), cache.compiling(cell := Scaled(4.0), [INPUT], 'graph'):
        cell(INPUT)
        raise ZeroDivisionError
    assert not list(directory.iterdir()) and not list(Path(graphs._directory().name).iterdir())
    monkeypatch.setattr(graphs, 'KEPT', 2)
    for age in 1, 2, 3:
        path = directory / f'{str(age) * 64}.graph'
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    (directory / 'other.graph').touch()
    run(cache, Scaled(8.0))
    assert {path.name[:1] for path in directory.glob('*.graph')} == {'1', 'o'}
    cache.directory = directory / 'other.graph'
    assert (run(cache, Scaled(6.0)) == INPUT.asnumpy() * 6).all()
    assert 'no entry in the compile cache' in lines[-2] and 'compiled' in lines[-1]


def test_option(tmp_path, monkeypatch, lines):
    def opened(option, on_cpu=True):
        return graphs.open_cache(str(option), on_cpu, None, lines.append).directory

    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'user'))
    assert opened('auto') == tmp_path / 'user/inceptionv4-mindspore'
    assert opened('auto', on_cpu=False) is None is opened('off')
    assert opened(tmp_path / 'mine', on_cpu=False) == tmp_path / 'mine'
    (tmp_path / 'mine').chmod(0o777)
    with pytest.raises(InputError, match='others may write there.*another directory or off'):
        opened(tmp_path / 'mine')
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert opened('auto') is None and 'every start' in lines[-1]


def test_what_determines_a_result_counts(tmp_path, monkeypatch):
    settings, cpu = load_settings(['--compile_cache', str(tmp_path)]), runtime.Run()

    def key(run=cpu, **changed):
        return graphs.digest(runtime.open_log(run, settings.but(**changed)).graphs.made_from)

    before = key()
    for same in {'resume': 'auto'}, {'max_epochs': 100}, {'data_dir': 'elsewhere'}:
        assert key(**same) == before
    for other in {'lr': 0.5}, {'seed': 2}, {'num_classes': 7}, {'jit_level': 'O0'}:
        assert key(**other) != before
    for other in {'world': 2}, {'rank': 1}, {'amp_level': 'O2'}:
        assert key(cpu._replace(**other)) != before
    monkeypatch.setenv('MS_DEV_X', '1')
    variable = key()
    monkeypatch.setattr(runtime, 'ROOT', tmp_path)  # other code
    assert len({before, variable, key()}) == 3


def test_structure():
    """Alike for two cells that are alike; differs with whatever changes the graph."""

    def key(cell):
        return graphs.digest(graphs.structure(cell))

    alike = key(Scaled(2.0))
    assert alike == key(Scaled(2.0))
    frozen, wider = Scaled(2.0), Scaled(2.0)
    frozen.weight.requires_grad = False
    wider.weight = ms.Parameter(Tensor(np.ones((1, 3), np.float32)), 'weight')
    for other in (Scaled(2.5), Scaled(2.0, 1.0), frozen, wider, Scaled(2.0).set_train()):
        assert key(other) != alike


def figures(root, cache, options, *more, launcher=()):
    """Start train.py of the project in `root`: (lines of steps without their speed, whether from the cache)."""
    start = [sys.executable, *launcher, root / 'train.py', *options, '--display_every', 1, '--compile_cache', cache, *more]
    done = subprocess.run([*map(str, start)], capture_output=True, text=True, cwd=root)
    assert not done.returncode, done.stderr
    steps = [re.sub('FPS: [^ ]+ ', '', line) for line in done.stdout.splitlines() if line.startswith('step: ')]
    return steps, 'training graph from the compile cache and run' in done.stdout


@pytest.mark.slow
@pytest.mark.compiles
def test_training_runs_get_their_own_graph(options, tmp_path, directory):
    """With options, sources and sizes changed after the cache was filled, the figures are those without a cache; unchanged
    they are bit for bit those of the compiled graph, also of one that is resumed."""
    recipe = ['--max_train_steps', 4, '--save_checkpoint_steps', 2, '--overwrite', 'true', '--log_dir', tmp_path / 'x']
    copy = tmp_path / 'copy'
    shutil.copytree(runtime.ROOT / 'src', copy / 'src')
    for name in ('train.py', 'eval.py', 'export.py', 'default_config.yaml'):
        shutil.copy(runtime.ROOT / name, copy / name)
    first, hit = figures(copy, directory, options, *recipe)
    assert len(first) == 4 and not hit
    checkpoint.by_age(tmp_path / 'x')[-1].unlink()
    assert figures(copy, directory, options, *recipe, '--resume', 'auto', '--overwrite', 'false') == (first[2:], True)
    seen = [first]
    # Eleven classes in place of ten
    for change in (
        '--lr 0.2',
        '--label_smoothing 0.2',
        '--image_size 80',
        '--label_offset 0 --num_classes 11',
        '--clip_norm 1',
    ):
        wanted, _ = figures(copy, 'off', options, *recipe, *change.split())
        assert wanted not in seen and figures(copy, directory, options, *recipe, *change.split()) == (wanted, False)
        seen.append(wanted)
    source = copy / 'src/inceptionv4.py'
    source.write_text(source.read_text().replace('return -ops.ReduceSum()', 'return -3 * ops.ReduceSum()'))
    changed, hit = figures(copy, directory, options, *recipe)
    assert not hit and changed not in seen
    # Each of two ranks has its graph; all are found by a second start.
    recipe = [*recipe[:2], *recipe[4:], '--device_target', 'CPU']
    for hits in (False, True):
        shared, hit = figures(runtime.ROOT, tmp_path / 'ranks', options, *recipe, launcher=['-m', 'src.cluster.launch', '2'])
        assert len(shared) == 4 and hit == hits and len(list((tmp_path / 'ranks').iterdir())) == 2
