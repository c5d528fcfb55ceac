"""The launchers of several servers start, end and restart their ranks together, over a TCP port of the first server.

A port and not a file: servers need not share a directory, and a launcher that is gone is noticed by its connection. Each
launcher of another server keeps one connection to the first; messages are lines of JSON, [word, value].
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence

from src.cluster.logs import say
from src.cluster.signals import Signals
from src.errors import InputError

WAIT = 600  # seconds for all servers to come, as for HCCL's connections
GONE = 60  # seconds of silence after which a server is taken for gone
ALIVE = 5  # seconds between two signs of life


class Gone(InputError):
    """Another server does not come, or has left."""

    exit_status = 1


class _Peer:
    """A connection."""

    def __init__(self, connection):
        self.connection, self.data, self.heard = connection, b'', time.monotonic()
        connection.settimeout(ALIVE)


class Agreement:
    """This server's part.

    Args:
        index: of this server among those of the rank table; 0 is the one that decides.
        count: number of servers.
        host: of the first server.
        port: on it.

    InputError if the first server cannot listen there.
    """

    def __init__(self, index: int, count: int, host: str, port: int):
        self.index, self.count, self.address = index, count, (host, port)
        self.peers, self.inbox, self.lost, self.lock = {}, [], None, threading.Lock()
        self.listener, self.strangers = None, []
        if index == 0:
            try:
                self.listener = socket.create_server(('', port), backlog=count)
            except OSError as error:
                raise InputError(
                    f'port {port} for the launchers of all servers: {error.strerror}; give --master_port'
                ) from None
        threading.Thread(target=self._live, daemon=True).start()

    def close(self) -> None:
        """Leave; the others notice it."""
        for connection in [self.listener, *(peer.connection for peer in self.peers.values())]:
            if connection:
                connection.close()

    def meet(self, signals: Signals) -> bool:
        """Wait until the launchers of all servers are here, so that none starts alone. Gives False after a signal. `Gone` if
        one has left, or has not come after WAIT seconds."""
        begin, told, asked = time.monotonic(), False, False
        while not self._all_ready():
            if self.index and not asked:
                asked = self._ask()
            if signals.numbers:
                return False
            missing = self.lost if self.lost is not None else self._missing() if time.monotonic() > begin + WAIT else None
            if missing is not None:
                raise Gone(self._gone(missing))
            if not told and time.monotonic() > begin + min(5, WAIT / 2):
                told = True
                say(f'waits for the launchers of all {self.count} servers, {WAIT:g} s at most')
        return True

    def tell_failure(self) -> None:
        """Have the ranks of the other servers ended."""
        self._send('failed')

    def failed(self) -> bool:
        """Whether another server's ranks have failed, or it is gone."""
        self._receive(0)
        return self.lost is not None or self._took('failed', keep=True) is not None

    def settle(self, outcome: Sequence, decide: Callable[[list[Sequence]], Sequence]) -> Sequence:
        """What follows an attempt: the first server's `decide([outcome of each server])`, (status, pause, line, ...), the
        same on all. If a server is gone, the end with the status of `outcome` and a line."""
        if self.index:
            self._send('outcome', outcome)
        outcomes, relayed = [outcome], False
        while True:
            self._receive(0.2)
            if self.index:
                verdict = self._took('verdict')
            else:
                while (found := self._took('outcome')) is not None:
                    outcomes.append(found)
                verdict = decide(outcomes) if len(outcomes) == self.count else None
                if not relayed and self._took('failed', keep=True) is not None:
                    relayed = True
                    self.tell_failure()
            if verdict is not None and not self.index:
                self._send('verdict', verdict)
            elif verdict is None and self.lost is not None:
                verdict = outcome[0] or Gone.exit_status, None, f'given up: {self._gone(self.lost)}'
            if verdict is not None:
                while self._took('failed') is not None:
                    pass
                return verdict

    def _ask(self):
        """Tell the first server that this one is ready; gives whether it is there."""
        if not self.peers:
            with contextlib.suppress(OSError):
                self.peers[0] = _Peer(socket.create_connection(self.address, 2))
                self._send('hello', self.index)
        if self.peers:
            self._send('ready')
        return bool(self.peers)

    def _all_ready(self):
        self._receive(0.2)
        if self.index:
            return self._took('go') is not None
        if sum(word == 'ready' for word, _ in self.inbox) < self.count - 1:
            return False
        self.inbox = [message for message in self.inbox if message[0] != 'ready']
        self._send('go')
        return True

    def _missing(self):
        return next((k for k in range(self.count) if k != self.index and k not in self.peers), 0 if self.index else 1)

    def _gone(self, server):
        return f'server {server + 1} of {self.count} is gone or has not come; the other servers do not go on alone'

    def _took(self, word, keep=False):
        """The value of the first message `word`, which is then removed; None if there is none."""
        for message in self.inbox:
            if message[0] == word:
                if not keep:
                    self.inbox.remove(message)
                return message[1]
        return None

    def _send(self, word, value=True):
        data = json.dumps([word, value]).encode() + b'\n'
        with self.lock:
            for server, peer in list(self.peers.items()):
                try:
                    peer.connection.sendall(data)
                except OSError:
                    self.lost = server

    def _live(self):
        while True:
            time.sleep(ALIVE)
            self._send('alive')

    def _receive(self, seconds):
        """Take what the others have sent, after `seconds` at most."""
        if self.listener and len(self.peers) < self.count - 1 and select.select([self.listener], [], [], 0)[0]:
            self.strangers.append(_Peer(self.listener.accept()[0]))
        peers = {peer.connection: peer for peer in [*self.strangers, *self.peers.values()]}
        watched = [*peers, *([self.listener] if self.listener and len(self.peers) < self.count - 1 else [])]
        readable, _, _ = select.select(watched, [], [], seconds) if watched else (time.sleep(seconds) or [], 0, 0)
        for connection in readable:
            if connection is not self.listener:
                self._read(peers[connection])
        for server, peer in self.peers.items():
            if time.monotonic() - peer.heard > GONE:
                self.lost = server

    def _read(self, peer):
        server = next((k for k, known in self.peers.items() if known is peer), None)
        try:
            data = peer.connection.recv(1 << 16)
            *lines, peer.data = (peer.data + data).split(b'\n')
            messages = [(word, value) for word, value in map(json.loads, lines)]
        except (OSError, ValueError, TypeError):  # not one of ours
            data, messages = b'', []
        if not data:
            if server is not None:
                self.lost = server
            self.strangers = [stranger for stranger in self.strangers if stranger is not peer]
            return
        peer.heard = time.monotonic()
        for word, value in messages:
            if word == 'hello' and server is None and value in range(1, self.count) and value not in self.peers:
                self.strangers.remove(peer)
                server, self.peers[value] = value, peer
            elif server is not None and word != 'alive':
                self.inbox.append((word, value))
