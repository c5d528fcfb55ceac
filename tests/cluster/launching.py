"""Launchers of small programs in place of train.py, on the way of Ascend with files in place of NPUs."""

import json
import subprocess

from tests.processes import Program, lives, wait

# What a rank begins with: it has heartbeats, notes its options, and waits for the others of its server.
RANK = """
import json, os, signal, subprocess, sys, time
from src.heartbeat import Heartbeat, dump_stacks_on_request
dump_stacks_on_request()
rank, heartbeat, here = int(os.environ['RANK_ID']), Heartbeat(), int(os.environ['LOCAL_RANKS'])
def steps(first, last):
    for step in range(first, last + 1):
        time.sleep(0.01)
        heartbeat('steps', step)
def note(name, value):
    with open(f'{name}{rank}', 'a') as file:
        file.write(json.dumps(value) + '\\n')
def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)
note('pid', os.getpid())
note('starts', sys.argv[1:])
start = len(open(f'starts{rank}').readlines())
for other in range(rank // here * here, rank // here * here + here):
    wait_for(f'starts{other}')
"""


def table(servers, devices=8):
    """JSON of a rank table in version 1.0, as the first server sees it, where all addresses are of this machine."""
    rows = [[{'device_id': str(i), 'rank_id': str(k * devices + i)} for i in range(devices)] for k in range(servers)]
    listed = [{'server_id': f'127.0.0.{k + 1}', 'device': row} for k, row in enumerate(rows)]
    return json.dumps({'status': 'completed', 'server_list': listed})


def template_2(servers, devices=8, first=0):
    """jobstart_hccl.json of ModelArts: an instance is a container with its devices; ranks are not in it."""
    numbers = [{'device_id': str(first + i), 'device_ip': f'10.0.0.{i}'} for i in range(devices)]
    instances = [{'devices': numbers, 'server_id': f'127.0.0.{k + 1}'} for k in range(servers)]
    return json.dumps({'group_list': [{'instance_list': instances}], 'status': 'completed'})


def launcher(folder, npus=range(8)):
    """Python lines that import `launch` and let files in `folder` be the NPUs with these numbers."""
    for number in npus:
        (folder / f'davinci{number}').touch()
    return (
        'from src import environment\nfrom src.cluster import launch, supervisor\n'
        f'environment.NPUS, environment.check = {str(folder / "davinci[0-9]*")!r}, lambda: None\n'
        'launch.PAUSE, launch.SCHEDULER, real = 0.1, "pass", launch.SCHEDULER\n'
    )


class Launch(Program):
    """A launcher in `folder`, which has these `npus`, of the Python lines `script` after RANK. `ranks` is a number or a
    rank table, `patch` are the launcher's first Python lines, `scheduler` is a Python program, or '' for the real one."""

    def __init__(self, folder, script, *options, ranks='2', npus=range(8), patch='', scheduler='pass', environ=()):
        self.folder = folder
        (folder / 'script.py').write_text(RANK + script)
        code = launcher(folder, npus) + f'launch.SCHEDULER = {scheduler!r} or real\n{patch}\nlaunch.main()'
        pipes = {'text': True, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
        command = ['-c', code, ranks, 'script.py', '--device_target', 'Ascend', *options]
        super().__init__(folder, *command, environ=environ, **pipes)

    def wait_for(self, *names):
        """Wait until the ranks have written these files."""
        self.reach(lambda: all((path := self.folder / name).exists() and path.stat().st_size for name in names))

    def wait_for_line(self, text):
        """Read the launcher's log up to the line with `text`."""
        assert any(text in line for line in iter(self.process.stderr.readline, ''))

    def end(self):
        """(exit status, stdout, stderr); no process that wrote a file pid* may be left. Those of a second launcher in the
        same folder may still be ending."""
        out, err = self.process.communicate(timeout=300)
        pids = [int(pid) for path in self.folder.glob('pid*') for pid in path.read_text().split()]
        assert wait(lambda: not any(map(lives, pids)), 60)
        return self.process.returncode, out, err

    def log(self, rank, suffix=''):
        return next(self.folder.glob(f'results/*p/{rank}/train.log{suffix}')).read_text()

    def starts(self, rank=0):
        """[options of each start of a rank]"""
        return [json.loads(line) for line in (self.folder / f'starts{rank}').read_text().splitlines()]
