"""The Dockerfiles cannot be built where there is no Docker: all paths in them exist."""

import fnmatch
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def instructions(name):
    """[(instruction, rest)] of a Dockerfile."""
    text = re.sub(r'^#.*\n', '', (ROOT / 'docker' / name).read_text(), flags=re.M).replace('\\\n', ' ')
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


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


def test_base_is_of_a_version_that_mindspore_takes():
    from src import environment

    base = dict(instructions('Dockerfile.ascend')[:1])['ARG'].removeprefix('BASE=')
    version, chip, system, python = re.fullmatch(r'quay\.io/ascend/cann:([\d.]+)-(\w+)-(\w+\.\d+)-py([\d.]+)', base).groups()
    assert version.startswith(environment.CANN_VERSIONS) and (chip, python) == ('910b', '3.11')
