"""A host of a test's own (`own_host`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.own_host import OwnHost


@pytest.fixture
def host(tmp_path: Path) -> Iterator[OwnHost]:
    if os.geteuid() != 0:
        pytest.skip("root is needed for namespaces")
    for tool in ("unshare", "nsenter"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} (package util-linux) is missing")
    made = OwnHost(tmp_path)
    try:
        if not made.ready:
            pytest.skip(f"no namespaces can be made here: {made.problem}")
        yield made
    finally:
        made.close()
