"""Start and supervise one process per device that a rank table lists for this server (Linux).

    python -m src.cluster.launch [--launcher rank_table|msrun] [--bind_core] RANK_TABLE SCRIPT.py [--option value ...]

Ascend: rank table start-up, https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/rank_table.html
CPU:    dynamic cluster, https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/dynamic_cluster.html
msrun:  https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/msrun_launcher.html
Each rank's output goes to results/<N>p/<rank>/train.log, rank 0's to the screen as well. If a rank fails the
others are ended; SIGINT and SIGTERM are passed on, so that the ranks can save a checkpoint. No process is
left behind.
"""

import argparse
import contextlib
import ipaddress
import os
import shutil
import socket
import sys

from src import environment, lock
from src.cluster import rank_table
from src.cluster.supervisor import Supervisor, say
from src.errors import InputError, Parser, entry_point

# The scheduler of a dynamic cluster blocks in init() until its workers have left.
SCHEDULER = "import mindspore; mindspore.set_device('CPU'); mindspore.communication.init()"
RESTART = 30  # seconds that a launcher which is ending may take, where its job is started again early
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
)


def option(options, name):
    """Last value of `--name value` or `--name=value` among the script's options, or None."""
    value = None
    for word, following in zip(options, [*options[1:], None]):
        if word == f'--{name}':
            value = following
        elif word.startswith(f'--{name}='):
            value = word.partition('=')[2]
    return value


