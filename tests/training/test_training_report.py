"""The page on trainings: what stands in it, and that no file keeps it from being made (no graph is compiled)."""

import importlib.util
import json
import os
import random
import re
import sys

import numpy as np
import pytest

from src.errors import InputError
from src.options import load_settings
from src.training import curves, metrics, report
from src.training.metrics import Metrics
from src.training.plan import Plan
from src.training.runs import Run, number

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec('matplotlib') is None, reason='the page needs matplotlib (requirements-report.txt)'
)
MACHINE = {'host': 'server', 'processor': 'a processor', 'cores': 8, 'ranks': 1, 'versions': {'MindSpore': '2.8.0'}}


def made_run(directory, start=0, stop=20, resumed=None, end=True, **options):
    """A run in `directory`, 10 steps an epoch: two lines, an evaluation and a checkpoint in each."""
    directory.mkdir(exist_ok=True)
    config = load_settings([word for name, value in options.items() for word in (f'--{name}', str(value))])
    plan = Plan(batch_size=8, world=1, steps_per_epoch=10, stop=20, start=start)
    record = metrics.begin(directory, plan, config, {**MACHINE, 'resumed': resumed})
    for step in range(start + 5, stop + 1, 5):
        epoch, shares = step / 10, {'images_per_second': 40.0, 'data_wait': 0.02, 'gradient_norm': 3.0}
        record('step', step, epoch=epoch, loss=5 / step, mean_loss=6 / step, lr=0.01, overflows=1, loss_scale=1024, **shares)
        if step % 10 == 0:
            file = directory / f'inceptionv4-{step // 10}_{step}.ckpt'
            file.write_bytes(b'0' * 1_500_000)
            record('checkpoint', step, epoch=epoch, file=file.name, bytes=1_500_000, seconds=0.5)
            record('evaluation', step, epoch=epoch, top1=40.0 + step, top5=90.0, loss=1.5, images=30, seconds=1.0)
    if end:
        record.end(stop)
    return record


def page_of(*places):
    return ''.join(report.parts([Run(place) for place in places]))


def rows(page):
    """[[text of each cell]] of all tables."""
    cells = [re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row) for row in re.findall(r'<tr>(.*?)</tr>', page)]
    return [[re.sub(r'<[^>]+>', '', cell) for cell in row] for row in cells]


@needs_matplotlib
def test_page_of_a_training(tmp_path):
    made_run(tmp_path / 'a', lr=0.01, batch_size=8).end(20)
    (tmp_path / 'a/inceptionv4-1_10.ckpt').unlink()
    (tmp_path / 'a/inceptionv4-best.ckpt').write_bytes(b'0' * 1_500_000)
    page = page_of(tmp_path / 'a')
    assert 'mean of the last 5 steps' in page and '<b>2.0</b><span class="small">20 of 20 steps' in page
    assert '60.00 %' in page and 'epoch 2.0, top-5 90.00\xa0%' in page and '40.0' in page and 'skipped steps' in page
    assert len(re.findall('<figure>', page)) == 7 and page.count('data:image/png;base64,') == 7
    table = rows(page)
    assert ['lr', '0.01', '0.045'] in table and ['batch_size', '8', '0'] in table and ['cores', '8'] in table
    assert ['MindSpore', '2.8.0'] in table
    assert [row[:3] for row in table if row[0].endswith('.ckpt')] == [
        ['inceptionv4-2_20.ckpt', '20', '1.5 MB'],
        ['inceptionv4-best.ckpt', '', '1.5 MB'],
    ]
    assert '1 earlier one removed since' in page and 'Done at 2' in page
    assert 'http' not in page.replace('http-equiv', '')  # it needs no network


