"""CANN, Python and what else is installed belong together. Needs no MindSpore."""

import os
import platform
import sys

import pytest

from src import environment
from src.data import jpeg


@pytest.mark.remedy('do what the line above says (python -m src.environment), then start again')
def test_environment(target, figures):
    found, cores = environment.look(), len(os.sched_getaffinity(0))
    if target != 'CPU' and found.npus:
        assert environment.problems(found) == []
    decoder = 'libturbojpeg' if jpeg.library() else 'Pillow'
    warnings = []
    if decoder == 'Pillow':
        warnings.append('JPEGs are decoded by Pillow, slower: install libturbojpeg 3 (docs/data.md)')
    if sys.version_info >= (3, 12, 9):
        warnings.append("this Python keeps signals blocked in CANN's compilers; Python 3.11 is recommended")
    figures(
        text=f'{len(found.npus)} NPUs, CANN {found.version or "none"}, driver {found.driver or "none"}, Python '
        f'{platform.python_version()}, {cores} cores, {decoder}',
        npus=len(found.npus),
        cann=found.version,
        driver=found.driver,
        python=platform.python_version(),
        cores=cores,
        warning='; '.join(warnings),
    )
