"""Shared memory and message queues (System V IPC) that killed data workers left; the kernel keeps them until a reboot.

MindSpore makes one segment and one queue per worker, with the same key, which it takes from an empty file (`ftok`). The
worker or the main process removes segment and queue when it ends; if all are killed at once, nobody does. The file stays
after any end. A batch of 128 images takes 34 MB.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
from collections.abc import Iterable

from src.processes import lives

PERMISSIONS = 0o600  # MindSpore's
FILES = '/tmp/dataset_ipc_'  # its files: <pid of the main process>_<thread>_<number>, whatever TMPDIR says
IPC_RMID = 0


def remove_orphans(killed: Iterable[int] = ()) -> int:
    """Remove what this user's dead data workers left; gives the number of bytes of shared memory.

    A segment is removed if no process is attached to it, the processes that made and last used it are dead, and MindSpore
    made it: there is a queue with the same key, or a file of a dead process, or its maker is in `killed` (pids). A queue
    without a segment is removed if there is such a file, or a process of `killed` used it; then the files are. A process of
    another pid namespace has the pid 0 here and never counts as dead.
    """
    libc, removed, files = ctypes.CDLL(None), 0, _files()
    named = {key for key, _ in files}
    queues = {row['key']: row for row in _table('msg') if not lives(row['lspid']) and not lives(row['lrpid'])}
    segments = _table('shm')
    for segment in segments:
        pids = segment['cpid'], segment['lpid']
        if segment['nattch'] or not all(pids) or any(map(lives, pids)):
            continue
        queue = queues.pop(segment['key'], None)
        if queue or segment['cpid'] in killed or segment['key'] & 0xFFFFFF in named:
            if libc.shmctl(segment['shmid'], IPC_RMID, None) == 0:  # or another rank was faster
                removed += segment['size']
            if queue:
                libc.msgctl(queue['msqid'], IPC_RMID, None)
    marks = {segment['key'] for segment in segments}  # their queues were handled above, or are in use
    for queue in queues.values():
        known = queue['lspid'] in killed or queue['lrpid'] in killed or queue['key'] & 0xFFFFFF in named
        if queue['key'] not in marks and known:
            libc.msgctl(queue['msqid'], IPC_RMID, None)
    left = {row['key'] & 0xFFFFFF for kind in ('shm', 'msg') for row in _table(kind)}
    for key, path in files:
        if key not in left:  # else a data worker has survived its main process, for some seconds
            with contextlib.suppress(OSError):
                os.unlink(path)
    return removed


def _files():
    """[(key without its highest byte, path)] of the files from which this user's dead processes took keys; see ftok(3)."""
    found = []
    for path in glob.glob(f'{FILES}*'):
        pid = path[len(FILES) :].partition('_')[0]
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            if pid.isdecimal() and not lives(int(pid)) and status.st_uid == os.geteuid():
                found.append(((status.st_dev & 0xFF) << 16 | status.st_ino & 0xFFFF, path))
    return found


def _table(kind):
    """Rows {column: number} of /proc/sysvipc/`kind`: this user's objects that have a key and MindSpore's permissions."""
    try:
        with open(f'/proc/sysvipc/{kind}', encoding='ascii') as file:
            names, *lines = map(str.split, file)
    except (OSError, ValueError):  # a kernel without System V IPC
        return []
    rows = [{name: int(text, 8 if name == 'perms' else 10) for name, text in zip(names, line)} for line in lines]
    return [
        row
        for row in rows
        if row['key'] and row['cuid'] == row['uid'] == os.geteuid() and row['perms'] & 0o777 == PERMISSIONS
    ]
