"""The signals that ask the launcher to end."""

from __future__ import annotations

import signal
import time

from src.processes import ECHO


class Signals:
    """The signals that this process has got, in `numbers`; echoes of one (`ECHO`) are left out."""

    def __init__(self):
        self.numbers, self.at = [], 0.0

    def catch(self):
        """Take SIGINT, SIGTERM and SIGHUP from now on."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._received)

    def _received(self, number, _):
        if not self.numbers or time.monotonic() > self.at + ECHO:
            self.numbers.append(number)
            self.at = time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Wait, but not after a signal. Gives whether there was none."""
        end = time.monotonic() + seconds
        while not self.numbers and (left := end - time.monotonic()) > 0:
            time.sleep(min(0.2, left))
        return not self.numbers
