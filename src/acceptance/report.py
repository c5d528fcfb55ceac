"""Checks one after another, up to the first that fails; needs no MindSpore."""

import json
import sys
import time
import traceback


class Failed(Exception):
    """What was expected, what came instead, and what to do about it or where to look ('': what the check itself says)."""

    def __init__(self, expected, found, remedy=''):
        super().__init__(f'expected {expected}; found {found}')
        self.expected, self.found, self.remedy = str(expected), str(found), remedy


class Skipped(Exception):
    """This device cannot make the check; the message says why."""


def within(value, bound, what):
    """`value`; Failed unless it is at most `bound`. A value that is not a number is not."""
    if not value <= bound:
        raise Failed(f'{what} at most {bound:g}', f'{value:.3g}')
    return value


def equal(found, expected, what):
    """Failed unless they are the same."""
    if found != expected:
        raise Failed(f'{what} {expected}', f'{found}'[:300])


def run(name, check, remedy, tell):
    """Make one check and `tell` its result (dict), also before it starts; True unless it failed.

    `check()` gives {name of a figure: value}, of which `text` is what the line shows and `bound` what was allowed.
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


def line(result):
    """One line on the screen; three more for a check that failed."""
    text = result.get('figures', {}).get('text', '')
    lines = [f'{result["name"]:<28} {result["result"]:<8}{result["seconds"]:>7.1f} s  {text}'.rstrip()]
    if result['result'] == 'FAILED':
        lines += [f'  {name}: {result[name]}' for name in ('expected', 'found', 'remedy')]
    return '\n'.join(lines)


def warning(result):
    """What a passed check warns of, or None."""
    return result.get('figures', {}).get('warning')


class Teller:
    """Writes results as JSON lines to a file descriptor, for the process that started this one."""

    def __init__(self, descriptor):
        self.file = open(descriptor, 'w', encoding='utf-8')

    def __call__(self, result):
        try:
            print(json.dumps(result), file=self.file, flush=True)
        except BrokenPipeError:
            sys.exit(1)  # nobody is left to hear it
