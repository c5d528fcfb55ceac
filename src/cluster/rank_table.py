"""Read, check and make rank tables: which device of which server is which rank.

    python -m src.cluster.rank_table make --devices 8 [--hccn /etc/hccn.conf] [--server_id IP] [--output FILE]
    python -m src.cluster.rank_table check FILE [--rank_size N]

Formats: `server_list` (versions 1.0 and 1.2) and the older `group_list`, after
https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/rank_table.html and CANN's "rank table" pages
https://www.hiascend.com/document/detail/zh/CANNCommunityEdition/850alpha002/hccl/hcclug/hcclug_000068.html
also as MindCluster writes it (hccl.json) for the containers of a job:
https://www.hiascend.com/document/detail/en/mindcluster/730/clustersched/schedulingug/mxdlug_appendices_009.html
"""

import dataclasses
import ipaddress
import json
import os
import re
import socket
import sys
import time

from src import environment, files
from src.errors import InputError, Parser, entry_point

SIZE_LIMIT = 1 << 20  # bytes; 1024 devices take about 100 KB
PATIENCE = 300  # seconds for all containers of a job to start, as in MindCluster's own start scripts
MINDCLUSTER = '/user/serverid/devindex/config'  # where a container finds its hccl.json
KINDS = {dict: 'an object', list: 'a list', str: 'a string'}


@dataclasses.dataclass
class Device:
    """One rank: `device_id` is its physical number on the server; `device_ip` is "" if the table has none."""

    device_id: int
    device_ip: str
    rank_id: int


@dataclasses.dataclass
class Server:
    """`addresses`: those beside `server_id`, which then need not be one; the container's first."""

    server_id: str
    devices: list
    addresses: list = dataclasses.field(default_factory=list)

    @property
    def names(self):
        """All that it is known by; the first is where other servers reach it."""
        return [*self.addresses, self.server_id]


@dataclasses.dataclass
class RankTable:
    """`servers` in table order; the first one is the master. `warnings`: what is odd, but works."""

    servers: list
    warnings: list = dataclasses.field(default_factory=list)

    @property
    def devices(self):
        return [device for server in self.servers for device in server.devices]


def read(path):
    """RankTable of the file `path`; InputError with all findings if there is anything wrong with it."""
    table, findings = _inspect(path)
    if findings:
        if len(findings) > 10:
            findings[10:] = [f'and {len(findings) - 10} more: python -m src.cluster.rank_table check lists them']
        raise InputError(f'rank table {json.dumps(str(path))}: {"; ".join(findings)}')
    return table


def wait(path, tell, patience=None, every=1):
    """Return when the file is no longer one that MindCluster has yet to complete, for anything else at once.

    tell: called with one line if there is something to wait for; every: seconds from look to look.
    InputError after `patience` seconds, by default PATIENCE.
    """
    patience, deadline = PATIENCE if patience is None else patience, None
    while _is_coming(path, awaited=deadline is not None):
        if deadline is None:
            deadline = time.monotonic() + patience
            tell(f'rank table {json.dumps(str(path))} is not completed yet; waits for up to {patience:g} s')
        if time.monotonic() > deadline:
            raise InputError(
                f'rank table {json.dumps(str(path))}: still not completed after {patience:g} s; do all '
                'containers of this job run?'
            )
        time.sleep(every)


def _is_coming(path, awaited):
    """Whether the file has to be read again later; `awaited`: it had to before."""
    try:
        data = _load(path)
        return isinstance(data, dict) and data.get('status') == 'initializing'
    except InputError:  # it is emptied before it is written anew; on shared storage it is not there at first
        if not os.path.exists(path):
            return awaited or os.path.dirname(os.path.abspath(path)) == MINDCLUSTER
        return awaited or os.path.isfile(path) and not os.path.getsize(path)


def check(path, rank_size=None):
    """All findings (strings), each with its place in the file; [] for a sound table of `rank_size` ranks."""
    table, findings = _inspect(path)
    if rank_size is not None and table and len(table.devices) != rank_size:
        findings.append(f'the table has {len(table.devices)} ranks, but rank_size is {rank_size}')
    return findings


