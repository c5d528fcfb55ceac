"""Device, precision, seed, rank, log of this process; the only module that sets MindSpore's contexts."""

from __future__ import annotations

import contextlib
import multiprocessing.util
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
from mindspore._c_expression import MSContext
from mindspore.communication import get_group_size, get_rank, init
from tqdm import tqdm

from src import environment, graphs
from src.errors import InputError, reading
from src.heartbeat import dump_stacks_on_request
from src.options import RESULT, Settings

# MB of gradients that are all-reduced at once, while the backward pass still runs, at jit_level O0 and O1 and on a CPU;
# MindSpore would all-reduce all 171 MB at its end. At O2 this has no effect: HCCL makes two pieces, the first of 96.54 % of
# the bytes, which it sums while the last 29 % of the multiplications of the backward pass are done.
FUSION_MB = 32
# Variables of the user's environment that MindSpore must not see: it finds a cached graph (2.7 to 2.10) by the script files
# alone. `graphs` sets these for the one that is wanted.
UNSET = ('MS_COMPILER_CACHE_ENABLE', 'MS_DEV_FORCE_USE_COMPILE_CACHE')
# MindSpore's variables that change a graph. Others (MS_SCHED_PORT, MS_NODE_ID, ...) differ from start to start.
GRAPH_VARIABLES = ('MS_DEV_', 'MS_ENABLE_', 'MS_ASCEND_', 'MS_INTERNAL_')
ROOT = Path(__file__).resolve().parents[1]


class Run(NamedTuple):
    """What this process is in a run of a program: its device, its rank, where it writes."""

    device_target: str = 'CPU'  # or "Ascend"
    device_id: int = 0
    rank: int = 0
    world: int = 1  # number of ranks
    ranks_here: int = 1  # number of ranks on this server, which share its cores
    amp_level: str = 'O0'  # "O0", "O2" or "O3"
    directory: Path = Path()  # of this rank's files
    checkpoints: Path = Path()  # of rank 0, which has the checkpoints
    log: Callable[[str], None] = print
    graphs: graphs.Graphs = graphs.OFF  # through which graphs are compiled

    @property
    def sink(self) -> bool:
        """Whether the device has dataset sink mode. The CPU has none and would run another number of steps (Model.train)."""
        return self.device_target == 'Ascend'


def chip() -> str:
    """MindSpore's name of the NPU: ascend910 (the first generation), ascend910b, ascend910_93, ...; '' without an NPU."""
    return MSContext.get_instance().get_ascend_soc_version()


def start(settings: Settings) -> Run:
    """Set up MindSpore for this process.

    Ranks are started by `src.cluster.launch` as a dynamic cluster, which is what `init` connects them by: RANK_SIZE,
    DEVICE_ID and LOCAL_RANKS are read here, RANK_ID and MS_* by MindSpore.
    https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/dynamic_cluster.html

    InputError if there is no such device, CANN cannot work as it is, or the environment is that of another start.
    """
    for name in UNSET:
        os.environ.pop(name, None)
    # MindSpore starts from no rank table. Without the variable, each of eight such processes would train alone.
    if name := next(filter(os.environ.get, environment.RANK_TABLES), None):
        start_all = f'start all ranks with scripts/run_distribute_train.sh {os.environ[name]:.200}'
        raise InputError(f'{name} is set, but this is a single process; {start_all}, or unset {name}')
    if (launched := os.environ.get('RANK_SIZE', '1')) != str(settings.rank_size):
        number = f'rank_size {settings.rank_size}, but RANK_SIZE, the number of launched processes, is {launched}'
        raise InputError(f'{number}; start several with scripts/run_distribute_train.sh RANK_TABLE')
    dump_stacks_on_request()
    multiprocessing.util.Finalize(None, _end_children, exitpriority=0)  # before it waits for them
    target, amp_level = _find_device(settings.device_target), settings.amp_level
    if amp_level == 'auto':
        amp_level = 'O3' if target == 'Ascend' else 'O0'
    # A single rank of the launcher joins too: the scheduler waits for it, and its device is the rank table's.
    launched = settings.rank_size > 1 or 'LOCAL_RANKS' in os.environ
    device_id = int(os.environ.get('DEVICE_ID', settings.device_id)) if launched else settings.device_id
    # The device before the ranks: it can be set only once, and `init` connects the ranks through it.
    ms.set_context(mode=ms.GRAPH_MODE)
    if target == 'Ascend':
        ms.set_device(target, device_id)
        # Only a graph that is compiled as a whole (O2) loops on the device; O0, the default of newer NPUs, goes back to
        # the host after every step: https://www.mindspore.cn/docs/en/r2.7.0/api_python/mindspore/mindspore.set_context.html
        ms.set_context(jit_config={'jit_level': settings.jit_level})
        _set_precision(amp_level)
    else:
        # MindSpore 2.8 compiles a sixth faster without, to the same operations (compared on the CPU alone).
        os.environ.setdefault('MS_DEV_BOOST_INFER', '0')
        if ms.get_context('device_target') != target:  # a second set_device, even of the same device, is an error
            ms.set_device(target)
    # The ranks before the training step, which takes the parallel mode when it is constructed.
    rank, world = _join_ranks() if launched else (0, 1)
    ms.set_seed(settings.seed)  # before the first weight is drawn
    ranks_here = int(os.environ.get('LOCAL_RANKS', world)) if world > 1 else 1
    numbers = (rank, 0) if world > 1 else (device_id, device_id)
    directories = (Path('results', f'{world}p', str(number), settings.log_dir) for number in numbers)
    return Run(target, device_id, rank, world, ranks_here, amp_level, *directories)


