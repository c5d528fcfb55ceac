"""What the documents name exists, and the Chinese pages match the English ones."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').rglob('*.md'))]
PAIRS = {'README.md': 'README_CN.md', **{f'docs/{p.name}': f'docs/zh/{p.name}' for p in ROOT.glob('docs/zh/*.md')}}
OPTIONS = {*yaml.safe_load((ROOT / 'default_config.yaml').read_text()), 'config_path', 'help'}


def commands(path):
    """Lines of ```bash blocks and inline code that starts a program, without comments; continued lines are joined."""
    text = path.read_text()
    for block in re.findall(r'^```bash\n(.*?)^```', text, re.M | re.S):
        block = re.sub(r"<< '(\w+)'\n.*?^\1$", '', block.replace('\\\n', ' '), flags=re.M | re.S)
        yield from (line for line in re.sub(r'(^|\s)#.*', '', block, flags=re.M).splitlines() if line.strip())
    for code in re.findall(r'`([^`\n]+)`', re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)):
        if re.match(r'(bash|python|source) \S', code):
            yield code


def problems_of(command):
    """Files, modules and options in a command that do not exist."""
    words = shlex.split(command)
    ours = r'(scripts|recipes|deploy|docker|tests)/[\w./]+$|requirements\S*\.txt$|(train|eval|export)\.py$'
    files = [ROOT / word for word in words if re.match(ours, word)]
    for module in re.findall(r'-m ((?:src|benchmarks|tests)[\w.]*)', command):
        path = ROOT / module.replace('.', '/')
        files.append(path / '__main__.py' if path.is_dir() else path.with_suffix('.py'))
    missing = [str(file) for file in files if not file.exists()]
    if missing or not files or re.search('docker|atc|pytest|kubectl|sbatch', command):
        return missing
    folders = [path for name in ('src/cluster', 'src/deploy', 'benchmarks') for path in (ROOT / name).glob('*.py')]
    known = ' '.join(path.read_text() for path in [*files, *folders] if path.suffix in ('.py', '.sh'))
    names = [word.partition('=')[0] for word in words if word.startswith('--')]
    return [name for name in names if name[2:] not in OPTIONS and name not in known]


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_paths_exist(path):
    assert [(command, found) for command in commands(path) if (found := problems_of(command))] == []
    text = path.read_text()
    named = re.findall(r'(?<![\w/.-])(?:scripts|src|tests|docs|docker|deploy|benchmarks|recipes)/[\w./]*\w', text)
    linked = [path.parent / link for link in re.findall(r'\]\((?!http)([^)#]+)', text)]
    assert [str(f) for f in [*(ROOT / name for name in named), *linked] if not f.exists()] == []
    for target, anchor in re.findall(r'\]\(([^):#]*)#([^)]+)\)', text):
        assert anchor in anchors(path.parent / target if target else path), f'{target}#{anchor}'


def anchors(path):
    """What GitHub calls the headings of a page in links."""
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for _, heading in headings(path)}


def headings(path):
    """[(level, heading)]"""
    return re.findall(r'^(#+) (.*)', re.sub(r'^```.*?^```', '', path.read_text(), flags=re.M | re.S), re.M)


def code_blocks(path):
    """The code blocks, without comments."""
    blocks = re.findall(r'^```.*?^```', path.read_text(), re.M | re.S)
    return [re.sub(r'[ \t]*(^|\s)#.*', '', block, flags=re.M) for block in blocks]


@pytest.mark.parametrize('english, chinese', PAIRS.items(), ids=PAIRS)
def test_translation(english, chinese):
    """The same headings and code blocks; the wording cannot be compared."""
    english, chinese = ROOT / english, ROOT / chinese
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(chinese)]
    assert code_blocks(english) == code_blocks(chinese)
