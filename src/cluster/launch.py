"""Start and supervise one process per device that a rank table lists for this server (Linux).

    python -m src.cluster.launch [--launcher rank_table|msrun] [--bind_core] RANK_TABLE SCRIPT.py [--option value ...]

Each rank's output goes to results/<N>p/<rank>/train.log, rank 0's to the screen as well. If a rank fails, the
others are ended. SIGINT and SIGTERM are passed on, so that the ranks can save a checkpoint. No process is left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import sys

from src import environment, lock
from src.cluster import rank_table
from src.cluster.jobs import make_jobs
from src.cluster.servers import RankTable, local_server, one_server
from src.cluster.supervisor import Supervisor, say
from src.errors import InputError, Parser, entry_point

RESTART = 30  # seconds to wait for a launcher that is still ending: a batch system may start its job again early
PORT = 8118  # msrun's default; servers that are started one by one must agree on it


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
    """`asked` if it is given, else any free TCP port. InputError if `asked` is taken or out of range."""
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
    """(the launcher's arguments, the script's options); the launcher's options may stand among the script's, too."""
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
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise InputError(f'{directory} cannot be made: {error.strerror}') from None
    return lock.hold(directory, RESTART, say, f'.launch-{rank}.lock')


def _table(text, target, launcher):
    """(table, its file's absolute path or None) of the argument RANK_TABLE, a file or a number of devices."""
    if text.isdecimal() and not os.path.exists(text):
        if target == 'Ascend' and launcher == 'rank_table' or not 1 <= int(text[:6]) <= 1024:
            raise InputError(
                f'RANK_TABLE {text}: a number must be 1 to 1024; NPUs need a file '
                '(python -m src.cluster.rank_table make) or --launcher msrun'
            )
        return one_server(range(int(text))), None
    rank_table.wait(text, say)
    table = rank_table.read(text)
    for warning in table.warnings:
        say(f'warning: {warning}')
    return table, os.path.abspath(text)


def _complete(options, table: RankTable, target):
    """The script's options with --rank_size and --device_target. InputError if another size is given."""
    size = str(len(table.devices))
    if option(options, 'rank_size') not in (None, size):
        raise InputError(f'--rank_size {option(options, "rank_size")}, but the rank table has {size} ranks')
    for name, value in (('rank_size', size), ('device_target', target)):
        if option(options, name) is None:
            options = [*options, f'--{name}', value]
    return options


@entry_point
def main(arguments: list[str] | None = None):
    """The command line. The exit status is that of `Supervisor.run`, or 2 for unusable input."""
    args, options = _arguments(arguments)
    launcher, grace = args.launcher or 'rank_table', 60 if args.grace is None else args.grace
    if not 0 <= grace < float('inf'):
        raise InputError(f'--grace {grace:g}: must be 0 or more seconds')
    if not os.path.isfile(args.script):
        raise InputError(f'no script {args.script}')
    target = _target(options)
    table, table_file = _table(args.rank_table, target, launcher)
    npus = environment.npus() if target == 'Ascend' else []
    if npus:
        environment.check()
    options = _complete(options, table, target)
    on_cpu = target == 'CPU' and launcher == 'rank_table'
    server = table.servers[0] if on_cpu and args.server_id is None else local_server(table, args.server_id)
    if on_cpu and len(table.servers) > 1:
        say(f'CPU: the ranks of all {len(table.servers)} servers run on this machine')
    if args.bind_core and not shutil.which('taskset'):
        raise InputError('--bind_core needs `taskset` (package util-linux)')
    # Servers that start on their own have to agree on the port, so it cannot be just any free one.
    port = args.master_port or PORT
    if on_cpu or launcher == 'msrun' and len(table.servers) == 1:
        port = choose_port(args.master_port)
    jobs = make_jobs(
        table,
        server,
        target,
        [args.script, *options],
        launcher=launcher,
        port=port,
        table_file=table_file,
        cores=sorted(os.sched_getaffinity(0)),
        bind_core=args.bind_core,
        npus=npus or None if table_file else None,
    )
    size = len(table.devices)
    directory = os.path.join('results', f'{size}p')
    logs = 'msrun/worker_<rank>.log' if launcher == 'msrun' else '<rank>/train.log'
    say(f'{size} ranks, {target}; logs in {os.path.join(directory, logs)}')
    with _hold(directory, server.devices[0].rank_id) or contextlib.nullcontext():
        sys.exit(Supervisor(jobs, directory, grace).run())


if __name__ == '__main__':
    main()
