"""The command line: one module per command, loaded when it is called."""

from __future__ import annotations

import contextlib
import gc
import os
import sys


def main() -> None:
    """Entry point of the `sealpoint` executable."""
    # Imports make many objects and no garbage: looking through them for it takes a tenth of the start.
    gc.set_threshold(50_000)
    try:
        from sealpoint.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before `run` could take care of it
        code = 130
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
    # Everything was closed where it was opened; taking the interpreter apart would only cost time.
    os._exit(code)
