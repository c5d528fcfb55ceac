"""The first rank's output on the screen."""

import os
import re
import sys

# Written by MindSpore's last threads at the end of every distributed process, when its log level is gone already.
LAST_WORDS = re.compile(rb'\[INFO\] DISTRIBUTED\(')
MINDSPORE = re.compile(rb'\[(INFO|WARNING|ERROR|CRITICAL)\] [A-Z_]+\(')
TRACEBACK = b'Traceback (most recent call last):'


class Screen:
    """Shows the growing file `log` (or nothing, for None), line by line."""

    def __init__(self, log):
        self.log, self.position, self.tail, self.hidden = log, 0, b'', False

    def show(self, others_failed=False, final=False):
        """Show what is new. Once others have failed, what MindSpore says of it here and a traceback would only hide the
        cause: they stay in the file. `final`: the last line is shown even without an end."""
        while self.log and (data := os.pread(self.log.fileno(), 1 << 20, self.position)):
            self.position += len(data)
            *lines, self.tail = _lines(self.tail + data)
            self._write(lines, others_failed)
        if final:
            self._write([self.tail], others_failed)
            self.tail = b''

    def _write(self, lines, others_failed):
        noise = MINDSPORE if others_failed else LAST_WORDS
        if os.environ.get('GLOG_v') in ('0', '1'):  # asked for
            noise = re.compile(rb'\Z.')
        shown = []
        for line in lines:
            self.hidden |= others_failed and line.startswith(TRACEBACK)
            if not self.hidden and not noise.match(line):
                shown.append(line)
        try:
            sys.stdout.buffer.write(b''.join(shown))
            sys.stdout.flush()
        except OSError:  # the reader of a pipe has gone: the training goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lines(data):
    """Lines with their ends (a carriage return is one), and last what has none yet."""
    lines = data.splitlines(keepends=True)
    return lines if lines and not lines[-1].endswith((b'\n', b'\r')) else [*lines, b'']


def last_lines(log, count):
    """The last `count` lines (str) of an open file, as far as they are in its last 64 KB."""
    return [line.decode(errors='replace') for line in end(log).splitlines() if not LAST_WORDS.match(line)][-count:]


def end(log):
    """The last 64 KB of an open file."""
    return os.pread(log.fileno(), 1 << 16, max(0, os.fstat(log.fileno()).st_size - (1 << 16)))