def plan(
    table,
    server,
    target,
    command,
    *,
    launcher='rank_table',
    table_file=None,
    port=8118,
    cores=(0,),
    bind_core=False,
    npus=None,
    environ=os.environ,
):
    """What to start on `server`: a list of (name, argv, environment); ranks are named by their number.

    table: RankTable; target: "Ascend" or "CPU"; command: [script, option, ...]; cores: CPU cores to use; npus: physical
    numbers of this machine's NPUs, ascending, or None if the table counts devices as CANN does.
    MindSpore refuses a mixture of start-up methods, so variables of another one are not handed on.
    """
    base = {name: value for name, value in environ.items() if name not in CLUSTER_VARIABLES}
    size, single = len(table.devices), len(table.servers) == 1
    master = '127.0.0.1' if single else table.servers[0].names[0]
    # Several servers' worth of CPU ranks run on this machine, all of them: a rehearsal of the real launch.
    devices = server.devices if target == 'Ascend' or launcher == 'msrun' else table.devices
    base |= {'LOCAL_RANKS': str(len(devices)), 'LOCAL_CORES': str(len(cores))}
    if table_file is not None:  # it says which devices, and counts them all
        base.pop('ASCEND_RT_VISIBLE_DEVICES', None)
    if target == 'CPU':
        base.setdefault('OMP_NUM_THREADS', str(max(1, len(cores) // len(devices))))
    if launcher == 'msrun':
        ids = [device_index(device.device_id, npus) for device in devices] if target == 'Ascend' else []
        return [_msrun(table, server, ids, command, master, port, bind_core, base)]
    if bind_core and len(cores) < len(devices):
        raise InputError(f'--bind_core: {len(devices)} ranks, but {len(cores)} cores; leave it out')
    jobs = []
    base['RANK_SIZE'] = str(size)
    if target == 'Ascend':
        # Ranks compile for minutes, not all equally long: the default of 120 s to connect is too short.
        base = {'HCCL_CONNECT_TIMEOUT': '600', 'HCCL_EXEC_TIMEOUT': '1836'} | base
        base['RANK_TABLE_FILE'] = table_file
    else:
        base |= {
            'MS_WORKER_NUM': str(size),
            'MS_SCHED_HOST': '127.0.0.1',
            'MS_SCHED_PORT': str(port),
            'MS_TOPO_TIMEOUT': '600',
        }
        env = base | {'MS_ROLE': 'MS_SCHED', 'RANK_ID': '0'}
        jobs.append(('scheduler', [sys.executable, '-c', SCHEDULER], env))
    for i, device in enumerate(devices):
        share = cores[i * len(cores) // len(devices) : (i + 1) * len(cores) // len(devices)]
        prefix = ['taskset', '-c', ','.join(map(str, share))] if bind_core else []
        rank = str(device.rank_id)
        env = base | {'RANK_ID': rank, 'DEVICE_ID': str(device_index(device.device_id, npus))}
        if target == 'CPU':
            env |= {'MS_ROLE': 'MS_WORKER', 'MS_NODE_ID': rank}
        jobs.append((rank, [*prefix, sys.executable, '-u', *command], env))
    return jobs


def device_index(device_id, npus):
    """The number by which CANN knows a device: a container may see only some, and they are counted from 0 there.

    A rank table has physical numbers (HCCL compares them):
    https://www.hiascend.com/document/detail/en/CANNCommunityEdition/910/API/runtimeapi/aclcppdevg_03_2286.html
    """
    if npus is None:
        return device_id
    if device_id not in npus:
        raise InputError(
            f'device {device_id} of the rank table is not here; there are ' + ', '.join(f'/dev/davinci{i}' for i in npus)
        )
    return npus.index(device_id)


def _msrun(table, server, ids, command, master, port, bind_core, env):
    """The msrun job; it runs `python3` and its own name from PATH, which must be this interpreter's."""
    here, size = os.path.dirname(sys.executable), len(table.devices)
    if os.path.dirname(shutil.which('python3', path=env.get('PATH')) or '') != here:
        env['PATH'] = here + os.pathsep + env.get('PATH', os.defpath)
    if ids != list(range(len(ids))):
        env['ASCEND_RT_VISIBLE_DEVICES'] = ','.join(map(str, sorted(ids)))  # msrun numbers devices from 0
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
    return 'msrun', [*argv, *['--bind_core=True'] * bind_core, 'python3', '-u', *command], env


def local_server(table, server_id=None):
    """The server of the table this machine is; a table of one server means this one."""
    if server_id is None and len(table.servers) == 1:
        return table.servers[0]
    asked = server_id or os.environ.get('XDL_IP')  # in MindCluster's containers, which need not have the host's address
    found = (
        []
        if server_id
        else [server for server in table.servers if any(map(_is_local, server.addresses or [server.server_id]))]
    )
    found = found or [server for server in table.servers if asked in server.names]
    if len(found) == 1:
        return found[0]
    names = ', '.join(ascii(server.server_id) for server in table.servers[:8])
    if server_id is not None:
        raise InputError(f'--server_id {server_id} is not in the rank table ({names})')
    raise InputError(
        f'{len(found)} servers of the rank table ({names}) have an address of this machine; '
        'say which one it is with --server_id'
    )


def _is_local(name):
    """Whether a host name or address is this machine's: only those can be bound to."""
    if name in (socket.gethostname(), socket.getfqdn()):
        return True
    try:
        for family, _, _, _, address in socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind(address)
            return not ipaddress.ip_address(address[0].partition('%')[0]).is_unspecified
    except (OSError, UnicodeError):
        return False


def choose_port(asked):
    """A free TCP port, `asked` if given; InputError if that one is taken."""
    if asked is not None and not 1024 <= asked <= 65535:
        raise InputError(f'--master_port {asked}: must be 1024 to 65535')
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('', asked or 0))
        except OSError as error:
            raise InputError(f'--master_port {asked}: {error.strerror}; leave it out for a free one') from None
        return probe.getsockname()[1]


def _arguments(arguments):
    """(launcher's options, the script's options); the launcher's may also stand among the script's."""
    ours = Parser(add_help=False, allow_abbrev=False)
    ours.add_argument('--launcher', choices=('rank_table', 'msrun'), help='default: rank_table')
    ours.add_argument('--server_id', help='which server of the table this is (default: by its addresses)')
    ours.add_argument('--bind_core', action='store_true', help='give each rank its share of the CPU cores')
    ours.add_argument('--master_port', type=int, help='port of the scheduler (default: a free one)')
    ours.add_argument('--grace', type=float, help='seconds to save and exit after a signal (default: 60)')
    parser = Parser(
        prog='python -m src.cluster.launch',
        parents=[ours],
        allow_abbrev=False,
        description='start one process per device of this server',
    )
    parser.add_argument('rank_table', help='file; or, for the CPU or msrun, just a number of devices')
    parser.add_argument('script')
    parser.add_argument('options', nargs=argparse.REMAINDER, help='passed on to the script')
    args = parser.parse_args(arguments)
    _, options = ours.parse_known_args(args.options, args)
    return args, options


def _target(options):
    """ "Ascend" or "CPU": as asked for, or by what this machine has."""
    asked = option(options, 'device_target')
    npus = environment.npus()
    if asked not in (None, 'auto', 'Ascend', 'CPU'):
        raise InputError(f'--device_target {asked}: must be auto, Ascend or CPU')
    if asked in ('Ascend', 'CPU'):
        if asked == 'Ascend' and not npus:
            say('note: --device_target Ascend, but there is no NPU here (no /dev/davinci*)')
        return asked
    if not npus:
        say('no NPU here (no /dev/davinci*): the ranks run on the CPU')
    return 'Ascend' if npus else 'CPU'


def _hold(directory, rank):
    """Refuse a second launcher of these ranks here; other servers may use the same directory over a network."""
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise InputError(f'{directory} cannot be made: {error.strerror}') from None
    return lock.hold(directory, RESTART, say, f'.launch-{rank}.lock')


@entry_point
def main(arguments=None):
    args, options = _arguments(arguments)
    launcher, grace = args.launcher or 'rank_table', 60 if args.grace is None else args.grace
    if not 0 <= grace < float('inf'):
        raise InputError(f'--grace {grace:g}: must be 0 or more seconds')
    if not os.path.isfile(args.script):
        raise InputError(f'no script {args.script}')
    target = _target(options)
    if args.rank_table.isdecimal() and not os.path.exists(args.rank_table):
        if target == 'Ascend' and launcher == 'rank_table' or not 1 <= int(args.rank_table[:6]) <= 1024:
            raise InputError(
                f'RANK_TABLE {args.rank_table}: a number must be 1 to 1024; NPUs need a file '
                '(python -m src.cluster.rank_table make) or --launcher msrun'
            )
        table, table_file = rank_table.of_this_machine(range(int(args.rank_table))), None
    else:
        rank_table.wait(args.rank_table, say)
        table, table_file = rank_table.read(args.rank_table), os.path.abspath(args.rank_table)
        for warning in table.warnings:
            say(f'warning: {warning}')
    if target == 'Ascend' and environment.npus():
        environment.check()
    size = str(len(table.devices))
    if option(options, 'rank_size') not in (None, size):
        raise InputError(f'--rank_size {option(options, "rank_size")}, but the rank table has {size} ranks')
    for name, value in (('rank_size', size), ('device_target', target)):
        if option(options, name) is None:
            options += [f'--{name}', value]
    on_cpu = target == 'CPU' and launcher == 'rank_table'
    server = table.servers[0] if on_cpu and args.server_id is None else local_server(table, args.server_id)
    if on_cpu and len(table.servers) > 1:
        say(f'CPU: the ranks of all {len(table.servers)} servers run on this machine')
    if args.bind_core and not shutil.which('taskset'):
        raise InputError('--bind_core needs `taskset` (package util-linux)')
    # Servers that start on their own have to agree on the port, so it cannot be just any free one.
    port = args.master_port or 8118 if len(table.servers) > 1 and not on_cpu else None
    if port is None and (on_cpu or launcher == 'msrun'):
        port = choose_port(args.master_port)
    jobs = plan(
        table,
        server,
        target,
        [args.script, *options],
        launcher=launcher,
        port=port,
        table_file=table_file,
        cores=sorted(os.sched_getaffinity(0)),
        bind_core=args.bind_core,
        npus=environment.npus() or None if table_file and target == 'Ascend' else None,
    )
    directory = os.path.join('results', f'{size}p')
    logs = 'msrun/worker_<rank>.log' if launcher == 'msrun' else '<rank>/train.log'
    say(f'{size} ranks, {target}; logs in {os.path.join(directory, logs)}')
    with _hold(directory, server.devices[0].rank_id) or contextlib.nullcontext():
        sys.exit(Supervisor(jobs, directory, grace).run())


if __name__ == '__main__':
    main()
