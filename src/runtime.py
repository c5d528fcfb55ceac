"""Device, precision, seed, rank and world size; the only place that touches MindSpore's contexts."""

import os
from collections import namedtuple

import mindspore as ms
from mindspore._c_expression import MSContext
from mindspore.communication import get_group_size, get_rank, init

from src import environment
from src.errors import InputError

# `ranks_here` are the ranks on this server, which share its cores; `sink`: the device has dataset sink mode.
Runtime = namedtuple('Runtime', 'device_target device_id rank world amp_level sink ranks_here', defaults=(1,))

# Size in MB of a bucket of gradients that is all-reduced while the rest of the backward pass still runs; MindSpore's
# default is one all-reduce of all 171 MB at the end.
FUSION_MB = 32

# MindSpore chooses a cached graph by script files alone (2.7 to 2.10): with another learning rate or image size it would
# run the old one.
GRAPH_CACHES = ('MS_COMPILER_CACHE_ENABLE', 'MS_DEV_FORCE_USE_COMPILE_CACHE')


def chip():
    """MindSpore's name of the NPU by which it decides: ascend910 (the first generation), ascend910b, ascend910_93, ...; ''
    without one."""
    return MSContext.get_instance().get_ascend_soc_version()


def start(device_target='auto', device_id=0, rank_size=1, amp_level='auto', seed=1, jit_level='O2'):
    """Set up MindSpore for this process.

    Ranks are started by `scripts/run_distribute_train.sh`, which sets RANK_SIZE, RANK_ID and DEVICE_ID in their
    environment: https://www.mindspore.cn/tutorials/en/r2.7.0/parallel/rank_table.html (Ascend, RANK_TABLE_FILE) and
    .../parallel/msrun_launcher.html (dynamic cluster, MS_ROLE).

    Raises:
        InputError: no such device, CANN cannot work as it is, `rank_size` and the launched processes disagree, or
            MindSpore's cache of graphs is on.
    """
    for name in GRAPH_CACHES:
        if os.environ.get(name, '0') != '0':
            raise InputError(
                f'{name}={os.environ[name]:.20} is set: MindSpore would run graphs of other options without a '
                f'word; unset {name}'
            )
    if device_target != 'CPU' and environment.npus():
        environment.check()
    ascend = ms.device_context.ascend.is_available()
    if device_target == 'Ascend' and not ascend:
        raise InputError(
            'device_target Ascend: MindSpore sees no NPU here (is CANN installed and its set_env.sh '
            'sourced?); use --device_target CPU or auto'
        )
    target = device_target if device_target != 'auto' else 'Ascend' if ascend else 'CPU'
    launched = int(os.environ.get('RANK_SIZE', '1'))
    if launched != rank_size:
        raise InputError(
            f'rank_size {rank_size}, but {launched} process{"es were" if launched > 1 else " was"} '
            'launched; start several with scripts/run_distribute_train.sh RANK_TABLE'
        )
    ms.set_context(mode=ms.GRAPH_MODE)
    device_id = int(os.environ.get('DEVICE_ID', device_id)) if launched > 1 else device_id
    if target == 'Ascend':
        ms.set_device(target, device_id)
        # Only a graph that is compiled as a whole (O2) loops on the device; O0, the default of newer NPUs, goes back to
        # the host after every step: https://www.mindspore.cn/docs/en/r2.7.0/api_python/mindspore/mindspore.set_context.html
        ms.set_context(jit_config={'jit_level': jit_level})
        _set_precision(amp_level)
    elif ms.get_context('device_target') != target:  # a second set_device, even of the same device, is an error
        ms.set_device(target)
    rank, world = 0, 1
    if launched > 1:
        init()
        rank, world = get_rank(), get_group_size()
        # gradients_mean is off by default, which would make the learning rate depend on the number of ranks;
        # `collective.share` says why parameter_broadcast is.
        ms.set_auto_parallel_context(
            parallel_mode=ms.ParallelMode.DATA_PARALLEL,
            gradients_mean=True,
            device_num=world,
            parameter_broadcast=False,
            comm_fusion={'allreduce': {'mode': 'size', 'config': FUSION_MB}},
        )
    ms.set_seed(seed)
    if amp_level == 'auto':
        amp_level = 'O3' if target == 'Ascend' else 'O0'
    # The CPU has no sink mode; MindSpore would not say so and would run another number of steps (Model.train).
    return Runtime(
        target,
        device_id,
        rank,
        world,
        amp_level,
        target == 'Ascend',
        int(os.environ.get('LOCAL_RANKS', world)) if launched > 1 else 1,
    )


def _set_precision(amp_level):
    """What an NPU may compute in less than the network asks for; at O0 as little as the chip allows."""
    precision = ms.device_context.ascend.op_precision
    if chip() == 'ascend910':
        # The default is documented as force_fp16. Convolutions have no float32 here; everything else keeps it.
        precision.precision_mode('allow_fp32_to_fp16')
    elif amp_level == 'O0':
        precision.conv_allow_hf32(False)  # 10 bits in place of 23, on by default


def describe(runtime, option):
    """One line that says what `start` took."""
    why = ' (auto: MindSpore sees no NPU)' if option == 'auto' and runtime.device_target == 'CPU' else ''
    return (
        f'device: {runtime.device_target}{why}, rank {runtime.rank} of {runtime.world}, precision '
        f'{runtime.amp_level}, MindSpore {ms.__version__}'
    )
