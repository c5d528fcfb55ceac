"""Files of class names: lines `number:name`, or names alone, which count from 0."""

from __future__ import annotations

import re
from pathlib import Path

from src.errors import InputError

DIGITS = 6  # of a class's number at most; lists of names are as long as the largest number
LARGEST = 10**DIGITS - 1
_NUMBERED = re.compile(rf'([0-9]{{1,{DIGITS}}}):\s*(.+)')


def parse(path: str | Path) -> tuple[dict[int, str], bool]:
    """({number: name}, whether its lines have numbers) of the file `path`.

    InputError for a file that is no such list or gives a number twice; FileNotFoundError if there is none.
    """
    try:
        with open(path, encoding='utf-8-sig', errors='surrogateescape') as file:
            lines = [line.strip() for line in file if line.strip()]
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f'{str(path)!r} cannot be read ({error.strerror}); write lines label:name') from None
    pairs = [_NUMBERED.fullmatch(line) for line in lines]
    if not any(pairs):
        return dict(enumerate(lines)), False
    if not all(pairs):
        raise InputError(f'{str(path)!r}: {lines[pairs.index(None)]!r:.80} is no line label:name, others are; mend it')
    names = {}
    for number, name in (pair.groups() for pair in pairs):
        if int(number) in names:
            raise InputError(
                f'{str(path)!r} names label {int(number)} twice, {names[int(number)]!r:.80} and {name!r:.80}; mend it'
            )
        names[int(number)] = name
    return names, True


def text(names: dict[int, str]) -> str:
    """The content of a file that `parse` reads, with numbers."""
    return ''.join(f'{number}:{name}\n' for number, name in names.items())


def by_number(names: dict[int, str]) -> list[str]:
    """Names as a list from {number: name}, '' where there is none."""
    return [names.get(number, '') for number in range(max(names, default=-1) + 1)]