@needs_matplotlib
def test_resumes_and_faults_are_marked(tmp_path):
    """A signal, a process that was killed without a word, and what goes on after them."""
    made_run(tmp_path / 'a', stop=10, end=False).end(10, InputError('SIGTERM: <stopped>'))
    made_run(tmp_path / 'a', start=10, stop=15, resumed='x/inceptionv4-1_10.ckpt', end=False)
    made_run(tmp_path / 'a', start=10, stop=20, resumed='x/inceptionv4-1_10.ckpt')
    run = Run(tmp_path / 'a')
    assert [(event.kind, event.step) for event in run.events()] == [
        ('start', 0),
        ('fault', 10),
        ('resume', 10),
        ('fault', 10),
        ('resume', 10),
        ('end', 20),
    ]
    page = page_of(tmp_path / 'a')
    assert 'goes on from x/inceptionv4-1_10.ckpt' in page and 'SIGTERM: &lt;stopped&gt; (status 2)' in page
    assert 'it was killed' in page and 'ended by a fault or a signal' in page
    assert [one['step'] for one in run.steps] == [5, 10, 15, 20]


@needs_matplotlib
def test_several_runs_beside_each_other(tmp_path):
    made_run(tmp_path / 'a', lr=0.01)
    made_run(tmp_path / 'b', lr=0.02, stop=10, end=False)
    page = page_of(tmp_path / 'a', tmp_path / 'b')
    differs = rows(page[page.index('What differs') : page.index('<h2>Curves')])
    assert [row[0] for row in differs] == ['', 'lr'] and differs[1][1:] == ['0.01', '0.02']
    (state,) = (row for row in rows(page) if row[0] == 'state')
    assert state[1].startswith('Done at 2') and 'no end is recorded' in state[2]
    for place, name in enumerate('ab'):  # beside the curves, too
        assert (
            f'{curves.COLOURS[place]}"></span>{tmp_path}/{name}' in page[page.index('<h2>Curves') : page.index('<figure>')]
        )
    assert len(re.findall('<figure>', page)) == 7


@needs_matplotlib
def test_captions_of_what_is_in_the_plots(tmp_path):
    """A page without evaluations explains no circles; among few classes there is no top-5."""
    made_run(tmp_path / 'a', stop=5)
    page = page_of(tmp_path / 'a')
    assert 'Training: mean since' in page and not re.search('[Cc]ircles|[Ss]quares|evaluations', page)
    made_run(tmp_path / 'b', num_classes=5)
    assert 'Circles: top-1.<' in page_of(tmp_path / 'b') and 'Circles: evaluation.<' in page_of(tmp_path / 'b')
    made_run(tmp_path / 'c')
    assert 'Circles: top-1. Squares: top-5.<' in page_of(tmp_path / 'c')


@needs_matplotlib
def test_evaluated_after_the_training(tmp_path):
    """By eval.py, where the training has evaluated nothing itself; not what is left of an earlier one in the place."""
    made_run(tmp_path / 'a', stop=5)
    left = tmp_path / 'a/evaluation.json'
    for text, expected in (
        ('[{"top1": 70.0, "images": 200}, {"top1": 89.5, "images": 200}, 3]', '<b>89.50 %</b>'),
        ('[{"top1"', '<b>–</b>'),
        ('7', '<b>–</b>'),
    ):
        left.write_text(text)
        assert expected in page_of(tmp_path / 'a')
    left.write_text('[{"top1": 70.0, "images": 200}]')
    assert 'by eval.py after the training, of 200 images' in page_of(tmp_path / 'a')
    os.utime(left, (0, 0))
    assert 'eval.py' not in page_of(tmp_path / 'a')


@needs_matplotlib
def test_place_is_named_as_it_is_typed(tmp_path, monkeypatch):
    """Without the present directory; a name that must be broken is broken between its words."""
    made_run(tmp_path / 'a', save_checkpoint_steps=5)
    monkeypatch.chdir(tmp_path)
    page = page_of(tmp_path / 'a')
    assert '<h1>Training: a</h1>' in page and '<td>save_<wbr>checkpoint_<wbr>steps</td>' in page


