"""Files of the user and of other users: what the programs remove, write over, follow or trust."""

import os
import re
from pathlib import Path

import pytest

import train

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
