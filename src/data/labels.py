"""Files of class names: lines `number:name`, or names alone, which count from 0."""

import re

from src.errors import InputError

_NUMBERED = re.compile(r'([0-9]{1,6}):\s*(.+)')


def parse(path):
    """({number: name}, whether its lines have numbers) of the file `path`. InputError for a file that is no such list or
    gives a number twice; FileNotFoundError is the caller's.
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


def by_number(names):
    """Names as a list from {number: name}, '' where there is none."""
    return [names.get(number, '') for number in range(max(names, default=-1) + 1)]
