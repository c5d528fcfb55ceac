"""What a launch starts on a server: each process with its command and environment variables.

Ascend: rank table start-up, https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/rank_table.html
CPU:    dynamic cluster, https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/dynamic_cluster.html
msrun:  https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/msrun_launcher.html
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from src.cluster.servers import Device, RankTable, Server
from src.errors import InputError

# The scheduler of a dynamic cluster blocks in init() until its workers have left.
SCHEDULER = "import mindspore; mindspore.set_device('CPU'); mindspore.communication.init()"
DYNAMIC_CLUSTER = {'MS_SCHED_HOST': '127.0.0.1', 'MS_TOPO_TIMEOUT': '600'}
# Ranks compile for minutes, not all equally long: HCCL's default of 120 s to connect is too short.
HCCL_TIMEOUTS = {'HCCL_CONNECT_TIMEOUT': '600', 'HCCL_EXEC_TIMEOUT': '1836'}
# MindSpore refuses a mixture of start-up methods, so a rank gets only the variables of its own.
CLUSTER_VARIABLES = (
    'MS_ROLE',
    'MS_WORKER_NUM',
    'MS_SCHED_HOST',
    'MS_SCHED_PORT',
    'MS_NODE_ID',
    'MS_NODE_RANK',
    'MS_LOCAL_WORKER',
    'MS_SERVER_NUM',
    'MS_TOPO_TIMEOUT',
    'RANK_TABLE_FILE',
    'MINDSPORE_HCCL_CONFIG_PATH',
    'RANK_ID',
    'RANK_SIZE',
    'DEVICE_ID',
    'LOCAL_RANKS',
    'LOCAL_CORES',
    'BEAT_FILE',
)


class Job(NamedTuple):
    """A process to start. A rank's `name` is its number; the others are "scheduler" and "msrun"."""

    name: str
    argv: list[str]
    environment: dict[str, str]


def make_jobs(
    table: RankTable,
    server: Server,
    target: str,
    command: list[str],
    *,
    launcher: str = 'rank_table',
    table_file: str | None = None,
    port: int | None = None,
    cores: Sequence[int] = (0,),
    bind_core: bool = False,
    npus: list[int] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> list[Job]:
    """The jobs of one server, in the order in which they are started.

    Args:
        server: the one of the table that this machine is; on the CPU only msrun needs it.
        target: "Ascend" or "CPU".
        command: [script, option, ...].
        launcher: "rank_table" or "msrun".
        table_file: file of the table, if there is one.
        port: of the scheduler.
        cores: CPU cores to use; with `bind_core` each rank is bound to its share of them.
        npus: physical numbers of this machine's NPUs, ascending; None if the table counts devices as CANN does.
        environ: environment variables to start from.

    Raises:
        InputError: a device of the table is not here, or there are fewer cores than ranks to bind to them.
    """
    # On the CPU the ranks of all servers run on this machine: a rehearsal of the real launch.
    devices = server.devices if target == 'Ascend' or launcher == 'msrun' else table.devices
    common = _common_environment(len(devices), len(cores), target, table_file, environ)
    if launcher == 'msrun':
        ids = [device_index(device.device_id, npus) for device in devices] if target == 'Ascend' else []
        return [_msrun(table, server, ids, command, port, bind_core, common)]
    if bind_core and len(cores) < len(devices):
        raise InputError(f'--bind_core: {len(devices)} ranks, but {len(cores)} cores; leave it out')
    size = str(len(table.devices))
    common['RANK_SIZE'], jobs = size, []
    if target == 'Ascend':
        common = HCCL_TIMEOUTS | common | {'RANK_TABLE_FILE': table_file}
    else:
        common |= DYNAMIC_CLUSTER | {'MS_WORKER_NUM': size, 'MS_SCHED_PORT': str(port)}
        jobs = [Job('scheduler', [sys.executable, '-c', SCHEDULER], common | {'MS_ROLE': 'MS_SCHED', 'RANK_ID': '0'})]
    for i, device in enumerate(devices):
        share = cores[i * len(cores) // len(devices) : (i + 1) * len(cores) // len(devices)] if bind_core else ()
        jobs.append(_rank(device, target, command, share, npus, common))
    return jobs


def _common_environment(ranks, cores, target, table_file, environ):
    """The variables of all jobs: what is inherited, and the numbers of ranks and cores of this machine."""
    common = {name: value for name, value in environ.items() if name not in CLUSTER_VARIABLES}
    common |= {'LOCAL_RANKS': str(ranks), 'LOCAL_CORES': str(cores)}
    if table_file is not None:
        # The table says which devices are used, and its numbers count all of them.
        common.pop('ASCEND_RT_VISIBLE_DEVICES', None)
    if target == 'CPU':
        common.setdefault('OMP_NUM_THREADS', str(max(1, cores // ranks)))
    return common


def _rank(device: Device, target, command, cores, npus, common):
    """The job of one rank; it is bound to `cores` if there are any."""
    rank = str(device.rank_id)
    binding = ['taskset', '-c', ','.join(map(str, cores))] if cores else []
    environment = common | {'RANK_ID': rank, 'DEVICE_ID': str(device_index(device.device_id, npus))}
    if target == 'CPU':
        environment |= {'MS_ROLE': 'MS_WORKER', 'MS_NODE_ID': rank}
    return Job(rank, [*binding, sys.executable, '-u', *command], environment)


def device_index(device_id: int, npus: list[int] | None) -> int:
    """The number by which CANN knows a device. A container may see only some NPUs, and CANN counts those from 0, while a
    rank table has physical numbers, which HCCL compares. InputError if the device is not among `npus`.

    https://www.hiascend.com/document/detail/en/CANNCommunityEdition/910/API/runtimeapi/aclcppdevg_03_2286.html
    """
    if npus is None:
        return device_id
    if device_id not in npus:
        raise InputError(
            f'device {device_id} of the rank table is not here; there are ' + ', '.join(f'/dev/davinci{i}' for i in npus)
        )
    return npus.index(device_id)


def _msrun(table, server, ids, command, port, bind_core, environment):
    """The job of MindSpore's launcher, for the devices `ids`. It is found in PATH, as is the `python3` that it runs; both
    must be those of this interpreter."""
    master = '127.0.0.1' if len(table.servers) == 1 else table.servers[0].names[0]
    here, size = os.path.dirname(sys.executable), len(table.devices)
    if os.path.dirname(shutil.which('python3', path=environment.get('PATH')) or '') != here:
        environment['PATH'] = here + os.pathsep + environment.get('PATH', os.defpath)
    if ids != list(range(len(ids))):
        environment['ASCEND_RT_VISIBLE_DEVICES'] = ','.join(map(str, sorted(ids)))  # msrun numbers devices from 0
    argv = [
        'msrun',
        f'--worker_num={size}',
        f'--local_worker_num={len(server.devices)}',
        f'--master_addr={master}',
        f'--master_port={port}',
        f'--node_rank={table.servers.index(server)}',
        '--join=True',
        f'--log_dir={os.path.join("results", f"{size}p", "msrun")}',
        '--tail_worker_log=0',
    ]
    return Job('msrun', [*argv, *['--bind_core=True'] * bind_core, 'python3', '-u', *command], environment)
