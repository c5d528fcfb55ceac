"""convert.json: the settings of a conversion and its finished shards, so that an interrupted one can go on."""

from __future__ import annotations

import hashlib
import json
import os
import re

from src.data.records import SPLITS, Records
from src.data.tfrecord import NUMBERS
from src.errors import InputError

NAME = 'convert.json'


def fingerprint(records: Records) -> str:
    """A checksum of the source that changes when its files do, not when its directory moves.

    InputError if a file is missing.
    """
    stamp = hashlib.blake2b(records.label.tobytes(), digest_size=16)
    files = records.paths if hasattr(records, 'paths') else map(records.where, range(len(records)))
    for path in files:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise InputError(f'{path}: {error.strerror}; restore or remove it') from None
        stamp.update(os.fsencode(os.path.basename(path)) + f'/{stat.st_size}/{stat.st_mtime_ns}/'.encode())
    return stamp.hexdigest()


def as_text(settings: dict, entries: dict) -> str:
    """Content of the file: the settings of a conversion and its finished shards {name: entry}."""
    return json.dumps({'settings': settings, 'shards': dict(sorted(entries.items()))}, indent=1)


def finished(dst, settings: dict, fix: bool) -> dict:
    """{name: entry} of the shards in `dst` that an earlier run finished; InputError if it was not the same conversion."""
    try:
        with open(os.path.join(dst, NAME), encoding='utf-8') as file:
            stamp = json.load(file)
        earlier, entries = stamp['settings'], dict(stamp['shards'])
    except FileNotFoundError:
        ours = re.compile(rf'labels.txt|({"|".join(SPLITS)}){NUMBERS}(\.mindrecord(\.db)?)?')
        foreign = [name for name in sorted(os.listdir(dst)) if ours.fullmatch(name)]
        if foreign:
            raise InputError(f'{dst!r} holds {foreign[0]}, not made by a conversion; give another --dst') from None
        return {}
    except (ValueError, KeyError, TypeError):
        raise InputError(f'{os.path.join(dst, NAME)!r} is damaged; remove {dst!r} or give another --dst') from None
    for key, value in settings.items():
        if earlier.get(key) != value:
            raise InputError(
                f'{dst!r} holds a conversion with {key} {earlier.get(key)}, now {value}; remove it or give another --dst'
            )
    return {
        name: {'images': entry.get('pictures'), **entry}  # as earlier versions called them
        for name, entry in entries.items()
        if (entry['fix'] == fix or not entry['to_fix'] + len(entry['unreadable']))
        and all(
            os.path.isfile(path) and os.path.getsize(path) == size
            for path, size in ((os.path.join(dst, f), s) for f, s in entry['files'].items())
        )
    }
