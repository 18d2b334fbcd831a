"""CRIU's own crit and pycriu, as get-criu installed them, for comparison."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BATCH = Path(__file__).with_name("pycriu_batch.py")


def prefixes() -> list[Path]:
    """Prefixes with a crit: the tests' own, and of a newer CRIU (get-criu --suite) the one in SEALPOINT_CRIU_NEXT."""
    named = [ROOT / ".criu", Path(os.environ.get("SEALPOINT_CRIU_NEXT") or "/nonexistent")]
    return [p for p in named if (p / "bin" / "crit").exists()]


def pycriu(prefix: Path, images: dict[str, bytes]) -> dict[str, dict[str, str]]:
    """What the prefix's pycriu makes of each image: JSON as text under "plain", "pretty" and "nopl"."""
    text = (prefix / "bin" / "crit").read_text()
    command = shlex.split(next(line for line in text.splitlines() if line.startswith("exec ")))[
        1:-1
    ]
    script = next((n for n, word in enumerate(command) if word.endswith("/crit.py")), None)
    packages = f"{prefix}/root/usr/lib/python3/dist-packages"
    if script is None:  # a crit of the system
        command, packages = [sys.executable], "/usr/lib/python3/dist-packages"
    else:
        command = command[:script]
    request = json.dumps({name: base64.b64encode(data).decode() for name, data in images.items()})
    done = subprocess.run(
        [*command, str(BATCH), packages], input=request, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)
