"""Log lines, for the screen and a file."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from tqdm import tqdm

from src.errors import reading


class Log:
    """Called with a line, writes it to the screen and, if `path` is given, to the end of that file.

    `lost` becomes true when a line could be written to neither. InputError if the file cannot be opened.
    """

    def __init__(self, path: Path | None = None):
        self.file, self.lost = None, False
        if path:
            with reading(path, 'choose another --log_dir'):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                # Names of files may be any bytes; they look as on the screen, see `errors.entry_point`.
                self.file = open(path, 'a', encoding='utf-8', errors='backslashreplace')

    def __call__(self, line: str) -> None:
        # A full disk or a closed pipe is no reason to end a training.
        """See the class."""
        written = False
        for file in filter(None, (sys.stdout, self.file)):
            with contextlib.suppress(OSError):
                tqdm.write(line, file=file)
                file.flush()
                written = True
        self.lost |= not written
