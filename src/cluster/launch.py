"""Start and supervise one process per device that a rank table lists for this server (Linux).

    python -m src.cluster.launch RANK_TABLE SCRIPT.py [--option value ...]

RANK_TABLE: file, directory with the file of a container, or a number of devices of this server, which are then 0, 1, ...
Each rank's output goes to results/<N>p/<rank>/train.log, rank 0's to the screen as well. If a rank fails or hangs, all
are ended; with --max_restarts N the ranks of a single server are then started again, from the newest checkpoint. Signals
are passed on, so that the ranks can save a checkpoint. No process is left behind.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from src import environment, files
from src.cluster import rank_table
from src.cluster.rank_table import Device
from src.cluster.supervisor import Signals, Supervisor, log
from src.cluster.watchdog import STALL, Watchdog
from src.errors import InputError, Parser, TrainingError, entry_point, reading

BUSY = 30  # seconds to wait for a launcher that is still ending: a batch system may start its job again early
PORT = 8118  # of the scheduler of several servers, as for msrun
PAUSE, LONGEST = 10, 600  # seconds of the first pause before a restart, which doubles each time, and of the longest
NEVER = (InputError.exit_status, TrainingError.exit_status)  # a restart would fail in the same way
# The scheduler blocks in init() until its workers have left. On the CPU: it must not open an NPU that a rank will use.
SCHEDULER = "import mindspore; mindspore.set_device('CPU'); mindspore.communication.init()"
# Ranks compile for minutes, not all equally long: HCCL's default of 120 s to connect is too short, MindSpore's as well.
TIMEOUTS = {'HCCL_CONNECT_TIMEOUT': '600', 'HCCL_EXEC_TIMEOUT': '1836', 'MS_TOPO_TIMEOUT': '600'}
# MindSpore refuses a mixture of start-up methods, so neither ranks nor scheduler inherit what is not set for them here.
STARTS = {*environment.RANK_TABLES, 'MS_NODE_ID', 'MS_NODE_RANK', 'MS_LOCAL_WORKER', 'MS_SERVER_NUM', 'DEVICE_ID'}


class Launch(NamedTuple):
    """What is started on this machine: on the CPU the ranks of all servers, a rehearsal of the real launch."""

    target: str  # "Ascend" or "CPU"
    size: int  # number of ranks on all servers
    devices: list[Device]  # of this machine, with the numbers that CANN has for them
    host: str  # address of the first server, where the scheduler runs; its port, or 0 for any
    port: int

    def jobs(self, command: list[str]) -> dict[str, tuple]:
        """The jobs of a `Supervisor`, as MindSpore's own launcher msrun starts a dynamic cluster: the scheduler, if this is
        the first server, and ranks that run `command`. InputError if the port is unusable.
        https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/dynamic_cluster.html"""
        here = len(self.devices)
        common = {'OMP_NUM_THREADS': str(max(1, len(os.sched_getaffinity(0)) // here))} if self.target == 'CPU' else {}
        common |= TIMEOUTS | {name: value for name, value in os.environ.items() if name not in STARTS}
        common |= {'LOCAL_RANKS': str(here), 'RANK_SIZE': str(self.size)}
        common |= {'MS_WORKER_NUM': str(self.size), 'MS_SCHED_HOST': self.host, 'MS_SCHED_PORT': str(self.port)}
        jobs = {}
        if self.devices[0].rank_id == 0:
            with reading(f'port {self.port}', 'choose another --master_port', (OverflowError,)):
                with socket.create_server(('', self.port)) as probe:
                    common['MS_SCHED_PORT'] = str(probe.getsockname()[1])
            jobs['scheduler'] = [sys.executable, '-c', SCHEDULER], common | {'MS_ROLE': 'MS_SCHED', 'RANK_ID': '0'}
        for device in self.devices:
            # A number as MS_NODE_ID is the rank. MindSpore counts the devices of a host name itself unless a rank sets its
            # own (collective_manager.cc), as `runtime.start` does with DEVICE_ID.
            rank = str(device.rank_id)
            own = {'MS_ROLE': 'MS_WORKER', 'MS_NODE_ID': rank, 'RANK_ID': rank, 'DEVICE_ID': str(device.device_id)}
            jobs[rank] = [sys.executable, '-u', *command], common | own
        return jobs


def with_restarts(start: Callable[[bool], tuple[int, str, bool]], allowed: int, signals: Signals) -> int:
    """Start the ranks until they end well, or are not to be started again: after `allowed` failures without a new checkpoint
    between them. `start` takes whether there is a checkpoint to resume from, and returns what `Supervisor.supervise` does.
    Returns the launcher's exit status."""
    done, saved = 0, False
    while True:
        status, cause, saved_now = start(saved)
        done, saved = 0 if saved_now else done, saved or saved_now
        if not cause or signals or not allowed:
            return status
        if status in NEVER or done == allowed:
            log(f'not started again{"" if status in NEVER else f" after {done} restarts (--max_restarts)"}: {cause}')
            return status
        pause, done = min(PAUSE * 2**done, LONGEST), done + 1
        where = 'from the newest checkpoint' if saved else 'from the beginning, as nothing was saved'
        log(f'restart {done} of {allowed} in {pause:g} s, {where}: {cause}')
        end = time.monotonic() + pause
        while not signals and time.monotonic() < end:
            time.sleep(0.1)
        if signals:
            return 128 + signals[0]


