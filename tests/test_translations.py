"""README_CN.md and docs/zh/ say what their English pages say: headings, commands, options, paths, numbers, tables, links.

The wording cannot be compared. A changed English page fails here until its Chinese page has the change too.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAIRS = {'README.md': 'README_CN.md', **{f'docs/{p.name}': f'docs/zh/{p.name}' for p in ROOT.glob('docs/zh/*.md')}}
REQUIRED = {'README.md', *(f'docs/{name}.md' for name in ('ascend', 'finetuning', 'deploy', 'reliability'))}
MONTHS = 'January February March April May June July August September October November December'.split()


def blocks(text):
    """(text without code blocks, [code block without comments])"""
    found = []
    for kind, block in re.findall(r'^ *```(\w*)\n(.*?)^ *```', text, re.M | re.S):
        lines = [re.sub(r'(^|\s+)#.*' if kind in ('bash', 'python') else r'$^', '', line) for line in block.splitlines()]
        found.append('\n'.join(line.rstrip() for line in lines if line.strip()))
    return re.sub(r'^ *```.*?^ *```', '', text, flags=re.M | re.S), found


def inline_code(text):
    """Each piece of inline code, and how often it stands there."""
    return Counter(' '.join(code.split()) for code in re.findall(r'`([^`]+)`', text))


def numbers(text):
    """The numbers outside code and links, as a Counter: 1,281 is 1281, 1.3 million 1300000, dates are year month day."""
    text = re.sub(r'`[^`]+`|\]\([^)]*\)|^\[[^]]*\]:.*$|https?://\S+', ' ', text, flags=re.M)
    text = re.sub(rf'(\d{{1,2}}) ({"|".join(MONTHS)}) (\d{{4}})', date, text)
    text = re.sub(r'(\d{4}) *年 *(\d{1,2}) *月 *(\d{1,2}) *日', r'\1 \2 \3', text)
    text = re.sub(
        r'(\d+(?:\.\d+)?)\s*(million|万)', lambda m: f'{float(m[1]) * {"million": 1e6, "万": 1e4}[m[2]]:.0f}', text
    )
    return Counter(
        number.replace(',', '') for number in re.findall(r'\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:e-?\d+)?', text)
    )


def date(match):
    day, month, year = match.groups()
    return f'{year} {MONTHS.index(month) + 1} {day}'


def targets(text):
    """What links and images point to, without the folders that differ between the languages, and without anchors."""
    found = re.findall(r'\]\(([^)#]*)[^)]*\)', text)
    names = (Path(t).name.replace('README_CN', 'README') if '://' not in t else t for t in found)
    return Counter(n for n in names if n)


def tables(text):
    """[number of columns of each row] of each table."""
    found = []
    for table in re.findall(r'(?:^\|.*\n)+', text + '\n', re.M):
        found.append([len(re.sub(r'`[^`]*`', '', row).strip().strip('|').split('|')) for row in table.splitlines()])
    return found


def sections(path):
    """[(level of the heading, heading, text below it)]; the first is what stands before any heading."""
    text = (ROOT / path).read_text(encoding='utf-8')
    fences, parts = False, [(0, '', [])]
    for line in text.splitlines():
        fences ^= line.lstrip().startswith('```')
        heading = None if fences else re.match(r'(#+) (.*)', line)
        if heading:
            parts.append((len(heading[1]), heading[2], []))
        else:
            parts[-1][2].append(line)
    return [(level, heading, '\n'.join(lines)) for level, heading, lines in parts]


def differences(english, chinese):
    """What differs between two sections, as text; '' if nothing does."""
    (prose, code), (prose_cn, code_cn) = blocks(english), blocks(chinese)
    found = (
        []
        if code == code_cn
        else [f'code blocks: {next((pair for pair in zip(code, code_cn) if pair[0] != pair[1]), (len(code), len(code_cn)))}']
    )
    for name, of in (('code', inline_code), ('numbers', numbers), ('links', targets)):
        here, there = of(prose), of(prose_cn)
        if here != there:
            found.append(f'{name}: only English {dict(here - there)}, only Chinese {dict(there - here)}')
    if tables(prose) != tables(prose_cn):
        found.append(f'tables (columns of each row): {tables(prose)}, {tables(prose_cn)}')
    return '; '.join(found)


@pytest.mark.parametrize('english, chinese', PAIRS.items(), ids=PAIRS)
def test_pages_say_the_same(english, chinese):
    here, there = sections(english), sections(chinese)
    assert [level for level, _, _ in here] == [level for level, _, _ in there], [h for _, h, _ in there]
    found = [f'{a[1] or "top"}: {d}' for a, b in zip(here, there) if (d := differences(a[2], b[2]))]
    assert found == [], '\n'.join(found)
    for (_, heading, _), (_, heading_cn, _) in zip(here, there):
        assert inline_code(heading) == inline_code(heading_cn) and numbers(heading) == numbers(heading_cn), heading


def test_the_pages_that_are_read_first_are_there():
    assert REQUIRED <= set(PAIRS)
    for english, chinese in PAIRS.items():  # each names the other
        assert Path(chinese).name in (ROOT / english).read_text() and Path(english).name in (ROOT / chinese).read_text()


def anchors(path):
    """What GitHub calls the headings of a page in links."""
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for _, heading, _ in sections(path)}


@pytest.mark.parametrize('page', [*PAIRS, *PAIRS.values()])
def test_links_to_headings_arrive(page):
    text = blocks((ROOT / page).read_text(encoding='utf-8'))[0]
    for path, anchor in re.findall(r'\]\(([^):#]*)#([^)]+)\)', text):
        assert anchor in anchors((ROOT / page).parent / path if path else page), f'{page}: {path}#{anchor}'


def test_headings_are_chinese():
    for chinese in PAIRS.values():
        plain = [heading for _, heading, _ in sections(chinese) if heading and not re.search('[\u4e00-\u9fff]', heading)]
        assert all(re.fullmatch(r'[\w .`/-]+', heading) for heading in plain), plain


@pytest.mark.parametrize(
    'before, after, found',
    [
        ('`a.py --x`', '`a.py --y`', 'code'),
        ('12 steps', '13 steps', 'numbers'),
        ('[b](c.md)', '[b](d.md)', 'links'),
        ('python a.py --x 1', 'python a.py --x 2', 'code blocks'),
        ('| 1 | 2 |\n', '| 1 | 2 |\n| | |\n', 'tables'),
        ('24 November 2026', '2026 年 11 月 24 日', ''),
        ('# why', '# 原因', ''),
        ('1,281 images', '1281 张图片', ''),
        ('1.3 million', '130 万', ''),
        ('1.3 million', '13 万', 'numbers'),
    ],
)
def test_differences_are_found(before, after, found):
    text = (
        'Of 24 November 2026: `a.py --x`, 12 steps, 1,281 images, 1.3 million, [b](c.md)\n\n| 1 | 2 |\n\n'
        '```bash\npython a.py --x 1  # why\n```\n'
    )
    assert before in text
    assert differences(text, text.replace(before, after)).partition(':')[0].partition(' (')[0] == found
