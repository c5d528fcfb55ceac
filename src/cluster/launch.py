"""Start and supervise one process per device that a rank table lists for this server (Linux).

    python -m src.cluster.launch [--bind_core] RANK_TABLE SCRIPT.py [--option value ...]

RANK_TABLE: file, directory with the file of a container, or a number of devices of this server, which are then 0, 1, ...
Each rank's output goes to results/<N>p/<rank>/train.log, rank 0's to the screen as well. If a rank fails, the
others are ended; with --max_restarts N all are then started again, from the newest checkpoint. SIGINT and SIGTERM are passed
on, so that the ranks can save a checkpoint. No process is left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import sys

from src import environment, files
from src.cluster import rank_table
from src.cluster.agreement import Agreement
from src.cluster.jobs import make_jobs
from src.cluster.logs import say
from src.cluster.restarts import Restarts, run
from src.cluster.servers import RankTable, address, local_server, one_server
from src.cluster.signals import Signals
from src.cluster.supervisor import Supervisor
from src.cluster.watchdog import Watchdog
from src.errors import InputError, Parser, entry_point

RESTART = 30  # seconds to wait for a launcher that is still ending: a batch system may start its job again early
PORT = 8118  # of the scheduler of several servers, as for msrun; the launchers themselves talk over the next one


def option(options: list[str], name: str) -> str | None:
    """The value of the last `--name value` or `--name=value` among the script's options, or None."""
    value = None
    for word, following in zip(options, [*options[1:], None]):
        if word == f'--{name}':
            value = following
        elif word.startswith(f'--{name}='):
            value = word.partition('=')[2]
    return value


def choose_port(asked: int | None) -> int:
    """`asked` if it is given, else any free TCP port. InputError if `asked` is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('', asked or 0))
        except OSError as error:
            raise InputError(f'port {asked} for the scheduler: {error.strerror}; give another --master_port') from None
        return probe.getsockname()[1]


def _arguments(arguments):
    """(the launcher's arguments, the script's options); the launcher's options may stand among the script's, too."""
    ours = Parser(add_help=False, allow_abbrev=False)
    ours.add_argument('--server_id', help='which server of the table this is (default: by its addresses)')
    ours.add_argument('--bind_core', action='store_true', help='give each rank its share of the CPU cores')
    ours.add_argument('--master_port', type=int, help=f'port of the scheduler (default: free; several servers: {PORT})')
    ours.add_argument('--grace', type=float, help='seconds to save and exit after a signal (default: 60)')
    ours.add_argument('--max_restarts', type=int, help='restarts after failures without progress between (default: 0)')
    ours.add_argument(
        '--stall_timeout',
        type=float,
        help='seconds without a step that end the training (default: 3 times the slowest so far, at least 600; 0: never)',
    )
    parser = Parser(
        prog='python -m src.cluster.launch',
        parents=[ours],
        allow_abbrev=False,
        description='start one process per device of this server',
    )
    parser.add_argument('rank_table', help='file, or just a number of devices of one server')
    parser.add_argument('script')
    parser.add_argument('options', nargs=argparse.REMAINDER, help='passed on to the script')
    args = parser.parse_args(arguments)
    _, options = ours.parse_known_args(args.options, args)
    return args, options


def _target(options):
    """The device target, "Ascend" or "CPU": the script's option, or what this machine has."""
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
    """Lock the directory, so that a second launcher of these ranks is refused. Launchers of other servers, whose first
    rank is another, may use the same directory over a network."""
    remedy = f'start this training in another working directory, below which its logs go to {directory}'
    return files.lock_directory(directory, remedy, RESTART, say, f'.launch-{rank}.lock')


def _table(text, npus):
    """(table, the physical numbers of `npus` that it refers to or None) of the argument RANK_TABLE."""
    if text.isdecimal() and not os.path.exists(text):
        most = len(npus) or 1024
        if not 1 <= int(text[:6]) <= most:
            raise InputError(f'RANK_TABLE {text}: a number of devices must be 1 to {most}{" here" * bool(npus)}')
        return one_server(range(int(text))), None
    rank_table.wait(text, say)
    table = rank_table.read(text)
    return table, npus or None


