"""Names of classes, and files of them: lines `number:name`, or names alone, which count from 0.

A name with spaces at its ends stands in quotes, as in JSON: without them these spaces are not part of the name.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path

from src.errors import InputError

DIGITS = 6  # of a class's number at most; lists of names are as long as the largest number
LARGEST = 10**DIGITS - 1
_NUMBERED = re.compile(rf'\s*([0-9]{{1,{DIGITS}}}):\s*(\S.*)')


def normal(name: str) -> str:
    """The `name` of a class as it is compared: in Unicode's composed form, since macOS stores an accent of a file name as a
    character of its own."""
    return unicodedata.normalize('NFC', name)


def parse(path: str | Path) -> tuple[dict[int, str], bool]:
    """({number: name}, whether its lines have numbers) of the file `path`.

    InputError for a file that is no such list or gives a number twice; FileNotFoundError if there is none.
    """
    try:
        with open(path, encoding='utf-8-sig', errors='surrogateescape') as file:
            lines = [line.rstrip('\n') for line in file if line.strip()]
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f'{str(path)!r} cannot be read ({error.strerror}); write lines label:name') from None
    pairs = [_NUMBERED.fullmatch(line) for line in lines]
    if not any(pairs):
        return dict(enumerate(_names(lines))), False
    if not all(pairs):
        raise InputError(
            f'{str(path)!r}: {lines[pairs.index(None)].strip()!r:.80} is no line label:name, others are; mend it'
        )
    names = {}
    for number, name in zip((pair[1] for pair in pairs), _names([pair[2] for pair in pairs])):
        if int(number) in names:
            raise InputError(
                f'{str(path)!r} names label {int(number)} twice, {names[int(number)]!r:.80} and {name!r:.80}; mend it'
            )
        names[int(number)] = name
    return names, True


def _names(written):
    """The names that are `written` on lines: without spaces around them, unless these make a difference or are quoted."""
    stripped = [name.strip() for name in written]
    names = stripped if len({*stripped}) == len({*written}) else [name.lstrip() for name in written]
    return [normal(_unquoted(name)) for name in names]


def _unquoted(name):
    if name[:1] == name[-1:] == '"':
        try:
            return json.loads(name)
        except ValueError:
            pass
    return name


def _line(name):
    """`name` as it is written: in one line, quoted where `_names` would change it."""
    name = ' '.join(re.split(r'[\r\n]+', name.strip('\r\n')))
    return name if name == name.strip() and name[:1] != '"' else json.dumps(name, ensure_ascii=False)


def text(names: dict[int, str]) -> str:
    """The content of a file that `parse` reads, with numbers."""
    return ''.join(f'{number}:{_line(name)}\n' for number, name in names.items())


def by_number(names: dict[int, str]) -> list[str]:
    """Names as a list from {number: name}, '' where there is none."""
    return [names.get(number, '') for number in range(max(names, default=-1) + 1)]


def read_labels(data_dir: str | Path, numbered: bool = True) -> list[str] | None:
    """Names by label from the file labels.txt in `data_dir`, lines `label:name`; None without the file.

    With `numbered`, lines of names alone give None, because labels of shards may start at 0 or at 1; without it, as for
    folders, they count from 0.

    InputError for a file that is no such list, that names a label twice, or without `numbered` a class twice.
    """
    path = os.path.join(data_dir, 'labels.txt')
    try:
        found, has_numbers = parse(path)
    except FileNotFoundError:
        return None
    if numbered and not has_numbers:
        return None
    if not numbered and len(set(found.values())) < len(found):
        raise InputError(f'{path!r} names a class twice; mend it')
    names = by_number(found)
    if names and not names[0]:
        names[0] = 'background'
    return names
