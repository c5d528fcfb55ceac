"""The checks of whole trainings on one device: compilation, signals, the end of the process; needs no MindSpore."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from src.acceptance.launches import OPTIONS
from src.acceptance.programs import PATIENCE, ROOT, program, tail
from src.acceptance.report import Failed, equal

# Sinks of ten steps, of the whole network where there is an NPU.
LENGTH = {'CPU': [*OPTIONS.split(), '--max_train_steps', '12']}
WHOLE = [
    '--iterations_per_loop',
    '10',
    '--display_every',
    '10',
    '--max_train_steps',
    '200',
    '--save_checkpoint_steps',
    '200',
]
ENDS = 30  # seconds for the process to be gone after its last step
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRAPH = re.compile(r'^training graph (compiled|from the compile cache) and run once in ([\d.]+) s', re.M)
FIRST = re.compile(r'^step: ', re.M)
LAST = re.compile(r'^(trained|.*stopped after step) ', re.M)


class Trainings:
    """The checks, in the order in which they are made.

    Args:
        target: "Ascend" or "CPU".
        device_id: number of the device.
        data: directory of the data set.
        output: directory of logs and results.
        options: more options of train.py.
    """

    def __init__(self, target: str, device_id: int, data: Path, output: Path, options: Sequence[str] = ()):
        self.options = ['--device_target', target, '--device_id', str(device_id), *LENGTH.get(target, WHOLE), *options]
        self.options += ['--data_dir', str(data), '--log_dir', str(output / 'training')]
        self.options += ['--compile_cache', str(output / 'graphs')]
        self.output = output
        shutil.rmtree(output / 'graphs', ignore_errors=True)  # of an earlier check, whose graph would be found

    def _train(self, name, *options, then: Callable | None = None):
        """(exit status, log) of a training, with `then(process)` after its first sink. Failed if the process stays."""
        log = self.output / f'{name}.log'
        with program([ROOT / 'train.py', *self.options, *options], log, cwd=self.output) as process:
            _until(process, log, FIRST)
            if then and process.poll() is None:
                then(process)
            _until(process, log, LAST)
            children = {child.pid: _name(child.pid) for child in psutil.Process(process.pid).children()}
            try:
                process.wait(ENDS)
            except subprocess.TimeoutExpired:
                left = ', '.join(f'{pid} ({name})' for pid, name in children.items())
                raise Failed(f'the end of the process {ENDS} s after its last step', f'it stays; children: {left}') from None
            return process.returncode, log

    def _graph(self, log, expected):
        found = GRAPH.search(log.read_text(errors='replace'))
        equal(found and found[1], expected, 'training graph')
        return float(found[2])

    def compiled(self) -> dict:
        """Time of the first sink, in which the training graph is compiled. Gives the figures of the check."""
        status, log = self._train('compiled', '--overwrite', 'true')
        equal(status, 0, f'exit status ({log}: {tail(log, 1)})')
        self.cold = self._graph(log, 'compiled')
        return {'text': f'first sink after {self.cold:.1f} s, the process ended after its last step', 'seconds': self.cold}

    def cached(self) -> dict:
        """The same with the graph of the compile cache, and SIGTERM after the first sink. Gives the figures of the check."""
        masks = {}

        def stop(process):
            children = [child.pid for child in psutil.Process(process.pid).children()]
            masks.update({pid: _blocked(pid) for pid in (process.pid, *children)})
            process.send_signal(signal.SIGTERM)

        status, log = self._train('cached', '--overwrite', 'true', then=stop)
        equal(status, 143, f'exit status after SIGTERM ({log}: {tail(log, 1)})')
        seconds = self._graph(log, 'from the compile cache')
        main, *children = masks
        equal(masks[main], [], 'signals that the main thread blocks')
        equal(len(list((self.output / 'training').glob('*.ckpt'))), 1, 'number of checkpoints')
        deaf = ', '.join(f'{pid} ({_name(pid)})' for pid in children if masks[pid])
        text = f'first sink after {seconds:.1f} s; SIGTERM: 143 and a checkpoint'
        figures = {'text': text, 'seconds': seconds, 'saved': self.cold - seconds}
        return figures | ({'warning': f'children that block signals: {deaf}'} if deaf else {})

    def interrupted(self) -> dict:
        """Ctrl-C after the first sink of the resumed training. Gives the figures of the check."""
        status, log = self._train('interrupted', '--resume', 'auto', then=lambda process: process.send_signal(signal.SIGINT))
        equal(status, 130, f'exit status after Ctrl-C ({log}: {tail(log, 1)})')
        return {'text': '130 and a checkpoint'}


def _until(process, log, pattern):
    """Wait until the log has a line of `pattern`, or the process has ended."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None and not pattern.search(log.read_text(errors='replace')):
        if time.monotonic() > end:
            raise Failed(f'a line {pattern.pattern} in {log}', f'none for {PATIENCE} s')
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)


def _blocked(pid):
    """Names of the SIGNALS that the main thread of a process blocks."""
    with contextlib.suppress(OSError):
        mask = int(re.search(r'^SigBlk:\s*(\w+)', Path(f'/proc/{pid}/status').read_text(), re.M)[1], 16)
        return [number.name for number in SIGNALS if mask >> (number - 1) & 1]
    return []


def _name(pid):
    with contextlib.suppress(OSError):
        return Path(f'/proc/{pid}/comm').read_text().strip()
    return 'gone'
