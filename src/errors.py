"""Errors that a user can mend: one line on stderr and an exit status, never a traceback."""
import functools
import re
import sys


class InputError(Exception):
    """Unusable input; the message names the offending value and the remedy, in one line."""
    exit_status = 2
    prefix = 'error: '


class TrainingError(InputError):
    """Training cannot go on (for example a loss that is not finite)."""
    exit_status = 3


class Interrupted(InputError):
    """Training ended by a signal; the message says where it can go on."""
    prefix = ''

    def __init__(self, message, number):
        super().__init__(message)
        self.exit_status = 128 + number


def entry_point(main):
    """Let `main()` end the process: `InputError` becomes one line `error: ...` and its exit status."""
    @functools.wraps(main)
    def run(*args):
        try:
            return main(*args)
        except InputError as error:
            message, status, prefix = str(error), error.exit_status, error.prefix
        except KeyboardInterrupt:
            message, status, prefix = 'interrupted', 130, ''
        except RuntimeError as error:  # MindSpore wraps what its data workers raise in its own report
            wrapped = re.search(r"^src.errors.InputError: (.+)", str(error), re.M)
            if not wrapped:
                raise
            message, status, prefix = wrapped[1], InputError.exit_status, InputError.prefix
        print(prefix + ' '.join(message.split()), file=sys.stderr, flush=True)
        sys.exit(status)
    return run
