"""The servers and devices of a rank table, and which of the servers this machine is."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import socket
from collections.abc import Iterable

from src.errors import InputError


@dataclasses.dataclass
class Device:
    """One rank: `device_id` is its physical number on the server; `device_ip` is "" if the table has none."""

    device_id: int
    device_ip: str
    rank_id: int


@dataclasses.dataclass
class Server:
    """A server, or a container on one. `addresses` are its addresses beside `server_id`, the container's first; where
    there are any, `server_id` may be a name that is no address."""

    server_id: str
    devices: list[Device]
    addresses: list[str] = dataclasses.field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All its addresses and its id; other servers reach it by the first."""
        return [*self.addresses, self.server_id]


@dataclasses.dataclass
class RankTable:
    """`servers` in table order; the scheduler runs on the first one."""

    servers: list[Server]

    @property
    def devices(self) -> list[Device]:
        """The devices of all servers."""
        return [device for server in self.servers for device in server.devices]


def one_server(
    device_ids: Iterable[int], server_id: str = '127.0.0.1', addresses: dict[int, str] | None = None
) -> RankTable:
    """A table of one server with these devices; `addresses` is {device id: device IP}."""
    addresses = addresses or {}
    devices = [Device(device_id, addresses.get(device_id, ''), rank) for rank, device_id in enumerate(device_ids)]
    return RankTable([Server(server_id, devices)])


def local_server(table: RankTable, server_id: str | None = None) -> Server:
    """The server of the table that this machine is: the one that `server_id` names, else the one with an address of this
    machine. The server of a table of one is always this machine. InputError if none fits, or several."""
    if server_id is None and len(table.servers) == 1:
        return table.servers[0]
    # The host's address, which its containers need not have: MindCluster and ModelArts put it into their environment.
    wanted = server_id or os.environ.get('XDL_IP') or os.environ.get('MA_CURRENT_HOST_IP')
    found = [
        server for server in table.servers if not server_id and any(map(is_local, server.addresses or [server.server_id]))
    ]
    found = found or [server for server in table.servers if wanted in server.names]
    if len(found) == 1:
        return found[0]
    names = ', '.join(ascii(server.server_id) for server in table.servers[:8])
    if server_id is not None:
        raise InputError(f'--server_id {server_id} is not in the rank table ({names})')
    raise InputError(
        f'{len(found)} servers of the rank table ({names}) have an address of this machine; '
        'say which one it is with --server_id'
    )


def address(server: Server) -> str:
    """The IPv4 address by which the others reach `server`: MindSpore and msrun take no names. InputError if it has none."""
    try:
        return socket.gethostbyname(server.names[0])
    except (OSError, UnicodeError):
        raise InputError(
            f'no address is known of {ascii(server.names[0])}, the first server of the rank table; make it its server_id'
        ) from None


def is_local(name: str) -> bool:
    """Whether a host name or address belongs to this machine: a socket can be bound to it."""
    if name in (socket.gethostname(), socket.getfqdn()):
        return True
    with contextlib.suppress(OSError, UnicodeError):
        family, _, _, _, address = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
        return not ipaddress.ip_address(address[0].partition('%')[0]).is_unspecified
    return False


def own_address() -> str:
    """The address that this machine uses towards others. Connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(('198.51.100.1', 9))
            return probe.getsockname()[0]
        except OSError:
            return '127.0.0.1'
