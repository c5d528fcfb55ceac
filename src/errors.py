"""Errors that a user can correct: one line on stderr and an exit status, never a traceback."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import os
import re
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class InputError(Exception):
    """Unusable input; the message names the offending value and the remedy, in one line."""

    exit_status = 2
    prefix = 'error: '
    wait = 0  # seconds from the message to the end of the process


class TrainingError(InputError):
    """Training cannot go on (for example a loss that is not finite)."""

    exit_status = 3


class ElsewhereError(InputError):
    """Another rank has ended the training. This one ends a little later, and with a status of its own, so that the launcher
    names the other."""

    exit_status = 4
    wait = 2


class DiskFullError(InputError):
    """A training cannot start because a disk is full. There may be room later, so a launcher starts it again."""

    exit_status = 1


def unwritable(message: str, error: Exception) -> InputError:
    """The error, to be raised with `message`, for a file of a training that cannot be written because of `error`."""
    return (DiskFullError if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT) else InputError)(message)


@contextlib.contextmanager
def reading(path: str | Path, remedy: str = '', also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """The edge of a program: what is wrong with the file or directory `path`, which functions within the block say by plain
    errors, becomes the `InputError` "PATH: reason; remedy".

    Plain errors are ValueError, OSError (its own file is named if it has one), KeyError, IndexError, EOFError, struct.error
    and those of the kinds `also`. An `InputError` passes unchanged.
    """
    try:
        yield
    except (ValueError, OSError, LookupError, EOFError, struct.error, *also) as error:
        name = getattr(error, 'filename', None)
        name = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else path
        message = f'{name}: {_reason(error)}' + (f'; {remedy}' if remedy else '')
        raise unwritable(message, error) from error


def _reason(error):
    """What a plain error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f'byte {error.start} ({error.object[error.start]:#04x}) is not {error.encoding}'
    text = ' '.join(str(error).split())
    if isinstance(error, KeyError):
        return f'{text} is missing'
    return text[:500] or ('ends too early' if isinstance(error, EOFError) else type(error).__name__)


@contextlib.contextmanager
def only_warned(say: Callable[[str], None], what: str) -> Iterator[None]:
    """A block whose failure costs a line to `say`, for what a training can do without; `what` is lost then."""
    try:
        yield
    except Exception as error:
        kind = '' if isinstance(error, (InputError, OSError)) else f'{type(error).__name__}: '
        say(f'no {what}: {kind}{" ".join(str(error).split()):.500}')


class Interrupted(InputError):
    """Training ended by the signal `number`; the message says how to resume it."""

    prefix = ''

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_status = 128 + number


def counted(number: int, noun: str) -> str:
    """'1 image' or '2 images'."""
    return f'{number} {noun}{"s" * (number != 1)}'


def input_error(error: Exception) -> InputError | None:
    """`error` if it is an `InputError`, or the one that was raised in a data worker; None for any other error.

    MindSpore raises a `RuntimeError` for an exception in a data worker; the worker's traceback is its text. The class
    is looked for under the name that Python gives it there, so a class or module may be renamed.
    """
    if isinstance(error, InputError):
        return error
    if not isinstance(error, RuntimeError):
        return None
    kinds = {f'{kind.__module__}.{kind.__qualname__}': kind for kind in _with_subclasses(InputError)}
    found = re.search(rf'^({"|".join(map(re.escape, kinds))}): (.+)', str(error), re.M)
    # Not by the constructor, which may want more than the message.
    return InputError.__new__(kinds[found[1]], found[2]) if found else None


def _with_subclasses(kind):
    return [kind, *(found for subclass in kind.__subclasses__() for found in _with_subclasses(subclass))]


def report(error: InputError) -> None:
    """Print the one line of an `InputError` to stderr."""
    with contextlib.suppress(OSError):
        print(error.prefix + ' '.join(map(str.strip, str(error).splitlines())), file=sys.stderr, flush=True)


def entry_point(main: Callable) -> Callable:
    """Decorator for the `main` of a program: an `InputError` becomes one line `error: ...` and its exit status."""

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
    """Call `main(*args)`. Where nobody reads the standard output any more (`| head`), the process ends without a message,
    with the status of SIGPIPE if `main` had not finished. InputError if the output cannot be written for another reason."""
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
        # Without a buffer, what could not be written is lost: only another write shows whether standard output failed.
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
    """Write what is buffered, and `probe` to standard output. Gives the first OSError or None. A stream that failed is
    replaced by /dev/null, so that Python reports nothing more when the process ends."""
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
    """An `ArgumentParser` that raises `InputError` for unusable arguments."""

    def error(self, message):
        """InputError with argparse's message."""
        raise InputError(f'{message}; --help lists the options')
