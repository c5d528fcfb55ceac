"""The scaling calculator against published rates, the real network and its own document."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from src.options import differences, load_settings
from src.training import scaling
from src.training.plan import default_batch_size
from src.training.scaling import all_reduce_seconds, estimate, recipe
from src.training.stages import relative_computing

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    'devices, batch_size, published',
    [
        (1, 128, 469.6),
        (8, 64, 3109),  # the original; the first is what the model is calibrated on
        (8, 32, 3360),
    ],
)  # MindCV on the same device, https://github.com/mindspore-lab/mindcv configs/inceptionv4
def test_published_rates(devices, batch_size, published):
    rate = estimate(devices, batch_size, hidden=False).rate
    print(
        f'\n{devices} x {batch_size}: {rate:.0f} images/s, published {published} ({rate / published - 1:+.1%}); '
        f'all-reduce hidden: {estimate(devices, batch_size).rate / published - 1:+.1%}'
    )
    assert rate == pytest.approx(published, rel=0.15 if devices > 1 else 1e-6)


def test_constants_are_those_of_the_network_and_the_runtime():
    from mindspore.nn.utils import no_init_parameters  # shapes are enough

    from src import runtime
    from src.inceptionv4 import InceptionV4

    with no_init_parameters():
        network = InceptionV4(1000)
    assert sum(math.prod(p.shape) for p in network.trainable_params()) == scaling.WEIGHTS
    assert runtime.FUSION_MB << 20 == scaling.BUCKET_BYTES


def test_all_reduce():
    """By hand: 8 devices send 2 * 7/8 of 80 MB over links of 8 GB/s of which 0.8 is used, in 14 messages."""
    assert all_reduce_seconds(80e6, 8, hccs=8) == pytest.approx(140e6 / 6.4e9 + 14 * 20e-6)
    # 8 servers: besides, 2 * 7/8 of an eighth over the own link of 2 GB/s, in 6 messages
    assert all_reduce_seconds(80e6, 64, hccs=8, roce=2) == pytest.approx(140e6 / 6.4e9 + 17.5e6 / 1.6e9 + 20 * 20e-6)
    assert estimate(1).exposed == all_reduce_seconds(80e6, 1) == 0


@pytest.mark.parametrize('devices', [2, 8, 16, 1024])
def test_hiding(devices):
    hidden, after = estimate(devices), estimate(devices, hidden=False)
    assert 0 < hidden.exposed < after.exposed and hidden.rate > after.rate and hidden.compute == after.compute
    slow = estimate(devices, 1)  # nothing left to hide behind: what remains is the all-reduce itself
    assert slow.exposed == pytest.approx(
        slow.all_reduce - scaling.BACKWARD * (slow.compute - scaling.OPTIMIZER_SECONDS) * 5 / 6
    )


def test_what_limits():
    assert estimate(64).limits == 'devices'
    few = estimate(64, cores_per_server=8, images_per_core=200)
    assert (few.limits, few.rate) == ('host cores', 8 * 8 * 200)
    assert few.cores == estimate(64, images_per_core=200).cores == 19  # to keep up: 29,282 / 8 / 200
    assert estimate(64, storage=1.1).rate == pytest.approx(10_000) and estimate(64, storage=1.1).limits == 'storage'


def test_recipe():
    assert recipe(8, 64) == (0.045, '--lr_scaling none')
    assert recipe(64, 64) == (0.045 * 32, '--lr_scaling linear --warmup_epochs 5')
    assert recipe(1024, 64)[1].endswith('--batch_size 8') and recipe(4096, 64)[1].endswith('--batch_size 2')


@pytest.mark.parametrize(
    'arguments, message',
    [
        ('--devices 0', '--devices 0'),
        ('--devices 12', 'multiple of 8'),
        ('--devices 8192', '4096'),
        ('', '--devices'),
        ('--devices x', "'x'"),
        ('--devices 8 --hccs 0', '--hccs 0.0'),
        ('--devices 8 --storage -1', '--storage'),
        ('--devices 8 --images_per_core nan', 'nan'),
        ('--devices 8 --batch_size -1', '--batch_size -1'),
        ('--devices 8 --kb_per_image inf', 'inf'),
        ('--devices 8 --batchsize 4', '--batchsize'),
    ],
)
def test_bad_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        scaling.main(arguments.split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.startswith('error: ') and error.count('\n') == 1


@pytest.mark.parametrize('name', ['original', 'paper', 'fast', 'throughput'])
def test_costs_of_recipes(name, capsys):
    """Each recipe says what the calculator says of it."""
    path = ROOT / f'recipes/{name}.yaml'
    cost = re.search(
        r'^# Cost: ([\d.]+) million images, computing ([\d.]+), ([\d.]+) h on 1 NPU, ([\d.]+) h on 8 ',
        path.read_text(),
        re.M,
    )
    for devices, hours in ((1, cost[3]), (8, cost[4])):
        scaling.main(['--devices', str(devices), '--config_path', str(path)])
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"training    {cost[1]} million images in {hours} h; computing: {cost[2]} of the original's"


def test_rate_for_throughput():
    """Twice the images of a step of the original's 8 x 64, twice its rate."""
    config, original = (
        load_settings(['--config_path', str(ROOT / f'recipes/{name}.yaml')]) for name in ('throughput', 'original')
    )
    assert config.batch_size == 2 * default_batch_size(8) and config.lr == 2 * original.lr
    differing = {name for name, *_ in differences(original, config)}
    assert differing == {'batch_size', 'lr', 'warmup_epochs'}


def test_smaller_images():
    """An eighth of the multiplications is not an eighth of the time: the optimizer's part stays."""
    small, full = estimate(1, image_size=128), estimate(1)
    share = relative_computing(128)
    assert small.rate == pytest.approx(128 / (full.compute * share + scaling.OPTIMIZER_SECONDS * (1 - share)))
    assert estimate(8, image_size=128).exposed > estimate(8).exposed  # less to hide the all-reduce behind


def test_document(capsys):
    """docs/scaling.md shows what the calculator prints."""
    lines = (ROOT / 'docs/scaling.md').read_text().splitlines()
    commands = [i for i, line in enumerate(lines) if line.startswith('$ python -m src.training.scaling ')]
    assert len(commands) >= 4
    for i in commands:
        scaling.main(lines[i].split()[4:])
        printed = capsys.readouterr().out.splitlines()
        assert lines[i + 1 : i + 1 + len(printed)] == printed


def test_needs_no_mindspore():
    code = 'import src.training.scaling, sys; sys.exit("mindspore" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
