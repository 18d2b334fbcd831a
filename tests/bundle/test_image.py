"""The image is one that skopeo and umoci take, and what they unpack of it runs."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundle.conftest import TOP, unpack
from tests.tools import need

pytestmark = pytest.mark.bundle


def make(archive: Path, out: Path) -> Path:
    words = [sys.executable, TOP / "scripts" / "image", "--bundle", archive, "--out", out]
    done = subprocess.run(
        words, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return Path(done.stdout.strip())


def said(*command: str | Path) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def image(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(archive, tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def layout(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As skopeo copies it: it compares every blob with its digest, and the layer with its diff id."""
    target = tmp_path_factory.mktemp("layout") / "oci"
    (skopeo,) = need("skopeo")
    said(skopeo, "--insecure-policy", "copy", f"oci-archive:{image}", f"oci:{target}:latest")
    return target


@pytest.fixture(scope="module")
def root(layout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What umoci unpacks."""
    bundle = tmp_path_factory.mktemp("unpacked") / "bundle"
    said(*need("umoci"), "unpack", "--image", f"{layout}:latest", bundle)
    return bundle / "rootfs"


def test_skopeo_reads_what_the_image_is(image: Path) -> None:
    told = json.loads(said(*need("skopeo"), "inspect", f"oci-archive:{image}"))
    version = image.name.removeprefix("sealpoint-").partition("-linux-")[0]
    assert told["Labels"]["org.opencontainers.image.version"] == version
    assert told["Os"] == "linux"
    assert len(told["Layers"]) == 1
    assert "sealpoint" in told["Labels"]["org.opencontainers.image.title"]


def test_the_image_holds_the_bundle_and_nothing_else(
    root: Path, archive: Path, tmp_path: Path
) -> None:
    bundle = unpack(archive, tmp_path)
    assert files(root / "opt" / "sealpoint") == files(bundle)
    others = {str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir() or p.is_symlink()}
    beside = {name for name in others if not name.startswith("opt/sealpoint/")}
    assert beside == {"usr/local/bin/sealpoint", "usr/local/bin/checkpointctl-sealpoint"}


def files(top: Path) -> dict[str, tuple[int, str]]:
    """Of each file and link below `top` its mode, and its contents or target."""
    found = {}
    for path in top.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[str(path.relative_to(top))] = (0, os.readlink(path))
        elif stat.S_ISREG(mode):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(top))] = (stat.S_IMODE(mode), digest)
    return found


def test_what_is_unpacked_runs_by_its_entry_point(root: Path, layout: Path) -> None:
    manifest = blob(layout, json.loads((layout / "index.json").read_bytes())["manifests"][0])
    config = blob(layout, manifest["config"])["config"]
    apart = (*need("unshare"), "--fork", "--kill-child", "--pid", "--mount", "--mount-proc")
    inside = [*apart, "--root", root, "/usr/local/bin/sealpoint"]
    environment = dict(word.split("=", 1) for word in config["Env"])
    assert config["Entrypoint"] == inside[-1:]
    for arguments in (
        config["Cmd"],
        ["--version"],
        ["keygen", "/tmp/k"],
        ["keygen", "/tmp/k", "--signer"],
    ):
        done = subprocess.run(
            [*inside, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True
        )
        assert done.returncode == 0, done.stderr
    assert (root / "tmp" / "k" / "identity.key").stat().st_mode & 0o777 == 0o600


def blob(layout: Path, descriptor: dict[str, str]) -> dict[str, object]:
    """A JSON blob of a layout, by its descriptor."""
    algorithm, _, digest = descriptor["digest"].partition(":")
    return json.loads((layout / "blobs" / algorithm / digest).read_bytes())


def test_the_same_bundle_makes_the_same_image(archive: Path, image: Path, tmp_path: Path) -> None:
    assert make(archive, tmp_path).read_bytes() == image.read_bytes()
