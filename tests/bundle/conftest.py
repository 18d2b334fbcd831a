"""The bundle, unpacked into a root that has nothing but /proc, /dev and a static shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

TOP = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
RPC_CLIENT = TOP / "tests" / "engines" / "rpc.py"


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SEALPOINT_BUNDLE, or one that is made now."""
    if given := os.environ.get("SEALPOINT_BUNDLE"):
        return Path(given)
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, TOP / "scripts" / "bundle", "--out", out],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    (found,) = out.glob("*.tar.zst")
    return found


def unpack(archive: Path, into: Path) -> Path:
    with archive.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as plain:
        with tarfile.open(fileobj=plain, mode="r|") as tar:
            tar.extractall(into, filter="tar")
    (directory,) = into.iterdir()
    return directory


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The static shell, from Debian."""
    directory = tmp_path_factory.mktemp("busybox")
    got = subprocess.run(
        ["apt-get", "-qq", "download", "busybox-static"],
        cwd=directory,
        capture_output=True,
        text=True,
    )
    if got.returncode:
        pytest.fail(f"busybox-static cannot be downloaded: {got.stderr}")
    (package,) = directory.glob("*.deb")
    subprocess.run(["dpkg", "-x", package, directory / "root"], check=True)
    return directory / "root" / "bin" / "busybox"


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("workload") / "workload"
    source = HERE / "workload.c"
    subprocess.run(["gcc", "-static", "-pthread", "-O1", "-o", program, source], check=True)
    return program


@pytest.fixture(scope="session")
def empty_root(
    archive: Path, busybox: Path, workload: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("empty")
    for name in ("bin", "dev", "etc", "old", "opt", "proc", "root", "run", "sys", "tmp", "var"):
        (root / name).mkdir()
    shutil.copy(busybox, root / "bin" / "busybox")
    applets = "sh cat chmod chown cp date dirname id ls ln mkdir mount mv readlink rm sleep umount"
    for applet in applets.split():
        (root / "bin" / applet).symlink_to("busybox")
    unpack(archive, root / "opt").rename(root / "opt" / "bundle")
    for file in (workload, HERE / "inside.py", RPC_CLIENT):
        shutil.copy(file, root / "root")
    return root


@pytest.fixture
def inside(empty_root: Path) -> Callable[[str], str]:
    """Runs shell commands in the empty root, in namespaces that end with them; returns what they print."""

    def run(script: str) -> str:
        done = subprocess.run(
            [
                "unshare",
                "--fork",
                "--kill-child",
                "--pid",
                "--mount",
                "--ipc",
                "--uts",
                "bash",
                HERE / "enter.sh",
                empty_root,
                script,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
