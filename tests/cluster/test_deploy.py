"""The manifests and the Slurm script of deploy/: their very commands and environment, in a made container below a temporary
directory. Files stand in for NPUs, a program that notes its options for train.py; the launcher is the real one."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from src.cluster import rank_table
from tests.cluster.launching import RANK, launcher, table
from tests.processes import ROOT, wait

ABSOLUTE = r'(?<![\w.])/(?=usr/|user/|opt/|data/|dev/)'
SAVES = """
signal.signal(signal.SIGTERM, lambda *_: (note('saved', 1), sys.exit(143)))
note('ready', [os.environ.get(name) for name in ('DEVICE_ID', 'CANN', 'ASCEND_VISIBLE_DEVICES', 'RANK_SIZE')])
while True: time.sleep(.1)
"""


def documents(servers):
    """(specification of the job, that of its pods, the container)"""
    _, job = yaml.safe_load_all((ROOT / f'deploy/volcano_{servers}x8.yaml').read_text())
    pod = job['spec']['tasks'][0]['template']['spec']
    return job['spec'], pod, pod['containers'][0]


@pytest.mark.parametrize('count', [1, 2])
def test_manifest_fits_together(count):
    spec, pod, container = documents(count)
    mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
    assert mounts['rank-table'] == rank_table.MINDCLUSTER and mounts['results'] == f'{container["workingDir"]}/results'
    # Restarts: of processes by the launcher of a single pod, of pods by Volcano, of a container by nobody.
    words = container['command'][-1].split()
    assert pod['restartPolicy'] == 'Never' and ('--max_restarts' in words) == (count == 1)
    failed = [{'exitCode': status, 'action': 'AbortJob'} for status in (2, 3)]  # before the next: the first that fits counts
    failed += [{'event': 'PodFailed', 'action': 'RestartJob'}]
    assert spec['policies'] == [*(failed if count > 1 else []), {'event': 'PodEvicted', 'action': 'RestartJob'}]
    assert float(words[words.index('--grace') + 1]) + 30 < pod['terminationGracePeriodSeconds']


def write_program(path, text):
    path.write_text(f'#!/bin/bash\n{text}\n')
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path):
    """The project's directory in a made container below `tmp_path`, where `tmp_path`/python is its Python."""
    place = tmp_path / 'opt/inceptionv4'
    for folder in ('opt/inceptionv4', 'dev', 'usr/local/Ascend/ascend-toolkit', 'user/serverid/devindex/config'):
        (tmp_path / folder).mkdir(parents=True)
    (place / 'src').symlink_to(ROOT / 'src')
    for name in ('scripts', 'deploy'):  # no links: a script takes the project that it really lies in
        shutil.copytree(ROOT / name, place / name)
    (place / 'train.py').write_text(RANK + SAVES)
    (tmp_path / 'usr/local/Ascend/ascend-toolkit/set_env.sh').write_text('export CANN=sourced\n')
    # The one thing that is not as in a container: how the launcher's Python sees devices.
    (tmp_path / 'launch.py').write_text(launcher(tmp_path / 'dev') + 'import sys\nlaunch.main(sys.argv[3:])\n')
    write_program(tmp_path / 'python', f'exec {sys.executable} {tmp_path}/launch.py "$@"')
    return place


def test_pod_saves_when_it_is_deleted(tmp_path, project):
    *_, container = documents(1)
    (tmp_path / 'user/serverid/devindex/config/hccl.json').write_text(table(1))
    given = {entry['name']: entry['valueFrom']['fieldRef']['fieldPath'] for entry in container['env']}
    command = [re.sub(ABSOLUTE, f'{tmp_path}/', word) for word in container['command']]
    environment = {'PATH': os.environ['PATH'], 'PYTHON': str(tmp_path / 'python'), **given}
    pod = subprocess.Popen(command, cwd=project, env=environment, text=True, stderr=subprocess.PIPE)
    assert wait(lambda: len([*project.glob('ready*')]) == 8 or pod.poll() is not None) and pod.poll() is None
    pod.terminate()  # exec, exec: it is the launcher itself
    err = pod.communicate(timeout=300)[1]
    assert pod.returncode == 143 and 'SIGTERM passed on; ranks have 300 s to save' in err
    options = f'--data_dir {tmp_path}/data/imagenet --resume auto --device_target Ascend --rank_size 8'.split()
    for rank in range(8):
        devices = "metadata.annotations['huawei.com/Ascend910']"
        assert json.loads((project / f'ready{rank}').read_text()) == [str(rank), 'sourced', devices, '8']
        assert json.loads((project / f'starts{rank}').read_text()) == options and (project / f'saved{rank}').exists()


@pytest.mark.parametrize('status, restarts, queued', [(3, '', False), (143, '99', True), (137, '20', False)])
def test_slurm_queues_the_job_again(status, restarts, queued, tmp_path, project):
    """At the end of its time and after failures, but not after what would come again; srun returns the highest status."""
    write_program(tmp_path / 'srun', f'echo "$@" > command; exit {status}')
    write_program(tmp_path / 'scontrol', 'echo "$@" > queued')
    environment = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7', 'SLURM_RESTART_COUNT': restarts}
    command = ['bash', 'deploy/slurm.sh', 'rank_table.json', '--lr', '1']
    assert subprocess.run(command, cwd=project, env=environment).returncode == status
    assert [path.read_text() for path in project.glob('queued')] == ['requeue 7\n'] * queued
    given = 'bash scripts/run_distribute_train.sh rank_table.json --lr 1 --resume auto --grace 240\n'
    assert (project / 'command').read_text() == f'--kill-on-bad-exit=0 {given}'
