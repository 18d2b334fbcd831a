"""The executable `checkpointctl-sealpoint`, by its name a plugin: `checkpointctl sealpoint ...`.

checkpointctl's plugin protocol: asked with `--plugin-description` alone a plugin prints one line and exits with 42;
otherwise it gets the arguments that follow its name.
"""

from __future__ import annotations

import sys
from typing import Final

DESCRIPTION: Final = "Inspect, verify, open and restore sealed (end-to-end encrypted) checkpoints"
_DESCRIBED: Final = 42


def main() -> None:
    """Entry point."""
    if sys.argv[1:] == ["--plugin-description"]:
        print(DESCRIPTION)
        sys.exit(_DESCRIBED)
    from sealpoint.cli import main as sealpoint

    sealpoint()
