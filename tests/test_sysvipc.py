"""Shared memory and queues that killed data workers left are removed, and nothing else."""

import contextlib
import ctypes
import glob
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src import sysvipc

ROOT = Path(__file__).resolve().parents[1]
# Makes a segment and a queue with these keys, as a worker does, uses and leaves them; then waits if told to.
WORKER = """
import ctypes, sys, time
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
shm_key, msg_key, mode, wait = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3], 8), sys.argv[4] == 'wait'
segment = libc.shmget(shm_key, 5000, 0o1000 | mode)
address = libc.shmat(segment, None, 0)
if msg_key:
    queue = libc.msgget(msg_key, 0o1000 | mode)
    message = (ctypes.c_long * 2)(1, 2)
    assert not libc.msgsnd(queue, message, ctypes.c_size_t(8), 0)
    assert libc.msgrcv(queue, message, ctypes.c_size_t(8), ctypes.c_long(0), 0) == 8
libc.shmdt(ctypes.c_void_p(address))
print(segment, queue if msg_key else -1, flush=True)
if wait:
    time.sleep(60)
"""


def ids():
    """The ids of all segments and queues."""
    found = []
    for kind in ('shm', 'msg'):
        lines = Path('/proc/sysvipc', kind).read_text().splitlines()[1:]
        found.append({int(line.split()[1]) for line in lines})
    return found


class Left:
    """What a worker that has ended left; `killed` is its pid."""

    def __init__(self, own_queue=True, queue=True, mode='600', wait=False, key=None):
        key = key or random.randrange(1 << 20, 1 << 30)
        msg_key = key + (not own_queue) if queue else 0
        self.process = subprocess.Popen(
            [sys.executable, '-c', WORKER, str(key), str(msg_key), mode, 'wait' if wait else ''],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.segment, self.queue = map(int, self.process.stdout.readline().split())
        if not wait:
            self.process.wait()

    def there(self):
        segments, queues = ids()
        return self.segment in segments, self.queue in queues

    def remove(self):
        libc = ctypes.CDLL(None)
        self.process.kill()
        self.process.wait()
        libc.shmctl(self.segment, 0, None)
        libc.msgctl(self.queue, 0, None)


@pytest.fixture
def left():
    with contextlib.ExitStack() as stack:

        def make(**kwargs):
            made = Left(**kwargs)
            stack.callback(made.remove)
            return made

        yield make


def test_pair_of_a_dead_worker_goes(left):
    pair = left()
    assert pair.there() == (True, True)
    assert sysvipc.remove_orphans() >= 5000 and pair.there() == (False, False)


def test_what_is_not_mindspores_or_in_use_stays(left):
    others = [left(queue=False), left(own_queue=False), left(mode='666'), left(wait=True)]
    attached = left()
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(attached.segment, None, 0)
    sysvipc.remove_orphans()
    assert [other.there() for other in others] == [(True, False), *[(True, True)] * 3] and attached.there() == (True, True)
    libc.shmdt(ctypes.c_void_p(address))  # this process lives: it has used the segment last
    sysvipc.remove_orphans()
    assert attached.there() == (True, True)


def test_what_killed_processes_made_goes_without_the_mark(left):
    alone, apart, alive = left(queue=False), left(own_queue=False), left(wait=True)
    alive.process.send_signal(signal.SIGSTOP)
    sysvipc.remove_orphans({one.process.pid for one in (alone, apart, alive)})
    assert (alone.there(), apart.there(), alive.there()) == ((False, False), (False, False), (True, True))


@pytest.fixture
def file_of(tmp_path, monkeypatch):
    """Makes a file of MindSpore for a main process, and gives (path, key)."""
    monkeypatch.setattr(sysvipc, 'FILES', f'{tmp_path}/dataset_ipc_')

    def make(pid, number=0):
        path = tmp_path / f'dataset_ipc_{pid}_139656616311680_{number}'
        path.touch()
        return path, ctypes.CDLL(None).ftok(str(path).encode(), 0)

    return make


def test_file_of_a_dead_process_tells_what_was_its(left, file_of):
    """A queue that nobody has used yet, and a segment whose queue is gone already; then the files go, too."""
    libc, dead = ctypes.CDLL(None), 1 << 22  # more than any pid
    (first, key), (second, other), (alive, mine) = file_of(dead), file_of(dead, 1), file_of(os.getpid())
    queue, own = libc.msgget(key, 0o1600), libc.msgget(mine, 0o1600)
    segment = left(queue=False, key=other)
    try:
        sysvipc.remove_orphans()
        assert queue not in ids()[1] and own in ids()[1] and not segment.there()[0]
        assert not first.exists() and not second.exists() and alive.exists()
    finally:
        for one in (queue, own):
            libc.msgctl(one, 0, None)


def test_file_stays_while_a_worker_survives_its_main_process(left, file_of):
    path, key = file_of(1 << 22)
    worker = left(wait=True, key=key)
    sysvipc.remove_orphans()
    assert path.exists() and worker.there() == (True, True)


def test_without_the_kernels_tables(monkeypatch):
    monkeypatch.setattr(sysvipc, 'open', lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()), raising=False)
    assert sysvipc.remove_orphans() == 0


# ---- MindSpore's own data workers

RANK = """
import os, sys, time
from src.data import pipeline
from src.data.records import open_records
records = open_records(sys.argv[1], 'validation')
data = pipeline.evaluation_dataset(records, offset=1, image_size=75, batch_size=4, num_workers=2)
batches = data.create_tuple_iterator(num_epochs=-1)
next(batches)
open('ready' + os.environ['RANK_ID'], 'w').write(str(os.getpid()))
time.sleep(300)
"""


def of_children(pids):
    """(segments, queues) made by children of these processes."""
    children = set()
    for pid in pids:
        for task in Path(f'/proc/{pid}/task').iterdir():
            with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
                children |= {int(child) for child in (task / 'children').read_text().split()}
    tables = []
    for kind in ('shm', 'msg'):
        names, *lines = map(str.split, Path('/proc/sysvipc', kind).read_text().splitlines())
        tables.append([dict(zip(names, map(int, line))) for line in lines])
    made = {row['key']: row['shmid'] for row in tables[0] if row['cpid'] in children}
    return set(made.values()), {row['msqid'] for row in tables[1] if row['key'] in made}


@pytest.mark.compiles
def test_launcher_that_kills_all_leaves_nothing(data, tmp_path):
    """Two ranks with two data workers each; the second signal kills them all at once."""
    (tmp_path / 'rank.py').write_text(RANK)
    (tmp_path / 'table.json').write_text(
        '{"version": "1.0", "server_count": "1", "status": "completed", "server_list": [{"server_id": "here", "device": '
        '[{"device_id": "0", "rank_id": "0"}, {"device_id": "1", "rank_id": "1"}]}]}'
    )
    run = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'src.cluster.launch',
            'table.json',
            'rank.py',
            str(data),
            '--device_target',
            'Ascend',
            '--grace',
            '1',
        ],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    ready = [tmp_path / 'ready0', tmp_path / 'ready1']
    try:
        limit = time.monotonic() + 120
        while not all(path.exists() and path.read_text() for path in ready):
            assert run.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
        segments, queues = of_children([int(path.read_text()) for path in ready])
        assert len(segments) == len(queues) == 4
        for path in ready:
            os.kill(int(path.read_text()), signal.SIGSTOP)  # so that it cannot clean up
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 143
    finally:
        run.kill()
        run.wait()
    assert not segments & ids()[0] and not queues & ids()[1]
    assert not [pid for path in ready for pid in glob.glob(f'{sysvipc.FILES}{path.read_text()}_*')]
