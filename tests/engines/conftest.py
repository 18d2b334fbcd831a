"""Fixtures for what stands between engines and CRIU: the drop-in with runc and with bare RPC, and mounts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines import containers, dropin as dropin_tools
from tests.real import harness, sealed
from tests.real.conftest import criu, keys, needles, ram_dir, workload  # noqa: F401 - fixtures

HERE = Path(__file__).resolve().parent
REAL = HERE.parent / "real"

NO_CRIU = ("test_fuse_requests", "test_request_table", "test_rpc_parsing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and item.path.stem not in NO_CRIU:
            item.add_marker(pytest.mark.criu)


@pytest.fixture(autouse=True)
def _reaps(request: pytest.FixtureRequest) -> None:
    """A test with a real CRIU needs one that works here, and reaps what it leaves behind."""
    if request.node.get_closest_marker("criu"):
        request.getfixturevalue("criu")
        harness.become_subreaper()


@pytest.fixture
def dropin(tmp_path: Path, criu: Path, keys: sealed.Keys) -> Iterator[dropin_tools.DropIn]:
    """The drop-in with a configuration that works. Afterwards nothing of it may be left."""
    tools = dropin_tools.DropIn(tmp_path / "dropin", criu, keys)
    try:
        yield tools
        tools.settle()
    finally:
        tools.kill()


@pytest.fixture
def sealpoint(tmp_path: Path, criu: Path) -> Iterator[sealed.Sealpoint]:
    """The command."""
    command = sealed.Sealpoint(tmp_path / "sealpoint", criu)
    try:
        yield command
    finally:
        command.close()


@pytest.fixture(scope="session")
def engine() -> None:
    """runc and busybox are there; where they are missing and can be, they are installed."""
    if problem := containers.missing_tools():
        if os.environ.get("SEALPOINT_REQUIRE_CRIU"):
            pytest.fail(problem)
        pytest.skip(problem)


@pytest.fixture
def container(
    tmp_path: Path, needles: dict[str, bytes], engine: None
) -> Iterator[Callable[..., containers.Container]]:
    """container(terminal=False) prepares a container with this test's secrets."""
    made: list[containers.Container] = []

    def make(**options: bool) -> containers.Container:
        made.append(containers.Container(tmp_path / f"container-{len(made)}", needles, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An images directory, as engines make one."""
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work directory for CRIU's logs."""
    path = tmp_path / "work"
    path.mkdir()
    return path
