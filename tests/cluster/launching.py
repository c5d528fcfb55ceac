"""Launchers of small programs in place of train.py, on the way of Ascend with files in place of NPUs."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.processes import lives

ROOT = Path(__file__).resolve().parents[2]
# What a rank begins with: it has heartbeats, notes its options, and waits for the others of its server.
RANK = """
import json, os, signal, subprocess, sys, time
from src.heartbeat import Heartbeat, dump_stacks_on_request
dump_stacks_on_request()
rank, heartbeat, here = int(os.environ['RANK_ID']), Heartbeat(), int(os.environ['LOCAL_RANKS'])
def steps(first, last, seconds=0.01):
    for step in range(first, last + 1):
        time.sleep(seconds)
        heartbeat('steps', step)
def note(name, value):
    with open(f'{name}{rank}', 'a') as file:
        file.write(json.dumps(value) + '\\n')
note('pid', os.getpid())
note('starts', sys.argv[1:])
start = len(open(f'starts{rank}').readlines())
while not all(os.path.exists(f'starts{r}') for r in range(rank // here * here, rank // here * here + here)):
    time.sleep(0.01)
"""


def table(servers, devices=8, first=0):
    """JSON of a rank table in version 1.0, as the first server sees it, where all addresses are of this machine."""
    rows = [
        {
            'server_id': f'127.0.0.{k + 1}',
            'device': [{'device_id': str(first + i), 'rank_id': str(k * devices + i)} for i in range(devices)],
        }
        for k in range(servers)
    ]
    return json.dumps({'version': '1.0', 'server_count': str(servers), 'status': 'completed', 'server_list': rows})


def template_2(servers, devices=8, first=0):
    """jobstart_hccl.json of ModelArts: an instance is a container with its devices; ranks are not in it."""
    numbers = [{'device_id': str(first + i), 'device_ip': f'10.0.0.{i}'} for i in range(devices)]
    instances = [{'devices': numbers, 'pod_name': f'job-{k}', 'server_id': f'127.0.0.{k + 1}'} for k in range(servers)]
    group = {'device_count': str(servers * devices), 'instance_list': instances}
    return json.dumps({'group_count': '1', 'group_list': [group | {'instance_count': str(servers)}], 'status': 'completed'})


def written(folder, *names):
    """Whether these files are there and not empty."""
    return all((folder / name).exists() and (folder / name).stat().st_size for name in names)


def launcher(folder, *npus):
    """Python lines that import `launch` and let files in `folder` be the NPUs with these numbers."""
    for number in npus:
        (folder / f'davinci{number}').touch()
    return (
        'from src import environment\nfrom src.cluster import launch, supervisor\n'
        f'environment.NPUS, environment.check = {str(folder / "davinci[0-9]*")!r}, lambda: None\n'
    )


class Launch:
    """A launcher in `folder`, which has so many `npus`, of the program `script` after RANK.

    Args:
        ranks: a number, or the name of a rank table in `folder`.
        patch: Python lines that the launcher begins with.
        scheduler: Python program of the scheduler; None: the real one.
    """

    def __init__(self, folder, script, *options, ranks='2', npus=range(8), patch='', scheduler='pass', environ=()):
        self.folder = folder
        (folder / 'script.py').write_text(script)
        code = launcher(folder, *npus) + f'launch.PAUSE, launch.SCHEDULER = 0.1, {scheduler!r} or launch.SCHEDULER\n'
        code += f'{patch}\nlaunch.main()'
        self.process = subprocess.Popen(
            [sys.executable, '-c', code, ranks, 'script.py', '--device_target', 'Ascend', *options],
            cwd=folder,
            env={**os.environ, 'PYTHONPATH': str(ROOT), **dict(environ)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wait_for(self, *names):
        """Wait until the ranks have written these files."""
        end = time.monotonic() + 300
        while not written(self.folder, *names):
            assert time.monotonic() < end and self.process.poll() is None, names
            time.sleep(0.02)

    def wait_for_line(self, text):
        """Read the launcher's log up to the line with `text`."""
        assert any(text in line for line in iter(self.process.stderr.readline, ''))

    def end(self, patience=0):
        """(exit status, stdout, stderr); no process that wrote a file pid* may be left after `patience` seconds."""
        out, err = self.process.communicate(timeout=300)
        pids, end = [int(pid) for path in self.folder.glob('pid*') for pid in path.read_text().split()], time.monotonic()
        while (left := [*filter(lives, pids)]) and time.monotonic() < end + patience:
            time.sleep(0.1)
        assert not left
        return self.process.returncode, out, err

    def log(self, rank, suffix=''):
        return next(self.folder.glob(f'results/*p/{rank}/train.log{suffix}')).read_text()

    def starts(self, rank=0):
        """[options of each start of a rank]"""
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.folder / f'starts{rank}').read_text().splitlines()]
        return []
