"""Starts the project's own programs, and shows what the checks of one device find as they go; needs no MindSpore."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1800  # seconds: a compilation takes minutes, while ranks that wait for each other never end


@contextlib.contextmanager
def program(argv: Sequence, log: Path, cwd: Path | None = None, **options) -> Iterator[subprocess.Popen]:
    """Run `python argv` in a session of its own, with its output in the file `log`. When the block ends, it and all its
    processes are ended, too. `options` are those of `subprocess.Popen`."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    with open(log, 'wb') as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, argv)],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={'GLOG_v': '3', **os.environ, 'PYTHONPATH': path},
            start_new_session=True,
            **options,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # the launcher ends its ranks
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(90)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tail(log: Path, lines: int = 4) -> str:
    """The last lines of a log, joined to one of at most 400 characters."""
    return ' | '.join(Path(log).read_text(errors='replace').split('\n')[-lines - 1 :]).strip(' |')[-400:]


def on_device(arguments: Sequence[str], log: Path, tell: Callable[[dict], None]) -> bool:
    """Run src/acceptance/device.py and `tell` its results as they come; True unless a check failed."""
    reader, writer = os.pipe()
    begun, failed = None, False
    with program(['-m', 'src.acceptance.device', *arguments, '--events', writer], log, pass_fds=[writer]) as process:
        os.close(writer)
        for text in _lines(reader):
            result = json.loads(text)
            begun = None if 'result' in result else result
            failed |= result.get('result') == 'FAILED'
            tell(result)
        os.close(reader)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        status = process.poll()
    if begun or status and not failed:
        ended = 'nothing for half an hour' if status is None else f'the process ended with status {status}'
        tell(
            {
                **(begun or {'name': 'device', 'remedy': ''}),
                'result': 'FAILED',
                'seconds': 0.0,
                'expected': 'a result',
                'found': f'{ended}: {tail(log)}',
            }
        )
        return False
    return not failed


def _lines(reader):
    """Yield the lines that come through a pipe, until it is closed or nothing comes for PATIENCE seconds."""
    buffer = b''
    while select.select([reader], [], [], PATIENCE)[0] and (part := os.read(reader, 1 << 16)):
        *whole, buffer = (buffer + part).split(b'\n')
        yield from whole
