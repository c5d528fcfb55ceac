"""Stages of image sizes: their steps, their cost, and what the progress bar makes of it (no graph is compiled)."""

import io
import math
import sys

import numpy as np
import pytest
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from src import runtime
from src.data.pipeline import training_dataset
from src.data.records import open_records
from src.errors import InputError
from src.inceptionv4 import InceptionV4
from src.options import load_settings
from src.training import monitor
from src.training.loop import parts
from src.training.plan import Plan, make_plan
from src.training.stages import Stage, grids, make_stages, multiplications, relative_computing, stage_sizes
from tests.data.samples import settings
from tests.training.test_callbacks import Run


@pytest.mark.parametrize(
    'sizes, steps, expected',
    [
        ((299,), 100, [(299, 0, 100)]),
        ((160, 160, 192, 224, 299), 100, [(160, 0, 40), (192, 40, 60), (224, 60, 80), (299, 80, 100)]),
        ((75, 83, 75), 10, [(75, 0, 3), (83, 3, 6), (75, 6, 10)]),  # not in order of size; what is left over comes last
        ((75, 83, 75), 2, [(83, 0, 1), (75, 1, 2)]),
        ((160, 160), 7, [(160, 0, 7)]),
    ],
)
def test_stages(sizes, steps, expected):
    assert make_stages(sizes, steps) == [Stage(*stage) for stage in expected]


def test_sizes_of_an_option():
    config = load_settings(['--image_sizes', '160, 192,299'])
    assert stage_sizes(config.image_sizes, config.image_size) == (160, 192, 299)
    assert stage_sizes(load_settings([]).image_sizes, 224) == (224,)


@pytest.mark.parametrize('value', ['74', '160,x', '160.5', '160,,192', '160-192'])
def test_sizes_that_do_not_fit(value):
    with pytest.raises(InputError, match='image_sizes is .*; expected a list, each a whole number, >= 75'):
        load_settings(['--image_sizes', value])


def test_what_needs_images_of_one_size():
    with pytest.raises(
        InputError, match=r'image_sizes \[160, 299\]: the auxiliary classifier takes .* 299, not 160; give --aux'
    ):
        stage_sizes([160, 299], 299, aux_logits=True)
    with pytest.raises(InputError, match=r'cache_features needs images of one size; leave image_sizes \[160\] empty'):
        stage_sizes([160], 299, cache_features=2)
    assert stage_sizes([299, 299], 299, aux_logits=True, cache_features=2) == (299, 299)
    assert stage_sizes([299, 300], 299, aux_logits=True) == (299, 300)  # its kernel, 5 x 5, fits both


def counted_multiplications(network, size):
    """Of all convolutions, by what the layers of `network` say of themselves."""
    count, rows = 0, size
    for cell in [*network.to_aux, *network.from_aux]:
        layers = [layer for _, layer in cell.cells_and_names() if isinstance(layer, (nn.Conv2d, nn.MaxPool2d))]
        strides = {layer.stride for layer in layers if layer.pad_mode == 'valid'}
        after = rows
        for stride in strides:
            after = (rows - 3) // (stride if isinstance(stride, int) else stride[0]) + 1
        assert len(strides) < 2
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                count += math.prod(layer.weight.shape) * (after if layer.pad_mode == 'valid' else rows) ** 2
        rows = after
    return count


@pytest.mark.parametrize('block_counts', [(4, 7, 3), (1, 1, 1)])
def test_multiplications_are_those_of_the_network(block_counts):
    with no_init_parameters():
        network = InceptionV4(10, block_counts=block_counts)
    for size in (75, 160, 299):
        assert multiplications(size, block_counts) == counted_multiplications(network, size)


def test_network_does_not_depend_on_the_size():
    """All but the auxiliary classifier: `stage_sizes` refuses that with other sizes."""
    with no_init_parameters():
        shapes = [
            {p.name: p.shape for p in InceptionV4(10, block_counts=(1, 1, 1), image_size=size).get_parameters()}
            for size in (75, 299)
        ]
        kernels = [
            InceptionV4(10, block_counts=(1, 1, 1), image_size=size, aux_logits=True).aux_logits.conv2d_2a.conv.weight.shape
            for size in (160, 299, 300)
        ]
    assert shapes[0] == shapes[1]
    assert kernels[0] != kernels[1] == kernels[2]


def test_computing():
    """timm says 12.3 billion: https://huggingface.co/timm/inception_v4.tf_in1k"""
    assert 12.2e9 < multiplications(299) < 12.35e9
    assert grids(299) == [149, 147, 73, 71, 35, 17, 8] and grids(75)[-1] == 1
    assert relative_computing(299) == 1 and relative_computing(160) == pytest.approx(0.225, abs=1e-3)
    assert relative_computing(299, 160) == pytest.approx(1 / relative_computing(160))


