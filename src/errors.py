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
from collections.abc import Callable, Iterator
from pathlib import Path


class InputError(Exception):
    """Unusable input; the message names the offending value and the remedy, in one line."""

    exit_status, prefix = 2, 'error: '


class TrainingError(InputError):
    """Training cannot continue (for example a loss that is not finite)."""

    exit_status = 3


class ElsewhereError(InputError):
    """Another rank has ended the training; the launcher names that one."""

    exit_status = 4


class DiskFullError(InputError):
    """A disk is full. There may be room later, so a launcher starts the training again."""

    exit_status = 1


class Interrupted(InputError):
    """Training ended by the signal `number`; the message says how to resume it."""

    prefix = ''

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_status = 128 + number


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
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split())[:500] or type(error).__name__
        reason += ' is missing' * isinstance(error, KeyError)
        full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT)
        raise (DiskFullError if full else InputError)(f'{name}: {reason}' + f'; {remedy}' * bool(remedy)) from error


@contextlib.contextmanager
def only_warned(log: Callable[[str], None], what: str) -> Iterator[None]:
    """A block whose failure costs a line to `log`, for what a training can do without; `what` is lost then."""
    try:
        yield
    except Exception as error:
        kind = '' if isinstance(error, (InputError, OSError)) else f'{type(error).__name__}: '
        log(f'no {what}: {kind}{" ".join(str(error).split()):.500}')


def counted(number: int, noun: str) -> str:
    """'1 image' or '2 images'."""
    return f'{number} {noun}{"s" * (number != 1)}'


def input_error(error: Exception) -> InputError | None:
    """`error` if it is an `InputError`, or the one that was raised in a data worker: MindSpore raises a `RuntimeError` with
    the worker's traceback as its text. None for any other error."""
    if isinstance(error, InputError):
        return error
    found = re.search(rf'^{__name__}\.(\w+): (.+)', str(error), re.M)
    # Not by the constructor, which may want more than the message.
    return InputError.__new__(globals()[found[1]], found[2]) if found and isinstance(error, RuntimeError) else None


def report(error: InputError) -> None:
    """Print the one line of an `InputError` to stderr."""
    with contextlib.suppress(OSError):  # of a terminal that was closed; the exit status is still right
        print(error.prefix + ' '.join(map(str.strip, str(error).splitlines())), file=sys.stderr, flush=True)


def entry_point(main: Callable) -> Callable:
    """Decorator for the `main` of a program: an `InputError` becomes one line `error: ...` and its exit status."""

    @functools.wraps(main)
    def program(*args):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors='backslashreplace')  # names of files may be any bytes
        try:
            with _written():
                return main(*args)
        except BrokenPipeError:
            sys.exit(128 + signal.SIGPIPE)
        except KeyboardInterrupt:
            error = Interrupted('interrupted', signal.SIGINT)
        except Exception as found:
            error = input_error(found)
            if error is None:
                raise
        report(error)
        sys.exit(error.exit_status)

    return program


@contextlib.contextmanager
def _written():
    """A block at whose end standard output is written out, as Python would only complain at its exit. BrokenPipeError if
    nobody reads it any more (`| head`) before the end, InputError on a full disk."""
    ending, probe = None, ''
    try:
        yield
    except SystemExit as error:
        ending = error
    except OSError as error:
        ending, probe = error, '\n'  # whether it is standard output that cannot be written
    try:
        print(probe, end='', flush=True)
    except OSError as error:
        with open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # for what Python writes at its exit
        if error.errno != errno.EPIPE:  # whose work is done has not failed because nobody reads its last lines
            ending = InputError(f'standard output: {error.strerror}')
    if ending:
        raise ending


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `InputError` for unusable arguments."""

    def error(self, message):
        """InputError with argparse's message."""
        raise InputError(f'{message}; --help lists the options')
