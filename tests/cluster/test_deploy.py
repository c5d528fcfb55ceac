"""The manifests and the Slurm script of deploy/: their very commands and environment, in made containers and servers.

The directories of a container are below a temporary one. Instead of NPUs there are empty files, instead of train.py a
program that notes what it gets. The launcher is the real one.
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
from tests.cluster.launching import RANK, ROOT, free_port
from tests.processes import children, lives

MANIFESTS = {1: 'deploy/volcano_1x8.yaml', 2: 'deploy/volcano_2x8.yaml'}
ABSOLUTE = r'(?<![\w.])/(?=usr/|user/|opt/|data/|dev/)'
PROGRAM = (
    RANK.replace("note('", "note('results/").replace("f'starts", "f'results/starts")
    + """
def stop(*_):
    time.sleep(.2)
    os.makedirs('results/16p/0/ckpt', exist_ok=True)
    note('results/saved', 1)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
names = ('RANK_ID', 'RANK_SIZE', 'DEVICE_ID', 'MS_SCHED_HOST', 'CANN', 'ASCEND_VISIBLE_DEVICES', 'LOCAL_RANKS')
note('results/ready', {name: os.environ.get(name) for name in names})
while not os.path.exists('results/fails') or rank != 12: time.sleep(.1)
os._exit(137)
"""
)
# It notices a rank that is lost, on whatever server.
SCHEDULER = """
import os, sys, time
while not os.path.exists('results/fails'):
    time.sleep(.1)
    if os.path.exists('results/saved0'): sys.exit()
