"""Two real ranks under the launcher and its watchdog: random faults, a rank that is slow, an evaluation that takes long."""

import re

import pytest

from src.data import demo_images
from src.training import metrics
from tests import faults

# train.py with slow storage for one rank, and for all in an evaluation.
SLOW = """
import os, sys, time
sys.path.insert(0, os.environ['PYTHONPATH'])
from src.data import pipeline
def slowed(kind, seconds):
    call = kind.__call__
    kind.__call__ = lambda *arguments: (time.sleep(seconds), call(*arguments))[1]
if os.environ['RANK_ID'] == '1':
    slowed(pipeline.LoadTraining, 8)
slowed(pipeline.LoadEvaluation, 10)
import train
train.main()
"""


@pytest.mark.compiles
@pytest.mark.slow
def test_random_faults(tmp_path):
    """A tenth of `python -m tests.faults`: eight faults on one training."""
    done, wrong = faults.run(tmp_path, 8, seed=1)
    assert not wrong and len(done) >= 6, (done, wrong)


@pytest.mark.compiles
@pytest.mark.slow
def test_slow_rank_is_named_and_a_long_evaluation_is_no_stall(tmp_path):
    """The evaluation takes longer than the watchdog gives it for one batch."""
    data = demo_images.make(tmp_path / 'records', train_per_class=4, validation_per_class=4)
    (tmp_path / 'slow.py').write_text(SLOW)
    options = [
        '--mode',
        'train_and_evaluate',
        '--epochs_between_evals',
        '2',
        '--max_train_steps',
        '20',
        '--num_workers',
        '1',
    ]
    options += ['--stall_timeout', '15']
    training = faults.Training(tmp_path, data, *options, script=tmp_path / 'slow.py')
    assert training.process.wait(500) == 0, training.text[-3000:]
    assert 'the training hangs' not in training.text and not faults.problems(training, None)
    rows = metrics.read(training.directory / metrics.NAME)
    ranks = [row for row in rows if row['kind'] == 'ranks']
    assert [row['step'] for row in ranks] == [10, 20]
    for row in ranks:
        waits = row['data_wait_seconds']
        assert len(row['step_seconds']) == len(waits) == 2 and waits[1] > waits[0] + 1
    assert re.search(r'^rank 1 is slower than the others: it begins its steps \d+\.\d+ s later', training.text, re.M)
    (evaluation,) = [row for row in rows if row['kind'] == 'evaluation']
    assert evaluation['seconds'] > 6 * 15