def of_this_machine(device_ids, server_id='127.0.0.1', addresses=None):
    """RankTable of these devices on one server; `addresses` maps device ids to device IPs."""
    addresses = addresses or {}
    return RankTable(
        [
            Server(
                server_id,
                [Device(device_id, addresses.get(device_id, ''), rank) for rank, device_id in enumerate(device_ids)],
            )
        ]
    )


def _show(value):
    """A value from the file as short plain ASCII: it may hold anything, lone surrogates and newlines too."""
    text = json.dumps(value) if isinstance(value, (str, int, float, bool, type(None))) else KINDS[type(value)]
    return text if len(text) <= 60 else text[:57] + '...'


def _not_json(name):
    raise ValueError(f'{name} is not a JSON value')


def _load(path):
    """The JSON value in the file; InputError that says why there is none."""
    try:
        if not os.path.isfile(path):
            raise InputError('no such file')
        with open(path, 'rb') as file:
            data = file.read(SIZE_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise InputError(f'cannot be read: {getattr(error, "strerror", None) or error}') from None
    if len(data) > SIZE_LIMIT:
        raise InputError(f'larger than {SIZE_LIMIT} bytes: not a rank table')
    try:
        # Python refuses to convert very long integers; no value may be a number: anything will do.
        return json.loads(
            data.decode('utf-8-sig'),
            parse_constant=_not_json,
            parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits),
        )
    except json.JSONDecodeError as error:
        raise InputError(f'not JSON: line {error.lineno}, column {error.colno}: {error.msg}') from None
    except RecursionError:
        raise InputError('not a rank table: nested too deeply') from None
    except ValueError as error:
        raise InputError(f'not JSON: {error}') from None


class _Findings(list):
    """Findings, `warnings`, and access to parts of the file that notes what is missing or of the wrong type."""

    def __init__(self):
        super().__init__()
        self.warnings = []

    def add(self, place, text):
        self.append(f'{place}: {text}')

    def get(self, holder, place, key, kind):
        """`holder[key]` if it is of type `kind`, else None and a finding; None at once without a holder."""
        where = f'{place}.{key}'.lstrip('.')
        if holder is None:
            return None
        if key not in holder:
            return self.add(where, 'missing')
        if not isinstance(holder[key], kind):
            return self.add(where, f'{_show(holder[key])} must be {KINDS[kind]}')
        return holder[key]

    def items(self, holder, place, key):
        """(place, object or None) of each entry of the non-empty list `holder[key]`."""
        entries = self.get(holder, place, key, list)
        where = f'{place}.{key}'.lstrip('.')
        if entries == []:
            self.add(where, 'is empty')
        for i, entry in enumerate(entries or []):
            if not isinstance(entry, dict):
                self.add(f'{where}[{i}]', f'{_show(entry)} must be an object')
            yield f'{where}[{i}]', entry if isinstance(entry, dict) else None

    def number(self, holder, place, key):
        """A count or an id: HCCL reads them as strings of digits."""
        text = self.get(holder, place, key, str)
        if text is None:
            return None
        if not re.fullmatch('[0-9]{1,6}', text):
            return self.add(f'{place}.{key}'.lstrip('.'), f'{_show(text)} must be a string of digits')
        return int(text)

    def count(self, holder, place, key, actual):
        """The number under `key` has to agree with what the file lists."""
        stated = self.number(holder, place, key)
        if stated is not None and stated != actual:
            self.add(f'{place}.{key}'.lstrip('.'), f'{stated}, but {actual} listed')

    def unique(self, seen, key, place, what):
        if key in seen:
            self.add(place, f'{what} is already at {seen[key]}')
        seen.setdefault(key, place)


