"""Which pod a bundle names, what hostile bundles name, and what may be restored where."""

from __future__ import annotations

import json
import os

import pytest

from sealpoint import config
from sealpoint.config import Config
from sealpoint.dropin import pod
from sealpoint.dropin.pod import Pod
from sealpoint.errors import PolicyError, UsageError
from sealpoint.keys.namespace import NamespaceTable

CONTAINERD = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.sandbox-id": "0" * 64,
    "io.kubernetes.cri.sandbox-namespace": "shop",
    "io.kubernetes.cri.sandbox-name": "web-5d9c.x",
    "io.kubernetes.cri.container-name": "app",
}
CRIO = {
    "io.kubernetes.cri-o.ContainerType": "container",
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.pod.name": "web-5d9c.x",
    "io.kubernetes.container.name": "app",
}
WEB = Pod("shop", "web-5d9c.x", "app")


def bundle(directory, annotations=None, *, root="rootfs", whole=None):
    (directory / "rootfs").mkdir(parents=True, exist_ok=True)
    values = {"root": {"path": root}, "annotations": annotations}
    if annotations is None:
        del values["annotations"]
    (directory / "config.json").write_bytes(json.dumps(values).encode() if whole is None else whole)
    return str(directory / "rootfs")


@pytest.mark.parametrize("annotations", [CONTAINERD, CRIO, CONTAINERD | CRIO])
def test_a_bundle_of_either_runtime_names_its_pod(tmp_path, annotations):
    assert pod.find(bundle(tmp_path / "b", annotations), "", 0) == WEB
    assert WEB.workload("prod") == "kubernetes/prod/shop/web-5d9c.x/app"


@pytest.mark.parametrize(
    "annotations", [None, {}, {"org.example": "x"}, [], "shop", 7, {"io.kubernetes.cri.x": "y"}]
)
def test_a_container_of_no_pod_is_in_none(tmp_path, annotations):
    assert pod.find(bundle(tmp_path / "b", annotations), "", 0) is None


HOSTILE = {
    "of containerd, and the user has CRI-O's passed on": CONTAINERD
    | {**CRIO, "io.kubernetes.pod.namespace": "victim"},
    "of CRI-O, and the user has containerd's passed on": CRIO
    | {**CONTAINERD, "io.kubernetes.cri.sandbox-namespace": "victim"},
    "another pod": CONTAINERD | {**CRIO, "io.kubernetes.pod.name": "other"},
    "another container": CONTAINERD | {**CRIO, "io.kubernetes.container.name": "other"},
    "the other family is half there": CONTAINERD | {"io.kubernetes.pod.namespace": "shop"},
    "no pod": {k: v for k, v in CONTAINERD.items() if k != "io.kubernetes.cri.sandbox-name"},
    "no container": {k: v for k, v in CRIO.items() if k != "io.kubernetes.container.name"},
    "a number": CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": 7},
    "nothing": CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": None},
    "a list": CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": ["shop"]},
    "empty": CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": ""},
    "a slash": CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": "shop/web"},
    "a slash in the pod": CONTAINERD | {"io.kubernetes.cri.sandbox-name": "a/b"},
    "a star": CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": "*"},
    "a dot in the namespace": CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": "a.b"},
    "capitals": CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": "Shop"},
    "a line": CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": "shop\n"},
    "another alphabet": CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": "ѕhop"},
    "long": CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": "a" * 64},
    "a long pod": CONTAINERD | {"io.kubernetes.cri.sandbox-name": "a" * 254},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bundle_that_names_two_pods_or_none_that_can_be_is_refused(tmp_path, case):
    with pytest.raises(PolicyError):
        pod.find(bundle(tmp_path / "b", HOSTILE[case]), "", 0)


@pytest.mark.parametrize(
    "whole",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"annotations": {}}'.ljust(4 << 20 | 1)],
    ids=["empty", "cut", "no text", "deep", "large"],
)
def test_a_bundle_that_is_no_json_or_absurdly_large_is_refused(tmp_path, whole):
    with pytest.raises(PolicyError):
        pod.find(bundle(tmp_path / "b", whole=whole), "", 0)


def test_only_the_bundle_whose_root_directory_is_named_counts(tmp_path):
    mine = bundle(tmp_path / "mine", CONTAINERD)
    other = CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": "victim"}
    bundle(tmp_path / "others", other)
    assert pod.find(mine, str(tmp_path / "others"), 0) == WEB  # in whose directory the engine is
    moved = tmp_path / "state" / "criu-root"  # where runc shows the root directory to CRIU
    moved.parent.mkdir()
    moved.symlink_to(mine)
    assert pod.find(str(moved), str(tmp_path / "mine"), 0) == WEB
    assert pod.find(str(moved), str(tmp_path / "others"), 0) is None
    assert pod.find("", str(tmp_path / "mine"), 0) is None
    for path in ("", 7, None, "gone", "\0", str(tmp_path)):
        assert pod.find(bundle(tmp_path / "x", CONTAINERD, root=path), "", 0) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="what others could change matters to root")
