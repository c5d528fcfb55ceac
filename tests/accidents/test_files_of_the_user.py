"""Files of the user and of other users: what the programs remove, write over, follow or trust."""

import csv
import os
import re
from pathlib import Path

import pytest

import train
from src.data.split import open_list, split, write_list
from src.evaluation import report
from tests.data.samples import write_folder
from tests.evaluation.test_outcomes import random_outcomes

ROOT = Path(__file__).resolve().parents[2]


def start_training(capsys, directory, *options):
    """Everything that a training does before it looks for its data, which are not there; its lines."""
    arguments = ['--data_dir', 'nowhere', '--log_dir', directory, '--device_target', 'CPU', *options]
    with pytest.raises(SystemExit) as stopped:
        train.main([str(a) for a in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr()


def test_files_that_only_look_temporary_stay(tmp_path, capsys):
    """Neither a directory of mail, nor editors' files, nor a graph of another program is ours."""
    names = ['log/.mail.20251231.bak', 'log/.x.99999999.swp', 'cache/.mail.20251231.bak', 'cache/mine.graph']
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / 'letter').write_text('precious')
    start_training(capsys, tmp_path / 'log', '--compile_cache', tmp_path / 'cache')
    assert all((tmp_path / name / 'letter').exists() for name in names)


@pytest.mark.parametrize('kind', ['link', 'pipe'])
def test_lock_that_leads_elsewhere(kind, tmp_path, capsys):
    victim, place = tmp_path / 'victim', tmp_path / 'log/.lock'
    place.parent.mkdir()
    victim.write_text('precious')
    place.symlink_to(victim) if kind == 'link' else os.mkfifo(place)
    error = start_training(capsys, place.parent).err
    assert re.match(rf'error: {place}: .*; choose another --log_dir\n$', error) and victim.read_text() == 'precious'


@pytest.mark.parametrize('mode', [0o775, 0o1777])
def test_cache_that_others_may_write_to(mode, tmp_path, capsys):
    """A graph is a program: somebody else's is not run."""
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache').chmod(mode)
    found = start_training(capsys, tmp_path / 'log', '--compile_cache', tmp_path / 'cache').out
    assert f'no compile cache: {tmp_path}/cache: a graph is a program, and others may write there\n' in found


@pytest.mark.parametrize('option', [(), ('--compile_cache', '~/graphs'), ('--compile_cache', '/proc/graphs')])
def test_no_place_for_a_cache(option, tmp_path, capsys, monkeypatch):
    """`docker run --user`: no directory called ~, one line, and graphs are compiled at every start."""
    monkeypatch.delenv('HOME', raising=False)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(os, 'getuid', lambda: 54321)
    monkeypatch.chdir(tmp_path)
    found = start_training(capsys, tmp_path / 'log', *option)
    assert (found.out + found.err).count('no compile cache: ') == 1 and 'Traceback' not in found.err
    assert [path.name for path in tmp_path.iterdir()] == ['log']


def test_no_formula_in_tables(tmp_path):
    """A spreadsheet takes no name for one, and for whoever reads a list of photos the names are those of the folders."""
    names = ['=HYPERLINK("x?"&A1)', '+1', '-1', '@SUM(A1)', "'=1", "''-1", '\uff1d1', "'a", '0-1']
    write_folder(tmp_path, 'photos', names, 2)
    write_list(split(tmp_path / 'photos', workers=1)[0], tmp_path / 'list.csv')
    assert open_list(tmp_path / 'list.csv')['train'].class_names == sorted(names)
    records = type('Records', (), {'name': lambda _, i: names[i % len(names)]})()
    report.write_table(tmp_path / 'images.csv', random_outcomes(99, len(names)), records, names)
    for table, rows in ('list.csv', 2 * len(names)), ('images.csv', 99):
        cells = [row[:3] for row in csv.reader((tmp_path / table).read_text().splitlines())][1:]
        assert len(cells) == rows and not [cell for row in cells for cell in row if cell[0] in '=+-@\uff1d']
