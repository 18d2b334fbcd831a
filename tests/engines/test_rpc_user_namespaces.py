"""Trees in user namespaces by RPC, as engines dump and restore containers with their own users."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools, rpc
from tests.engines.rpc_calls import call, places, restore
from tests.real import sealed, userns

__all__ = ["places"]  # a fixture


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return userns.build(tmp_path_factory.mktemp("userns"))


@pytest.mark.parametrize("uid_map", [userns.MANY, userns.ONE], ids=["many", "one"])
@pytest.mark.parametrize("sibling", [True, False], ids=["sibling", "child"])
def test_a_tree_with_its_own_users_comes_back_by_rpc(
    dropin: dropin_tools.DropIn,
    program: Path,
    places: dict[str, int],
    images: Path,
    work: Path,
    ram_dir: Path,
    uid_map: str,
    sibling: bool,
) -> None:
    running = userns.Tree(program, ram_dir, uid_map, f"secret-{secrets.token_hex(12)}")
    try:
        root = {"root": str(running.root).encode(), **places}
        reply = call(dropin, rpc.DUMP, pid=running.pid, log_level=4, **root)
        assert reply.success, reply.message
        running.wait_gone()
        assert os.listdir(images) == ["inventory.img"]
        reply = restore(dropin, rst_sibling=sibling, **root)
        log = (work / "criu.log").read_text(errors="replace")
        assert reply.success, (reply.message, log)
        assert reply.pid in running.processes()
        running.assert_intact()
    finally:
        running.close()


@pytest.fixture(autouse=True)
def _nothing_left(dropin: dropin_tools.DropIn) -> Iterator[None]:
    """Among what the drop-in has started there is what it restored: that is ended first."""
    yield
    sealed.wait_until(lambda: dropin.helpers() == [], "the helpers have ended")
