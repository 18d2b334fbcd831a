"""The drop-in `criu`: what container engines call instead of CRIU, and which seals.

`shim` runs at every call and imports the standard library only; `proxy` and `session` run in a helper process beside
the real CRIU, and load the rest when a request is a dump or a restore.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of the executable named `criu`."""
    from sealpoint.dropin.shim import run

    run()
