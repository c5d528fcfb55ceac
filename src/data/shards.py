"""Sets of shards, files named `<split>-?????-of-?????`, found and checked for completeness."""

from __future__ import annotations

import os
import re

from src.data import foreign
from src.errors import InputError

# Names of the image and of its label in records: TF-slim's first, then those that others use.
IMAGE = ('image/encoded', 'image_encoded', 'image', 'data', 'image_bytes', 'encoded', 'img', 'image_raw')
LABEL = ('image/class/label', 'image_class_label', 'label', 'labels', 'class', 'target')
NUMBERS = '-[0-9]{5}-of-[0-9]{5}'  # regular expression for what follows the split in a shard's name
MOST = 99999  # shards that five digits can number


def shard_name(split: str, number: int, total: int, suffix: str = '') -> str:
    """The file name of shard `number`, from 0, of `total`."""
    return f'{split}-{number:05d}-of-{total:05d}{suffix}'


def first_names(names: list[str]) -> str:
    """The first four of `names` and how many more there are, for messages."""
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')


def list_directory(data_dir: str, remedy: str) -> list[str]:
    """Sorted names in `data_dir`; InputError that ends with `remedy` if it is '', unreadable or empty."""
    if not data_dir:
        raise InputError(f"the data directory is '': {remedy}")
    try:
        names = sorted(os.listdir(data_dir))
    except OSError as error:
        what = foreign.kind(data_dir) if os.path.isfile(data_dir) else ''
        problem = f' is {what}' if what else f': {error.strerror}; {remedy}'
        raise InputError(f'data directory {data_dir!r}{problem}') from None
    if not names:
        raise InputError(f'data directory {data_dir!r} is empty; {remedy}')
    return names


def column(where: str, types: dict[str, str], names: tuple[str, ...], wanted: list[str], what: str) -> str:
    """The one of the columns `types` {name: type} with one of the `names` and a `wanted` type, the first of `names` before
    others; InputError that begins with `where` if there is none or several. `what` is what others call columns."""
    chosen = [name for name in names if types.get(name) in wanted]
    if len(chosen) == 1 or names[0] in chosen:
        return chosen[0]
    text = [name for name in names if name in LABEL and types.get(name) in ('bytes', 'string')]
    raise InputError(
        f'{where} has {len(chosen) or "no"} {what}s of type {" or ".join(wanted)} '
        f'named {" or ".join(names)}, only: {", ".join(f"{name} ({kind})" for name, kind in types.items())}; '
        + (
            f'{text[0]} holds text: write the number of the class, and the names as lines number:name into labels.txt'
            if text and not chosen
            else f'write it with one image and one label {what}'
        )
    )


def find_shards(data_dir, split: str, suffix: str = '') -> list[str]:
    """Sorted paths of the complete set `<split>-?????-of-?????<suffix>` in `data_dir`.

    InputError if there is none, if shards are missing or empty, or if there are shards of two sets.
    """
    pattern, data_dir = f'{split}-?????-of-?????{suffix}', os.fspath(data_dir or '')
    remedy = f'give the directory of the {"TFRecord " * (not suffix)}shards {pattern}'
    names = list_directory(data_dir, remedy)
    expected = re.compile(re.escape(split) + '-([0-9]{5})-of-([0-9]{5})' + re.escape(suffix))
    matches = list(filter(None, map(expected.fullmatch, names)))
    if not matches:
        raise InputError(
            f'no file {pattern} in {data_dir!r}, only {first_names(names)}; {foreign.first_in(data_dir, names) or remedy}'
        )
    totals = sorted({m[2] for m in matches})
    if len(totals) > 1:
        raise InputError(
            f'{data_dir!r} mixes {split} shards of different sets: {" and ".join("of-" + t for t in totals)}; keep one set'
        )
    numbers, total = {int(m[1]) for m in matches}, int(totals[0])
    missing = [shard_name(split, n, total, suffix) for n in range(total) if n not in numbers]
    if missing:
        more = f' and {len(missing) - 1} more' if len(missing) > 1 else ''
        raise InputError(f'{data_dir!r} lacks shard {missing[0]}{more}; copy or make all {total}')
    if max(numbers) >= total:
        raise InputError(f'{data_dir!r}: shard number {max(numbers):05d} in a set of {total}; remove it')
    paths = [os.path.join(data_dir, m[0]) for m in matches]
    for path in paths:
        if not os.path.isfile(path) or not os.path.getsize(path):
            raise InputError(f'shard {path!r} has no bytes or is not a file; copy or make it again')
    return paths
