"""Steps, stages of image sizes, sinks, memory (no graph is compiled)."""

import re

import pytest

from src.errors import InputError
from src.options import load_settings
from src.training import plan
from src.training.plan import Plan, Stage, free_bytes, make_plan, require_memory, stage_sizes

WEIGHTS = 42_700_000


def settings(**values):
    return load_settings([]).but(**values)


@pytest.mark.parametrize(
    'sizes, steps, expected',
    [
        ((160, 160, 192, 224, 299), 100, [(160, 0, 40), (192, 40, 60), (224, 60, 80), (299, 80, 100)]),
        ((75, 83, 75), 10, [(75, 0, 3), (83, 3, 6), (75, 6, 10)]),  # not in order of size; what is left over comes last
        ((75, 83, 75), 2, [(83, 0, 1), (75, 1, 2)]),
    ],
)
def test_stages(sizes, steps, expected):
    assert Plan(8, 1, 10, steps, sizes=sizes).stages == [Stage(*stage) for stage in expected]


def test_what_needs_images_of_one_size():
    with pytest.raises(InputError, match=r'\[160, 299\]: the auxiliary classifier takes image_size 299; use --aux'):
        stage_sizes(settings(image_sizes=[160, 299], aux_logits=True))
    with pytest.raises(InputError, match='batch_size 8 on 2 device.* needs as many records; /data has 15'):
        make_plan(15, settings(batch_size=8, data_dir='/data'), 2)


@pytest.mark.parametrize('global_batch, step', [(8, 3), (4, 7), (2, 14), (5, 5)])
def test_same_images_with_other_ranks(global_batch, step):
    """Of 20 records, into the second epoch by 8 images, however many steps that is."""
    assert make_plan(20, settings(batch_size=global_batch), 1).step_at(1, 8) == step


@pytest.mark.parametrize(
    'sizes, steps, start, loop, expected',
    [
        ((160, 299), 100, 0, 1, [(160, 50, 1), (299, 50, 1)]),
        ((160, 299), 100, 27, 10, [(160, 2, 10), (160, 1, 3), (299, 5, 10)]),  # resumed
        ((299,), 1000900, 0, 100, [(299, 10009, 100)]),
        ((299,), 1001, 0, 100, [(299, 11, 91)]),
        ((299,), 7, 0, 100, [(299, 1, 7)]),
        ((299,), 1009, 0, 12, [(299, 83, 12), (299, 1, 13)]),
    ],
)
def test_sinks(sizes, steps, start, loop, expected):
    """All steps and no more, none in a sink of its own, whatever divides them, and no sink crosses a stage."""
    assert Plan(8, 1, 10, steps, start, sizes).sinks(loop) == expected


@pytest.mark.parametrize('cache, batch_size, size, measured', [(0, 2, 299, 3.78), (0, 16, 299, 6.89), (5, 32, 299, 2.79)])
def test_memory_is_near_what_was_measured(cache, batch_size, size, measured, monkeypatch):
    monkeypatch.setattr(plan, 'free_bytes', lambda: 0.1e9)
    with pytest.raises(InputError) as error:
        require_memory(settings(trunk_cache=cache, freeze=['mixed_3a'], image_size=size, batch_size=batch_size), WEIGHTS, 1)
    assert float(re.search(r'about ([\d.]+) GB', str(error.value))[1]) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    'batch_size, ranks, message',
    [
        (128, 1, 'batch_size 128 at image_size 299 needs about 29.2 GB for 1 .* 16.0 GB are free; --batch_size 61 fits'),
        (8, 8, r'for 8 rank\(s\).* a smaller --image_size or --block_counts is needed'),
    ],
)
def test_too_large_a_batch_is_refused_with_one_that_fits(batch_size, ranks, message, monkeypatch):
    assert 0.1e9 < free_bytes() < 1e14
    monkeypatch.setattr(plan, 'free_bytes', lambda: 16e9)
    require_memory(settings(batch_size=61), WEIGHTS, 1)
    with pytest.raises(InputError, match=message):
        require_memory(settings(batch_size=batch_size), WEIGHTS, ranks)