def _complete(options, table: RankTable, target):
    """The script's options with --rank_size and --device_target. InputError if another size is given."""
    size = str(len(table.devices))
    if option(options, 'rank_size') not in (None, size):
        raise InputError(f'--rank_size {option(options, "rank_size")}, but the rank table has {size} ranks')
    for name, value in (('rank_size', size), ('device_target', target)):
        if option(options, name) is None:
            options = [*options, f'--{name}', value]
    return options


def _checked(args):
    """`args` with defaults. InputError if one is out of range."""
    args.grace, args.max_restarts = 60 if args.grace is None else args.grace, args.max_restarts or 0
    if args.master_port is not None and not 1024 <= args.master_port <= 65534:
        raise InputError(f'--master_port {args.master_port}: must be 1024 to 65534')
    for name in ('grace', 'max_restarts', 'stall_timeout'):
        value = getattr(args, name)
        if value is not None and not 0 <= value < float('inf'):
            raise InputError(f'--{name} {value:g}: must be 0 or more{"" if name == "max_restarts" else " seconds"}')
    if not os.path.isfile(args.script):
        raise InputError(f'no script {args.script}')
    if args.bind_core and not shutil.which('taskset'):
        raise InputError('--bind_core needs `taskset` (package util-linux)')
    return args


def _starter(args, options, target, table, npus, server, signals, agreement):
    """A function that starts the ranks of this server and gives their `Outcome`; see `restarts.run`."""
    size = len(table.devices)

    def start(resume):
        # Servers that start on their own have to agree on the port, so it cannot be just any free one.
        port = args.master_port or (PORT if target == 'Ascend' and len(table.servers) > 1 else None)
        if target == 'CPU' or server is table.servers[0]:  # the scheduler is here
            port = choose_port(port)
        jobs = make_jobs(
            table,
            server,
            target,
            [args.script, *options, *(['--resume', 'auto', '--overwrite', 'false'] if resume else [])],
            port=port,
            cores=sorted(os.sched_getaffinity(0)),
            bind_core=args.bind_core,
            npus=npus,
        )
        with Watchdog(size, args.stall_timeout) as watchdog:
            return Supervisor(jobs, os.path.join('results', f'{size}p'), args.grace, watchdog, signals, agreement).run()

    return start


@entry_point
def main(arguments: list[str] | None = None):
    """The command line. The exit status is that of the last start of the ranks (`Outcome.status`), or 2 for unusable
    input."""
    args, options = _arguments(arguments)
    args = _checked(args)
    target = _target(options)
    table, npus = _table(args.rank_table, environment.npus() if target == 'Ascend' else [])
    if target == 'Ascend' and environment.npus():
        environment.check()
    options = _complete(options, table, target)
    on_cpu = target == 'CPU'
    server = table.servers[0] if on_cpu and args.server_id is None else local_server(table, args.server_id)
    if on_cpu and len(table.servers) > 1:
        say(f'CPU: the ranks of all {len(table.servers)} servers run on this machine')
    signals, agreement, size = Signals(), None, len(table.devices)
    directory = os.path.join('results', f'{size}p')
    say(f'{size} ranks, {target}; logs in {os.path.join(directory, "<rank>/train.log")}')
    with _hold(directory, server.devices[0].rank_id) or contextlib.nullcontext():
        signals.catch()
        if args.max_restarts and len(table.servers) > 1 and not on_cpu:
            port = (args.master_port or PORT) + 1  # beside the scheduler's
            agreement = Agreement(table.servers.index(server), len(table.servers), address(table.servers[0]), port)
        start = _starter(args, options, target, table, npus, server, signals, agreement)
        sys.exit(run(start, Restarts(args.max_restarts), signals, agreement))


if __name__ == '__main__':
    main()
