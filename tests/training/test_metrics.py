"""metrics.jsonl; what a resume makes of them is in test_resume.py (no graph is compiled)."""

import json
import os

from src.training import metrics
from src.training.metrics import Metrics


def test_what_cannot_be_written(tmp_path, monkeypatch):
    """A full disk costs records; what is no number becomes null, names any bytes."""
    path = tmp_path / metrics.NAME
    record = Metrics(path)
    record('step', 1, loss=float('nan'), lr=float.fromhex('0x1.99999ap-4'), host='\udcff\u4e2d')  # 0.1 as a float32
    with monkeypatch.context() as full:
        full.setattr(os, 'write', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
        record('step', 2, loss=2.0)
    record('step', 3)
    first, third = map(json.loads, path.read_bytes().decode('ascii').splitlines())
    assert (first['loss'], first['lr'], third['step']) == (None, 0.1, 3)
