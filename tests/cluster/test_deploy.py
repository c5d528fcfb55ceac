"""The manifests and the Slurm script of deploy/: their very commands and environment, in made containers and servers.

The directories of a container are below a temporary one. Instead of NPUs there are empty files, instead of train.py a
program that records what it gets. The launcher is the real one.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from src.cluster import rank_table
from src.options import load_settings
from tests.cluster.test_launch import ROOT, alive
from tests.cluster.test_restarts import free_port

MANIFESTS = {1: 'deploy/volcano_1x8.yaml', 2: 'deploy/volcano_2x8.yaml'}
ABSOLUTE = r'(?<![\w.])/(?=usr/|user/|opt/|data/|dev/)'
TRAINING = """
import json, os, signal, sys, time
from src.heartbeat import Heartbeat
rank, beat = os.environ['RANK_ID'], Heartbeat()
def stop(*_):
    time.sleep(.2)
    os.makedirs('results/16p/0/ckpt', exist_ok=True)
    open(f'results/saved{rank}', 'w').close()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
names = ('RANK_ID', 'RANK_SIZE', 'DEVICE_ID', 'MS_SCHED_HOST', 'CANN', 'ASCEND_VISIBLE_DEVICES', 'LOCAL_RANKS')
with open(f'results/starts{rank}', 'a') as file:
    print(json.dumps([{name: os.environ.get(name) for name in names}, sys.argv[1:], os.getpid()]), file=file)
start = len(open(f'results/starts{rank}').readlines())
while not all(os.path.exists(f'results/starts{r}') for r in range(int(os.environ['RANK_SIZE']))):
    time.sleep(0.01)