def _arguments(arguments):
    """(the launcher's arguments, the script's options); the launcher's options may stand among the script's, too."""
    parser = Parser('python -m src.cluster.launch', epilog='Other options are passed on to the script.', allow_abbrev=False)
    parser.add_argument('rank_table', help='file, or just a number of devices of one server')
    parser.add_argument('script')
    parser.add_argument('--server_id', help='which server of the table this is (default: by its addresses)')
    parser.add_argument('--master_port', type=int, help=f'of the scheduler (default: free; several servers: {PORT})')
    parser.add_argument('--grace', type=float, default=60, help='seconds to save and exit after a signal (default: 60)')
    parser.add_argument('--max_restarts', type=int, default=0, help='restarts without a new checkpoint (default: 0)')
    parser.add_argument('--stall_timeout', type=float, default=STALL, help=f'seconds until a step hangs (default: {STALL})')
    parser.add_argument('--device_target', default='auto', help='Ascend, CPU or auto')
    args, options = parser.parse_known_args(arguments)
    for name in ('grace', 'max_restarts', 'stall_timeout'):
        if (value := getattr(args, name)) < 0:
            raise InputError(f'--{name} {value:g}: must be 0 or more')
    return args, options


def _launch(args):
    """The `Launch` that the arguments describe. InputError if it cannot be that."""
    npus = environment.npus() if args.device_target != 'CPU' else []
    if npus:
        environment.check()
    target = args.device_target if args.device_target != 'auto' else 'Ascend' if npus else 'CPU'
    if counted := args.rank_table.isdecimal() and not os.path.exists(args.rank_table):
        table = rank_table.one_server(int(args.rank_table), npus)
    else:
        table = rank_table.read(args.rank_table, log)
    devices = everywhere = rank_table.all_devices(table)
    if target != 'CPU':
        devices = rank_table.local_server(table, args.server_id).devices
    size, several = len(everywhere), len(devices) < len(everywhere)
    if several and args.max_restarts:
        raise InputError(f'--max_restarts {args.max_restarts} is for a single server; for several see deploy/slurm.sh')
    if npus and not counted:  # a table's numbers count all devices; CANN counts those that a container sees from 0:
        # https://www.hiascend.com/document/detail/en/CANNCommunityEdition/910/API/runtimeapi/aclcppdevg_03_2286.html
        os.environ.pop('ASCEND_RT_VISIBLE_DEVICES', None)
        if missing := [device.device_id for device in devices if device.device_id not in npus]:
            there = ', '.join(f'/dev/davinci{i}' for i in npus)
            raise InputError(f'device {missing[0]} of the rank table is not here; there are {there}')
        devices = [Device(npus.index(device.device_id), device.rank_id) for device in devices]
    with reading(f'{table[0].names[0]}, the first server of the rank table', 'its server_id must be an address'):
        host = socket.gethostbyname(table[0].names[0]) if several else '127.0.0.1'  # MindSpore takes no names
    # Servers that start on their own agree on the port.
    return Launch(target, size, devices, host, args.master_port or PORT * several)


@entry_point
def main(arguments: list[str] | None = None) -> None:
    """The command line. The exit status is 0, that of the rank that failed first (128 + its signal), 128 + the signal that
    ended this process, or 2 for unusable input."""
    args, options = _arguments(arguments)
    launch = _launch(args)
    directory = f'results/{launch.size}p'
    options = [*options, '--device_target', launch.target, '--rank_size', str(launch.size)]

    def start(resume):
        again = ['--resume', 'auto', '--overwrite', 'false'] if resume else []
        watchdog = Watchdog(launch.size, args.stall_timeout)
        return Supervisor(launch.jobs([args.script, *options, *again]), directory, args.grace, watchdog, signals).supervise()

    with reading(args.script):
        os.stat(args.script)
    # Launchers of other servers, whose first rank is another, may use the same directory over a network.
    path = f'{directory}/.launch-{launch.devices[0].rank_id}.lock'
    remedy = f'start this run in another working directory, below which its logs go to {directory}'
    with files.lock_file(path, remedy, BUSY, log):
        signals = Signals()
        log(f'{launch.size} ranks, {launch.target}; logs in {directory}/<rank>/train.log')
        sys.exit(with_restarts(start, args.max_restarts, signals))


if __name__ == '__main__':
    main()
