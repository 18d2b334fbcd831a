"""CRIT on real dumps: the JSON of CRIU's own crit, from the sealed file, for every image that CRIU wrote."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.inspect.finding import open_source
from sealpoint.inspect.image import Image
from sealpoint.inspect.json_text import write_image
from sealpoint.inspect.recode import Recoder, without_payload
from sealpoint.inspect.source import Access
from sealpoint.keys import load_identity, load_trust
from tests.inspect import crit_reference
from tests.real import harness, sealed, stock_criu

StartWorkload = Callable[..., harness.Workload]
# no messages: memory, archives, output of network tools, sealpoint's own
RAW = (
    "pages-",
    "tmpfs-",
    "iptables-",
    "ip6tables-",
    "nftables-",
    "route",
    "rule-",
    "ifaddr-",
    "sealpoint-",
)
# every kind of image that the workload of that name is made to bring about
KINDS = {
    "IPC_VAR", "IPCNS_SHM", "IPCNS_SEM", "IPCNS_MSG", "UTSNS", "FIFO_DATA", "SK_QUEUES", "INVENTORY", "PSTREE", "CORE",
    "MM", "PAGEMAP", "FILES", "FDINFO", "FS", "IDS", "SECCOMP", "FILE_LOCKS",
}  # fmt: skip


@pytest.fixture
def access(keys: sealed.Keys) -> Access:
    return Access.of(
        [load_identity(keys.path("identity.key"))], load_trust([keys.path("signer.pub")])
    )


def shown(source, name: str, **options: bool) -> tuple[str, str]:
    """Type and JSON of an image, on one line."""
    nopl = options.pop("nopl", False)
    image = Image(lambda at, size: source.pread(name, at, size), source.size(name), name)
    out: list[str] = []
    entries = (
        without_payload(r.to_json(**options), r.name) if nopl else r.to_json(**options)
        for r in image.records()
    )
    write_image(image.name, entries, out.append, indent=None)
    return image.name, json.dumps(json.loads("".join(out)))


@pytest.mark.parametrize(
    "command",
    [("kinds",), ("ipc",), ("tree",)],
    ids=lambda c: c[0],
)
def test_every_image_of_a_sealed_dump_is_shown_as_crit_shows_it(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    access: Access,
    tmp_path: Path,
    command: tuple[str, ...],
) -> None:
    prefixes = crit_reference.prefixes()
    if not prefixes:
        pytest.skip("no crit of CRIU here (make criu)")
    running = workload(*command)
    out = tmp_path / "app.sealed"
    options = ["--", "--file-locks"] if command == ("kinds",) else []
    sealpoint.run("dump", "-t", running.pid, "-o", out, *keys.seal, *options).ok()
    found = set()
    with open_source(str(out), access) as source:
        names = [n for n in source.names() if not n.startswith(RAW)]
        expected = crit_reference.pycriu(prefixes[0], {n: source.read(n) for n in names})
        assert len(names) > 10
        for name in names:
            for form, options in (
                ("plain", {}),
                ("pretty", {"pretty": True}),
                ("nopl", {"pretty": True, "nopl": True}),
            ):
                kind, text = shown(source, name, **options)
                assert text == expected[name][form], (name, form)
                found.add(kind)
        recoder = Recoder()
        recoder.run(source)
        assert set(recoder.results.values()) == {"same", "raw"}, recoder.results
    if command == ("kinds",):
        assert found >= KINDS, KINDS - found


@pytest.mark.parametrize("what", ["ps", "fds", "mems", "rss"])
def test_exploring_a_sealed_dump_prints_what_crit_prints(
    criu: Path,
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    ram_dir: Path,
    tmp_path: Path,
    what: str,
) -> None:
    prefixes = crit_reference.prefixes()
    if not prefixes:
        pytest.skip("no crit of CRIU here (make criu)")
    running = workload("tree")
    stock_criu.plain_dump(criu, running, ram_dir)
    expected = subprocess.run(
        [prefixes[0] / "bin" / "crit", "x", str(ram_dir), what], capture_output=True, check=True
    )
    out = tmp_path / "app.sealed"
    sealpoint.run("seal", ram_dir, "-o", out, *keys.seal).ok()
    explored = sealpoint.run("crit", "x", out, what, *keys.open).ok()
    assert explored.out == expected.stdout