def _rows(data, findings):
    """(place of server id, server id, server, place of device, device, place of rank, rank) of every device."""
    if 'server_list' in data:
        version = findings.get(data, '', 'version', str)
        if version not in (None, '1.0', '1.2'):
            findings.add('version', f'{_show(version)} must be "1.0" or "1.2"')
        servers, seen = list(findings.items(data, '', 'server_list')), {}
        findings.count(data, '', 'server_count', len(servers))
        for place, server in servers:
            name = findings.get(server, place, 'server_id', str)
            if name is not None:
                findings.unique(seen, name, f'{place}.server_id', _show(name))
            for where, device in findings.items(server, place, 'device'):
                rank = findings.number(device, where, 'rank_id')
                yield f'{place}.server_id', name, server, where, device, where, rank
        return
    groups = list(findings.items(data, '', 'group_list'))
    findings.count(data, '', 'group_count', len(groups))
    for place, group in groups:
        instances = list(findings.items(group, place, 'instance_list'))
        names, total = set(), 0
        for where, instance in instances:
            name = findings.get(instance, where, 'server_id', str)
            rank = findings.number(instance, where, 'rank_id')
            devices = list(findings.items(instance, where, 'devices'))
            if len(devices) > 1:
                findings.add(f'{where}.devices', f'{len(devices)} devices, but a rank has one')
            for inner, device in devices:
                yield f'{where}.server_id', name, {}, inner, device, where, rank
            names, total = names | {name}, total + len(devices)
        findings.count(group, place, 'device_num', total)
        findings.count(group, place, 'server_num', len(names))
        findings.count(group, place, 'instance_count', len(instances))


def _inspect(path):
    """(RankTable or None, findings) of a file."""
    try:
        return _inspect_data(_load(path))
    except InputError as error:
        return None, [str(error)]


def _inspect_data(data):
    """(RankTable, findings) of a table as parsed; InputError if it is something else."""
    if not isinstance(data, dict):
        raise InputError(f'the file holds {_show(data)}, not an object')
    if 'server_list' not in data and 'group_list' not in data:
        raise InputError('neither server_list (version 1.0) nor group_list: not a rank table')
    findings = _Findings()
    status = findings.get(data, '', 'status', str)
    if status not in (None, 'completed'):
        findings.add('status', f'{_show(status)} must be "completed"')
    rows = list(_rows(data, findings))
    servers, places, ranks, ids, addresses = {}, {}, {}, {}, {}
    several = len({row[1] for row in rows}) > 1
    for named_at, name, server, place, device, ranked_at, rank in rows:
        if name is not None and name not in servers:
            places[name] = named_at
            if not name.strip() or len(name) > 64:
                findings.add(named_at, f'{_show(name)} must have 1 to 64 characters')
        device_id = findings.number(device, place, 'device_id')
        if device_id is not None:
            what = f'device {device_id} of this server'
            findings.unique(ids, (name, device_id), f'{place}.device_id', what)
        address = _address(device, place, several, addresses, findings)
        if rank is not None:
            findings.unique(ranks, rank, f'{ranked_at}.rank_id', f'rank {rank}')
            if rank >= len(rows):
                findings.add(f'{ranked_at}.rank_id', f'{rank} is not in 0..{len(rows) - 1}')
        if name not in servers:
            servers[name] = Server(name, [], _server_addresses(server, named_at, findings))
        servers[name].devices.append(Device(device_id, address, rank))
    if sorted(ranks) == list(range(len(rows))) and None not in servers:
        _check_order(list(servers.values()), ranks, places, findings)
    return RankTable(list(servers.values()), findings.warnings), findings


def _server_addresses(server, place, findings):
    """What stands beside a server_id: in containers they talk by the first, the second is that of the host."""
    place = place.removesuffix('.server_id')
    return [
        text
        for key in ('container_ip', 'host_ip')
        if server and key in server and (text := findings.get(server, place, key, str))
    ]


def _address(device, place, required, seen, findings):
    """The device's IP or "". A single server can do without: NICs are for traffic between servers."""
    if device is None or not required and device.get('device_ip', '') == '':
        return ''
    text, place = findings.get(device, place, 'device_ip', str), f'{place}.device_ip'
    try:
        if text is not None:
            findings.unique(seen, ipaddress.ip_address(text), place, _show(text))
    except ValueError:
        findings.add(place, f'{_show(text)} is not an IP address')
    return text or ''


def _check_order(servers, ranks, places, findings):
    """Rank ids ascend through the table. MindSpore's documentation also asks for the dictionary order of server ids,
    which MindCluster does not keep."""
    order = [device.rank_id for server in servers for device in server.devices]
    for previous, rank in zip(order, order[1:]):
        if rank < previous:
            findings.add(ranks[rank], f'rank {rank} is after rank {previous}; ranks must ascend in the table')
    names = [server.server_id for server in servers]
    for previous, name in zip(names, names[1:]):
        if name < previous:
            findings.warnings.append(
                f'{places[name]}: {_show(name)} is after {_show(previous)}: servers are not in the '
                "dictionary order that MindSpore's documentation asks for"
            )
            break


