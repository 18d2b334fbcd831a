"""podman with crun and runc, unchanged, checkpoints and restores through the drop-in criu.  Runs in the machine."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm

PODMAN = ["podman", "--cgroup-manager=cgroupfs", "--events-backend=file"]
CONFIG = Path("/etc/sealpoint/config.toml")
DROPIN = Path("/usr/local/sbin/criu")
SOURCE = Path(__file__).resolve().parents[2] / "src"
MAGIC = b"\x89SEALPT\n"
NEEDLE = "needle-in-memory-"  # put together in the container, so that it is in no file


def run(*command: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(c) for c in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0 or not ok, (command, done.stdout, done.stderr)
    return done


def sealpoint(*arguments: object) -> str:
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from sealpoint.cli import main; main()"
    )
    return run(sys.executable, "-c", code, *arguments).stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    sealpoint("keygen", directory)
    sealpoint("keygen", directory, "--signer")
    return directory


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    root = Path("/tmp/dropin-image")
    (root / "bin").mkdir(parents=True)
    (root / "tmp").mkdir()
    shutil.copy(shutil.which("busybox") or "/bin/busybox", root / "bin/busybox")
    for name in ("sh", "sleep", "cat", "echo"):
        (root / "bin" / name).symlink_to("busybox")
    archive = Path("/tmp/dropin-image.tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(root, ".")
    run(*PODMAN, "import", archive, "dropin-image")
    yield "dropin-image"
    run(*PODMAN, "rmi", "-f", "dropin-image", ok=False)


@pytest.fixture
def dropin(keys: Path) -> Iterator[None]:
    """The drop-in as `install-criu` leaves it.  The machine's disk is thrown away afterwards."""
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(
        f'recipients = ["{keys}/recipient.pub"]\nsigner = "{keys}/signer.key"\n'
        f'identities = ["{keys}/identity.key"]\ntrust = ["{keys}/signer.pub"]\n'
        'criu = "/usr/sbin/criu"\n'
    )
    DROPIN.write_text(
        f"#!{sys.executable} -I\nimport sys\n\nsys.path.insert(0, {str(SOURCE)!r})\n"
        "from sealpoint.dropin import main\n\nmain()\n"
    )
    DROPIN.chmod(0o755)
    os.environ["PATH"] = f"{DROPIN.parent}:{os.environ['PATH']}"
    assert shutil.which("criu") == str(DROPIN)
    yield
    DROPIN.unlink()
    CONFIG.unlink()
    assert "fuse.sealpoint" not in Path("/proc/self/mountinfo").read_text()


class Container:
    """Counts, and holds a secret in its memory and its environment."""

    def __init__(self, runtime: str, image: str) -> None:
        self.podman = [*PODMAN, "--runtime", runtime]
        self.id = run(
            *self.podman, "run", "-d", "--network", "none", image, "/bin/sh", "-c",
            'a=needle-in; b=-memory-; i=0; while true; do s="$a$b$i"; i=$((i+1)); '
            "echo $i > /tmp/count; sleep 0.1; done",
        ).stdout.strip()  # fmt: skip

    def count(self) -> int:
        """How far it has counted."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            said = run(*self.podman, "exec", self.id, "cat", "/tmp/count", ok=False)
            if said.returncode == 0 and said.stdout.strip():
                return int(said.stdout)
            time.sleep(0.2)
        raise AssertionError("the container does not answer")

    def counts_on(self, before: int) -> None:
        """It has not started again, and goes on."""
        first = self.count()
        assert first >= before
        deadline = time.monotonic() + 30
        while self.count() <= first:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def podman_container(
        self, *arguments: object, ok: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return run(*self.podman, "container", *arguments, ok=ok)

    def remove(self) -> None:
        run(*self.podman, "rm", "-f", "-t", "0", self.id, ok=False)


@pytest.fixture(params=["crun", "runc"])
def container(request: pytest.FixtureRequest, dropin: None, image: str) -> Iterator[Container]:
    started = Container(request.param, image)
    try:
        started.count()
        yield started
    finally:
        started.remove()


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {
            member.name.rstrip("/").removeprefix("./"): file.read()
            for member in tar
            if (file := tar.extractfile(member)) is not None
        }


def test_an_exported_container_is_sealed_and_comes_back(
    container: Container, keys: Path, tmp_path: Path
) -> None:
    before = container.count()
    archive = tmp_path / "exported.tar"
    container.podman_container("checkpoint", "--compress=none", "--export", archive, container.id)
    found = members(archive)
    images = {name for name in found if name.startswith("checkpoint/")}
    assert images == {"checkpoint/inventory.img", "checkpoint/descriptors.json"}
    sealed = found["checkpoint/inventory.img"]
    assert sealed.startswith(MAGIC)
    assert NEEDLE.encode() not in archive.read_bytes()
    file = tmp_path / "inventory.img"
    file.write_bytes(sealed)
    sealpoint("verify", file, "--trust", keys / "signer.pub", "-i", keys / "identity.key")
    plain = tmp_path / "plain.tar"
    sealpoint(
        "open", file, "-o", plain, "-i", keys / "identity.key", "--trust", keys / "signer.pub"
    )
    assert NEEDLE.encode() in plain.read_bytes()  # so its absence above means something
    container.remove()
    container.podman_container("restore", "--import", archive)
    container.counts_on(before)


def test_a_container_checkpointed_in_place_comes_back(container: Container) -> None:
    before = container.count()
    container.podman_container("checkpoint", container.id)
    container.podman_container("restore", container.id)
    container.counts_on(before)


def test_a_container_left_running_runs_on(container: Container, tmp_path: Path) -> None:
    archive = tmp_path / "running.tar"
    before = container.count()
    container.podman_container(
        "checkpoint", "--leave-running", "--compress=none", "--export", archive, container.id
    )
    assert members(archive)["checkpoint/inventory.img"].startswith(MAGIC)
    container.counts_on(before)


def test_a_damaged_checkpoint_is_not_restored(container: Container, tmp_path: Path) -> None:
    archive, damaged = tmp_path / "good.tar", tmp_path / "damaged.tar"
    container.podman_container("checkpoint", "--compress=none", "--export", archive, container.id)
    container.remove()
    with tarfile.open(archive) as source, tarfile.open(damaged, "w") as target:
        for member in source:
            file = source.extractfile(member)
            data = bytearray(file.read()) if file is not None else bytearray()
            if member.name == "checkpoint/inventory.img":
                data[len(data) // 2] ^= 1
            target.addfile(member, io.BytesIO(bytes(data)))
    refused = container.podman_container("restore", "--import", damaged, ok=False)
    assert refused.returncode != 0
    shown = run(*container.podman, "ps", "--format", "{{.ID}}").stdout
    assert container.id[:12] not in shown


def test_without_a_usable_configuration_nothing_is_written_and_the_container_runs_on(
    container: Container, tmp_path: Path
) -> None:
    before = container.count()
    CONFIG.write_text(CONFIG.read_text().replace("signer.key", "no-such.key"))
    archive = tmp_path / "none.tar"
    refused = container.podman_container("checkpoint", "--export", archive, container.id, ok=False)
    assert refused.returncode != 0
    assert not archive.exists() or not any(n.endswith(".img") for n in members(archive))
    container.counts_on(before)
