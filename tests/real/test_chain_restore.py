"""Chains restored by a real CRIU where the kernel cannot make them: two full dumps of a process, the second of which is
cut down to what differs from the first, in the way in which CRIU itself leaves pages to a parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealpoint.checkpoint.opening.access import CheckedFile, signing_by, wrap_for
from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.criu import pagemap
from sealpoint.criu.pagemap import PAGE, PARENT, PRESENT, Pagemap
from sealpoint.criu.roles import SUMMARY_NAME
from sealpoint.format.constants import Suite
from sealpoint.format.statement import ParentRef
from sealpoint.format.writer import SealedWriter
from sealpoint.keys import load_identity, load_recipient, load_signer, load_trust
from sealpoint.state.chains import State, StateStore
from sealpoint.store.output import OutputFile
from tests.real import harness, sealed

StartWorkload = Callable[..., harness.Workload]


@dataclass
class Made:
    """A chain of two in CRIU's arrangement, of a process that has ended."""

    running: harness.Workload
    before: dict[str, harness.Verdict]
    first: Path
    second: Path
    states: list[State]


def read(keys: sealed.Keys, path: Path) -> dict[str, bytes]:
    policy = load_trust([keys.path("signer.pub")])
    with CheckedFile.open(str(path), policy) as checkpoint:
        opened = checkpoint.unlock([load_identity(keys.path("identity.key"))])
        return {
            n: opened.read_bytes(e, 1 << 30) for n, e in opened.entries.items() if n != SUMMARY_NAME
        }


def write(
    keys: sealed.Keys, path: Path, images: dict[str, bytes], parent: State | None = None
) -> State:
    path.parent.mkdir()
    finish = {}
    if parent is not None:
        (path.parent / "parent").symlink_to("../first")
        finish = {"parent": parent.reference, "chain": (parent.chain[0], parent.chain[1] + 1)}
    with OutputFile(str(path)) as out:
        writer = SealedWriter(
            out,
            suite=Suite.AES_256_GCM,
            wrap=wrap_for([load_recipient(keys.path("recipient.pub"))]),
            signing=signing_by(load_signer(keys.path("signer.key"))),
        )
        builder = CheckpointBuilder(writer, compression="auto")
        for name, data in images.items():
            if name.startswith("pages-") or len(data) > 60_000:
                large = builder.large(name)
                large.write(data)
                large.finish()
            else:
                builder.add(name, data)
        reference = ParentRef(builder.checkpoint_id, builder.finish(**finish))
        out.commit()
    kept = {n: d for n, d in images.items() if n == "inventory.img" or pagemap.is_pagemap(n)}
    chain = finish.get("chain", (builder.checkpoint_id, 0))
    return State(reference, chain, finish.get("parent"), "", builder.layout(), kept)


def pages_of(images: dict[str, bytes], name: str) -> dict[int, bytes]:
    table = pagemap.decode(images[name], name)
    data, found = images[table.pages_name], {}
    for start, count, _, offset in table.runs():
        for n in range(count):
            found[start + n] = data[(offset + n) * PAGE : (offset + n + 1) * PAGE]
    return found


def increment(older: dict[str, bytes], newer: dict[str, bytes]) -> dict[str, bytes]:
    """The newer images with every page that the older has as well left to the parent."""
    images = dict(newer)
    for name in filter(pagemap.is_pagemap, newer):
        have = pages_of(older, name) if name in older else {}
        table = pagemap.decode(newer[name], name)
        smaller, data = Pagemap(table.pages_id, table.wide), []
        for start, count, flags, offset in table.runs():
            for n in range(count):
                page = newer[table.pages_name][(offset + n) * PAGE : (offset + n + 1) * PAGE]
                if have.get(start + n) == page:
                    smaller.add(start + n, 1, PARENT)
                else:
                    smaller.add(start + n, 1, flags | PRESENT)
                    data.append(page)
        images[name], images[table.pages_name] = pagemap.encode(smaller), b"".join(data)
    return images


@pytest.fixture(params=["dirty", "tree"])
def chain(
    request: pytest.FixtureRequest,
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
) -> Made:
    running = workload(request.param)
    one, two = tmp_path / "one.sealed", tmp_path / "two.sealed"
    pid = str(running.pid)
    sealpoint.run("dump", "-t", pid, "-o", one, *keys.seal, "--leave-running").ok()
    before = running.assert_intact()
    sealpoint.run("dump", "-t", pid, "-o", two, *keys.seal).ok()
    running.wait_gone()
    older, newer = read(keys, one), read(keys, two)
    for file in (one, two):
        file.unlink()
    paths = [tmp_path / name / "inventory.img" for name in ("first", "second")]
    parent = write(keys, paths[0], older)
    smaller = increment(older, newer)
    size = {
        n: sum(len(d) for k, d in i.items() if k.startswith("pages-"))
        for n, i in (("smaller", smaller), ("newer", newer))
    }
    assert 0 < size["smaller"] < size["newer"] * 0.9
    return Made(running, before, *paths, [parent, write(keys, paths[1], smaller, parent)])


