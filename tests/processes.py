"""Processes that tests start, by number."""

import psutil


def lives(pid):
    """Whether there is such a process; a zombie does not count."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def children(pid):
    """Numbers of its living children."""
    try:
        return [child.pid for child in psutil.Process(pid).children() if lives(child.pid)]
    except psutil.NoSuchProcess:
        return []
