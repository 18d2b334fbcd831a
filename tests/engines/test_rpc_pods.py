"""The drop-in by RPC with bundles as containerd's CRI makes them: recipients, signed workload, where it may go."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.checkpoint.opening.opener import Opening
from sealpoint.errors import IdentityError
from sealpoint.keys import load_identity, load_trust
from sealpoint.keys.generate import generate
from tests.dropin.test_pod import HOSTILE
from tests.engines import dropin as dropin_tools, rpc
from tests.engines.containers import Container
from tests.engines.rpc_calls import client, dump, places  # noqa: F401 - a fixture
from tests.real import harness, sealed

StartWorkload = Callable[..., harness.Workload]
NAMES = ("sandbox-namespace", "sandbox-name", "container-name")


def annotations(namespace: str, pod: str = "web-0", container: str = "app") -> dict[str, str]:
    names = zip(NAMES, (namespace, pod, container), strict=True)
    return {f"io.kubernetes.cri.{key}": value for key, value in names}


class Node:
    """A drop-in with a cluster's configuration, and bundles of pods."""

    def __init__(self, dropin: dropin_tools.DropIn, directory: Path, keys: sealed.Keys) -> None:
        self.dropin, self.directory, self.keys = dropin, directory, keys
        generate("x25519", str(directory / "shop"))
        self.shop = directory / "shop"
        self.configure("prod")

    def configure(self, cluster: str, *restore_from: str) -> None:
        self.dropin.configure(cluster=cluster, restore_from=list(restore_from))
        with self.dropin.config.open("a") as file:
            recipient = self.shop / "recipient.pub"
            file.write(f'[[namespaces]]\nname = "shop"\nrecipients = ["{recipient}"]\n')

    def bundle(self, name: str, values: object) -> Path:
        place = self.directory / "bundles" / name
        (place / "rootfs").mkdir(parents=True)
        spec = {"root": {"path": "rootfs"}, "annotations": values}
        (place / "config.json").write_text(json.dumps(spec))
        return place

    def dump(self, running: harness.Workload, bundle: Path, places: dict[str, int]) -> rpc.Reply:
        return dump(self.dropin, running, root=str(bundle / "rootfs"), **places)

    def restore(self, bundle: Path, places: dict[str, int]) -> rpc.Reply:
        """As runc does: in the bundle, with its root directory by another name."""
        (self.directory / "criu-root").unlink(missing_ok=True)
        (self.directory / "criu-root").symlink_to(bundle / "rootfs")
        with client(self.dropin, cwd=bundle) as connection:
            options = {"root": str(self.directory / "criu-root"), "rst_sibling": True}
            reply = connection.call(rpc.request(rpc.RESTORE, log_level=4, **options, **places))
            connection.wait()
        return reply

    def workload(self, file: Path) -> str:
        with Opening(load_trust([self.keys.path("signer.pub")])).open(str(file)) as checkpoint:
            return checkpoint.origin.workload

    def opens(self, file: Path, identity: Path) -> bool:
        policy = load_trust([self.keys.path("signer.pub")])
        opening = Opening(policy, lambda: [load_identity(str(identity))])
        try:
            with opening.open(str(file)) as checkpoint:
                checkpoint.file()
        except IdentityError:
            return False
        return True


@pytest.fixture
def node(dropin: dropin_tools.DropIn, tmp_path: Path, keys: sealed.Keys) -> Node:
    return Node(dropin, tmp_path, keys)


@pytest.mark.parametrize(
    ("values", "named", "adds"),
    [
        (annotations("shop"), "kubernetes/prod/shop/web-0/app", True),
        (annotations("billing"), "kubernetes/prod/billing/web-0/app", False),
        ({}, "container-", False),
    ],
    ids=["with recipients of its own", "without", "in no pod"],
)
def test_a_namespace_adds_recipients_and_the_signature_names_the_container(
    node: Node,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    values: object,
    named: str,
    adds: bool,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    bundle = node.bundle("one", values)
    reply = node.dump(running, bundle, places)
    assert reply.success, reply
    running.wait_gone()
    file = images / "inventory.img"
    escrow = Path(node.keys.path("identity.key"))
    assert node.workload(file).startswith(named)
    assert node.opens(file, escrow)
    assert node.opens(file, node.shop / "identity.key") == adds
    restored = node.restore(bundle, places)
    assert restored.success, restored
    running.assert_continues(before)


def test_a_hostile_bundle_is_not_dumped_and_its_process_runs_on(
    node: Node,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    for number, case in enumerate(HOSTILE):
        bundle = node.bundle(f"hostile-{number}", HOSTILE[case])
        reply = node.dump(running, bundle, places)
        assert not reply.success, case
        assert "the runtime's bundle" in reply.message, (case, reply.message)
        assert list(images.iterdir()) == [], case
    large = node.bundle("large", annotations("shop") | {"x": "x" * (4 << 20)})
    assert "larger than" in node.dump(running, large, places).message
    assert list(images.iterdir()) == []
    running.assert_continues(before)


def test_another_clusters_or_namespaces_checkpoint_is_not_restored_unless_policy_says_so(
    node: Node,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    shop, billing = (node.bundle(name, annotations(name)) for name in ("shop", "billing"))
    nowhere = node.bundle("nowhere", {})
    assert node.dump(running, shop, places).success
    running.wait_gone()
    assert node.workload(images / "inventory.img") == "kubernetes/prod/shop/web-0/app"
    for place in (billing, nowhere):
        reply = node.restore(place, places)
        assert not reply.success
        assert "restore_from" in reply.message
    node.configure("test")
    assert "restore_from" in node.restore(shop, places).message
    node.configure("test", "kubernetes/prod/shop/*")
    reply = node.restore(billing, places)
    assert reply.success, reply
    running.assert_continues(before)


def test_a_real_runc_leads_to_its_bundle_on_both_ways(
    node: Node, container: Callable[..., Container], images: Path
) -> None:
    """`runc restore --bundle`, from a directory that is not the bundle, as containerd's shim calls it."""
    running = container()
    config = running.bundle / "config.json"
    spec = json.loads(config.read_text())
    config.write_text(json.dumps(spec | {"annotations": annotations("shop")}))
    environment = node.dropin.environment
    running.run(environment)
    count = running.assert_counts()
    result = running.checkpoint(images, environment)
    assert result.code == 0, result
    assert node.workload(images / "inventory.img") == "kubernetes/prod/shop/web-0/app"
    running.runc("delete", running.id, environment=environment)

    def restored(name: str) -> int:
        config.write_text(json.dumps(spec | {"annotations": annotations(name)}))
        words = ("restore", "-d", "--image-path", images, "--work-path", running.work)
        done = subprocess.run(
            running.command(*words, "--bundle", running.bundle, running.id),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=dict(environment), cwd="/", timeout=90,
        )  # fmt: skip
        return done.returncode

    assert restored("billing") != 0
    running.runc("delete", "-f", running.id, environment=environment)
    assert restored("shop") == 0
    running.assert_whole(count)
