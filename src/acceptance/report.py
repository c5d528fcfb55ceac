"""Runs a check and reports its result; needs no MindSpore."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable


class Failed(Exception):
    """A check failed: what was expected, what was found, and a remedy ('' if that of the check fits)."""

    def __init__(self, expected: str, found, remedy: str = ''):
        super().__init__(f'expected {expected}; found {found}')
        self.expected, self.found, self.remedy = str(expected), str(found), remedy


class Skipped(Exception):
    """This device cannot make the check; the message says why."""


def within(value: float, bound: float, what: str) -> float:
    """Gives `value`; Failed unless it is at most `bound`, also for a NaN. `what`: the value's name in the message."""
    if not value <= bound:
        raise Failed(f'{what} at most {bound:g}', f'{value:.3g}')
    return value


def equal(found, expected, what: str):
    """Failed unless the two are equal. `what`: their name in the message."""
    if found != expected:
        raise Failed(f'{what} {expected}', f'{found}'[:300])


def run(name: str, check: Callable[[], dict], remedy: str, tell: Callable[[dict], None]) -> bool:
    """Run one check. `tell` gets {name, remedy} before it and its result (dict) after it. True unless the check failed.

    `check()` gives its figures, {name: value}: `text` is shown on the screen, `bound` is what was allowed, and `warning`, if
    there is one, is shown as well. It raises Failed or Skipped; any other exception counts as a failure.
    """
    tell({'name': name, 'remedy': remedy})
    start = time.perf_counter()
    result = {'name': name, 'result': 'ok'}
    try:
        result['figures'] = check()
    except Skipped as reason:
        result |= {'result': 'skipped', 'figures': {'text': str(reason)}}
    except Failed as failure:
        result |= {
            'result': 'FAILED',
            'expected': failure.expected,
            'found': failure.found,
            'remedy': failure.remedy or remedy,
        }
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        result |= {'result': 'FAILED', 'expected': 'no error', 'found': _short(error), 'remedy': remedy}
    tell({**result, 'seconds': round(time.perf_counter() - start, 2)})
    return result['result'] != 'FAILED'


def _short(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip(' -')] or ['']
    return f'{type(error).__name__}: {" ".join(lines)[:300]}'


def line(result: dict) -> str:
    """The result as one line for the screen; a failed check has three more."""
    text = result.get('figures', {}).get('text', '')
    lines = [f'{result["name"]:<28} {result["result"]:<8}{result["seconds"]:>7.1f} s  {text}'.rstrip()]
    if result['result'] == 'FAILED':
        lines += [f'  {name}: {result[name]}' for name in ('expected', 'found', 'remedy')]
    return '\n'.join(lines)


def warning(result: dict) -> str | None:
    """The warning of a check that passed, if it has one."""
    return result.get('figures', {}).get('warning')


class Teller:
    """Writes results as JSON lines to a file (path or descriptor), for the process that started this one."""

    def __init__(self, descriptor: int | str):
        self.file = open(descriptor, 'w', encoding='utf-8')

    def __call__(self, result):
        try:
            print(json.dumps(result), file=self.file, flush=True)
        except BrokenPipeError:
            sys.exit(1)  # the process that started this one has ended
