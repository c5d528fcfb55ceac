"""What a launch starts on a server: each process with its command and environment variables.

On Ascend and on the CPU alike this is MindSpore's dynamic cluster, as its own launcher msrun starts it:
https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/dynamic_cluster.html. MindSpore 2.8 does not start from rank tables:
its libraries refuse RANK_TABLE_FILE in init(), though its pages still describe it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from src import environment
from src.cluster.servers import Device, RankTable, Server, address
from src.errors import InputError

# The scheduler blocks in init() until its workers have left. On the CPU: it must not open an NPU that a rank will use.
SCHEDULER = "import mindspore; mindspore.set_device('CPU'); mindspore.communication.init()"
# Ranks compile for minutes, not all equally long: HCCL's default of 120 s to connect is too short.
HCCL_TIMEOUTS = {'HCCL_CONNECT_TIMEOUT': '600', 'HCCL_EXEC_TIMEOUT': '1836'}
# MindSpore refuses a mixture of start-up methods, so a rank inherits none of their variables.
CLUSTER_VARIABLES = (
    *environment.RANK_TABLES,
    'MS_ROLE',
    'MS_WORKER_NUM',
    'MS_SCHED_HOST',
    'MS_SCHED_PORT',
    'MS_NODE_ID',
    'MS_NODE_RANK',
    'MS_LOCAL_WORKER',
    'MS_SERVER_NUM',
    'MS_TOPO_TIMEOUT',
    'RANK_ID',
    'RANK_SIZE',
    'DEVICE_ID',
    'LOCAL_RANKS',
    'LOCAL_CORES',
    'BEAT_FILE',
)


class Job(NamedTuple):
    """A process to start. A rank's `name` is its number; the other one is "scheduler"."""

    name: str
    argv: list[str]
    environment: dict[str, str]


def make_jobs(
    table: RankTable,
    server: Server,
    target: str,
    command: list[str],
    *,
    port: int,
    cores: Sequence[int] = (0,),
    bind_core: bool = False,
    npus: list[int] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> list[Job]:
    """The jobs of one server, in the order in which they are started: the scheduler, if this is the first server, and ranks.

    Args:
        server: the one of the table that this machine is. On the CPU the ranks of all servers run on this machine: a
            rehearsal of the real launch.
        target: "Ascend" or "CPU".
        command: [script, option, ...].
        port: of the scheduler.
        cores: CPU cores to use; with `bind_core` each rank is bound to its share of them.
        npus: physical numbers of this machine's NPUs, ascending; None if the table counts devices as CANN does.
        environ: environment variables to start from.

    Raises:
        InputError: a device of the table is not here, the first server has no address, or there are fewer cores than ranks
            to bind to them.
    """
    devices, size = table.devices if target == 'CPU' else server.devices, len(table.devices)
    if bind_core and len(cores) < len(devices):
        raise InputError(f'--bind_core: {len(devices)} ranks, but {len(cores)} cores; leave it out')
    common = _inherited(len(devices), len(cores), target, npus, environ) | {
        'RANK_SIZE': str(size),
        'MS_WORKER_NUM': str(size),
        'MS_SCHED_HOST': '127.0.0.1' if len(devices) == size else address(table.servers[0]),
        'MS_SCHED_PORT': str(port),
        'MS_TOPO_TIMEOUT': '600',  # seconds for all ranks to come, as for HCCL's connections
    }
    jobs = []
    if target == 'CPU' or server is table.servers[0]:
        jobs = [Job('scheduler', [sys.executable, '-c', SCHEDULER], common | {'MS_ROLE': 'MS_SCHED', 'RANK_ID': '0'})]
    for i, device in enumerate(devices):
        share = cores[i * len(cores) // len(devices) : (i + 1) * len(cores) // len(devices)] if bind_core else ()
        jobs.append(_rank(device, command, share, npus, common))
    return jobs


def _inherited(ranks, cores, target, npus, environ):
    """The variables of all jobs: what is inherited, and the numbers of ranks and cores of this machine."""
    common = {name: value for name, value in environ.items() if name not in CLUSTER_VARIABLES}
    common |= {'LOCAL_RANKS': str(ranks), 'LOCAL_CORES': str(cores)}
    if npus is not None:
        # The table says which devices are used, and its numbers count all of them.
        common.pop('ASCEND_RT_VISIBLE_DEVICES', None)
    if target == 'CPU':
        return {'OMP_NUM_THREADS': str(max(1, cores // ranks))} | common
    return HCCL_TIMEOUTS | common


def _rank(device: Device, command, cores, npus, common):
    """The job of one rank; it is bound to `cores` if there are any."""
    rank = str(device.rank_id)
    binding = ['taskset', '-c', ','.join(map(str, cores))] if cores else []
    # A number as MS_NODE_ID is the rank. MindSpore counts the devices of a host name itself unless a rank sets its own
    # (collective_manager.cc), as `runtime.start` does with DEVICE_ID.
    own = {'MS_ROLE': 'MS_WORKER', 'MS_NODE_ID': rank, 'RANK_ID': rank}
    own['DEVICE_ID'] = str(device_index(device.device_id, npus))
    return Job(rank, [*binding, sys.executable, '-u', *command], common | own)


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
