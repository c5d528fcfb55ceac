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
    _, version = environment.cann()
    if target != 'CPU' and npus:
        assert environment.problems() == []
    decoder = 'libturbojpeg' if jpeg.library() else 'Pillow'
    warnings = []
    if decoder == 'Pillow':
        warnings.append('JPEGs are decoded by Pillow, slower: install libturbojpeg 3 (docs/data.md)')
    if sys.version_info >= (3, 12, 9):
        warnings.append("this Python keeps signals blocked in CANN's compilers; Python 3.11 is recommended")
    figures(
        text=f'{len(npus)} NPUs, CANN {version or "none"}, driver {environment.driver() or "none"}, Python '
        f'{platform.python_version()}, {cores} cores, {decoder}',
        npus=len(npus),
        cann=version,
        driver=environment.driver(),
        python=platform.python_version(),
        cores=cores,
        warning='; '.join(warnings),
    )
