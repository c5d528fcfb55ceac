"""Which NPUs, driver and CANN this machine has, and whether CANN can work with this Python; needs no MindSpore.

    python -m src.environment

CANN compiles kernels with the Python that calls it. A new virtual environment lacks the packages that this needs, and
CANN's own error is then only a number:
https://www.hiascend.com/document/detail/en/canncommercial/850/softwareinst/instg/instg_0094.html
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shlex
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec

from src.errors import InputError, entry_point

NPUS = '/dev/davinci[0-9]*'
# Variables that name a rank table. MindSpore 2.8 refuses to start with one, or reads what is meant for another program.
RANK_TABLES = ('RANK_TABLE_FILE', 'RANK_TABLE', 'MINDSPORE_HCCL_CONFIG_PATH')
CANN_VERSIONS = ('8.2', '8.3', '8.5')  # of MindSpore 2.8: mindspore/run_check/_check_version.py, AscendEnvChecker
SET_ENV = ('/usr/local/Ascend/ascend-toolkit/set_env.sh', '/usr/local/Ascend/cann/set_env.sh')
DRIVER = '/usr/local/Ascend/driver/version.info'
# The packages with which CANN compiles kernels, {name for pip: module}. Its tools (atc, profiler) need more:
# requirements-ascend.txt.
PACKAGES = {'attrs': 'attr', 'numpy<2': 'numpy', **{name: name for name in 'cffi decorator psutil scipy sympy'.split()}}
OWN = ('te', 'hccl')  # CANN's own packages: in the PYTHONPATH of its set_env.sh, or as wheels in its lib64


def npus() -> list[int]:
    """Physical numbers of the NPUs that this machine or container may use, ascending."""
    return sorted(int(re.search(r'\d+$', path)[0]) for path in glob.glob(NPUS))


def cann() -> tuple[str, str]:
    """CANN's directory and version; each is "" if unknown."""
    home = os.environ.get('ASCEND_HOME_PATH', '')
    # The file that MindSpore reads, or those of newer toolkits.
    paths = [f'{home}/compiler/version.info', *sorted(glob.glob(f'{home}/share/info/*/version.info'))]
    return home, next(filter(None, map(_version, paths)), '') if home else ''


def driver() -> str:
    """The driver's version; "" if unknown."""
    return _version(DRIVER)


def problems() -> list[str]:
    """What keeps the NPUs from working; each is one line with the remedy."""
    home, _ = cann()
    if not home:
        if script := next(filter(os.path.exists, SET_ENV), None):
            return [f"CANN's environment is not set: source {script}"]
        return ['there are NPUs, but no CANN: install toolkit and ops package of version 8.5.0 and source its set_env.sh']
    texts = []
    if own := [name for name in OWN if not find_spec(name)]:
        remedy = f'source its set_env.sh in this very shell, or install the wheels in {home}/lib64'
        texts.append(f'Python finds no {" and no ".join(own)}, packages of CANN: {remedy}')
    if others := [name for name, module in PACKAGES.items() if not _importable(module)]:
        command = f'{sys.executable} -m pip install {shlex.join(others)}'
        texts.append(f'CANN compiles with this Python, which lacks {", ".join(others)}: {command}')
    if not shutil.which('g++'):
        texts.append('CANN needs g++: apt-get install g++, or yum install gcc-c++')
    return texts


def check() -> None:
    """InputError with all `problems` if the NPUs here cannot be used."""
    if texts := problems():
        raise InputError('; '.join([*texts, '--device_target CPU needs no CANN']))


def _importable(module):
    """Whether `import module` would find it; numpy must also be of version 1."""
    return find_spec(module) is not None and (module != 'numpy' or metadata.version('numpy').startswith('1.'))


def _version(path):
    """The version in a version.info file of CANN or of the driver; "" if there is none."""
    with contextlib.suppress(OSError), open(path, encoding='utf-8', errors='replace') as file:
        if found := re.search(r'^Version=\s*(\S+)', file.read(), re.M):
            return found[1]
    return ''


@entry_point
def main():
    """Print what was found; InputError with all problems."""
    if not (numbers := npus()):
        return print('no NPU here (no /dev/davinci*): everything runs on the CPU, and CANN is not needed')
    home, version = cann()
    made_for = '' if version.startswith(CANN_VERSIONS) else f'; MindSpore 2.8 was made for {", ".join(CANN_VERSIONS)}'
    print('NPUs     ', f'{len(numbers)}:', ', '.join(f'/dev/davinci{i}' for i in numbers))
    print(f'driver    {driver() or "version unknown"}')
    print(f'CANN      {(version or "version unknown") + " in " + home + made_for if home else "none set"}')
    print(f'Python    {sys.version.split()[0]}, {sys.executable}')
    check()


if __name__ == '__main__':
    main()
