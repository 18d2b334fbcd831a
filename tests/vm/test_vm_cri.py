"""containerd's CRI checkpoints and restores through the drop-in criu, by way of a registry.  Runs in the machine.

What a kubelet does is one call of the CRI for each step. A restore is CreateContainer with an image whose manifest
says that it is a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real import harness, sealed
from tests.vm import cri, podman
from tests.vm.test_vm_dropin import MAGIC, held, members, settled

pytestmark = pytest.mark.skipif(
    not cri.TOOLS.is_dir(),
    reason="Debian has no containerd with a CRI that checkpoints (scripts/get-services cri)",
)

# Where containerd leaves what it keeps of a container in the clear, with a drop-in and without one, on either node
# (docs/guide/kubernetes.md has this table).
STORE = r"root/io\.containerd\.content\.v1\.content/blobs/sha256/[0-9a-f]+"
SNAPSHOT = r"root/io\.containerd\.snapshotter\.v1\.overlayfs/snapshots/\d+/fs"
TASK = r"state/io\.containerd\.runtime\.v2\.task/k8s\.io/[0-9a-f]+"
METADATA = r"root/io\.containerd\.metadata\.v1\.bolt/meta\.db"
KEPT = {
    "env": [STORE, METADATA, rf"{TASK}/config\.json", rf"{SNAPSHOT}/spec\.dump"],
    "file": [
        STORE,
        rf"{SNAPSHOT}/changed",
        rf"{TASK}/rootfs/changed",
        rf"{SNAPSHOT}/rootfs-diff\.tar",
    ],
    "stdout": [STORE, r"logs/pod-[0-9a-f]+/counter\.log", rf"{SNAPSHOT}/container\.log"],
}
MARK = {"org.criu.checkpoint.container.name": "counter"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cri.registry(tmp_path_factory.mktemp("registry")):
        layer = cri.base_layer()
        cri.push(layer, "pause", entrypoint=["/bin/sleep", "1000000"])
        cri.push(layer, "base", entrypoint=["/bin/sh", "/init"])
        yield


@contextlib.contextmanager
def containerd(name: str, path: str = cri.PATH) -> Iterator[cri.Containerd]:
    made = cri.Containerd(Path(f"/var/lib/{name}-{os.urandom(4).hex()}"), path)
    try:
        made.call("PullImage", image={"image": cri.BASE})
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def node(dropin: Path, images: None) -> Iterator[cri.Containerd]:
    with containerd("node") as made:
        yield made


@pytest.fixture(scope="module")
def other(dropin: Path, images: None) -> Iterator[cri.Containerd]:
    """Another node, which has the identity and trusts the signer."""
    with containerd("other") as made:
        yield made


@contextlib.contextmanager
def counting(node: cri.Containerd) -> Iterator[cri.Counter]:
    pod = cri.Pod(node)
    try:
        yield cri.Counter(pod)
    finally:
        pod.remove()


@contextlib.contextmanager
def restored(
    node: cri.Containerd, archive: bytes, counter: cri.Counter, namespace: str = "tests"
) -> Iterator[str]:
    """A container on this node, made from the image of a checkpoint, not started; its ID."""
    name = f"checkpoint-{os.urandom(4).hex()}"
    image = cri.push(archive, name, entrypoint=[], annotations=MARK)
    node.call("PullImage", image={"image": image})
    pod = cri.Pod(node, namespace)
    try:
        yield pod.create(image, counter.environment)
    finally:
        pod.remove()


def places(counter: cri.Counter) -> dict[str, set[str]]:
    """{secret: files that hold it}, wherever a containerd, a shim, runc or CRIU could have written."""
    roots = [Path("/var/lib"), Path("/run"), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]
    found: dict[str, set[str]] = {name: set() for name in counter.needles}
    for file, needle in cri.found_below(roots, counter.needles, counter.since):
        if "/blobs/docker/registry/" not in file:  # has the archive, as it was pushed
            found[needle].add(file)
    return found


def assert_sealed(counter: cri.Counter, archive: Path) -> None:
    """No memory is anywhere in the clear; the rest is where the documents say."""
    found = places(counter)
    assert {name: files for name, files in found.items() if name in cri.MEMORY and files} == {}
    for name, patterns in KEPT.items():
        kept = re.compile(rf"/var/lib/(node|other)-[0-9a-f]+/({'|'.join(patterns)})")
        unknown = {f for f in found[name] - {str(archive)} if not kept.fullmatch(f)}
        assert unknown == set(), name


def in_archive(archive: Path, needle: bytes) -> set[str]:
    """Members that hold it."""
    return {
        name
        for name, data in members(archive).items()
        if any(needle in each for each in cri.unpacked(data))
    }


def test_memory_is_sealed_wherever_it_goes_and_comes_back_on_another_node(
    node: cri.Containerd, other: cri.Containerd, tmp_path: Path
) -> None:
    archive = tmp_path / "counter.tar"
    with counting(node) as counter:
        counter.checkpoint(archive)
        count = counter.view.assert_counts()  # it runs on
        images = {n for n in members(archive) if n.startswith("checkpoint/")}
        assert images == {"checkpoint/inventory.img", "checkpoint/descriptors.json"}
        assert members(archive)["checkpoint/inventory.img"].startswith(MAGIC)
        rest = {name: in_archive(archive, counter.needles[name]) for name in cri.REST}
        assert rest == {
            "env": {"spec.dump"},
            "file": {"rootfs-diff.tar"},
            "stdout": {"container.log"},
        }
        assert_sealed(counter, archive)
        counter.kill()
        with restored(other, archive.read_bytes(), counter) as identifier:
            other.call("StartContainer", container_id=identifier)
            assert counter.view.assert_counts() > count - 1
            assert counter.view.path("/changed").read_bytes() == counter.needles["file"]
            assert_sealed(counter, archive)
    settled()


@pytest.fixture(scope="module")
def stock(images: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, cri.Counter]:
    """The archive of a containerd that finds no drop-in, and the container that is in it."""
    archive = tmp_path_factory.mktemp("stock") / "stock.tar"
    with containerd("stock", cri.STOCK_PATH) as plain, counting(plain) as counter:
        counter.checkpoint(archive)
        counter.kill()
    return archive, counter


def test_the_search_finds_the_memory_that_a_stock_criu_leaves(
    stock: tuple[Path, cri.Counter],
) -> None:
    """Else the search of the other tests would prove nothing."""
    archive, counter = stock
    found = places(counter)
    for name in cri.MEMORY:
        assert str(archive) in found[name], (name, found)


def test_an_image_with_plain_memory_is_refused(
    other: cri.Containerd, stock: tuple[Path, cri.Counter]
) -> None:
    """Who can push an image would else have it restored as root."""
    archive, counter = stock
    with restored(other, archive.read_bytes(), counter) as identifier:
        with pytest.raises(cri.Refused) as refused:
            other.call("StartContainer", container_id=identifier)
        assert "criu failed" in str(refused.value)
        assert counter.view.processes() == []
        # containerd has unpacked it all by then, and changed the new container's files.
        assert any(
            file.endswith("/fs/changed") for file in places(counter)["file"] if "/other-" in file
        )
    settled()


def test_a_damaged_checkpoint_is_refused(
    node: cri.Containerd, other: cri.Containerd, tmp_path: Path
) -> None:
    archive = tmp_path / "counter.tar"
    with counting(node) as counter:
        counter.checkpoint(archive)
        counter.kill()
        data = bytearray(archive.read_bytes())
        data[data.index(MAGIC) + 60_000] ^= 1
        with restored(other, bytes(data), counter) as identifier:
            with pytest.raises(cri.Refused) as refused:
                other.call("StartContainer", container_id=identifier)
            assert "criu failed" in str(refused.value)
            assert counter.view.processes() == []
        with restored(other, archive.read_bytes(), counter) as identifier:
            other.call("StartContainer", container_id=identifier)
            counter.view.assert_counts()
    settled()


def test_a_checkpoint_of_a_pod_is_not_restored_into_another_namespace(
    dropin: Path,
    node: cri.Containerd,
    other: cri.Containerd,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
) -> None:
    """The pod is the one that containerd writes into the bundle, which no process of the container can do."""
    archive = tmp_path / "counter.tar"
    text = dropin.read_text()
    dropin.write_text(f'cluster = "here"\n{text}')
    try:
        with counting(node) as counter:
            counter.checkpoint(archive)
            counter.kill()
            file = tmp_path / "inventory.img"
            file.write_bytes(members(archive)["checkpoint/inventory.img"])
            said = sealpoint.run("info", file, "--json", "--trust", keys.path("signer.pub")).ok()
            workload = json.loads(said.out)["workload"]
            assert workload == f"kubernetes/here/tests/{counter.pod.name}/counter"
            with restored(other, archive.read_bytes(), counter, "others") as identifier:
                with pytest.raises(cri.Refused, match="criu failed"):
                    other.call("StartContainer", container_id=identifier)
                assert counter.view.processes() == []
            with restored(other, archive.read_bytes(), counter) as identifier:
                other.call("StartContainer", container_id=identifier)
                counter.view.assert_counts()
    finally:
        dropin.write_text(text)
    settled()


def test_a_containerd_that_is_killed_amid_a_checkpoint_leaves_no_memory_behind(
    node: cri.Containerd, sealpoint: sealed.Sealpoint, tmp_path: Path
) -> None:
    archive = tmp_path / "counter.tar"
    with counting(node) as counter:
        init = counter.view.processes()[0]
        failed: list[cri.Refused] = []

        def checkpoint() -> None:
            try:
                counter.checkpoint(archive)
            except cri.Refused as error:
                failed.append(error)

        thread = threading.Thread(target=checkpoint)
        thread.start()
        sealed.wait_until(
            lambda: harness.process_state(init) == "t", "CRIU is at work in it", podman.TIMEOUT
        )
        with held():
            node.process.kill()
            node.process.wait(podman.TIMEOUT)
        thread.join(podman.TIMEOUT)
        assert failed
        settled()
        assert_sealed(counter, archive)
        # containerd had paused it, and nobody else lets it go on. A new one knows no more of it than that it is there.
        done = sealpoint.run("doctor", "--thaw", str(counter.view.processes()[0])).ok()
        assert b"thawed" in done.out
        counter.view.assert_counts()
        node.start()
    settled()
