"""Which ranks SIGSTOP or a debugger has stopped."""

from __future__ import annotations

from collections.abc import Mapping

from src import processes
from src.cluster.logs import say
from src.cluster.outcome import title

RUNNING = 5  # looks, 0.2 s apart, that must find a stopped rank running before it counts as resumed


class Stopped(dict):
    """{rank: number of looks since then that found it running}"""

    def look(self, pids: Mapping[int, str]) -> None:
        """Look at the processes {pid: name}. A stopped one is said at once, because the other ranks wait for it and fail
        before it."""
        for pid, rank in pids.items():
            letter = (processes.state(pid) or 'Z')[0]
            if letter in 'Tt' and rank not in self:
                self[rank] = 0
                say(
                    f'{title(rank)} is stopped (by SIGSTOP or a debugger) and the others wait for it; kill -CONT {pid} '
                    'lets it go on'
                )
            elif letter in 'RSD' and rank in self:  # other letters: it is ending
                self[rank] += 1
                if self[rank] == RUNNING:
                    del self[rank]
                    say(f'{title(rank)} goes on')
