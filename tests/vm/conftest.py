"""Fixtures of the tests that run inside of the virtual machine (`scripts/vm-run -t 1800 tests/vm/run.sh`).

Anywhere else they are skipped. A kernel with everything, other users' processes, swap, and real container engines:
what the machine that runs the other tests may not have.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.real import harness, sealed
from tests.real.conftest import criu, needles, ram_dir, sealpoint, workload  # noqa: F401 - fixtures
from tests.vm import podman as podman_tools

HERE = Path(__file__).resolve().parent
REAL = HERE.parent / "real"

IN_VM = Path("/run/sealpoint-vm").exists()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="K/N", help="run every Nth test only, from the Kth on")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vm)
            if not IN_VM:
                item.add_marker(
                    pytest.mark.skip(
                        reason="runs in the virtual machine: scripts/vm-run tests/vm/run.sh"
                    )
                )
    yield  # -k and -m select by those marks
    share = config.getoption("--share", None)
    if share and not config.getoption("--last-failed", False):  # those were of this share
        which, of = map(int, share.split("/"))
        kept = items[which - 1 :: of]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(autouse=True)
def _reaps() -> None:
    """Whatever a test restores becomes a child of this process."""
    harness.become_subreaper()


@pytest.fixture(scope="session", autouse=True)
def _stock_criu() -> None:
    """The machine's CRIU, and nothing of ours, unless a test puts it there."""
    os.environ["SEALPOINT_CRIU"] = "/usr/sbin/criu"


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> sealed.Keys:
    """An identity and a signer; the other kinds take long to make on an emulated processor."""
    directory = tmp_path_factory.mktemp("keys")
    for options in ((), ("--signer",)):
        command = [*sealed.SEALPOINT, "keygen", str(directory), *options]
        subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return sealed.Keys(directory)


@pytest.fixture(scope="module")
def dropin(keys: sealed.Keys) -> Iterator[Path]:
    """The drop-in, by the command that an administrator uses; engines find it first. Yields its configuration."""
    command = [*sealed.SEALPOINT, "install-criu", "--from-checkout", *keys.seal, *keys.open]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    assert shutil.which("criu") == "/usr/local/sbin/criu"
    try:
        yield Path("/etc/sealpoint/config.toml")
    finally:
        subprocess.run([*sealed.SEALPOINT, "uninstall-criu"], check=True, stdout=subprocess.PIPE)
    assert shutil.which("criu") == "/usr/sbin/criu"


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of the containers: one static busybox."""
    return podman_tools.import_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def container(image: str) -> Iterator[Callable[..., podman_tools.Container]]:
    """container(RUNTIME, *OPTIONS) starts a container with secrets of its own; OPTIONS are of `podman run`."""
    made: list[podman_tools.Container] = []

    def start(runtime: str, *options: str) -> podman_tools.Container:
        needles = harness.make_needles()
        made.append(podman_tools.Container(runtime, image, needles, *options))
        return made[-1]

    yield start
    with contextlib.ExitStack() as stack:  # each is removed, even if another cannot be
        for each in made:
            stack.callback(each.remove)
