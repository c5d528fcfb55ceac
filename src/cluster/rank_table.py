"""Rank tables say which device of which server is which rank. Files of them are read, checked and made here.

python -m src.cluster.rank_table make --devices 8 [--hccn /etc/hccn.conf] [--server_id IP] [--output FILE]
python -m src.cluster.rank_table check FILE [--rank_size N]
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from src import files
from src.cluster import rank_table_format
from src.cluster.make_rank_table import make
from src.cluster.servers import RankTable
from src.errors import InputError, Parser, entry_point

SIZE_LIMIT = 1 << 20  # bytes; 1024 devices take about 100 KB
PATIENCE = 300  # seconds for all containers of a job to start, as in MindCluster's own start scripts
MINDCLUSTER, MODELARTS = '/user/serverid/devindex/config', '/user/config'  # directories in which a container finds it
NAMES = ('jobstart_hccl.json', 'hccl.json')  # of the file there


def read(path: str | Path) -> RankTable:
    """The table of the file `path`, or of the one of NAMES in the directory `path`; InputError with all findings if anything
    is wrong with it."""
    table, findings = _inspect(path)
    if findings:
        if len(findings) > 10:
            findings[10:] = [f'and {len(findings) - 10} more: python -m src.cluster.rank_table check lists them']
        raise InputError(f'rank table {json.dumps(str(path))}: {"; ".join(findings)}')
    return table


def wait(path: str | Path, tell: Callable[[str], None], patience: float | None = None, every: float = 1):
    """Wait until MindCluster or ModelArts has completed the file; for any other file return at once.

    Args:
        tell: called with one line if there is something to wait for.
        patience: seconds, by default PATIENCE.
        every: seconds between two looks at the file.

    Raises:
        InputError: the file is not complete after `patience` seconds.
    """
    patience, deadline = PATIENCE if patience is None else patience, None
    while _is_incomplete(path, awaited=deadline is not None):
        if deadline is None:
            deadline = time.monotonic() + patience
            tell(f'rank table {json.dumps(str(path))} is not completed yet; waits for up to {patience:g} s')
        if time.monotonic() > deadline:
            raise InputError(
                f'rank table {json.dumps(str(path))}: still not completed after {patience:g} s; do all '
                'containers of this job run?'
            )
        time.sleep(every)


def _is_incomplete(path, awaited):
    """Whether the file has to be read again later; `awaited`: an earlier look said so."""
    path = _file(path)
    try:
        data = _load(path)
        return isinstance(data, dict) and data.get('status') == 'initializing'
    except InputError:  # MindCluster empties the file before it writes it; on shared storage it is missing at first
        if not os.path.exists(path):
            return awaited or os.path.dirname(os.path.abspath(path)) in (MINDCLUSTER, MODELARTS)
        return awaited or os.path.isfile(path) and not os.path.getsize(path)


def check(path: str | Path, rank_size: int | None = None) -> list[str]:
    """All findings, each with its place in the file; [] for a sound table (of `rank_size` ranks, if that is given)."""
    table, findings = _inspect(path)
    if rank_size is not None and table and len(table.devices) != rank_size:
        findings.append(f'the table has {len(table.devices)} ranks, but rank_size is {rank_size}')
    return findings


def _inspect(path):
    """(RankTable or None, findings) of a file."""
    try:
        return rank_table_format.parse(_load(path))
    except InputError as error:
        return None, [str(error)]


def _file(path):
    """`path`, or the file in it if it is a directory."""
    files_there = [os.path.join(path, name) for name in NAMES]
    return next(filter(os.path.exists, files_there), files_there[0]) if os.path.isdir(path) else path


def _not_json(name):
    raise ValueError(f'{name} is not a JSON value')


def _load(path):
    """The JSON value in the file; InputError that says why there is none."""
    try:
        found = _file(path)
        if not os.path.isfile(found):
            raise InputError('no such file' if found == path else f'no {" or ".join(NAMES)} in this directory')
        with open(found, 'rb') as file:
            data = file.read(SIZE_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise InputError(f'cannot be read: {getattr(error, "strerror", None) or error}') from None
    if len(data) > SIZE_LIMIT:
        raise InputError(f'larger than {SIZE_LIMIT} bytes: not a rank table')
    try:
        # Python refuses to convert very long integers. Numbers are errors in a rank table, so a float does as well.
        return json.loads(
            data.decode('utf-8-sig'),
            parse_constant=_not_json,
            parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits),
        )
    except json.JSONDecodeError as error:
        raise InputError(f'not JSON: line {error.lineno}, column {error.colno}: {error.msg}') from None
    except RecursionError:
        raise InputError('not a rank table: nested too deeply') from None
    except ValueError as error:
        raise InputError(f'not JSON: {error}') from None


def write(path: str | Path, text: str):
    """Write a file whole or not at all. InputError if it cannot be written."""
    try:
        with files.replacing(path) as temporary:
            temporary.write_text(text, encoding='utf-8')
    except OSError as error:
        raise InputError(f'--output {path}: {error.strerror}') from None


@entry_point
def main(arguments: list[str] | None = None):
    """The command line; status 2 if `check` has findings."""
    parser = Parser(prog='python -m src.cluster.rank_table', description='make, check rank tables')
    commands = parser.add_subparsers(dest='command', required=True)
    maker = commands.add_parser('make', help="table of this server's devices")
    maker.add_argument('--devices', type=int, required=True, help='number of devices')
    maker.add_argument('--hccn', help='file with address_X=IP lines (default: /etc/hccn.conf)')
    maker.add_argument('--server_id', help='address of this server (default: found)')
    maker.add_argument('--output', help='file to write (default: the screen)')
    checker = commands.add_parser('check', help='print every finding; exit status 2 if one is an error')
    checker.add_argument('file')
    checker.add_argument('--rank_size', type=int, help='number of ranks expected')
    args = parser.parse_args(arguments)
    if args.command == 'make':
        if not 1 <= args.devices <= 1024:
            raise InputError(f'--devices {args.devices}: must be 1 to 1024')
        text = make(args.devices, args.hccn, args.server_id)
        if args.output:
            write(args.output, text)
        else:
            print(text, end='')
        return
    findings = check(args.file, args.rank_size)
    for finding in findings:
        print(finding)
    if findings:
        sys.exit(2)
    table = read(args.file)
    print(f'{args.file}: {len(table.devices)} ranks on {len(table.servers)} server(s), nothing to report')


if __name__ == '__main__':
    main()