beat('steps', 1)
"""


def documents(servers):
    """(ConfigMap, Job, its pods' template, the container)"""
    table, job = yaml.safe_load_all(Path(ROOT, MANIFESTS[servers]).read_text())
    (task,) = job['spec']['tasks']
    (container,) = task['template']['spec']['containers']
    return table, job, task, container


def hccl_json(servers):
    """As MindCluster's operator completes it; the containers' addresses are of this machine."""
    return {
        'status': 'completed',
        'version': '1.0',
        'server_count': str(servers),
        'server_list': [
            {
                'server_id': f'id-{k}',
                'host_ip': f'10.9.0.{k}',
                'container_ip': f'127.0.0.{k + 1}',
                'device': [
                    {'device_id': str(i), 'device_ip': f'192.168.{k}.{i}', 'rank_id': str(8 * k + i)} for i in range(8)
                ],
            }
            for k in range(servers)
        ],
    }


class Server:
    """A made container or server: directories below `root`, its own NPUs and address, volumes that it shares."""

    def __init__(self, root, number, port, results, training):
        self.root, self.number = root, number
        project = root / 'opt/inceptionv4'
        for folder in ('opt/inceptionv4', 'dev', 'usr/local/Ascend/ascend-toolkit', 'user/serverid/devindex/config'):
            (root / folder).mkdir(parents=True)
        (project / 'src').symlink_to(Path(ROOT, 'src'))
        for name in ('scripts', 'deploy'):  # no links: a script takes the project that it really lies in
            shutil.copytree(Path(ROOT, name), project / name)
        (project / 'results').symlink_to(results)
        (project / 'train.py').write_text(TRAINING + training)
        (root / 'usr/local/Ascend/ascend-toolkit/set_env.sh').write_text('export CANN=sourced\n')
        for i in range(8):
            (root / f'dev/davinci{i}').touch()
        self.table = root / 'user/serverid/devindex/config/hccl.json'
        # The one thing that is not as in a container: how the launcher's Python sees devices and addresses.
        (root / 'launch.py').write_text(
            'import sys\nfrom src import environment\nfrom src.cluster import jobs, launch, rank_table, restarts, servers\n'
            f'environment.NPUS = {str(root / "dev/davinci[0-9]*")!r}\nenvironment.check = lambda: None\n'
            f'servers.is_local = lambda name: name == "127.0.0.{number + 1}"\nlaunch.PORT = {port}\nrestarts.PAUSE = 0.1\n'
            'jobs.SCHEDULER = "pass"\n'
            f'rank_table.MINDCLUSTER = {str(self.table.parent)!r}\nlaunch.main(sys.argv[3:])\n'
        )
        self.python = root / 'python'
        self.python.write_text(f'#!/bin/bash\nexec {sys.executable} {root}/launch.py "$@"\n')
        self.python.chmod(0o755)

    def environment(self, more=()):
        return {'PATH': os.environ['PATH'], 'PYTHON': str(self.python), 'LD_PRELOAD': '', **dict(more)}

    def pod(self, container):
        """Start the container's command in its working directory with its environment."""
        fields = {
            'status.hostIP': f'10.9.0.{self.number}',
            "metadata.annotations['huawei.com/Ascend910']": 'Ascend910-0,1,2',
        }
        given = {entry['name']: fields[entry['valueFrom']['fieldRef']['fieldPath']] for entry in container['env']}
        self.process = subprocess.Popen(
            [re.sub(ABSOLUTE, f'{self.root}/', word) for word in container['command']],
            cwd=f'{self.root}{container["workingDir"]}',
            env=self.environment(given),
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


def servers(tmp_path, count, training):
    (tmp_path / 'results').mkdir()
    port = free_port()
    return [Server(tmp_path / f'server{k}', k, port, tmp_path / 'results', training) for k in range(count)]


def starts(tmp_path, rank):
    return [json.loads(line) for line in (tmp_path / f'results/starts{rank}').read_text().splitlines()]


def wait_for_ranks(tmp_path, count):
    end = time.monotonic() + 60
    while not all((tmp_path / f'results/starts{rank}').exists() for rank in range(count)):
        assert time.monotonic() < end
        time.sleep(0.05)


def none_left(tmp_path, count):
    return not any(alive(pid) for rank in range(count) for _, _, pid in starts(tmp_path, rank))


@pytest.mark.parametrize('count', MANIFESTS)
def test_manifest_fits_together(count):
    table, job, task, container = documents(count)
    spec, pod = job['spec'], task['template']['spec']
    assert table['metadata']['name'] == f'rings-config-{job["metadata"]["name"]}'
    assert table['metadata']['namespace'] == job['metadata']['namespace'] and list(table['data']) == ['hccl.json']
    labels = [part['metadata']['labels']['ring-controller.atlas'] for part in (table, job, task['template'])]
    assert len(set(labels)) == 1 and spec['minAvailable'] == task['replicas'] == count
    assert container['resources']['requests'] == container['resources']['limits'] == {'huawei.com/Ascend910': 8}
    volumes = {volume['name']: volume for volume in pod['volumes']}
    mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
    assert volumes.keys() == mounts.keys()
    assert volumes['rank-table']['configMap']['name'] == table['metadata']['name']
    assert mounts['rank-table'] == rank_table.MINDCLUSTER and mounts['results'] == f'{container["workingDir"]}/results'
    docker = Path(ROOT, 'docker/Dockerfile.ascend').read_text()
    assert f'WORKDIR {container["workingDir"]}\n' in docker and container['image'].partition(':')[0] in docker
    # Restarts: of processes by the launcher, of pods by Volcano, of a container by nobody.
    words = container['command'][-1].split()
    assert pod['restartPolicy'] == 'Never' and int(words[words.index('--max_restarts') + 1]) > 0
    assert spec['policies'] == [{'event': 'PodEvicted', 'action': 'RestartJob'}] and spec['maxRetry'] > 0
    grace = float(words[words.index('--grace') + 1])
    assert grace + 30 < pod['terminationGracePeriodSeconds'] < 900
    assert words[words.index(f'{rank_table.MINDCLUSTER}/hccl.json') + 1 :][:2] == ['--data_dir', mounts['data']]
    load_settings(['--data_dir', mounts['data'], '--resume', words[words.index('--resume') + 1]])


def test_one_pod_waits_for_its_rank_table_and_saves_when_it_is_deleted(tmp_path):
    table, _, _, container = documents(1)
    (server,) = servers(tmp_path, 1, 'while True: time.sleep(.1)\n')
    server.table.write_text(table['data']['hccl.json'])
    server.pod(container)
    said = iter(server.process.stderr.readline, '')
    assert any('is not completed yet; waits for up to 300 s' in line for line in said)
    server.table.write_text(json.dumps(hccl_json(1)))
    wait_for_ranks(tmp_path, 8)
    for rank in range(8):
        ((environment, options, _),) = starts(tmp_path, rank)
        assert environment == {
            'RANK_ID': str(rank),
            'RANK_SIZE': '8',
            'DEVICE_ID': str(rank),
            'MS_SCHED_HOST': '127.0.0.1',
            'CANN': 'sourced',
            'ASCEND_VISIBLE_DEVICES': 'Ascend910-0,1,2',
            'LOCAL_RANKS': '8',
        }
        data = f'{server.root}/data/imagenet'
        assert options == ['--data_dir', data, '--resume', 'auto', '--rank_size', '8', '--device_target', 'Ascend']
    server.process.terminate()  # exec, exec: it is the launcher itself
    rest = server.process.communicate(timeout=30)[1]
    assert server.process.returncode == 143 and 'SIGTERM passed on; ranks have 300 s to save and exit' in rest
    assert len(list((tmp_path / 'results').glob('saved*'))) == 8 and none_left(tmp_path, 8)
    assert (tmp_path / 'results/8p/7/train.log').exists()  # on the volume


def test_two_pods_restart_together(tmp_path):
    _, _, _, container = documents(2)
    pods = servers(tmp_path, 2, 'if start == 1:\n  if rank == "12": os._exit(137)\n  while True: time.sleep(.1)\n')
    for pod in pods:
        pod.table.write_text(json.dumps(hccl_json(2)))
        pod.pod(container)
    said = [pod.process.communicate(timeout=60)[1] for pod in pods]
    assert [pod.process.returncode for pod in pods] == [0, 0], said
    assert all('restart 1 of 10 in 0.1 s, from where it began' in text and 'rank 12, status 137' in text for text in said)
    assert [len(starts(tmp_path, rank)) for rank in range(16)] == [2] * 16 and none_left(tmp_path, 16)
    given = [starts(tmp_path, rank)[0][0] for rank in range(16)]
    assert [(env['DEVICE_ID'], env['MS_SCHED_HOST']) for env in given] == [(str(r % 8), '127.0.0.1') for r in range(16)]


SRUN = """#!/bin/bash
# A stand-in: runs the command on every made server, passes SIGTERM on, and gives the highest status.
printf '%s\\n' "$@" > "$RECORD"
shift
trap 'kill -TERM "${pids[@]}"' TERM
for server in "$SERVERS"/server?; do
    (cd "$server/opt/inceptionv4" && PYTHON="$server/python" exec "$@") & pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
    until wait "$pid"; code=$?; ! kill -0 "$pid" 2>/dev/null; do :; done
    [ $code -gt $status ] && status=$code
done
exit $status
"""


def test_slurm(tmp_path):
    """Slurm's signal before the end of its time: all ranks save, and the job is queued again."""
    found = servers(tmp_path, 2, 'while True: time.sleep(.1)\n')
    tools = tmp_path / 'bin'
    tools.mkdir()
    for name, text in (('srun', SRUN), ('scontrol', '#!/bin/bash\necho "$@" > "$RECORD.scontrol"\n')):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    table, record = tmp_path / 'rank_table.json', tmp_path / 'record'
    table.write_text(json.dumps(hccl_json(2)))
    environment = {
        'PATH': f'{tools}:{os.environ["PATH"]}',
        'RECORD': str(record),
        'SERVERS': str(tmp_path),
        'SLURM_JOB_ID': '7',
    }
    batch = subprocess.Popen(
        ['bash', 'deploy/slurm.sh', str(table), '--data_dir', '/data/imagenet'],
        cwd=found[0].root / 'opt/inceptionv4',
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
    )
    wait_for_ranks(tmp_path, 16)
    (srun,) = (pid for pid in map(int, filter(str.isdigit, os.listdir('/proc'))) if parent(pid) == batch.pid)
    os.kill(srun, signal.SIGTERM)  # the job's steps get it, not the batch script
    said = batch.communicate(timeout=60)[1]
    assert batch.returncode == 143 and Path(f'{record}.scontrol').read_text() == 'requeue 7\n', said
    assert len(list((tmp_path / 'results').glob('saved*'))) == 16 and none_left(tmp_path, 16)
    assert starts(tmp_path, 9)[0][1][:4] == ['--data_dir', '/data/imagenet', '--resume', 'auto']
    assert record.read_text().splitlines()[0].startswith('--')
    head = Path(ROOT, 'deploy/slurm.sh').read_text()
    assert '--nodes=2' in head and '--ntasks-per-node=1' in head and '#SBATCH --signal=TERM@300' in head
    assert len(head.splitlines()) <= 10


def parent(pid):
    try:
        return int(Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[1])
    except OSError:
        return None