PLAN = Plan(8, 1, 10, 100, sizes=(160, 299))


@pytest.mark.parametrize(
    'start, loop, expected',
    [
        (0, None, [(160, 50, 1), (299, 50, 1)]),
        (0, 20, [(160, 5, 10), (299, 5, 10)]),
        (0, 9, [(160, 10, 5), (299, 10, 5)]),
        (47, 100, [(160, 1, 3), (299, 1, 50)]),
        (50, None, [(299, 50, 1)]),
        (27, 10, [(160, 2, 10), (160, 1, 3), (299, 5, 10)]),
        (99, 10, [(299, 1, 1)]),
    ],
)
def test_no_sink_crosses_a_stage(start, loop, expected):
    """Wherever a training goes on; each stage is told of once."""
    lines, plan = [], Plan(8, 1, 10, 100, start, (160, 299))
    assert list(parts(plan, loop, lines.append)) == expected
    stages = [line for line in lines if line.startswith('stage')]
    assert [line.split(':')[0] for line in stages] == ['stage 1 of 2', 'stage 2 of 2'][start >= 50 :]
    assert stages[-1] == (
        'stage 2 of 2: images of 299 x 299 pixels, epochs 5 to 10, steps 51 to 100; the graph is compiled anew'
    )
    lines.clear()
    assert list(parts(Plan(8, 1, 10, 100), 20, lines.append)) == [(299, 5, 20)] and not lines


@pytest.mark.parametrize('loop', [7, 10, 100])
def test_steps_of_all_parts_are_those_of_the_plan(loop):
    plan = Plan(8, 1, 10, 1009, 13, (75, 83, 83, 91))
    done = 13
    for size, count, length in parts(plan, loop, lambda line: None):
        (stage,) = [stage for stage in plan.stages if stage.start <= done < stage.stop]
        done += count * length
        assert size == stage.size and done <= stage.stop
    assert done == 1009


def test_images_are_the_same_at_every_size(data):
    """Crop, flip and draws of a record in an epoch do not depend on the size: a stage takes what comes next."""
    records = open_records(data, 'train')
    small, large = (
        list(
            training_dataset(records, 1, settings(image_size=size), range(2, 4), runtime.Run()).create_tuple_iterator(
                num_epochs=1, output_numpy=True
            )
        )
        for size in (75, 83)
    )
    assert len(small) == len(large) == 2
    for (image, *draws), (other, *others) in zip(small, large):
        assert image.shape == (4, 3, 75, 75) and other.shape == (4, 3, 83, 83)
        assert all(map(np.array_equal, draws, others))
        assert np.abs(image.mean((2, 3)) - other.mean((2, 3))).max() < 3


def test_time_left_counts_larger_images(monkeypatch):
    """25 of 50 small steps in 25 s: 25 s for the others, and for the large ones as often longer as they compute more."""
    larger = relative_computing(299, 160)
    assert PLAN.left(25) == pytest.approx(25 + 50 * larger) and PLAN.left(50) == pytest.approx(50 * larger)
    assert PLAN.left(75) == 25 and PLAN.left(100) == 0
    assert monitor.Bar(PLAN, 0).disable  # not on a terminal
    monkeypatch.setattr(sys, 'stderr', Terminal())
    clock, bar = [0.0], monitor.Bar(PLAN, 0)
    bar._time, bar.start_t, bar.last_print_t = lambda: clock[0], 0.0, 0.0
    monkeypatch.setattr('src.training.bar.time.time', lambda: clock[0])
    assert bar.format_dict['left'] == '?'
    for _ in range(25):
        clock[0] += 1
        bar.done(1, 1.0, None)
    assert f' {bar.format_interval(25 + 50 * larger)} left, ' in str(bar)
    bar.close()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_is_on_images_of_one_size():
    """At the end of a stage there is one, and the first step of the next, with its compilation, does not count."""
    lines = []
    watched = monitor.TrainingMonitor(lines.append, np.ones(100, np.float32), Plan(8, 1, 10, 100, sizes=(160, 160, 299)), 40)
    for steps in (66, 34):
        run = Run([watched])
        for _ in range(steps):
            run.step()
    assert [int(line.split()[1]) for line in lines if line.startswith('step: ')] == [40, 66, 100]
    assert watched.all_images == (65 + 33) * 8


def test_plan_of_a_recipe():
    """Stages of whole epochs, whatever the number of devices."""
    for world in (1, 8):
        plan = make_plan(1_281_167, 64, world, 60, sizes=(160, 192, 224, 256, 299))
        assert [stage.stop / plan.steps_per_epoch for stage in plan.stages] == [12, 24, 36, 48, 60]
