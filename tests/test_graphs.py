"""The compile cache returns the graph that is wanted, or none."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src import graphs, runtime
from src.options import load_settings

INPUT = np.arange(6, dtype=np.float32).reshape(2, 3)


class Scaled(nn.Cell):
    """A number and a tensor that are constants of the graph, and a parameter."""

    def __init__(self, factor, shift=0.0):
        super().__init__()
        self.factor, self.shift = factor, Tensor(np.full(3, shift, np.float32))
        self.weight = ms.Parameter(Tensor(np.ones(3, np.float32)), 'weight')

    def construct(self, x):
        return x * self.factor * self.weight + self.shift


@pytest.fixture
def cache(tmp_path):
    ms.set_context(mode=ms.GRAPH_MODE)
    (tmp_path / 'cache').mkdir()
    return graphs.Graphs(tmp_path / 'cache', 'options')


def run(cache, cell, x=INPUT):
    """(result, log)"""
    lines = []
    cache.log = lines.append
    with cache.compiling(cell, [Tensor(x)], 'graph'):
        return cell(Tensor(x)).asnumpy(), lines


@pytest.mark.compiles
def test_right_graph_in_any_order(cache):
    """Another constant, tensor, shape or source is another graph; the same one comes from the cache, whatever was compiled
    before, and with the weights of now."""
    wanted = {(2.0, 0.0): INPUT * 2, (5.0, 0.0): INPUT * 5, (2.0, 1.0): INPUT * 2 + 1}
    for order, how in ([*wanted], 'graph compiled'), ([*reversed(wanted)], 'graph from the compile cache'):
        for values in order:
            result, log = run(cache, Scaled(*values))
            assert (result == wanted[values]).all() and log[-1].startswith(how)
        Scaled(7.0)(Tensor(INPUT))  # not through the cache
    assert len(list(cache.directory.iterdir())) == 3
    cell = Scaled(2.0)
    cell.weight.set_data(Tensor(np.full(3, 10, np.float32)))
    for lines in (2, 0):  # compiled already the second time
        result, log = run(cache, cell)
        assert (result == INPUT * 20).all() and len(log) == lines
    for how in ('graph compiled', 'graph from the compile cache'):  # also after the same cell's graph for another size
        cell = Scaled(9.0)
        for size in (2, 1):
            assert run(cache, cell, INPUT[:size])[1][-1].startswith(how)
    cache.made_from = 'other options'
    assert 'graph compiled' in run(cache, Scaled(2.0))[1][-1]
    assert not {*runtime.UNSET} & {*os.environ}


@pytest.mark.compiles
def test_a_failure_leaves_nothing_in_the_cache(cache):
    with pytest.raises(ZeroDivisionError), cache.compiling(cell := Scaled(4.0), [Tensor(INPUT)], 'graph'):
        cell(Tensor(INPUT))
        raise ZeroDivisionError
    assert not list(cache.directory.iterdir()) and not list(Path(graphs._directory().name).iterdir())


def test_what_determines_a_result_counts(tmp_path, monkeypatch):
    settings, cpu = load_settings(['--compile_cache', str(tmp_path)]), runtime.Run()

    def key(run=cpu, **changed):
        return graphs.digest(runtime.open_log(run, settings.but(**changed)).graphs.made_from)

    before = key()
    assert runtime.open_log(cpu._replace(device_target='Ascend'), load_settings([])).graphs.directory is None
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
    """Alike for two cells that are alike; what a caller can change of a cell counts, too."""
    cells = [Scaled(2.0) for _ in range(4)]
    cells[1].weight.requires_grad = False
    cells[2].weight = ms.Parameter(Tensor(np.ones((1, 3), np.float32)), 'weight')
    cells[3].set_train()
    assert len({graphs.digest(graphs.structure(cell)) for cell in [*cells, Scaled(2.0)]}) == 4


@pytest.mark.slow
@pytest.mark.compiles
def test_training_runs_get_their_own_graph(options, tmp_path):
    """With options changed after the cache was filled, the figures are those without a cache; unchanged they are bit for bit
    those of the compiled graph. Each of two ranks has its graph; all are found by a second start."""

    def figures(cache, *more, ranks=0):
        """(lines of steps without their speed, whether from the cache)"""
        launcher = ['-m', 'src.cluster.launch', ranks] if ranks else []
        command = [sys.executable, *launcher, 'train.py', *recipe, '--compile_cache', cache, *more]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=runtime.ROOT)
        assert not done.returncode, done.stderr
        steps = [re.sub('FPS: [^ ]+ ', '', line) for line in done.stdout.splitlines() if line.startswith('step: ')]
        return steps, 'training graph from the compile cache and run' in done.stdout

    recipe = [*options, '--max_train_steps', 4, '--display_every', 1, '--overwrite', 'true', '--log_dir', tmp_path / 'log']
    recipe += ['--device_target', 'CPU']
    cache = tmp_path / 'cache'
    first, hit = figures(cache)
    assert len(first) == 4 and not hit and figures(cache) == (first, True)
    for change in ['--lr', 0.2], ['--image_size', 80], ['--label_offset', 0, '--num_classes', 11]:
        wanted, _ = figures('off', *change)
        assert wanted != first and figures(cache, *change) == (wanted, False)
    assert [figures(tmp_path / 'ranks', ranks=2)[1] for _ in range(2)] == [False, True]
    assert len(list((tmp_path / 'ranks').iterdir())) == 2
