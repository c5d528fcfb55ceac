"""The benchmarks run, and the calculator of scaling says what the recipes and the documentation do."""

import contextlib
import os
import re
import subprocess
import sys

import pytest
from PIL import Image

from benchmarks import rounds, scaling
from src import runtime
from src.errors import InputError
from src.options import differences, load_settings
from tests.processes import ROOT


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize(
    'options, rows',
    [
        ('training_step --only this --rounds 1 --batch_size 2 --image_size 75 --block_counts 1,1,1', 1),
        ('input_pipeline IMAGES --rounds 1 --batch_size 4', 5),
    ],
)
def test_benchmarks_run(options, rows, tmp_path):
    for number in range(4):
        Image.new('RGB', (90, 80), (number, 9, 9)).save(tmp_path / f'{number}.jpg')
    command = f'{sys.executable} -m benchmarks.{options}'.replace('IMAGES', str(tmp_path)).split()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = re.findall(r'^\S.+? {2,}[\d.]+ \([\d.]+ to [\d.]+\)(?: +[\d.]+){3}$', result.stdout, re.M)
    assert result.returncode == 0 and len(found) == rows, result.stdout + result.stderr


@pytest.mark.skipif(rounds.cores() < 2, reason='needs two cores')
@pytest.mark.parametrize('held', ['', 'env OMP_NUM_THREADS=1', f'taskset -c {min(os.sched_getaffinity(0))}'])
def test_candidate_with_fewer_cores_is_refused(held, monkeypatch):
    """One that is held to one thread, or to one core."""
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    candidate = rounds.Candidate('this', f'{held} sh -c'.split() + ['echo; read _'])
    candidate.process.stdout.readline()
    with pytest.raises(InputError, match='this has 1 of .* cores') if held else contextlib.nullcontext():
        candidate.require_cores()
    candidate.process.communicate('\n')


@pytest.mark.parametrize('devices, batch_size, published', [(1, 128, 469.6), (8, 64, 3109), (8, 32, 3360)])
def test_published_rates(devices, batch_size, published):
    """The original's; the first is what the model is calibrated on. The last: MindCV on the same device."""
    rate = scaling.estimate(devices, batch_size, hidden=False).rate
    assert rate == pytest.approx(published, rel=0.15 if devices > 1 else 1e-6)
    assert scaling.estimate(devices, batch_size).rate >= rate and runtime.FUSION_MB << 20 == scaling.BUCKET_BYTES


COST = r'^# Cost: ([\d.]+) million images, computing ([\d.]+), ([\d.]+) h on 1 NPU, ([\d.]+) h on 8 .*benchmarks.scaling'


@pytest.mark.parametrize('name', ['original', 'paper', 'fast', 'throughput'])
def test_costs_of_recipes(name, capsys):
    """Each recipe says what the calculator says of it; that for throughput follows its advice."""
    path = str(ROOT / f'recipes/{name}.yaml')
    [(images, computing, *hours)] = re.findall(COST, (ROOT / path).read_text(), re.M)
    for devices, time in zip('18', hours):
        scaling.main(['--devices', devices, '--config_path', path])
        *_, advice, last = capsys.readouterr().out.splitlines()
        assert last == f"training    {images} million images in {time} h; computing: {computing} of the original's"
    if name == 'throughput':
        original, config = load_settings([]), load_settings(['--config_path', path])
        assert advice == f'recipe      --lr {config.lr} --warmup_epochs {config.warmup_epochs:g}'
        assert {name for name, *_ in differences(original, config)} == {'batch_size', 'lr', 'warmup_epochs'}
