"""Makes the rank table of this server."""

from __future__ import annotations

import json
import os
import re
import sys

from src import environment
from src.cluster.rank_table_format import parse
from src.cluster.servers import one_server, own_address
from src.errors import InputError

HCCN = '/etc/hccn.conf'  # where the driver's tools keep the IPs of the devices


def hccn_addresses(path: str) -> dict[int, str]:
    """{device id: IP} from the `address_X=` lines of hccn.conf; InputError if it cannot be read."""
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            found = re.findall(r'^\s*address_([0-9]{1,4})\s*=\s*(\S+)', file.read(1 << 20), re.M)
            return {int(device): address for device, address in found}
    except OSError as error:
        raise InputError(
            f'--hccn {path}: {error.strerror}; it lists address_X=<IP of device X>, as `hccn_tool -i X -ip -g` prints it'
        ) from None


def make(devices: int, hccn: str | None = None, server_id: str | None = None) -> str:
    """JSON text of a version 1.0 table for the first `devices` devices of this machine or container.

    Args:
        hccn: file with the devices' IPs, by default HCCN; not needed on a machine without NPUs.
        server_id: address of this server, by default the one that it uses towards others.

    Raises:
        InputError: there are fewer devices, a device has no IP, or two devices have the same.
    """
    npus = environment.npus()
    if devices > len(npus) > 0:
        raise InputError(f'--devices {devices}, but there are {len(npus)} NPUs here (/dev/davinci*)')
    device_ids = npus[:devices] or range(devices)
    addresses = _device_addresses(device_ids, hccn, npus)
    (server,) = one_server(device_ids, server_id or own_address(), addresses).servers
    rows = [{key: str(value) for key, value in vars(device).items() if value != ''} for device in server.devices]
    table = {
        'version': '1.0',
        'server_count': '1',
        'status': 'completed',
        'server_list': [{'server_id': server.server_id, 'device': rows}],
    }
    findings = parse(table)[1]
    if findings:
        raise InputError('this would make an unsound table: ' + '; '.join(findings))
    return json.dumps(table, indent=1) + '\n'


def _device_addresses(device_ids, hccn, npus):
    """{device id: IP}, {} where there is no NPU and no file with IPs."""
    if hccn is None and not os.path.exists(HCCN) and not npus:
        print(
            f'note: no NPU and no {HCCN} here, so no device_ip: enough for CPU processes on this '
            'machine; for NPUs give --hccn FILE with address_X=<what `hccn_tool -i X -ip -g` prints>',
            file=sys.stderr,
        )
        return {}
    addresses = hccn_addresses(hccn or HCCN)
    missing = [str(i) for i in device_ids if i not in addresses]
    if missing:
        raise InputError(
            f'{hccn or HCCN} has no address_X for device {", ".join(missing)}; '
            '`hccn_tool -i X -ip -g` prints the address of device X'
        )
    return addresses
