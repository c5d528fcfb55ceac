"""A tenth of `python -m tests.faults`: seven faults, one of each kind, on one training run of two real ranks."""

import pytest

from tests import faults


@pytest.mark.compiles
@pytest.mark.slow
def test_random_faults(tmp_path):
    done, wrong = faults.endure(tmp_path, len(faults.KINDS), seed=1)
    assert not wrong and len(done) >= 5, (done, wrong)