def open_log(run: Run, settings: Settings, path: Path | None = None) -> Run:
    """`run` with its log, on the screen and on rank 0 in the file `path`, and with its cache of graphs."""
    run = run._replace(log=create_log(path if run.rank == 0 else None))
    run.log(describe(run, settings.device_target))
    code = {str(path.relative_to(ROOT)): path.read_text() for path in (*ROOT.glob('*.py'), *ROOT.glob('src/**/*.py'))}
    variables = {name: value for name, value in os.environ.items() if name.startswith(GRAPH_VARIABLES)}
    # What graphs depend on. Other options have no part in a graph, or show in the structure of its cell.
    about = {**facts(run), 'host': ''}
    made_from = [settings.group(*RESULT), settings.jit_level, run.rank, about, variables, graphs.digest(code)]
    cache = graphs.open_cache(settings.compile_cache, run.device_target == 'CPU', made_from, run.log)
    return run._replace(graphs=cache)


def create_log(path: Path | None) -> Callable[[str], None]:
    """A function that writes a line to the screen and to the end of the file `path`. InputError if it cannot be opened."""
    file = None
    if path:
        with reading(path, 'choose another --log_dir'):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Names of files may be any bytes; they look as on the screen, see `errors.entry_point`.
            file = open(path, 'a', encoding='utf-8', errors='backslashreplace')

    def log(line):
        for stream in filter(None, (sys.stdout, file)):
            with contextlib.suppress(OSError):  # a full disk or a closed pipe is no reason to end a training run
                tqdm.write(line, file=stream)
                stream.flush()

    return log


def describe(run: Run, option: str) -> str:
    """One line for the log on what `start` set; `option` is the value of device_target."""
    device = run.device_target + ' (auto: MindSpore sees no NPU)' * (option == 'auto' and run.device_target == 'CPU')
    return f'device: {device}, rank {run.rank} of {run.world}, precision {run.amp_level}, MindSpore {ms.__version__}'


def facts(run: Run) -> dict[str, object]:
    """What a record of a run says on where it runs: host, device, ranks, precision, versions."""
    versions = {'MindSpore': ms.__version__, 'CANN': environment.cann()[1] or None, 'Python': platform.python_version()}
    return {
        'host': platform.node(),
        'device': f'Ascend ({chip()})' if run.device_target == 'Ascend' else run.device_target,
        'ranks': run.world,
        'precision': run.amp_level,
        'versions': versions,
    }


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Within this block cells run operation by operation, and no graph is compiled."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        yield
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


def _end_children():
    """End the children that other libraries have left: the exit of this process would wait for them for ever. CANN's
    compilers may have SIGTERM blocked."""
    for child in multiprocessing.active_children():
        child.kill()


def _find_device(device_target):
    """ "Ascend" or "CPU". InputError if there is no such device, or CANN does not work with this Python."""
    if device_target != 'CPU' and environment.npus():
        environment.check()  # before MindSpore loads CANN, whose own errors are numbers
    ascend = ms.device_context.ascend.is_available()
    if device_target == 'Ascend' and not ascend:
        problem = 'MindSpore sees no NPU here (is CANN installed and its set_env.sh sourced?)'
        raise InputError(f'device_target Ascend: {problem}; use --device_target CPU or auto')
    return device_target if device_target != 'auto' else 'Ascend' if ascend else 'CPU'


def _join_ranks():
    """Connect the ranks and let MindSpore sum their gradients. Returns (rank, number of ranks)."""
    init()
    rank, world = get_rank(), get_group_size()
    if world > 1:
        ms.set_auto_parallel_context(
            parallel_mode=ms.ParallelMode.DATA_PARALLEL,
            gradients_mean=False,  # a multiplication of each gradient more: `TrainStep` divides by the number of ranks
            device_num=world,
            parameter_broadcast=False,  # `collective.share` says why
            comm_fusion={'allreduce': {'mode': 'size', 'config': FUSION_MB}},
        )
    return rank, world


def _set_precision(amp_level):
    """How far an NPU may compute with less precision than the network asks for; at O0 as little as the chip allows."""
    precision = ms.device_context.ascend.op_precision
    if chip() == 'ascend910':
        # The default is documented as force_fp16. Convolutions have no float32 here; everything else keeps it.
        precision.precision_mode('allow_fp32_to_fp16')
    elif amp_level == 'O0':
        precision.conv_allow_hf32(False)  # which keeps 10 bits of the mantissa instead of 23, and is on by default
