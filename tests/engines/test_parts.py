"""An archive of a container whose memory the drop-in sealed: sealed as a whole, opened, and restored by the drop-in."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools
from tests.engines.rpc_calls import dump, places, restore
from tests.real import harness, leaks, sealed

__all__ = ["places"]  # a fixture

pytestmark = pytest.mark.criu
REST = {
    "config.dump": b'{"id": "c", "name": "counter"}',
    "spec.dump": b'{"process": {"env": ["PLANTED=planted-in-the-environment"]}}',
    "dump.log": b"(00.000000) Dumping\n",
    "rootfs-diff.tar": bytes(1024),
}


def as_containerd_writes_it(images: Path, archive: Path) -> None:
    """checkpoint/ with what is in the images directory, and the rest beside it; plain tar."""
    with tarfile.open(archive, "w") as tar:
        tar.add(images, "checkpoint")
        for name, data in REST.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o600
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.alone
def test_the_set_is_one_file_shows_its_tree_and_comes_back_to_be_restored(
    dropin: dropin_tools.DropIn,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    workload: Callable[..., harness.Workload],
    places: dict[str, int],
    images: Path,
    tmp_path: Path,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    archive, one, back = (tmp_path / n for n in ("archive.tar", "one.sealed", "back.tar"))
    with leaks.FileWatcher(running.needles, [tmp_path], ignore=[running.dir]) as watcher:
        assert dump(dropin, running, log_file="dump.log", **places).success
        running.wait_gone()
        assert os.listdir(images) == ["inventory.img"]
        (images / "descriptors.json").write_text('["/dev/null","/dev/null","/dev/null"]')
        as_containerd_writes_it(images, archive)
        who = ["-r", keys.path("recipient.pub"), "--sign", keys.path("signer.key")]
        made = sealpoint.run("seal", archive, "-o", one, *who)
        assert made.code == 0, made
        for plain in (b"planted-in-the-environment", b"descriptors.json", b"/dev/null"):
            assert plain not in one.read_bytes()
        reading = ["-i", keys.path("identity.key"), "--trust", keys.path("signer.pub")]
        verified = sealpoint.run("verify", one, *reading)
        assert verified.code == 0, verified
        assert "every chunk of 1 sealed file inside it" in verified.out.decode()
        tree = sealpoint.run("inspect", one, "--ps-tree", *reading)
        assert f"[{running.pid}]" in tree.out.decode(), tree
        opened = sealpoint.run("open", one, "-o", back, *reading)
        assert opened.code == 0, opened
        for path in images.iterdir():
            path.unlink()
        with tarfile.open(archive) as first, tarfile.open(back) as second:
            assert first.getnames() == second.getnames()
            for member in first:
                if member.isfile():
                    data = second.extractfile(member.name).read()  # type: ignore[union-attr]
                    assert data == first.extractfile(member).read()  # type: ignore[union-attr]
                    if member.name.startswith("checkpoint/"):
                        (images / member.name.removeprefix("checkpoint/")).write_bytes(data)
        restored = restore(dropin, log_file="restore.log", rst_sibling=True, **places)
        assert restored.success, restored
        assert restored.pid == running.pid
    running.assert_continues(before)
    assert watcher.leaks() == []
