"""Programs that some tests run beside the project's own; `scripts/get-test-tools` installs them."""

from __future__ import annotations

import os
import shutil

import pytest


def need(*names: str) -> list[str]:
    """The path of each, by the first of its names (`a|b`) that is there; skips where one is missing."""
    found = []
    for name in names:
        path = next(filter(None, map(shutil.which, name.split("|"))), None)
        if path is None:
            reason = f"there is no {name} (scripts/get-test-tools)"
            if os.environ.get(
                "SEALPOINT_REQUIRE_CRIU"
            ):  # where all can be had, a skip would hide a failure
                pytest.fail(reason)
            pytest.skip(reason)
        found.append(path)
    return found
