"""Errors that a user can mend: one line on stderr and an exit status, never a traceback."""

import argparse
import contextlib
import errno
import functools
import os
import re
import signal
import sys
import time


class InputError(Exception):
    """Unusable input; the message names the offending value and the remedy, in one line."""

    exit_status = 2
    prefix = 'error: '
    wait = 0


class TrainingError(InputError):
    """Training cannot go on (for example a loss that is not finite)."""

    exit_status = 3


class ElsewhereError(InputError):
    """Another rank has ended the training; this one ends a little later, so that the launcher names the other first."""

    wait = 2  # seconds


class Interrupted(InputError):
    """Training ended by a signal; the message says where it can go on."""

    prefix = ''

    def __init__(self, message, number):
        super().__init__(message)
        self.exit_status = 128 + number


def counted(number, noun):
    """'1 image' or '2 images'."""
    return f'{number} {noun}{"s" * (number != 1)}'


def input_error(error):
    """`error` if it is an `InputError`, or the one that MindSpore's report on a data worker tells of; or None."""
    if isinstance(error, InputError):
        return error
    wrapped = isinstance(error, RuntimeError) and re.search(r'^src.errors.InputError: (.+)', str(error), re.M)
    return InputError(wrapped[1]) if wrapped else None


def report(error):
    """The one line of an `InputError`."""
    with contextlib.suppress(OSError):
        print(error.prefix + ' '.join(str(error).split()), file=sys.stderr, flush=True)


def entry_point(main):
    """Let `main()` end the process: `InputError` becomes one line `error: ...` and its exit status."""

    @functools.wraps(main)
    def run(*args):
        try:
            return _with_output(main, *args)
        except (InputError, RuntimeError) as found:
            error = input_error(found)
            if error is None:
                raise
        except KeyboardInterrupt:
            error = Interrupted('interrupted', 2)
        report(error)
        _give_up_output()
        time.sleep(error.wait)
        sys.exit(error.exit_status)

    return run


def _with_output(main, *args):
    """`main(*args)`. Where nobody reads the standard output any more (`| head`) this ends the process without a word, with
    the status of SIGPIPE if `main` was not done. InputError if the output cannot be written for another reason."""
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        if getattr(sys, name) is None:  # closed before Python started; the next file would get its number
            setattr(sys, name, open(os.devnull, mode))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')  # names of files may be any bytes
    result = leaving = None
    try:
        result = main(*args)
    except SystemExit as error:  # of --help, or a tool's status
        leaving = error
    except OSError:
        # Without a buffer what could not be written is gone: only another try tells what the error is about.
        problem = _give_up_output('\n')
        if problem is None:
            raise
        if problem.errno == errno.EPIPE:
            sys.exit(128 + signal.SIGPIPE)
        raise InputError(f'standard output: {problem.strerror}') from None
    problem = _give_up_output()
    if problem and problem.errno != errno.EPIPE and not (leaving and leaving.code):
        raise InputError(f'standard output: {problem.strerror}')
    if leaving:
        raise leaving
    return result


def _give_up_output(probe=''):
    """The OSError for which standard output cannot take `probe` and what is still to be written, or standard error what is
    still to be written; or None. They then go nowhere, so that the end of the process does not complain."""
    found = None
    for stream, text in ((sys.stdout, probe), (sys.stderr, '')):
        try:
            stream.write(text)
            stream.flush()
        except OSError as error:
            found = found or error
            with open(os.devnull, 'w') as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
    return found


class Parser(argparse.ArgumentParser):
    """Unusable arguments are one line, too."""

    def error(self, message):
        raise InputError(f'{message}; --help lists the options')
