"""Checkpoint files, beside what the tests of trainings show."""

import subprocess
import time

from src import processes
from src.weights import checkpoint


def test_what_a_zombie_left_is_removed(tmp_path):
    """A process that has ended, but was not waited for, saves nothing any more."""
    ended = subprocess.Popen(['true'])
    try:
        while (processes.state(ended.pid) or 'Z')[0] != 'Z':
            time.sleep(0.01)
        (tmp_path / f'.inceptionv4-0_4.ckpt.{ended.pid}.x4_k').mkdir()
        checkpoint.remove_unfinished(tmp_path)
    finally:
        ended.wait()
    assert not list(tmp_path.iterdir())
