"""The command line: one module per command, loaded when it is called."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `sealpoint` executable."""
    from sealpoint.cli.app import run

    sys.exit(run(sys.argv[1:]))

