"""The Dockerfiles cannot be built where there is no Docker: all paths and commands in them and in docs/ascend.md exist."""

import fnmatch
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What the official images want: https://github.com/Ascend/cann-container-image/blob/main/OVERVIEW.md
DEVICES = ['/dev/davinci_manager', '/dev/devmm_svm', '/dev/hisi_hdc']
MOUNTS = [
    '/usr/local/dcmi',
    '/usr/local/bin/npu-smi',
    '/usr/local/Ascend/driver/lib64/',
    '/usr/local/Ascend/driver/version.info',
    '/etc/ascend_install.info',
]


def instructions(name):
    """[(instruction, rest)] of a Dockerfile."""
    text = re.sub(r'^#.*\n', '', (ROOT / 'docker' / name).read_text(), flags=re.M).replace('\\\n', ' ')
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def commands():
    """[words] of the `docker` commands in docs/ascend.md."""
    text = (ROOT / 'docs/ascend.md').read_text().replace('\\\n', ' ')
    return [shlex.split(line) for line in text.splitlines() if line.startswith('docker ')]


@pytest.mark.parametrize(
    'name, requirements',
    [
        ('Dockerfile.ascend', ['requirements-ascend.txt', 'requirements-report.txt']),
        ('Dockerfile.cpu', ['requirements-report.txt', 'requirements-export.txt']),
    ],
)
def test_files_are_there(name, requirements):
    found = instructions(name)
    assert [what for what, _ in found if what in ('ARG', 'FROM')][:2] == ['ARG', 'FROM'] and ('FROM', '${BASE}') in found
    sources = [word for what, rest in found if what == 'COPY' for word in rest.split()[:-1]]
    ignored = list((ROOT / '.dockerignore').read_text().split())
    for source in sources:
        assert (ROOT / source).exists() and not any(fnmatch.fnmatch(source, pattern) for pattern in ignored if source != '.')
    assert ('RUN', f'python3 -m pip install --no-cache-dir -r {" -r ".join(requirements)}') in found
    # What a requirements file includes has to be there when pip reads it.
    before = [rest for what, rest in found[: found.index(('COPY', '. .'))] if what == 'COPY']
    assert {*requirements, 'requirements.txt'} <= set(' '.join(before).split())
    assert ('CMD', '["bash"]') in found


def test_what_is_not_sent_to_the_builder():
    patterns = (ROOT / '.dockerignore').read_text().split()
    for name in ('.git', '.venv', 'results', 'demo', 'rank_0', 'kernel_meta'):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
    for path in ROOT.iterdir():
        if path.name in ('src', 'scripts', 'docs', 'tests', 'docker') or path.suffix in ('.py', '.txt', '.yaml', '.md'):
            assert not any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns), path.name


def test_documented_commands():
    build_ascend, run_ascend, build_cpu, run_cpu = commands()
    for build, run in ((build_ascend, run_ascend), (build_cpu, run_cpu)):
        assert build[:2] == ['docker', 'build'] and (ROOT / build[build.index('-f') + 1]).is_file() and build[-1] == '.'
        assert run[:2] == ['docker', 'run'] and build[build.index('-t') + 1] in run
        header = (ROOT / build[build.index('-f') + 1]).read_text().splitlines()[0]
        assert header.endswith(shlex.join(build))
    options = list(zip(run_ascend, run_ascend[1:]))
    assert [value for option, value in options if option == '--device' and value in DEVICES] == DEVICES
    assert "$(printf -- '--device %s ' /dev/davinci[0-9]*)" in (ROOT / 'docs/ascend.md').read_text()
    mounts = [value.split(':') for option, value in options if option == '-v']
    assert [host for host, _ in mounts][: len(MOUNTS)] == MOUNTS
    assert all(host == inside for host, inside in mounts if host.startswith(('/usr', '/etc')))
    workdir = dict(instructions('Dockerfile.ascend'))['WORKDIR']
    assert ['$PWD/results', f'{workdir}/results'] in mounts
    script = run_cpu[run_cpu.index('bash') + 1]
    assert (ROOT / script).is_file()


def test_base_is_of_a_version_that_mindspore_takes():
    from src import environment

    base = dict(instructions('Dockerfile.ascend')[:1])['ARG'].removeprefix('BASE=')
    version, chip, system, python = re.fullmatch(r'quay\.io/ascend/cann:([\d.]+)-(\w+)-(\w+\.\d+)-py([\d.]+)', base).groups()
    assert version.startswith(environment.CANN_VERSIONS) and (chip, python) == ('910b', '3.11')