@needs_matplotlib
def test_unfinished_and_damaged_files(tmp_path):
    """Any prefix of a file, and files with bytes changed at random, give a page or one line."""
    made_run(tmp_path / 'whole')
    whole, rng = (tmp_path / 'whole' / metrics.NAME).read_bytes(), random.Random(1)
    path = tmp_path / metrics.NAME
    for cut in (40, whole.index(b'\n') + 90, len(whole) - 3):
        path.write_bytes(whole[:cut])
        if cut == 40:
            with pytest.raises(InputError, match='holds no records of a training'):
                Run(tmp_path)
        else:
            assert page_of(tmp_path).endswith('</html>\n')
    for turn in range(4):
        broken = bytearray(whole)
        for _ in range(60):
            broken[rng.randrange(len(broken))] = rng.choice(b'0"{}[],:x\n\xff')
        path.write_bytes(bytes(broken) + b'\n' + whole[whole.rindex(b'\n', 0, -1) :] * (turn % 2))
        try:
            assert page_of(tmp_path).endswith('</html>\n')
        except InputError as error:
            assert str(error).endswith('holds no records of a training') and not turn % 2


@needs_matplotlib
def test_wrong_types_in_a_record(tmp_path):
    """Lines that are JSON, but not what a training writes."""
    odd = [None, 'text', [1], {'a': 1}, True, -1e300]
    names = ['epoch', 'loss', 'mean_loss', 'lr', 'top1', 'time', 'config', 'versions', 'steps_per_epoch', 'cause', 'status']
    names += ['file', 'bytes', 'seconds', 'step_seconds', 'data_wait_seconds', 'stop', 'resumed', 'images_per_second']
    with open(tmp_path / metrics.NAME, 'w') as file:
        for kind in ('start', 'step', 'evaluation', 'checkpoint', 'ranks', 'end', 'unknown'):
            for value in odd:
                file.write(json.dumps({'kind': kind, 'step': 3, **dict.fromkeys(names, value)}) + '\n')
    assert page_of(tmp_path).endswith('</html>\n')
    assert np.isnan(number({'a': '1'}, 'a')) and np.isnan(number({'a': float('inf')}, 'a'))


@needs_matplotlib
def test_command_line(tmp_path, monkeypatch, capsys):
    made_run(tmp_path / 'a')
    made_run(tmp_path / 'b')
    monkeypatch.chdir(tmp_path)
    for arguments, expected in (
        (['a'], 'a/training.html'),
        (['a/metrics.jsonl', '--output', 'page.html'], 'page.html'),
        (['a', 'b'], 'training.html'),
    ):
        monkeypatch.setattr(sys, 'argv', ['report', *arguments])
        report.main()
        assert capsys.readouterr().out == f'{expected}\n' and (tmp_path / expected).exists()
    for arguments, problem in (
        (['c'], r'error: c: cannot be read .*; give the log directory of a training'),
        (['a', '--output', 'none/page.html'], 'error: none/page.html: cannot be written .*; choose another --output'),
    ):
        monkeypatch.setattr(sys, 'argv', ['report', *arguments])
        with pytest.raises(SystemExit) as ended:
            report.main()
        assert ended.value.code == 2 and re.match(problem, capsys.readouterr().err)


def test_without_matplotlib(tmp_path, monkeypatch):
    """A training ends with one line instead of the page."""
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    made_run(tmp_path / 'a')
    lines = []
    report.at_end(tmp_path / 'a', lines.append)
    (line,) = lines
    assert line.startswith('no page on the training: ') and 'requirements-report.txt' in line
    assert not (tmp_path / 'a' / report.NAME).exists()


def test_configuration_of_a_file_without_its_start(tmp_path):
    """The first line was damaged: config.yaml beside it has the options."""
    Metrics(tmp_path / metrics.NAME)('step', 5, loss=1.0)
    (tmp_path / 'config.yaml').write_text('lr: 0.5\n')
    assert Run(tmp_path).config == {'lr': 0.5}
