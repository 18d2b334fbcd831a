"""Real processes dumped by CRIU into a real registry, rekeyed there and restored from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real import harness, sealed
from tests.store.registry_servers import Registry

pytestmark = pytest.mark.services
StartWorkload = Callable[..., harness.Workload]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    server = Registry(tmp_path_factory.mktemp("registry"))
    yield server
    server.close()


def test_dumped_into_a_registry_killed_verified_and_restored(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    registry: Registry,
    tmp_path: Path,
) -> None:
    url = f"oci://{registry.address}/apps/one:first"
    sealpoint.environment |= {"DOCKER_CONFIG": str(tmp_path / "nobody")}
    running = workload("memory", "--mib", "48")
    before = running.assert_intact()
    sealpoint.run("dump", "-t", running.pid, "-o", url, "--compress", "none", *keys.seal).ok()
    running.wait_gone()
    sealpoint.run("verify", url, "--trust", keys.path("signer.pub")).ok()
    listed = sealpoint.run("list", "--json", f"oci://{registry.address}/apps/one").ok()
    assert url.encode() in listed.out
    sealpoint.run("restore", url, "--detach", *keys.open).ok()
    running.assert_continues(before)
    running.assert_intact()
    # The name is taken now, and the tree runs on undisturbed.
    sealpoint.run("dump", "-t", running.pid, "-o", url, *keys.seal).fails(2)
    running.assert_intact()


def test_a_registry_that_is_gone_leaves_the_tree(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
) -> None:
    server = Registry(tmp_path / "registry")
    server.close()
    sealpoint.environment |= {"DOCKER_CONFIG": str(tmp_path / "nobody")}
    running = workload("memory", "--mib", "2")
    before = running.assert_intact()
    url = f"oci://{server.address}/apps/one:first"
    sealpoint.run("dump", "-t", running.pid, "-o", url, *keys.seal).fails(6)
    running.assert_continues(before)
    running.assert_intact()
