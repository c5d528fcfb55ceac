"""Errors that a user can correct: one line on stderr and an exit status, never a traceback."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import signal
import struct
import sys
from collections.abc import Callable, Iterator


class InputError(Exception):
    """Unusable input; the message names the offending value and the remedy, in one line."""

    exit_status, prefix = 2, 'error: '


class TrainingError(InputError):
    """Training cannot continue (for example a loss that is not finite)."""

    exit_status = 3


class ElsewhereError(InputError):
    """Another rank has ended the training run; the launcher names that one."""

    exit_status = 4


class Interrupted(InputError):
    """Training ended by the signal `number`; the message says how to resume it."""

    prefix = ''

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_status = 128 + number


@contextlib.contextmanager
def reading(path: str | os.PathLike, remedy: str = '', also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """The edge of a program: a plain error within the block (ValueError, OSError, KeyError, IndexError, EOFError,
    struct.error, those `also`) becomes the `InputError` "PATH: reason; remedy". An OSError names its own file."""
    try:
        yield
    except (ValueError, OSError, LookupError, EOFError, struct.error, *also) as error:
        name = getattr(error, 'filename', None) or path
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split())[:500] or type(error).__name__
        reason += ' is missing' * isinstance(error, KeyError)
        raise InputError(f'{name}: {reason}' + f'; {remedy}' * bool(remedy)) from error


@contextlib.contextmanager
def only_warned(log: Callable[[str], None], what: str) -> Iterator[None]:
    """A block whose failure costs a line to `log`, for what a program can do without; `what` is lost then."""
    try:
        yield
    except Exception as error:
        kind = '' if isinstance(error, (InputError, OSError)) else f'{type(error).__name__}: '
        log(f'no {what}: {kind}{" ".join(str(error).split()):.500}')


def counted(number: int, noun: str) -> str:
    """'1 image' or '2 images'."""
    return f'{number} {noun}{"s" * (number != 1)}'


def input_error(error: BaseException) -> InputError | None:
    """`error` if it is an `InputError`, or the one that was raised in a data worker: MindSpore raises a `RuntimeError` with
    the worker's traceback as its text. None for any other error."""
    if isinstance(error, InputError):
        return error
    found = re.search(rf'^{__name__}\.(\w+): (.+)', str(error), re.M) if isinstance(error, RuntimeError) else None
    return globals()[found[1]](found[2]) if found else None


def report(error: InputError) -> None:
    """Print the one line of an `InputError` to stderr."""
    with contextlib.suppress(OSError):  # of a terminal that was closed; the exit status is still right
        print(error.prefix + ' '.join(map(str.strip, str(error).splitlines())), file=sys.stderr, flush=True)


def entry_point(main: Callable) -> Callable:
    """Decorator for the `main` of a program: an `InputError` becomes one line `error: ...` and its exit status. A standard
    output that nobody reads any more (`| head`) ends the program quietly."""

    @functools.wraps(main)
    def program(*args):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors='backslashreplace')  # names of files may be any bytes
        error = result = None
        try:
            result = main(*args)
        except KeyboardInterrupt:
            error = Interrupted('interrupted', signal.SIGINT)
        except BaseException as found:
            error = input_error(found) or found
        try:
            sys.stdout.flush()
        except OSError as found:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its exit
            error = error or found
        if isinstance(error, BrokenPipeError):
            error = SystemExit(128 + signal.SIGPIPE)
        if isinstance(error, InputError):
            report(error)
            error = SystemExit(error.exit_status)
        if error:
            raise error
        return result

    return program


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `InputError` for unusable arguments."""

    def error(self, message):
        """InputError with argparse's message."""
        raise InputError(f'{message}; --help lists the options')
