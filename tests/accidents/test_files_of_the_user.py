"""Files of the user and of other users: what the programs remove, write over, follow or trust."""

import csv
import os
import re
import sys
from pathlib import Path

import pytest

import train
from src.data import split
from src.evaluation import report
from tests.data.samples import jpeg
from tests.evaluation.test_outcomes import random_outcomes

ROOT = Path(__file__).resolve().parents[2]


def start_training(capsys, directory, *options):
    """Everything that a training does before it looks for its data, which are not there; its lines."""
    arguments = ['--data_dir', 'nowhere', '--log_dir', directory, '--device_target', 'CPU', *options]
    with pytest.raises(SystemExit) as stopped:
        train.main([str(a) for a in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr()


@pytest.mark.parametrize('where', ['log', 'cache'])
def test_files_that_only_look_temporary_stay(where, tmp_path, capsys):
    """Neither a directory of mail, nor editors' files, nor a graph of another program is ours."""
    (tmp_path / where).mkdir()
    names = ['.mail.20251231.bak', '.x.99999999.swp', '.inceptionv4-1_2.ckpt.4194304.k', 'mine.graph', '.a.tmp']
    for name in names:
        (tmp_path / where / name).mkdir()
        (tmp_path / where / name / 'letter').write_text('precious')
    (tmp_path / where / '.file.99999999.bak').write_text('precious')
    start_training(capsys, tmp_path / 'log', '--compile_cache', tmp_path / 'cache')
    assert all((tmp_path / where / name / 'letter').exists() for name in names)
    assert (tmp_path / where / '.file.99999999.bak').exists()


@pytest.mark.parametrize('kind', ['link', 'hard link', 'dangling', 'pipe', 'content'])
def test_lock_that_leads_elsewhere(kind, tmp_path, capsys):
    """Its target is neither emptied nor made."""
    victim, place = tmp_path / 'victim', tmp_path / 'log/.lock'
    place.parent.mkdir()
    victim.write_text('precious')
    {
        'link': lambda: place.symlink_to(victim),
        'hard link': lambda: place.hardlink_to(victim) if hasattr(place, 'hardlink_to') else os.link(victim, place),
        'dangling': lambda: place.symlink_to(tmp_path / 'new'),
        'pipe': lambda: os.mkfifo(place),
        'content': lambda: place.write_text('precious'),
    }[kind]()
    error = start_training(capsys, place.parent).err
    assert re.match(rf'error: {place}: .*; choose another --log_dir\n$', error)
    assert victim.read_text() == 'precious' and not (tmp_path / 'new').exists()
    if kind == 'content':
        assert place.read_text() == 'precious'


@pytest.mark.parametrize('mode', [0o775, 0o1777])
def test_cache_that_others_may_write_to(mode, tmp_path, capsys, monkeypatch):
    """A graph is a program: somebody else's is not run."""
    cache = tmp_path / 'user/inceptionv4-mindspore'
    cache.mkdir(parents=True)
    cache.chmod(mode)
    error = start_training(capsys, tmp_path / 'log', '--compile_cache', cache).err
    assert error.startswith(f'error: compile_cache {cache}: ') and f'{mode & 0o777:o}' in error and error.count('\n') == 1
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'user'))
    found = start_training(capsys, tmp_path / 'log')
    assert len(re.findall('^warning: compile_cache .*compiled at every start$', found.out, re.M)) == 1
    assert 'nowhere' in found.err and not list(cache.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can give a directory away')
def test_cache_of_another_user(tmp_path, capsys):
    (tmp_path / 'cache').mkdir(mode=0o700)
    os.chown(tmp_path / 'cache', 12345, -1)
    assert 'owner 12345' in start_training(capsys, tmp_path / 'log', '--compile_cache', tmp_path / 'cache').err


@pytest.mark.parametrize('option', [(), ('--compile_cache', '~/graphs')])
def test_user_without_a_home(option, tmp_path, capsys, monkeypatch):
    """`docker run --user`: no directory called ~, one line."""
    monkeypatch.delenv('HOME', raising=False)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(os, 'getuid', lambda: 54321)
    monkeypatch.chdir(tmp_path)
    found = start_training(capsys, tmp_path / 'log', *option)
    assert (found.out + found.err).count('no home directory') == 1 and 'Traceback' not in found.err
    assert [path.name for path in tmp_path.iterdir()] == ['log']


FORMULAS = ['=HYPERLINK("x?"&A1)', '+1', '-1', '@SUM(A1)', '\t=1', '\r=1', "'=1", "''-1", '\uff1d1', "'a", '0-1']


def test_no_formula_in_a_list_of_photos(tmp_path, capsys, monkeypatch):
    """A spreadsheet takes no class name for one, and the names are those of the folders for whoever reads the list."""
    names = [name for name in FORMULAS if name.isprintable()]
    for name in names:
        for k in range(2):
            path = tmp_path / 'photos' / name / f'={k}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg([k, *name.encode()], (40, 40), form='PNG'))
    monkeypatch.setattr(sys, 'argv', ['split', str(tmp_path / 'photos'), str(tmp_path / 'list.csv'), '--workers', '1'])
    split.main()
    with open(tmp_path / 'list.csv', newline='') as file:
        rows = list(csv.reader(file))[1:]
    assert not [cell for row in rows for cell in row if cell[0] in '=+-@\t\r\uff1d'] and len(rows) == 2 * len(names)
    assert split.open_list(tmp_path / 'list.csv')['train'].class_names == sorted(names)
    (tmp_path / 'own.csv').write_text('part,class,path\ntrain,-1,a.png\ntrain,=2,-b.png\n')  # not made by this program
    assert split.open_list(tmp_path / 'own.csv')['train'].class_names == ['-1', '=2']


def test_no_formula_in_the_table_of_a_report(tmp_path):
    records = type('Records', (), {'upright': False, '__len__': lambda _: 99, 'read': lambda _, i: b''})()
    records.name = lambda i: f'{FORMULAS[i % len(FORMULAS)]}.png'
    outcomes = random_outcomes(99, len(FORMULAS))
    report.write_table(tmp_path / 'images.csv', outcomes, records, FORMULAS)
    with open(tmp_path / 'images.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    cells = [row[column] for row in rows for column in ('name', 'true', 'predicted')]
    assert len(rows) == 99 and not [cell for cell in cells if cell[0] in '=+-@\t\r\uff1d']
    assert {float(row['loss']) >= 0 for row in rows} == {True} and "'=HYPERLINK" in cells[0]
