"""What is asked of MindSpore on Ascend, with a recorder in its place, and how train.py then calls Model."""

import os
from pathlib import Path
from unittest.mock import MagicMock, call

import pytest

import train
from src import runtime
from src.errors import InputError
from src.options import load_settings

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = ('RANK_SIZE', 'RANK_ID', 'DEVICE_ID', 'LOCAL_RANKS')


def start(**options):
    return runtime.start(load_settings([]).but(**options))


@pytest.fixture
def ascend(monkeypatch):
    """A `mindspore` with an NPU that records its calls; `init`, `get_rank` and `get_group_size` for rank 3 of 8."""
    ms = MagicMock(__version__='2.8.0')
    ms.device_context.ascend.is_available.return_value = True
    monkeypatch.setattr(runtime, 'ms', ms)
    for name, value in (('init', None), ('get_rank', 3), ('get_group_size', 8)):
        setattr(ms, name, MagicMock(return_value=value))
        monkeypatch.setattr(runtime, name, getattr(ms, name))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return ms


def calls(ms):
    return ' '.join(name for name, *_ in ms.mock_calls if not name.startswith('device_context'))


def test_one_npu_or_the_cpu_by_choice(ascend):
    """https://www.mindspore.cn/docs/en/r2.7.0/api_python/mindspore/mindspore.set_device.html"""
    run = start(device_id=2, seed=5)
    assert run == runtime.Run('Ascend', 2, 0, 1, 1, 'O3', Path('results/1p/2/ckpt'), Path('results/1p/2/ckpt'))
    assert calls(ascend) == 'set_context set_device set_context set_seed'
    assert ascend.set_device.call_args == call('Ascend', 2)
    assert ascend.set_context.call_args_list == [call(mode=ascend.GRAPH_MODE), call(jit_config={'jit_level': 'O2'})]
    ascend.reset_mock()
    assert start(device_target='CPU', amp_level='O2')[0::5] == ('CPU', 'O2')
    assert 'init' not in calls(ascend) and ascend.set_context.call_args_list == [call(mode=ascend.GRAPH_MODE)]


def test_ranks_of_the_launcher(ascend, monkeypatch):
    """https://www.mindspore.cn/tutorials/en/r2.7.0/parallel/data_parallel.html: the device first, then `init`. A single one
    joins the scheduler that waits for it, and averages nothing."""
    for name, value in zip(VARIABLES, '8374'):
        monkeypatch.setenv(name, value)
    run = start(rank_size=8)
    assert run == runtime.Run('Ascend', 7, 3, 8, 4, 'O3', Path('results/8p/3/ckpt'), Path('results/8p/0/ckpt'))
    order = 'set_context set_device set_context init get_rank get_group_size set_auto_parallel_context set_seed'
    assert calls(ascend) == order and ascend.set_device.call_args == call('Ascend', 7)
    assert ascend.set_auto_parallel_context.call_args == call(
        parallel_mode=ascend.ParallelMode.DATA_PARALLEL,
        gradients_mean=False,
        device_num=8,
        parameter_broadcast=False,
        comm_fusion={'allreduce': {'mode': 'size', 'config': 32}},
    )
    ascend.reset_mock()
    for name, value in zip(VARIABLES, '1051'):
        monkeypatch.setenv(name, value)
    ascend.get_rank.return_value, ascend.get_group_size.return_value = 0, 1
    assert start()[:6] == ('Ascend', 5, 0, 1, 1, 'O3')
    assert ascend.init.called and not ascend.set_auto_parallel_context.called


def test_variables_of_another_start(monkeypatch):
    monkeypatch.setenv('MS_COMPILER_CACHE_ENABLE', '1')
    monkeypatch.setenv('RANK_SIZE', '8')
    with pytest.raises(InputError, match='rank_size 1, but .* is 8; '):
        start(device_target='CPU')
    assert 'MS_COMPILER_CACHE_ENABLE' not in os.environ


@pytest.mark.parametrize(
    'chip, amp_level, expected',
    [
        ('ascend910', 'O3', [call.precision_mode('allow_fp32_to_fp16')]),
        ('ascend910b', 'O0', [call.conv_allow_hf32(False)]),
        ('ascend910b', 'O3', []),
    ],
)
def test_precision_is_that_of_the_level(ascend, monkeypatch, chip, amp_level, expected):
    """https://www.mindspore.cn/docs/en/r2.7.0/api_python/device_context/mindspore.device_context.ascend.op_precision.precision_mode.html"""
    monkeypatch.setattr(runtime, 'chip', lambda: chip)
    start(amp_level=amp_level)
    assert ascend.device_context.ascend.op_precision.mock_calls == expected


def test_model_is_called_with_sinks(options, monkeypatch, tmp_path):
    """On Ascend the whole training run is sinks over one dataset for each image size; the CPU does the rest."""
    monkeypatch.chdir(tmp_path)
    run = runtime.Run('Ascend', amp_level='O3', directory=tmp_path / 'x', checkpoints=tmp_path / 'x')
    monkeypatch.setattr(train.runtime, 'start', lambda settings: run)
    networks, calls = [], []

    class Model:
        def __init__(self, network):
            networks.append(network)

        def train(self, count, data, callbacks, dataset_sink_mode, sink_size):
            assert dataset_sink_mode and data.get_dataset_size() == count * sink_size
            calls.append((data.output_shapes()[0][-1], count, sink_size))
            callbacks.state.step += count * sink_size

    monkeypatch.setattr(train, 'Model', Model)
    arguments = ['--max_train_steps', '46', '--iterations_per_loop', '10', '--image_sizes', '91,83']
    train.main(['--config_path', str(ROOT / 'recipes/fast.yaml'), *options, *arguments])
    assert calls == [(91, 2, 10), (91, 1, 3), (83, 2, 10), (83, 1, 3)] and len({*map(id, networks)}) == 1
    assert type(networks[0].optimizer).__module__.startswith('mindspore')  # the fused kernel is right there
    assert float(networks[0].scale_sense.asnumpy()) == 1024