def test_streamed_from_its_parents(
    chain: Made, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    sealpoint.run("restore", chain.second, *keys.open, "--detach").ok()
    chain.running.assert_continues(chain.before)


def test_parents_in_a_directory_that_is_named(
    chain: Made, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    chain.first.rename(away / "parent.sealed")
    sealpoint.run("restore", chain.second, *keys.open, "--detach").fails(3, "is missing")
    assert chain.running.remains() == []
    sealpoint.run("restore", chain.second, *keys.open, "--detach", "--parents", away).ok()
    chain.running.assert_continues(chain.before)


def test_a_parent_that_is_another_file_is_refused_before_anything_is_restored(
    chain: Made, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    data = bytearray(chain.first.read_bytes())
    for name, change in (
        ("the child itself", chain.second.read_bytes),
        ("cut", lambda: bytes(data[: len(data) // 2])),
        ("damaged", lambda: bytes(data[:-200]) + bytes([data[-200] ^ 1]) + bytes(data[-199:])),
    ):
        chain.first.write_bytes(change())
        result = sealpoint.run("restore", chain.second, *keys.open, "--detach")
        assert result.code == 3, (name, result)
        assert chain.running.remains() == []


def test_a_damaged_page_of_a_parent_runs_nothing(
    chain: Made, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    with CheckedFile.open(str(chain.first), load_trust([keys.path("signer.pub")])) as checkpoint:
        authentic = checkpoint.authentic
        layout = chain.states[0].layout
        largest = max(layout.values(), key=lambda x: x.size)
        positions = authentic.index.frames_of(largest.stream)
        places = [authentic.index.entry(p)[1:3] for p in positions[:-1] or positions]
    with chain.first.open("r+b") as file:
        for offset, size in places:
            file.seek(offset + size // 2)
            byte = file.read(1)
            file.seek(offset + size // 2)
            file.write(bytes([byte[0] ^ 1]))
    result = sealpoint.run("restore", chain.second, *keys.open, "--detach")
    assert result.code == 3, result
    assert "changed after sealing" in result.err
    assert chain.running.remains() == []


def test_a_mount_shows_it_whole_to_stock_criu(
    chain: Made, sealpoint: sealed.Sealpoint, keys: sealed.Keys, criu: Path, tmp_path: Path
) -> None:
    point = tmp_path / "mount"
    point.mkdir()
    sealpoint.run("mount", chain.second, point, *keys.open).ok()
    try:
        subprocess.run(
            [criu, "restore", "-d", "-D", point, "-W", tmp_path, "-o", "restore.log"],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        chain.running.assert_continues(chain.before)
    finally:
        sealpoint.run("umount", point, "--lazy").ok()


def test_freed_parents_restore_by_way_of_their_child_only(
    chain: Made, sealpoint: sealed.Sealpoint, keys: sealed.Keys, criu: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config/sealpoint/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'signer = "{keys.path("signer.key")}"\nstate = "{tmp_path}/state"\n')
    store = StateStore(str(tmp_path / "state"))
    for state in chain.states:
        store.save(state)
    code = (
        "from sealpoint import config; from sealpoint.dropin import main; "
        f"config.SYSTEM_PATH = {str(config)!r}; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "dedup", "-D", str(chain.second.parent)],
        env={"PATH": f"{criu.parent}:{os.environ['PATH']}", "HOME": str(tmp_path),
             "SEALPOINT_CRIU": ""},
        capture_output=True,
        text=True,
    )  # fmt: skip
    if chain.running.kind == "dirty":
        assert done.returncode == 0, done
        assert "which now restores only in this chain" in done.stdout
        sealpoint.run("restore", chain.first, *keys.open, "--detach").fails(3, "were freed")
        said = sealpoint.run("verify", chain.first, "--trust", keys.path("signer.pub")).ok()
        assert "only that one, or one that continues it, restores" in said.err
        assert chain.running.remains() == []
    sealpoint.run("restore", chain.second, *keys.open, "--detach").ok()
    chain.running.assert_continues(chain.before)
    os.kill(chain.running.pid, signal.SIGKILL)
