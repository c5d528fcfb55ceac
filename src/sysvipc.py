"""Shared memory and message queues (System V) of data workers that were killed: the kernel keeps them until a reboot.

MindSpore makes one of each per worker, under the same key, and both worker and main process remove them at their end; where
all are killed at once, nobody does. A batch of 128 pictures is 34 MB.
"""

import ctypes
import os

from src.processes import lives

PERMISSIONS = 0o600  # MindSpore's
IPC_RMID = 0


def remove_orphans(killed=()):
    """Remove what this user's dead data workers left; gives the bytes of shared memory.

    Only what nobody uses is taken: a segment to which nothing is attached, whose creator is dead, and beside which there
    is MindSpore's mark, a queue of the same key; or with a dead process of `killed` (pids) as creator or sender. A process
    of another pid namespace shows as 0 and is not taken for dead.
    """
    libc, removed = ctypes.CDLL(None), 0
    queues = {row['key']: row for row in _table('msg') if not lives(row['lspid']) and not lives(row['lrpid'])}
    segments = _table('shm')
    for segment in segments:
        pids = segment['cpid'], segment['lpid']
        if segment['nattch'] or not all(pids) or any(map(lives, pids)):
            continue
        queue = queues.pop(segment['key'], None)
        if queue or segment['cpid'] in killed:
            if libc.shmctl(segment['shmid'], IPC_RMID, None) == 0:  # or another rank was faster
                removed += segment['size']
            if queue:
                libc.msgctl(queue['msqid'], IPC_RMID, None)
    marks = {segment['key'] for segment in segments}  # of segments that are still in use
    for queue in queues.values():
        if queue['key'] not in marks and (queue['lspid'] in killed or queue['lrpid'] in killed):
            libc.msgctl(queue['msqid'], IPC_RMID, None)
    return removed


def _table(kind):
    """Rows {column: number} of this user's objects with MindSpore's permissions and a key."""
    try:
        with open(f'/proc/sysvipc/{kind}', encoding='ascii') as file:
            names, *lines = map(str.split, file)
    except (OSError, ValueError):  # a kernel without
        return []
    rows = [{name: int(text, 8 if name == 'perms' else 10) for name, text in zip(names, line)} for line in lines]
    return [
        row
        for row in rows
        if row['key'] and row['cuid'] == row['uid'] == os.geteuid() and row['perms'] & 0o777 == PERMISSIONS
    ]
