"""The benchmarks: candidates work with all cores; the calculator of scaling; the parts of data sets that are compared."""

import contextlib
import math
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from mindspore.nn.utils import no_init_parameters
from PIL import Image

from benchmarks import rounds, scaling
from benchmarks.recipes import subset
from src import runtime
from src.data import demo_images
from src.data.records import open_records
from src.errors import InputError
from src.inceptionv4 import InceptionV4
from src.options import differences, load_settings
from tests.processes import ROOT

# Takes as many threads as its argument says, and at each call a tenth of a CPU second of each.
WORKER = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
data = bytes(1 << 20)
def work(_):
    end = time.thread_time() + 0.1
    while time.thread_time() < end:
        sha256(data)
with ThreadPoolExecutor(int(sys.argv[1])) as pool:
    for _ in sys.stdin:
        list(pool.map(work, range(int(sys.argv[1]))))
        print('done', flush=True)
        sys.stdin.readline()
        print('finished', flush=True)
"""
CORES = rounds.cores()


@pytest.mark.skipif(CORES < 2, reason='needs two cores')
@pytest.mark.parametrize(
    'threads, held_to, problem', [(CORES, CORES, None), (1, CORES, '1 threads did its work'), (CORES, 1, 'on 1 cores')]
)
def test_a_candidate_with_fewer_cores_is_refused(threads, held_to, problem, monkeypatch):
    monkeypatch.setattr(rounds, 'SHORTEST', 0)  # a fast machine does this work in less
    command = ['taskset', '-c', ','.join(map(str, sorted(os.sched_getaffinity(0))[:held_to]))]
    candidate = rounds.Candidate('candidate', [*command, sys.executable, '-c', WORKER, str(threads)])
    try:
        for _ in range(3):
            candidate.work()
        with pytest.raises(InputError, match=f'candidate had 1 of .*{problem}') if problem else contextlib.nullcontext():
            candidate.require_cores()
    finally:
        candidate.process.kill()


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize(
    'module, options, rows',
    [
        ('training_step', '--only this --rounds 1 --batch_size 2 --image_size 75 --block_counts 1,1,1', 1),
        ('input_pipeline', 'images --rounds 1 --batch_size 4 --size 75', 5),
    ],
)
def test_benchmarks_run(module, options, rows, tmp_path):
    for number in range(4):
        Image.new('RGB', (90, 80), (number, 9, 9)).save(tmp_path / f'{number}.jpg')
    command = [sys.executable, '-m', f'benchmarks.{module}', *options.replace('images', str(tmp_path)).split()]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, 'GLOG_v': '3'}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = re.findall(r'^\S.+? {2,}[\d.]+ \([\d.]+ to [\d.]+\)(?: +[\d.]+){4}$', result.stdout, re.M)
    assert len(found) == rows, result.stdout


@pytest.mark.parametrize('devices, batch_size, published', [(1, 128, 469.6), (8, 64, 3109), (8, 32, 3360)])
def test_published_rates(devices, batch_size, published):
    """The original's; the first is what the model is calibrated on. The last: MindCV on the same device."""
    rate = scaling.estimate(devices, batch_size, hidden=False).rate
    assert rate == pytest.approx(published, rel=0.15 if devices > 1 else 1e-6)
    assert scaling.estimate(devices, batch_size).rate >= rate


def test_figures_that_stand_elsewhere_too():
    with no_init_parameters():  # shapes are enough
        network = InceptionV4(1000)
    assert sum(math.prod(p.shape) for p in network.trainable_params()) == scaling.WEIGHTS
    assert runtime.FUSION_MB << 20 == scaling.BUCKET_BYTES


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


def test_subset_of_a_data_set(tmp_path):
    data = demo_images.make(tmp_path / 'data', train_per_class=3, validation_per_class=2)
    made = open_records(subset(data, tmp_path / 'some', 2, 0), 'train')
    assert Counter(made.label.tolist()) == dict.fromkeys(range(1, 11), 2)
    assert made.class_names == open_records(data, 'train').class_names
    assert len(open_records(tmp_path / 'some', 'validation')) == 20