def hccn_addresses(path):
    """{device id: IP} from the `address_X=` lines of hccn.conf; InputError if it cannot be read."""
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            found = re.findall(r'^\s*address_([0-9]{1,4})\s*=\s*(\S+)', file.read(SIZE_LIMIT), re.M)
            return {int(device): address for device, address in found}
    except OSError as error:
        raise InputError(
            f'--hccn {path}: {error.strerror}; it lists address_X=<IP of device X>, as `hccn_tool -i X -ip -g` prints it'
        ) from None


def make(devices, hccn=None, server_id=None):
    """Text of a version 1.0 table for `devices` devices of this server, the first that this machine or container has."""
    addresses, npus = {}, environment.npus()
    if devices > len(npus) > 0:
        raise InputError(f'--devices {devices}, but there are {len(npus)} NPUs here (/dev/davinci*)')
    device_ids = npus[:devices] or range(devices)
    if hccn is None and not os.path.exists('/etc/hccn.conf') and not npus:
        print(
            'note: no NPU and no /etc/hccn.conf here, so no device_ip: enough for CPU processes on this '
            'machine; for NPUs give --hccn FILE with address_X=<what `hccn_tool -i X -ip -g` prints>',
            file=sys.stderr,
        )
    else:
        addresses = hccn_addresses(hccn or '/etc/hccn.conf')
        missing = [str(i) for i in device_ids if i not in addresses]
        if missing:
            raise InputError(
                f'{hccn or "/etc/hccn.conf"} has no address_X for device {", ".join(missing)}; '
                '`hccn_tool -i X -ip -g` prints the address of device X'
            )
    (server,) = of_this_machine(device_ids, server_id or _own_address(), addresses).servers
    rows = [{key: str(value) for key, value in vars(device).items() if value != ''} for device in server.devices]
    table = {
        'version': '1.0',
        'server_count': '1',
        'status': 'completed',
        'server_list': [{'server_id': server.server_id, 'device': rows}],
    }
    findings = _inspect_data(table)[1]
    if findings:
        raise InputError('this would make an unsound table: ' + '; '.join(findings))
    return json.dumps(table, indent=1) + '\n'


def _own_address():
    """The address this machine would use towards others; connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(('198.51.100.1', 9))
            return probe.getsockname()[0]
        except OSError:
            return '127.0.0.1'


def _write(path, text):
    try:
        with files.replacing(path) as temporary:
            temporary.write_text(text, encoding='utf-8')
    except OSError as error:
        raise InputError(f'--output {path}: {error.strerror}') from None


@entry_point
def main(arguments=None):
    parser = Parser(prog='python -m src.cluster.rank_table', description='make, check rank tables')
    commands = parser.add_subparsers(dest='command', required=True)
    maker = commands.add_parser('make', help="table of this server's devices")
    maker.add_argument('--devices', type=int, required=True, help='number of devices')
    maker.add_argument('--hccn', help='file with address_X=IP lines (default: /etc/hccn.conf)')
    maker.add_argument('--server_id', help='address of this server (default: found)')
    maker.add_argument('--output', help='file to write (default: the screen)')
    checker = commands.add_parser('check', help='print every finding; exit status 2 if one is an error')
    checker.add_argument('file')
    checker.add_argument('--rank_size', type=int, help='number of ranks expected')
    args = parser.parse_args(arguments)
    if args.command == 'make':
        if not 1 <= args.devices <= 1024:
            raise InputError(f'--devices {args.devices}: must be 1 to 1024')
        text = make(args.devices, args.hccn, args.server_id)
        return _write(args.output, text) if args.output else print(text, end='')
    findings = check(args.file, args.rank_size)
    for finding in findings:
        print(finding)
    if findings:
        sys.exit(2)
    table = read(args.file)
    for warning in table.warnings:
        print(f'warning: {warning}')
    found = '1 warning' if table.warnings else 'nothing to report'
    print(f'{args.file}: {len(table.devices)} ranks on {len(table.servers)} server(s), {found}')


if __name__ == '__main__':
    main()
