"""The benchmarks: candidates take turns with all cores; the calculator of scaling; what the others need to start."""

import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import recipes, scaling
from benchmarks.rounds import Threads, cores, environment, interleaved
from src.errors import InputError
from src.options import differences, load_settings

ROOT = Path(__file__).parents[1]


def test_turns_change_their_order_and_the_warm_up_does_not_count():
    order = []
    seconds = interleaved({name: lambda name=name: order.append(name) for name in 'abc'}, rounds=20, warm_up=2)
    assert len(order) == 66 and all({*order[i : i + 3]} == {*'abc'} for i in range(0, 66, 3))
    assert [len(values) for values in seconds.values()] == [20] * 3
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
"""


@pytest.mark.skipif(cores() < 2, reason='needs two cores')
@pytest.mark.parametrize(
    'threads, held_to, problem',
    [(cores(), cores(), None), (1, cores(), '1 threads did its work'), (cores(), 1, 'on 1 cores')],
)
def test_a_candidate_with_fewer_cores_is_refused(threads, held_to, problem):
    command = ['taskset', '-c', ','.join(map(str, sorted(os.sched_getaffinity(0))[:held_to]))]
    command += [sys.executable, '-c', WORKER, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()) as process:

        def call():
            print(file=process.stdin, flush=True)
            process.stdout.readline()

        measured = {'candidate': Threads(process.pid)}
        interleaved({'candidate': call}, rounds=3, warm_up=1, threads=measured)
        process.stdin.close()
        assert 0 < measured['candidate'].used < cores() + 0.5
        if problem:
            with pytest.raises(InputError, match=f'candidate had 1 of .*{problem}'):
                measured['candidate'].require('candidate')
        else:
            measured['candidate'].require('candidate')


@pytest.mark.compiles
def test_candidates_do_not_inherit_mindspores_thread_count():
    child = 'print(open("/proc/self/environ").read().count("OMP_NUM_THREADS=1\\0"))'
    code = f'import subprocess, sys, mindspore\nfrom benchmarks.rounds import environment\nchild = {child!r}\n'
    code += 'for env in (None, environment()): subprocess.run([sys.executable, "-c", child], env=env)'
    clean = {name: value for name, value in os.environ.items() if name != 'OMP_NUM_THREADS'}
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.stdout.split() == ['1', '0'], done.stderr


@pytest.mark.slow
@pytest.mark.compiles
def test_training_step():
    options = '--only this --rounds 1 --batch_size 2 --image_size 75 --block_counts 1,1,1'.split()
    command = [sys.executable, '-m', 'benchmarks.training_step', *options]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, 'GLOG_v': '3'}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r'^this network +[\d.]+ \([\d.]+ to [\d.]+\)( +[\d.]+){4}$', result.stdout, re.M), result.stdout


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


def test_recipes_are_scaled_and_read(tmp_path):
    (tmp_path / 'fast.yaml').write_text(
        'max_epochs: 60\nT_max: 60\nwarmup_epochs: 5\nimage_size: 299\nimage_sizes: 128,299\n'
    )
    args = type('Arguments', (), {'epochs': 10, 'image_size': 150})
    options = recipes.scaled(tmp_path / 'fast.yaml', {'lr': '0.02'}, args, 100)
    assert (options['max_epochs'], options['T_max'], options['warmup_epochs'], options['lr']) == (6, 6, '0.5', '0.02')
    assert options['image_sizes'] == '75,150'
    record = '{"kind": "start", "step": 0, "global_batch": 8}\n{"kind": "step", "step": 10, "images_per_second": 4.0}\n'
    record += '{"kind": "evaluation", "step": 10, "epoch": 1.0, "top1": 50.0, "loss": 1.5}\n'
    (tmp_path / 'metrics.jsonl').write_text(record)
    (tmp_path / 'done.txt').write_text('--lr=0.02')
    assert recipes.train(tmp_path, {'lr': '0.02'}) == [(1.0, 80, 20.0, 50.0, 1.5)]
