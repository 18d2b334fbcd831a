"""`sealpoint node` of the real bundle, from a container, on a host that has a static shell and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundle.conftest import HERE, RPC_CLIENT, unpack

pytestmark = [pytest.mark.bundle, pytest.mark.criu]
OnHost = Callable[[str], str]
APPLETS = (
    "cat chmod chown chroot cmp cp cut date dirname env find id kill ln ls mkdir mount mv pidof readlink rm "
    "rmdir sh sha256sum sleep sort stat touch umount unshare"
)
SNAPSHOT = "find /opt /etc /usr -type f | sort | while read f; do sha256sum $f; done; find /opt /etc /usr | sort; "


@pytest.fixture(scope="module")
def image(archive: Path, busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `scripts/image` fills it, with what a kubelet mounts into it."""
    root = tmp_path_factory.mktemp("image")
    for name in ("bin", "dev", "host", "opt", "proc", "tmp"):
        (root / name).mkdir()
    shutil.copy(busybox, root / "bin" / "busybox")
    unpack(archive, root / "opt").rename(root / "opt" / "sealpoint")
    return root


@pytest.fixture(scope="module")
def files(busybox: Path, workload: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    for name in ("bin", "dev", "etc", "old", "opt", "proc", "root", "run", "sys", "tmp", "usr/bin"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    for applet in APPLETS.split():
        (root / "bin" / applet).symlink_to("busybox")
    shutil.copy(workload, root / "usr/bin/containerd")
    for file in (workload, HERE / "inside.py", HERE / "node.sh", RPC_CLIENT):
        shutil.copy(file, root / "root")
    return root


@pytest.fixture
def on_host(image: Path, files: Path) -> OnHost:
    """Runs shell commands as the host's first process; returns what they print."""

    def run(script: str) -> str:
        namespaces = ("--fork", "--kill-child", "--pid", "--mount", "--ipc", "--uts")
        done = subprocess.run(
            ["unshare", *namespaces, "bash", HERE / "host.sh", files, image, script],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280,
            env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_a_bare_host_seals_after_an_installation_and_is_bare_again(on_host: OnHost) -> None:
    said = on_host(
        "daemon /usr/bin:/bin; "
        f"({SNAPSHOT}) >/tmp/before; "
        "node install --json >/tmp/said || exit 1; "
        "keys; node status >&2; [ $? = 6 ] || exit 2; "
        "kill $daemon; umount /proc/$daemon/cgroup; daemon /opt/sealpoint/bin:/usr/bin:/bin; "
        "node status >&2 || exit 3; "
        "(export PATH=/opt/sealpoint/bin:/usr/bin:/bin; $python -I /root/inside.py rpc criu) || exit 4; "
        "rm -r /etc/sealpoint; node uninstall >&2 || exit 5; "
        f"({SNAPSHOT}) >/tmp/after; cat /tmp/said; cmp /tmp/before /tmp/after && echo same; exit 0"
    )
    first, _, rest = said.partition("\n")
    assert first == "counts on: True"
    assert rest.endswith("same\n")
    installed = json.loads(rest.removesuffix("same\n"))
    assert installed["restart"] == ["containerd.service"]
    (runtime,) = installed["runtimes"]
    assert (runtime["path"], runtime["criu"], runtime["ours"]) == ("/usr/bin:/bin", "", False)


def test_an_update_does_not_touch_a_checkpoint_that_is_being_taken(on_host: OnHost) -> None:
    said = on_host(
        "node install >&2 || exit 1; keys; "
        "$python -I /root/inside.py held /opt/sealpoint/bin/criu & client=$!; "
        "until [ -e /tmp/held ]; do kill -0 $client || exit 2; sleep 0.1; done; "
        "old=$(readlink /opt/sealpoint/current); another_version 1; "
        "node install >&2 || exit 3; node install >&2 || exit 3; "
        "[ $(readlink /opt/sealpoint/current) != $old ] && [ -d /opt/sealpoint/$old ] || exit 4; "
        "touch /tmp/go; wait $client || exit 5; "
        "node install >&2 || exit 6; [ ! -e /opt/sealpoint/$old ] && echo the old one is gone"
    )
    assert said == "counts on: True\nthe old one is gone\n"
