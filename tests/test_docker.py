"""The Dockerfiles cannot be built where there is no Docker: all that they copy and install exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize('name', ['Dockerfile.ascend', 'Dockerfile.cpu'])
def test_files_are_there(name):
    text = re.sub('^#.*\n', '', (ROOT / 'docker' / name).read_text(), flags=re.M)
    assert re.match(r'ARG BASE=\S+\nFROM \$\{BASE\}\n', text) and text.endswith('CMD ["bash"]\n')
    *copied, everything = [line.split()[:-1] for line in re.findall('^COPY (.*)', text, re.M)]
    installed = re.search('pip install --no-cache-dir -r (.*)', text)[1].split(' -r ')
    # What a requirements file includes has to be there when pip reads it.
    assert everything == ['.'] and copied == [['requirements.txt', *installed]]
    ignored = (ROOT / '.dockerignore').read_text().split()
    assert all((ROOT / file).exists() and file not in ignored for file in copied[0])