def test_a_bundle_that_others_can_change_is_refused(tmp_path):
    root = bundle(tmp_path / "b", CONTAINERD)
    os.chmod(tmp_path / "b" / "config.json", 0o666)
    with pytest.raises(PolicyError, match="can be changed by others"):
        pod.find(root, "", 0)


def test_a_container_cannot_name_a_pod_from_its_own_root_directory(tmp_path):
    """What it writes into its root directory is no bundle, whatever it calls it."""
    root = bundle(tmp_path / "b")
    inside = tmp_path / "b" / "rootfs"
    bundle(inside, CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": "victim"}, root="..")
    bundle(inside, CONTAINERD | {"io.kubernetes.cri.sandbox-namespace": "victim"}, root=".")
    assert pod.find(root, "", 0) is None


# Recipients


def test_a_namespace_adds_recipients_and_removes_none():
    given = Config(
        recipients=("escrow", "ops"),
        metadata_recipients=("audit",),
        namespaces=(
            NamespaceTable("shop", ("shop", "escrow"), ("shop-audit",)),
            NamespaceTable("empty"),
        ),
    )
    assert pod.recipients(given, WEB) == (["escrow", "ops", "shop"], ["audit", "shop-audit"])
    for other in (None, Pod("empty", "a", "b"), Pod("unknown", "a", "b"), Pod("shops", "a", "b")):
        assert pod.recipients(given, other) == (["escrow", "ops"], ["audit"])


# Where to


@pytest.mark.parametrize(
    ("place", "workload", "allowed"),
    [
        (WEB, "kubernetes/prod/shop/web-1/app", True),
        (WEB, "kubernetes/prod/shop/other/app", True),
        (WEB, "kubernetes/prod/shops/web/app", False),
        (WEB, "kubernetes/prod/sho/web/app", False),
        (WEB, "kubernetes/test/shop/web/app", False),
        (WEB, "kubernetes/production/shop/web/app", False),
        (WEB, "kubernetes/prod/billing/web/app", False),
        (WEB, "container-0123", False),
        (WEB, "", False),
        (WEB, "Kubernetes/prod/shop/web/app", False),
        (WEB, "kubernetes/friend/shop/web/app", True),
        (WEB, "exactly", True),
        (WEB, "exactly-not", False),
        (None, "kubernetes/prod/shop/web/app", False),
        (None, "kubernetes/friend/shop/web/app", True),
        (None, "container-0123", True),
        (None, "", True),
    ],
)
def test_only_checkpoints_of_this_cluster_and_namespace_are_restored_into_a_pod(
    place, workload, allowed
):
    given = Config(cluster="prod", restore_from=("kubernetes/friend/*", "exactly"))
    if allowed:
        pod.require_place(given, place, workload)
    else:
        with pytest.raises(PolicyError, match="restore_from"):
            try:
                pod.require_place(given, place, workload)
            except PolicyError as error:
                raise PolicyError(f"{error.message}: {error.hint}") from None
    pod.require_place(Config(), place, workload)  # where no cluster is configured


# Settings


def test_settings_for_kubernetes_are_read_and_written_back():
    from sealpoint.machine import configure

    text = b"""
cluster = "prod"
restore_from = "kubernetes/friend/*"
[[namespaces]]
name = "shop"
recipients = ["shop.pub"]
metadata_recipients = "sealpoint-x25519:AAAA"
"""
    given = Config(**config.parse(text, "/etc/sealpoint/config.toml"))
    assert given.namespaces == (
        NamespaceTable("shop", ("/etc/sealpoint/shop.pub",), ("sealpoint-x25519:AAAA",)),
    )
    assert given.namespace_recipients == ("/etc/sealpoint/shop.pub", "sealpoint-x25519:AAAA")
    again = Config(**config.parse(configure.render(given), "/etc/sealpoint/config.toml"))
    assert again == given


@pytest.mark.parametrize(
    "text",
    [
        'cluster = "a/b"',
        'cluster = "Prod"',
        'cluster = ["prod"]',
        f'cluster = "{"a" * 64}"',
        'namespaces = "shop"',
        'namespaces = ["shop"]',
        '[namespaces]\nname = "shop"',
        "[[namespaces]]\nrecipients = []",
        '[[namespaces]]\nname = "a/b"',
        '[[namespaces]]\nname = "*"',
        '[[namespaces]]\nname = "a"\nsigner = "x"',
        '[[namespaces]]\nname = "a"\nrecipients = 7',
        '[[namespaces]]\nname = "a"\nrecipients = ["passphrase"]',
        '[[namespaces]]\nname = "a"\n[[namespaces]]\nname = "a"',
        "restore_from = 7",
    ],
)
def test_mistakes_in_them_are_said_with_file_and_line(text):
    with pytest.raises(UsageError, match=r"^/c\.toml, line 1: "):
        config.parse(text.encode(), "/c.toml")


@pytest.mark.parametrize("text", ['cluster = "a"', "restore_from = []", "namespaces = []"])
def test_a_user_cannot_set_them(tmp_path, monkeypatch, text):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "sealpoint").mkdir()
    (tmp_path / "sealpoint" / "config.toml").write_text(text)
    monkeypatch.setattr(config, "SYSTEM_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="can be set in"):
        config.load()
