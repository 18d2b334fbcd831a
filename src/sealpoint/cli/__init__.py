"""The command line: one module per command, loaded when it is called."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the `sealpoint` executable."""
    try:
        from sealpoint.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before `run` could take care of it
        code = 130
    if sys.stderr is not None:
        sys.stderr.flush()
    # Everything was closed where it was opened; taking the interpreter apart would only cost time.
    os._exit(code)