sys.exit('worker 12 is the first one timed out')
"""


def documents(servers):
    """(ConfigMap, Job, its pods' template, the container)"""
    table, job = yaml.safe_load_all(Path(ROOT, MANIFESTS[servers]).read_text())
    (task,) = job['spec']['tasks']
    (container,) = task['template']['spec']['containers']
    return table, job, task, container


def hccl_json(servers):
    """As MindCluster's operator completes it; the containers' addresses are of this machine."""
    rows = [
        {
            'server_id': f'id-{k}',
            'host_ip': f'10.9.0.{k}',
            'container_ip': f'127.0.0.{k + 1}',
            'device': [{'device_id': str(i), 'device_ip': f'192.168.{k}.{i}', 'rank_id': str(8 * k + i)} for i in range(8)],
        }
        for k in range(servers)
    ]
    return json.dumps({'status': 'completed', 'version': '1.0', 'server_count': str(servers), 'server_list': rows})


class Made:
    """A made container or server: directories below `root`, its own NPUs and address, volumes that it shares."""

    def __init__(self, root, number, port):
        self.root, self.number, project = root, number, root / 'opt/inceptionv4'
        for folder in ('opt/inceptionv4', 'dev', 'usr/local/Ascend/ascend-toolkit', 'user/serverid/devindex/config'):
            (root / folder).mkdir(parents=True)
        (project / 'src').symlink_to(Path(ROOT, 'src'))
        for name in ('scripts', 'deploy'):  # no links: a script takes the project that it really lies in
            shutil.copytree(Path(ROOT, name), project / name)
        (project / 'results').symlink_to(root.parent / 'results')
        (project / 'train.py').write_text(PROGRAM)
        (root / 'usr/local/Ascend/ascend-toolkit/set_env.sh').write_text('export CANN=sourced\n')
        for i in range(8):
            (root / f'dev/davinci{i}').touch()
        self.table = root / 'user/serverid/devindex/config/hccl.json'
        # The one thing that is not as in a container: how the launcher's Python sees devices and addresses.
        (root / 'launch.py').write_text(
            'import sys\nfrom src import environment\nfrom src.cluster import launch, rank_table\n'
            f'environment.NPUS = {str(root / "dev/davinci[0-9]*")!r}\nenvironment.check = lambda: None\n'
            f'rank_table.is_local = lambda name: name == "127.0.0.{number + 1}"\n'
            f'launch.PORT, launch.SCHEDULER = {port}, {SCHEDULER!r}\n'
            f'rank_table.MINDCLUSTER = {str(self.table.parent)!r}\nlaunch.main(sys.argv[3:])\n'
        )
        self.python = root / 'python'
        self.python.write_text(f'#!/bin/bash\nexec {sys.executable} {root}/launch.py "$@"\n')
        self.python.chmod(0o755)

    def pod(self, container):
        """Start the container's command in its working directory with its environment."""
        fields = {
            'status.hostIP': f'10.9.0.{self.number}',
            "metadata.annotations['huawei.com/Ascend910']": 'Ascend910-0,1,2',
        }
        given = {entry['name']: fields[entry['valueFrom']['fieldRef']['fieldPath']] for entry in container['env']}
        return subprocess.Popen(
            [re.sub(ABSOLUTE, f'{self.root}/', word) for word in container['command']],
            cwd=f'{self.root}{container["workingDir"]}',
            env={'PATH': os.environ['PATH'], 'PYTHON': str(self.python), **given},
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


@pytest.fixture
def results(tmp_path):
    (tmp_path / 'results').mkdir()
    return tmp_path / 'results'


def noted(results, name, count):
    """What each rank has noted first."""
    end = time.monotonic() + 100
    while not all((results / f'{name}{rank}').exists() for rank in range(count)):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.1)
    return [json.loads((results / f'{name}{rank}').read_text().splitlines()[0]) for rank in range(count)]


def none_left(results, count):
    return not any(map(lives, noted(results, 'pid', count)))


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
    # Restarts: of processes by the launcher of a single pod, of pods by Volcano, of a container by nobody.
    words = container['command'][-1].split()
    assert pod['restartPolicy'] == 'Never' and ('--max_restarts' in words) == (count == 1) and spec['maxRetry'] > 0
    lost = {'event': 'PodEvicted', 'action': 'RestartJob'}
    failed = [{'exitCode': status, 'action': 'AbortJob'} for status in (2, 3)]  # before the next: the first that fits counts
    failed += [{'event': 'PodFailed', 'action': 'RestartJob'}]
    assert spec['policies'] == (failed if count > 1 else []) + [lost]
    assert float(words[words.index('--grace') + 1]) + 30 < pod['terminationGracePeriodSeconds'] < 900
    assert words[words.index(f'{rank_table.MINDCLUSTER}/hccl.json') + 1 :][:4] == [
        '--data_dir',
        mounts['data'],
        '--resume',
        'auto',
    ]


def test_one_pod_waits_for_its_rank_table_and_saves_when_it_is_deleted(tmp_path, results):
    table, _, _, container = documents(1)
    server = Made(tmp_path / 'server0', 0, free_port())
    server.table.write_text(table['data']['hccl.json'])
    pod = server.pod(container)
    assert any('is not completed yet; waiting up to 300 s' in line for line in iter(pod.stderr.readline, ''))
    server.table.write_text(hccl_json(1))
    for rank, environment in enumerate(noted(results, 'ready', 8)):
        assert environment == {
            'RANK_ID': str(rank),
            'RANK_SIZE': '8',
            'DEVICE_ID': str(rank),
            'MS_SCHED_HOST': '127.0.0.1',
            'CANN': 'sourced',
            'ASCEND_VISIBLE_DEVICES': 'Ascend910-0,1,2',
            'LOCAL_RANKS': '8',
        }
    expected = ['--data_dir', f'{server.root}/data/imagenet', '--resume', 'auto', '--rank_size', '8']
    assert noted(results, 'starts', 8) == [[*expected, '--device_target', 'Ascend']] * 8
    pod.terminate()  # exec, exec: it is the launcher itself
    rest = pod.communicate(timeout=60)[1]
    assert pod.returncode == 143 and 'SIGTERM passed on; ranks have 300 s to save and exit' in rest
    assert len(list(results.glob('saved*'))) == 8 and none_left(results, 8)
    assert (results / '8p/7/train.log').exists()  # on the volume


SRUN = """#!/bin/bash
# A stand-in: runs the command on every made server, passes SIGTERM on, and gives the highest status.
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


@pytest.mark.parametrize('end, status', [('time', 143), ('failure', 137), ('input', 2)])
def test_slurm(end, status, tmp_path, results):
    """Slurm's signal before the end of its time: all ranks save, and the job is queued again. So it is after a failure,
    here of a rank on the second server, which the scheduler on the first one notices; but not after unusable input."""
    found = [Made(tmp_path / f'server{k}', k, port) for k, port in enumerate([free_port()] * 2)]
    (tools := tmp_path / 'bin').mkdir()
    for name, text in (('srun', SRUN), ('scontrol', '#!/bin/bash\necho "$@" > "$SERVERS/scontrol"\n')):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / 'rank_table.json').write_text('{}' if end == 'input' else hccl_json(2))
    environment = {'PATH': f'{tools}:{os.environ["PATH"]}', 'SERVERS': str(tmp_path), 'SLURM_JOB_ID': '7'}
    batch = subprocess.Popen(
        ['bash', 'deploy/slurm.sh', str(tmp_path / 'rank_table.json'), '--data_dir', '/data/imagenet'],
        cwd=found[0].root / 'opt/inceptionv4',
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
    )
    if end != 'input':
        hosts = {(one['DEVICE_ID'], one['MS_SCHED_HOST']) for one in noted(results, 'ready', 16)}
        assert hosts == {(str(i), '127.0.0.1') for i in range(8)}
        (srun,) = children(batch.pid)
        if end == 'failure':
            (results / 'fails').touch()
        else:
            os.kill(srun, signal.SIGTERM)  # the job's steps get it, not the batch script
    err = batch.communicate(timeout=100)[1]
    assert batch.returncode == status, err
    assert (tmp_path / 'scontrol').exists() == (end != 'input')
    if end != 'input':
        assert (tmp_path / 'scontrol').read_text() == 'requeue 7\n' and none_left(results, 16)
        assert noted(results, 'starts', 16)[9][:4] == ['--data_dir', '/data/imagenet', '--resume', 'auto']
    if end == 'time':
        assert len(list(results.glob('saved*'))) == 16
    head = Path(ROOT, 'deploy/slurm.sh').read_text()
    assert '--nodes=2' in head and '--ntasks-per-node=1' in head and '#SBATCH --signal=TERM@300' in head
