"""Rank tables say which device of which server is which rank.

    python -m src.cluster.rank_table make --devices 8 [--server_id ADDRESS ...] [--output FILE]
    python -m src.cluster.rank_table check FILE

Both formats of https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/rank_table.html are read: `server_list`, also that of
MindCluster (hccl.json), and the older `group_list`. In that of ModelArts are no ranks: an instance is a container with all
its devices, which are counted through the file, as its own start script (davincirun) does. MindSpore 2.8 does not start from
rank tables, and HCCL finds the addresses of NPUs itself: only servers, devices and ranks are taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from src import environment
from src.errors import InputError, Parser, entry_point, reading

PATIENCE = 300  # seconds for all containers of a job to start, as in MindCluster's own start scripts
MINDCLUSTER, MODELARTS = '/user/serverid/devindex/config', '/user/config'  # directories in which a container finds it
NAMES = ('jobstart_hccl.json', 'hccl.json')  # of the file there


class Device(NamedTuple):
    """One rank; `device_id` is the physical number of the device on its server."""

    device_id: int
    rank_id: int


class Server(NamedTuple):
    """A server, or a container on one. `names`: a container's address, its host's, and the server_id, which need not be an
    address where there are others; the other servers reach it by the first."""

    names: list[str]
    devices: list[Device]


def one_server(count: int, npus: Sequence[int] = ()) -> list[Server]:
    """The table of devices 0, 1, ... of this machine. InputError if it has fewer `npus`."""
    if not 1 <= count <= (most := len(npus) or 1024):
        raise InputError(f'{count} devices: must be 1 to {most}{" here" * bool(npus)}')
    return [Server(['127.0.0.1'], [Device(k, k) for k in range(count)])]


def read(path: str | Path, log: Callable[[str], None] | None = None) -> list[Server]:
    """The table of the file `path`, or of the one of NAMES in the directory `path`. InputError if anything is wrong. With
    `log`, which takes a line: it is waited for, up to PATIENCE seconds, while MindCluster or ModelArts writes it."""
    end = time.monotonic() + PATIENCE
    if log and _is_incomplete(path):
        log(f'rank table {path} is not completed yet; waiting up to {PATIENCE:g} s')
    while log and _is_incomplete(path) and time.monotonic() < end:
        time.sleep(0.5)
    with reading(f'rank table {path}', 'python -m src.cluster.rank_table make writes one', (TypeError, AttributeError)):
        return parse(json.loads(_file(path).read_bytes()))


def _file(path):
    """`path`, or the file in it if it is a directory."""
    return next(filter(Path.exists, (Path(path, name) for name in NAMES)), Path(path))


def _is_incomplete(path):
    try:
        return json.loads(_file(path).read_bytes())['status'] == 'initializing'
    except (OSError, ValueError, LookupError, TypeError):  # they empty the file before they write it
        return bool({str(path), os.path.dirname(path)} & {MINDCLUSTER, MODELARTS})


def parse(data: dict) -> list[Server]:
    """The servers of a JSON value, by their ranks; the scheduler runs on the first one. ValueError, or the error of a value
    of another kind, if it is no table."""
    if data.get('status') != 'completed':
        raise ValueError(f'status {data.get("status")!r} must be "completed"')
    entries = data.get('server_list') or [entry for group in data['group_list'] for entry in group['instance_list']]
    servers, ranks = {}, set()
    for entry in entries:
        names = [entry[key] for key in ('container_ip', 'host_ip') if entry.get(key)] + [entry['server_id']]
        devices = servers.setdefault(names[-1], Server(names, [])).devices
        for device in entry['device' if 'server_list' in data else 'devices']:
            one = Device(int(device['device_id']), int(device.get('rank_id', entry.get('rank_id', len(ranks)))))
            if one.rank_id in ranks or one.device_id in [other.device_id for other in devices]:
                raise ValueError(f'rank {one.rank_id} or device {one.device_id} of server {names[-1]} is listed twice')
            devices.append(one)
            ranks.add(one.rank_id)
    if missing := set(range(len(ranks))) - ranks:
        raise ValueError(f'rank {min(missing)} of {len(ranks)} is missing')
    for server in servers.values():
        server.devices.sort(key=lambda device: device.rank_id)
    return sorted(servers.values(), key=lambda server: server.devices[0].rank_id)


def all_devices(table: Sequence[Server]) -> list[Device]:
    """The devices of all servers."""
    return [device for server in table for device in server.devices]


def local_server(table: Sequence[Server], server_id: str | None = None) -> Server:
    """The server of the table that this machine is: the one that `server_id` names, else the one with an address of this
    machine. The server of a table of one is always this machine. InputError if none fits, or several."""
    if server_id is None and len(table) == 1:
        return table[0]
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    own |= {socket.gethostname(), socket.getfqdn()}
    # The host's address, which its containers need not have: MindCluster and ModelArts put it into their environment.
    host = {os.environ.get('XDL_IP'), os.environ.get('MA_CURRENT_HOST_IP')}
    choices = [[server for server in table if wanted & {*server.names}] for wanted in ({server_id}, own, host)]
    found = choices[0] if server_id else choices[1] or choices[2]
    if len(found) != 1:
        what = f'{len(found)} servers of the rank table have ' + (server_id or 'an address of this machine')
        raise InputError(f'{what}; choose one by --server_id: {", ".join(server.names[-1] for server in table)}')
    return found[0]


def make(count: int, server_ids: Sequence[str] = ('127.0.0.1',)) -> str:
    """JSON text of a table of `count` devices on each server; their numbers are those of this machine's NPUs, if it has
    some. InputError if it has fewer."""
    npus, servers = environment.npus(), []
    for k, name in enumerate(server_ids):
        numbers = [(npus or range(count))[i] for i, _ in all_devices(one_server(count, npus))]
        devices = [{'device_id': str(number), 'rank_id': str(count * k + i)} for i, number in enumerate(numbers)]
        servers.append({'server_id': name, 'device': devices})
    table = {'version': '1.0', 'server_count': str(len(servers)), 'server_list': servers, 'status': 'completed'}
    return json.dumps(table, indent=1)


@entry_point
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog='python -m src.cluster.rank_table', description='make and check rank tables')
    commands = parser.add_subparsers(dest='command', required=True)
    maker = commands.add_parser('make', help='table of one server, or of several with as many devices')
    maker.add_argument('--devices', type=int, required=True, help='number of devices of a server')
    maker.add_argument('--server_id', nargs='+', default=['127.0.0.1'], help='addresses of the servers, the first one first')
    maker.add_argument('--output', help='file to write (default: the screen)')
    checker = commands.add_parser('check', help='exit status 2 if something is wrong')
    checker.add_argument('file')
    args = parser.parse_args(arguments)
    if args.command == 'make':
        text = make(args.devices, args.server_id)
        with reading(args.output), open(args.output, 'w') if args.output else contextlib.nullcontext(sys.stdout) as file:
            return print(text, file=file)
    table = read(args.file)
    print(f'{args.file}: {len(all_devices(table))} ranks on {len(table)} server(s), valid')


if __name__ == '__main__':
    main()
