"""The two JSON formats of a rank table: what is wrong with one, and the table it describes.

`server_list` (versions 1.0 and 1.2) and the older `group_list` (template 2), after
https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/rank_table.html and CANN's pages on rank tables,
https://www.hiascend.com/document/detail/zh/CANNCommunityEdition/850alpha002/hccl/hcclug/hcclug_000068.html
MindCluster's file (hccl.json) for the containers of a job is of the first format:
https://www.hiascend.com/document/detail/en/mindcluster/730/clustersched/schedulingug/mxdlug_appendices_009.html
That of ModelArts (jobstart_hccl.json) is of the first or second: an instance is then a container with all its devices, whose
ranks are counted through the file, as ModelArts' own start script (davincirun) does.
"""

from __future__ import annotations

import ipaddress
import json
import re

from src.cluster.servers import Device, RankTable, Server
from src.errors import InputError

KINDS = {dict: 'an object', list: 'a list', str: 'a string'}


def parse(data) -> tuple[RankTable, list[str]]:
    """(table, findings) of the JSON value `data`. Every finding is a line that begins with its place in the file; where
    there are any, the table is not to be used. InputError if `data` is no rank table at all."""
    if not isinstance(data, dict):
        raise InputError(f'the file holds {_show(data)}, not an object')
    if 'server_list' not in data and 'group_list' not in data:
        raise InputError('neither server_list (version 1.0) nor group_list: not a rank table')
    findings = _Findings()
    status = findings.get(data, '', 'status', str)
    if status not in (None, 'completed'):
        findings.add('status', f'{_show(status)} must be "completed"')
    rows = list(_server_list(data, findings) if 'server_list' in data else _group_list(data, findings))
    return _table(rows, findings), findings


def _server_list(data, findings):
    """Yield (place of the server's id, its id, server, place of the device, device, place of the rank, rank) for every
    device of the newer format; the id and the rank are None where the file has none."""
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


def _group_list(data, findings):
    """The same for every device of the older format, in which the rank, if any, stands beside its server's id."""
    groups, counted = list(findings.items(data, '', 'group_list')), 0
    findings.count(data, '', 'group_count', len(groups))
    for place, group in groups:
        instances = list(findings.items(group, place, 'instance_list'))
        names, total = set(), 0
        for where, instance in instances:
            name = findings.get(instance, where, 'server_id', str)
            ranked = instance is not None and 'rank_id' in instance
            rank = findings.number(instance, where, 'rank_id') if ranked else None
            devices = list(findings.items(instance, where, 'devices'))
            if ranked and len(devices) > 1:
                findings.add(f'{where}.devices', f'{len(devices)} devices, but a rank has one')
            for inner, device in devices:
                yield f'{where}.server_id', name, instance, inner, device, where, rank if ranked else counted
                counted += 1
            names, total = names | {name}, total + len(devices)
        for key, actual in (('device_num', total), ('device_count', total), ('server_num', len(names))):
            if group is not None and key in group:
                findings.count(group, place, key, actual)
        findings.count(group, place, 'instance_count', len(instances))


def _table(rows, findings):
    """RankTable of the rows of `_server_list` or `_group_list`; adds what is wrong with it as a whole."""
    servers, ranks, ids, addresses = {}, {}, {}, {}
    several = len({row[1] for row in rows}) > 1
    for named_at, name, server, place, device, ranked_at, rank in rows:
        if name is not None and name not in servers and (not name.strip() or len(name) > 64):
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
        _check_order(list(servers.values()), ranks, findings)
    return RankTable(list(servers.values()))


def _server_addresses(server, place, findings):
    """The addresses beside a server_id: that of a container, by which it is reached, and that of its host."""
    place = place.removesuffix('.server_id')
    return [
        text
        for key in ('container_ip', 'host_ip')
        if server and key in server and (text := findings.get(server, place, key, str))
    ]


def _address(device, place, required, seen, findings):
    """The device's IP, or "". Only traffic between servers needs it: it is `required` where there are several."""
    if device is None or not required and device.get('device_ip', '') == '':
        return ''
    text, place = findings.get(device, place, 'device_ip', str), f'{place}.device_ip'
    try:
        if text is not None:
            findings.unique(seen, ipaddress.ip_address(text), place, _show(text))
    except ValueError:
        findings.add(place, f'{_show(text)} is not an IP address')
    return text or ''


def _check_order(servers, ranks, findings):
    """A finding if rank ids do not ascend through the table."""
    order = [device.rank_id for server in servers for device in server.devices]
    for previous, rank in zip(order, order[1:]):
        if rank < previous:
            findings.add(ranks[rank], f'rank {rank} is after rank {previous}; ranks must ascend in the table')


def _show(value):
    """A value of the file in at most 60 ASCII characters: it may contain anything, newlines and lone surrogates too."""
    text = json.dumps(value) if isinstance(value, (str, int, float, bool, type(None))) else KINDS[type(value)]
    return text if len(text) <= 60 else text[:57] + '...'


class _Findings(list):
    """The findings; reading a part of the file by `get` and the others adds what is wrong with it."""

    def add(self, place, text):
        """Add the finding `text` at `place`, for example `server_list[0].device[1]`."""
        self.append(f'{place}: {text}')

    def get(self, holder, place, key, kind):
        """`holder[key]` if it is of type `kind`, else None and a finding; None without a finding if `holder` is None."""
        where = f'{place}.{key}'.lstrip('.')
        if holder is None:
            return None
        if key not in holder:
            return self.add(where, 'missing')
        if not isinstance(holder[key], kind):
            return self.add(where, f'{_show(holder[key])} must be {KINDS[kind]}')
        return holder[key]

    def items(self, holder, place, key):
        """Yield (place, object) for each entry of the list `holder[key]`, with None for an entry that is no object; an
        empty list is a finding."""
        entries = self.get(holder, place, key, list)
        where = f'{place}.{key}'.lstrip('.')
        if entries == []:
            self.add(where, 'is empty')
        for i, entry in enumerate(entries or []):
            if not isinstance(entry, dict):
                self.add(f'{where}[{i}]', f'{_show(entry)} must be an object')
            yield f'{where}[{i}]', entry if isinstance(entry, dict) else None

    def number(self, holder, place, key):
        """`holder[key]` (int), a count or an id, which HCCL wants as a string of digits; else None and a finding."""
        text = self.get(holder, place, key, str)
        if text is None:
            return None
        if not re.fullmatch('[0-9]{1,6}', text):
            return self.add(f'{place}.{key}'.lstrip('.'), f'{_show(text)} must be a string of digits')
        return int(text)

    def count(self, holder, place, key, actual):
        """A finding if the number `holder[key]` is not `actual`, the number of entries that the file lists."""
        stated = self.number(holder, place, key)
        if stated is not None and stated != actual:
            self.add(f'{place}.{key}'.lstrip('.'), f'{stated}, but {actual} listed')

    def unique(self, seen, key, place, what):
        """A finding if `key` is in `seen` ({key: its first place}) already, where it is added."""
        if key in seen:
            self.add(place, f'{what} is already at {seen[key]}')
        seen.setdefault(key, place)
