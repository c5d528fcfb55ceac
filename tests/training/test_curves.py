"""The curves of training runs, also of one that was killed (no graph is compiled)."""

import contextlib
import importlib.util
import os
import re
import sys

import pytest

from src.errors import InputError
from src.options import load_settings
from src.training import curves, metrics
from src.training.plan import Plan

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec('matplotlib') is None, reason='curves need matplotlib (requirements-report.txt)'
)


def made_run(directory, start=0, stop=20, resumed=None, end=True, **options):
    """A run in `directory`, 10 steps an epoch: two lines and an evaluation in each."""
    directory.mkdir(exist_ok=True)
    plan = Plan(batch_size=8, world=1, steps_per_epoch=10, stop=20, start=start)
    about = {'versions': {'MindSpore': '2.8.0'}, 'resumed': resumed}
    record = metrics.begin(directory, plan, load_settings([]).but(**options), about)
    shares = {'images_per_second': 40.0, 'data_wait': 0.02, 'gradient_norm': 3.0, 'lr': 0.01}
    for step in range(start + 5, stop + 1, 5):
        record('step', step, epoch=step / 10, loss=5 / step, mean_loss=6 / step, **shares)
        if step % 10 == 0:
            record('evaluation', step, epoch=step / 10, top1=40.0 + step, top5=90.0, loss=1.5, images=30, seconds=1.0)
    if end:
        record.end(stop)
    return record


@needs_matplotlib
def test_two_training_runs(tmp_path, monkeypatch):
    """One was ended by a signal and resumed, the other, of a name that is not UTF-8, was killed while it wrote a line."""
    monkeypatch.chdir(tmp_path)
    other = os.fsdecode(b'caf\xe9')
    made_run(tmp_path / 'a', stop=10, end=False).end(10, InputError('SIGTERM'))
    made_run(tmp_path / 'a', start=10, resumed='x/inceptionv4-1_10.ckpt')
    made_run(tmp_path / other, lr=0.02, stop=10, end=False)
    with open(tmp_path / other / metrics.NAME, 'a') as file:
        file.write('{"kind": "st')
    curves.write(['a', other], 'both.png')
    assert (tmp_path / 'both.png').read_bytes().startswith(b'\x89PNG')
    assert curves.labels({name: curves.records_of(name) for name in ('a', other)}) == [
        'a: 10 steps, 40.0 images/s, best top-1 60.00 % in epoch 2.0, done, lr 0.045',
        f'{other}: 10 steps, 40.0 images/s, best top-1 50.00 % in epoch 1.0, not ended, or killed, lr 0.02',
    ]


@needs_matplotlib
@pytest.mark.parametrize(
    'arguments, written, error',
    [
        ('a', 'a/training.png', ''),
        ('c', '', 'error: c/metrics.jsonl: No such file .*; name the log directory of a training run'),
        ('a --output none/curves.png', '', 'error: none/curves.png: No such .*; choose another --output'),
    ],
)
def test_command_line(tmp_path, monkeypatch, capsys, arguments, written, error):
    made_run(tmp_path / 'a')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['curves', *arguments.split()])
    with pytest.raises(SystemExit) if error else contextlib.nullcontext():
        curves.main()
    out, err = capsys.readouterr()
    assert out == f'{written}\n' * bool(written) and re.match(error, err)
