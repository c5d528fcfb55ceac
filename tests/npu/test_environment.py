"""CANN, Python and what else is installed belong together. Needs no MindSpore."""

import os
import platform
import sys

import pytest

from src import environment
from src.data import jpeg


@pytest.mark.remedy('do what the line above says (python -m src.environment), then start again')
def test_environment(target, figures):
    npus, cores = environment.npus(), len(os.sched_getaffinity(0))
    assert target == 'CPU' or not npus or environment.problems() == []
    decoder, warnings = 'libturbojpeg' if jpeg.library() else 'Pillow', []
    if decoder == 'Pillow':
        warnings.append('JPEGs are decoded by Pillow, slower: install libturbojpeg 3 (docs/data.md)')
    if sys.version_info >= (3, 12, 9):
        warnings.append("this Python keeps signals blocked in CANN's compilers; Python 3.11 is recommended")
    python, driver, (_, cann) = platform.python_version(), environment.driver(), environment.cann()
    figures(
        text=f'{len(npus)} NPUs, CANN {cann or "none"}, driver {driver or "none"}, Python {python}, {cores} cores, '
        f'{decoder}',
        **{'npus': len(npus), 'cann': cann, 'driver': driver, 'python': python, 'cores': cores},
        warning='; '.join(warnings),
    )
