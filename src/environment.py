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
import sysconfig
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
# The packages that CANN's guide asks for, {name for pip: module}: those that compile kernels, and those of tools that a
# training does not use (atc, profiler, tuning).
COMPILATION = {
    'attrs': 'attr',
    'cffi': 'cffi',
    'decorator': 'decorator',
    'numpy<2': 'numpy',
    'psutil': 'psutil',
    'scipy': 'scipy',
    'sympy': 'sympy',
}
TOOLS = {
    'absl-py': 'absl',
    'cython': 'Cython',
    'pathlib2': 'pathlib2',
    'protobuf==3.20.0': 'google.protobuf',
    'pyyaml': 'yaml',
    'requests': 'requests',
}
OWN = ('te', 'hccl')  # CANN's own packages: in the PYTHONPATH of its set_env.sh, or as wheels in its lib64


class Found(NamedTuple):
    """What `look` finds."""

    npus: list[int]  # physical numbers, ascending
    home: str  # CANN's directory, or ""
    version: str  # of CANN, or "" if unknown
    driver: str  # version, or "" if unknown
    missing: list[str]  # names for pip of what this Python lacks to compile kernels
    missing_tools: list[str]  # the same for tools
    missing_own: list[str]  # of OWN
    gxx: str | None  # path of g++
    libpython: str | None  # path of this Python's shared library


def npus() -> list[int]:
    """Physical numbers of the NPUs that this machine or container may use, ascending."""
    return sorted(int(re.search(r'\d+$', path)[0]) for path in glob.glob(NPUS))


def look(environ: Mapping[str, str] = os.environ) -> Found:
    """Look at this machine and this Python; nothing is imported but the packages around CANN's modules."""
    home = environ.get('ASCEND_HOME_PATH', '')
    return Found(
        npus(),
        home,
        _cann_version(home),
        _version(DRIVER),
        [name for name, module in COMPILATION.items() if not _importable(module)],
        [name for name, module in TOOLS.items() if not _importable(module)],
        [name for name in OWN if not _importable(name)],
        shutil.which('g++', path=environ.get('PATH')),
        _libpython(environ),
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
    if found.version and _numbers(found.version) < _numbers(CANN_VERSIONS[0]):
        texts.append(
            f'CANN {found.version} in {found.home} is too old for MindSpore 2.8, which takes {", ".join(CANN_VERSIONS)}'
        )
    wheels = {name: sorted(glob.glob(os.path.join(found.home, 'lib64', f'{name}-*.whl'))) for name in found.missing_own}
    lost = [name for name, paths in wheels.items() if not paths]
    if lost:
        texts.append(f'Python finds no {" and no ".join(lost)}, packages of CANN: source its set_env.sh in this very shell')
    if found.missing or any(wheels.values()):
        lacks = [*found.missing, *(name for name, paths in wheels.items() if paths)]
        install = [*found.missing, *found.missing_tools, *(paths[-1] for paths in wheels.values() if paths)]
        texts.append(
            f'CANN compiles with this Python, which lacks {", ".join(lacks)}: '
            f'{sys.executable} -m pip install {shlex.join(install)}'
        )
    if not found.gxx:
        texts.append('CANN needs g++: apt-get install g++, or yum install gcc-c++')
    return texts


def warnings(found: Found) -> list[str]:
    """What may go wrong, one line each, but is no reason to stop."""
    if (
        found.version
        and _numbers(found.version) > _numbers(CANN_VERSIONS[0])
        and not any(_numbers(found.version) == _numbers(version) for version in CANN_VERSIONS)
    ):
        return [f'CANN {found.version}: MindSpore 2.8 was made for {", ".join(CANN_VERSIONS)}']
    return []


def check(environ: Mapping[str, str] = os.environ) -> None:
    """InputError with all `problems` if the NPUs here cannot be used; `warnings` go to stderr."""
    found = look(environ)
    if texts := problems(found):
        texts.append('`python -m src.environment` shows all that was found; --device_target CPU needs no CANN')
        raise InputError('; '.join(texts))
    for text in warnings(found):
        print(f'warning: {text}', file=sys.stderr, flush=True)


def _importable(module):
    """Whether `import module` would find it; numpy must also be of version 1. Only the package around it is imported."""
    try:
        return find_spec(module) is not None and (module != 'numpy' or metadata.version('numpy').startswith('1.'))
    except (ImportError, ValueError):
        return False


def _numbers(version):
    return [int(part) for part in re.findall(r'\d+', version)[:2]]


def _version(path):
    """The version in a version.info file of CANN or of the driver; "" if there is none."""
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            found = re.search(r'^Version=\s*(\S+)', file.read(), re.M)
    except OSError:
        return ''
    return found[1] if found else ''


def _cann_version(home):
    """The version in the file that MindSpore reads, or in that of newer toolkits; "" if there is none."""
    paths = (
        [
            os.path.join(home, 'compiler', 'version.info'),
            *sorted(glob.glob(os.path.join(glob.escape(home), 'share', 'info', '*', 'version.info'))),
        ]
        if home
        else []
    )
    return next(filter(None, map(_version, paths)), '')


def _libpython(environ):
    """Path of this Python's shared library, or None. Only atc loads it; a training runs in a Python already."""
    name = f'libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0'
    places = [
        sysconfig.get_config_var('LIBDIR') or '',
        os.path.join(sys.base_prefix, 'lib'),
        f'/usr/lib/{sysconfig.get_config_var("MULTIARCH")}',
        '/usr/lib64',
        '/usr/local/lib',
        *environ.get('LD_LIBRARY_PATH', '').split(':'),
    ]
    return next((path for place in places if place and os.path.exists(path := os.path.join(place, name))), None)


@entry_point
def main():
    """Print what was found; InputError with all problems."""
    found = look()
    if not found.npus:
        return print('no NPU here (no /dev/davinci*): everything runs on the CPU, and CANN is not needed')
    here = ', '.join(f'/dev/davinci{i}' for i in found.npus)
    lacks = [*found.missing_own, *found.missing, *found.missing_tools]
    for name, value in (
        ('NPUs', f'{len(found.npus)}: {here}'),
        ('driver', found.driver or 'version unknown'),
        ('CANN', f'{found.version or "version unknown"} in {found.home}' if found.home else 'none set'),
        ('Python', f'{sys.version.split()[0]}, {sys.executable}'),
        ('packages', f'without {", ".join(lacks)}' if lacks else 'all that CANN asks for'),
        ('g++', found.gxx or 'none'),
        ('libpython', found.libpython or 'none; only atc needs it'),
    ):
        print(f'{name:<10}{value}')
    for text in warnings(found):
        print(f'warning: {text}')
    if texts := problems(found):
        raise InputError('; '.join(texts))


if __name__ == '__main__':
    main()
