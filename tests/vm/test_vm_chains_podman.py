"""podman's pre-checkpoints through the drop-in, with crun (SINGLE_PRE_DUMP) and with runc (PRE_DUMP)."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real import sealed
from tests.vm import podman

pytestmark = pytest.mark.vm

StartContainer = Callable[..., podman.Container]
CONFIG = Path("/etc/sealpoint/config.toml")
DROPIN = Path("/usr/local/sbin/criu")
SOURCE = Path(__file__).resolve().parents[2] / "src"
MAGIC = b"\x89SEALPT\n"


@pytest.fixture
def dropin(keys: sealed.Keys) -> Iterator[None]:
    """The drop-in as `install-criu` leaves it.  The machine's disk is thrown away afterwards."""
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(
        f'recipients = ["{keys.path("recipient.pub")}"]\nsigner = "{keys.path("signer.key")}"\n'
        f'identities = ["{keys.path("identity.key")}"]\ntrust = ["{keys.path("signer.pub")}"]\n'
        'criu = "/usr/sbin/criu"\n'
    )
    DROPIN.write_text(
        f"#!{sys.executable} -I\nimport sys\n\nsys.path.insert(0, {str(SOURCE)!r})\n"
        "from sealpoint.dropin import main\n\nmain()\n"
    )
    DROPIN.chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{DROPIN.parent}:{path}"
    assert shutil.which("criu") == str(DROPIN)
    yield
    os.environ["PATH"] = path
    DROPIN.unlink()
    CONFIG.unlink()
    assert "fuse.sealpoint" not in Path("/proc/self/mountinfo").read_text()


def members(archive: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(archive) as tar:
        return {m.name.rstrip("/").removeprefix("./"): m for m in tar}


def image(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_checkpoint_on_top_of_a_pre_checkpoint_is_sealed_and_imported(
    container: StartContainer,
    dropin: None,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    runtime: str,
) -> None:
    running = container(runtime)
    count = running.assert_counts()
    before, after = tmp_path / "pre.tar", tmp_path / "after.tar"
    running.checkpoint("--pre-checkpoint", "--compress=none", "--export", before).ok()
    running.assert_counts()
    assert image(before, "pre-checkpoint/inventory.img").startswith(MAGIC)
    running.checkpoint("--with-previous", "--compress=none", "--export", after).ok()
    found = members(after)
    assert found["checkpoint/parent"].linkname == "../pre-checkpoint"
    images = {n for n in found if n.startswith("checkpoint/") and n.endswith(".img")}
    assert images == {"checkpoint/inventory.img"}

    one, two = tmp_path / "one.sealed", tmp_path / "two.sealed"
    one.write_bytes(image(before, "pre-checkpoint/inventory.img"))
    two.write_bytes(image(after, "checkpoint/inventory.img"))
    first, second = (
        json.loads(sealpoint.run("info", file, "--json", "-i", keys.path("identity.key")).ok().out)
        for file in (one, two)
    )
    assert second["kind"] == "increment"
    assert second["parent"]["checkpoint"] == first["checkpoint"]
    pages = [
        sum(o["size"] for o in info["objects"] if o["name"].startswith("pages-"))
        for info in (first, second)
    ]
    assert pages[1] < pages[0]

    running.remove()
    running.restore_archive(after, "--import-previous", before).ok()
    running.assert_whole(count)


def test_without_its_pre_checkpoint_it_is_not_restored(
    container: StartContainer, dropin: None, tmp_path: Path
) -> None:
    running = container("runc")  # which tells the error's number
    count = running.assert_counts()
    before, other, after = (tmp_path / n for n in ("pre.tar", "other.tar", "after.tar"))
    running.checkpoint("--pre-checkpoint", "--compress=none", "--export", before).ok()
    running.checkpoint("--with-previous", "--compress=none", "--export", after).ok()
    running.remove()
    another = container("runc")
    another.checkpoint("--pre-checkpoint", "--compress=none", "--export", other).ok()
    refused = running.restore_archive(after, "--import-previous", other)
    assert refused.code != 0
    assert (
        "type RESTORE errno 22" in refused.said
    )  # the drop-in's refusal; the log goes with the container
    assert running.processes() == []
    another.remove()
    running.remove()  # podman keeps what it had made for the import
    running.restore_archive(after, "--import-previous", before).ok()
    running.assert_whole(count)
