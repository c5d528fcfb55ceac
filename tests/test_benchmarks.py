"""The benchmarks: candidates take turns with all cores; the calculator of scaling; what the others need to start."""

import contextlib
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import rounds, scaling
from benchmarks.recipes import subset
from benchmarks.rounds import Candidate, cores, interleaved
from src.data import demo_images
from src.data.records import open_records
from src.errors import InputError
from src.options import differences, load_settings

ROOT = Path(__file__).parents[1]


def test_turns_change_their_order():
    order = []
    seconds, results = interleaved({name: lambda name=name: order.append(name) or name for name in 'abc'}, rounds=22)
    assert len(order) == 66 and all({*order[i : i + 3]} == {*'abc'} for i in range(0, 66, 3))
    assert [len(values) for values in seconds.values()] == [22] * 3 and results['b'] == ['b'] * 22
    after = Counter(second for first, second in zip(order, order[1:]) if first == 'a')
    assert after['b'] and after['c']  # nobody always follows the same one


# Takes as many threads as its argument says, and with each line on stdin a tenth of a CPU second of each.
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


@pytest.mark.skipif(cores() < 2, reason='needs two cores')
@pytest.mark.parametrize(
    'threads, held_to, problem',
    [(cores(), cores(), None), (1, cores(), '1 threads did its work'), (cores(), 1, 'on 1 cores')],
)
def test_a_candidate_with_fewer_cores_is_refused(threads, held_to, problem, monkeypatch):
    monkeypatch.setattr(rounds, 'SHORTEST', 0)  # a fast machine does this work in less
    command = ['taskset', '-c', ','.join(map(str, sorted(os.sched_getaffinity(0))[:held_to]))]
    command += [sys.executable, '-c', WORKER, str(threads)]
    candidate = Candidate('candidate', command)
    try:
        for _ in range(3):
            candidate.work()
        assert 0 < candidate.used < cores() + 0.5
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


def test_model_of_scaling():
    """By hand: 8 devices send 2 * 7/8 of 80 MB over links of 30 GB/s of which 0.8 is used, in 14 messages."""
    assert scaling.all_reduce_seconds(80e6, 8) == pytest.approx(140e6 / 24e9 + 14 * 20e-6)
    # 8 servers: besides, 2 * 7/8 of an eighth over the own link of 12.5 GB/s, in 6 messages
    assert scaling.all_reduce_seconds(80e6, 64) == pytest.approx(140e6 / 24e9 + 17.5e6 / 10e9 + 20 * 20e-6)
    from mindspore.nn.utils import no_init_parameters  # shapes are enough

    from src import runtime
    from src.inceptionv4 import InceptionV4

    with no_init_parameters():
        network = InceptionV4(1000)
    assert sum(math.prod(p.shape) for p in network.trainable_params()) == scaling.WEIGHTS
    assert runtime.FUSION_MB << 20 == scaling.BUCKET_BYTES


@pytest.mark.parametrize('name', ['original', 'paper', 'fast', 'throughput'])
def test_costs_of_recipes(name, capsys):
    """Each recipe says what the calculator says of it; that for throughput follows its advice."""
    path = str(ROOT / f'recipes/{name}.yaml')
    pattern = (
        r'^# Cost: ([\d.]+) million images, computing ([\d.]+), ([\d.]+) h on 1 NPU, ([\d.]+) h on 8 .*benchmarks.scaling'
    )
    cost = re.search(pattern, Path(path).read_text(), re.M)
    for devices, hours in ((1, cost[3]), (8, cost[4])):
        scaling.main(['--devices', str(devices), '--config_path', path])
        *_, advice, last = capsys.readouterr().out.splitlines()
        assert last == f"training    {cost[1]} million images in {hours} h; computing: {cost[2]} of the original's"
    if name == 'throughput':
        original, config = load_settings([]), load_settings(['--config_path', path])
        assert advice == f'recipe      --lr {config.lr} --warmup_epochs {config.warmup_epochs:g}'
        assert {name for name, *_ in differences(original, config)} == {'batch_size', 'lr', 'warmup_epochs'}


def test_subset_of_a_data_set(tmp_path):
    data = demo_images.make(tmp_path / 'data', train_per_class=3, validation_per_class=2)
    assert subset(data, tmp_path / 'all', {'train': 0, 'validation': 0}) == data
    made = open_records(subset(data, tmp_path / 'some', {'train': 2, 'validation': 0}), 'train')
    assert (
        Counter(made.label.tolist()) == dict.fromkeys(range(1, 11), 2)
        and made.class_names == open_records(data, 'train').class_names
    )
    assert len(open_records(tmp_path / 'some', 'validation')) == 20
