"""Which NPUs, driver and CANN this machine has, and whether CANN can work with this Python; needs no MindSpore.

    python -m src.environment

CANN compiles kernels with the Python that calls it. A new virtual environment lacks the packages that this needs, and
CANN's own error is then only a number:
https://www.hiascend.com/document/detail/en/canncommercial/850/softwareinst/instg/instg_0094.html
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from src.errors import InputError, entry_point

NPUS = '/dev/davinci[0-9]*'
# Variables that name a rank table. MindSpore 2.8 refuses to start with one, or reads what is meant for another program.
RANK_TABLES = ('RANK_TABLE_FILE', 'RANK_TABLE', 'MINDSPORE_HCCL_CONFIG_PATH')
CANN_VERSIONS = ('8.2', '8.3', '8.5')  # of MindSpore 2.8: mindspore/run_check/_check_version.py, AscendEnvChecker
SET_ENV = ('/usr/local/Ascend/ascend-toolkit/set_env.sh', '/usr/local/Ascend/cann/set_env.sh')
DRIVER = '/usr/local/Ascend/driver/version.info'
# The packages with which CANN compiles kernels, {name for pip: module}. Its tools (atc, profiler) need more:
# requirements-ascend.txt.
PACKAGES = {
    'attrs': 'attr',
    **{name: name for name in ('cffi', 'decorator', 'psutil', 'scipy', 'sympy')},
    'numpy<2': 'numpy',
}
OWN = ('te', 'hccl')  # CANN's own packages: in the PYTHONPATH of its set_env.sh, or as wheels in its lib64


class Found(NamedTuple):
    """What `look` finds."""

    npus: list[int]  # physical numbers, ascending
    home: str  # CANN's directory, or ""
    version: str  # of CANN, or "" if unknown
    driver: str  # version, or "" if unknown
    missing: list[str]  # names for pip of what this Python lacks to compile kernels
    missing_own: list[str]  # of OWN


def npus() -> list[int]:
    """Physical numbers of the NPUs that this machine or container may use, ascending."""
    return sorted(int(re.search(r'\d+$', path)[0]) for path in glob.glob(NPUS))


def look(environ: Mapping[str, str] = os.environ) -> Found:
    """Look at this machine and this Python; nothing is imported but the packages around CANN's modules."""
    home = environ.get('ASCEND_HOME_PATH', '')
    # The file that MindSpore reads, or those of newer toolkits.
    paths = [f'{home}/compiler/version.info', *sorted(glob.glob(f'{glob.escape(home)}/share/info/*/version.info'))]
    return Found(
        npus(),
        home,
        next(filter(None, map(_version, paths)), '') if home else '',
        _version(DRIVER),
        [name for name, module in PACKAGES.items() if not _importable(module)],
        [name for name in OWN if not _importable(name)],
    )


def problems(found: Found) -> list[str]:
    """What keeps the NPUs from working; each is one line with the remedy."""
    if not found.home:
        script = next(filter(os.path.exists, SET_ENV), None)
        return [
            f"CANN's environment is not set: source {script}"
            if script
            else 'there are NPUs, but no CANN: install toolkit and ops package of version 8.5.0 and source its set_env.sh'
        ]
    texts = []
    wheels = {name: sorted(glob.glob(os.path.join(found.home, 'lib64', f'{name}-*.whl'))) for name in found.missing_own}
    lost = [name for name, paths in wheels.items() if not paths]
    if lost:
        texts.append(f'Python finds no {" and no ".join(lost)}, packages of CANN: source its set_env.sh in this very shell')
    lacks = [*found.missing, *(name for name, paths in wheels.items() if paths)]
    if lacks:
        install = [*found.missing, *(paths[-1] for paths in wheels.values() if paths)]
        texts.append(
            f'CANN compiles with this Python, which lacks {", ".join(lacks)}: '
            f'{sys.executable} -m pip install {shlex.join(install)}'
        )
    if not shutil.which('g++'):
        texts.append('CANN needs g++: apt-get install g++, or yum install gcc-c++')
    return texts


def check(environ: Mapping[str, str] = os.environ) -> None:
    """InputError with all `problems` if the NPUs here cannot be used."""
    if texts := problems(look(environ)):
        texts.append('`python -m src.environment` shows all that was found; --device_target CPU needs no CANN')
        raise InputError('; '.join(texts))


def _importable(module):
    """Whether `import module` would find it; numpy must also be of version 1. Only the package around it is imported."""
    try:
        return find_spec(module) is not None and (module != 'numpy' or metadata.version('numpy').startswith('1.'))
    except (ImportError, ValueError):
        return False


def _version(path):
    """The version in a version.info file of CANN or of the driver; "" if there is none."""
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            found = re.search(r'^Version=\s*(\S+)', file.read(), re.M)
    except OSError:
        return ''
    return found[1] if found else ''


@entry_point
def main():
    """Print what was found; InputError with all problems."""
    found = look()
    if not found.npus:
        return print('no NPU here (no /dev/davinci*): everything runs on the CPU, and CANN is not needed')
    lacks = [*found.missing_own, *found.missing]
    version = found.version or 'version unknown'
    made_for = '' if version.startswith(CANN_VERSIONS) else f'; MindSpore 2.8 was made for {", ".join(CANN_VERSIONS)}'
    print('NPUs     ', f'{len(found.npus)}:', ', '.join(f'/dev/davinci{i}' for i in found.npus))
    print(f'driver    {found.driver or "version unknown"}')
    print(f'CANN      {version + " in " + found.home + made_for if found.home else "none set"}')
    print(f'Python    {sys.version.split()[0]}, {sys.executable}')
    print('packages ', 'without ' + ', '.join(lacks) if lacks else 'all that CANN needs to compile')
    if texts := problems(found):
        raise InputError('; '.join(texts))


if __name__ == '__main__':
    main()
