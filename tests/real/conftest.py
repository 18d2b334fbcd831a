"""Fixtures for the tests that run a real CRIU on real processes.

They are skipped, with the reason, where that is not possible; with SEALPOINT_REQUIRE_CRIU=1 they
fail instead, so that a run that ought to have a CRIU cannot pass without one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real import harness, sealed, stock_criu, typed

HERE = Path(__file__).resolve().parent

StartWorkload = Callable[..., harness.Workload]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "criu: runs a real CRIU (needs root)")
    config.addinivalue_line("markers", "slow: takes long or much memory")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.criu)


@pytest.fixture(scope="session")
def criu() -> Path:
    """The path of a CRIU that works here."""
    path = stock_criu.find_criu()
    if path is None:
        if os.environ.get("SEALPOINT_REQUIRE_CRIU"):
            pytest.fail(stock_criu.criu_problem())
        pytest.skip(stock_criu.criu_problem())
    return path


@pytest.fixture(autouse=True)
def _real(criu: Path) -> None:
    """Every test here needs CRIU and reaps what CRIU leaves behind."""
    harness.become_subreaper()


@pytest.fixture
def needles() -> dict[str, bytes]:
    """Fresh secrets, by the place they are planted in (harness.PLANTED)."""
    return harness.make_needles()


@pytest.fixture
def workload(tmp_path: Path, needles: dict[str, bytes]) -> Iterator[StartWorkload]:
    """workload(KIND, *ARGUMENTS) starts a workload with this test's secrets and waits until it is
    ready. Whatever is left of it in the end, restored or not, is killed."""
    started: list[harness.Workload] = []

    def start(kind: str, *arguments: str) -> harness.Workload:
        directory = tmp_path / f"workload-{len(started)}-{kind}"
        started.append(harness.Workload(kind, directory, needles, *arguments))
        return started[-1]

    yield start
    errors = []
    for each in started:
        try:
            each.close()
        except Exception as error:  # the others must be ended all the same
            errors.append(error)
    assert not errors, errors


@pytest.fixture
def ram_dir() -> Iterator[Path]:
    """A directory in memory: plain images do not belong on a disk, not even in tests."""
    with stock_criu.ram_directory() as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> sealed.Keys:
    """An identity, a signer, and others of each kind in directories of their own (`keys.path("p256/...")`)."""
    directory = tmp_path_factory.mktemp("keys")
    kinds = ("x25519", "p256", "x509-rsa", "x509-ec")
    commands = [[str(directory)], [str(directory), "--signer"], [str(directory / "other")]]
    commands += [[str(directory / "other"), "--signer"]]
    commands += [[str(directory / kind), "--kind", kind] for kind in kinds]
    for command in commands:
        subprocess.run([*sealed.SEALPOINT, "keygen", *command], check=True, stdout=subprocess.PIPE)
    return sealed.Keys(directory)


@pytest.fixture
def sealpoint(
    tmp_path: Path, criu: Path, keys: sealed.Keys, needles: dict[str, bytes]
) -> Iterator[sealed.Sealpoint]:
    """The command. After the test nothing may be left of what it started or wrote where nobody asked, and nothing
    that it said may hold a secret."""
    command = sealed.Sealpoint(tmp_path / "sealpoint", criu)
    try:
        yield command
        command.settle()
        assert command.left() == [], command.left()
        said = command.said()
        assert [s for s in (*needles.values(), *keys.secrets) if s in said] == []
    finally:
        command.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a dump may go: in a directory that holds nothing else."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "app.sealed"


@pytest.fixture
def undisturbed(workload: StartWorkload, out: Path) -> Iterator[harness.Workload]:
    """A workload that must be as it was in the end, without an output."""
    running = workload("secret")
    before = running.assert_intact()
    yield running
    running.assert_continues(before)
    if out.parent.is_dir():
        assert os.listdir(out.parent) == []


@pytest.fixture
def dropin(tmp_path: Path, criu: Path, keys: sealed.Keys) -> Iterator[typed.DropIn]:
    """The drop-in as typed. Afterwards nothing of it may be left."""
    tools = typed.DropIn(tmp_path / "dropin", criu, keys)
    try:
        yield tools
        tools.settle()
    finally:
        tools.kill()
