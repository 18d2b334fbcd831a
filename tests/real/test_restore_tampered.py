"""A sealed file that was tampered with: nothing of the tree runs, whichever bit it was.

Every mutation of tests/adversary.py is given to what `restore` does before and while CRIU runs (without CRIU, for
speed); a choice of them, and damage in every sort of memory, to the real command.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealpoint.checkpoint.opening.access import CheckedFile
from sealpoint.errors import SealpointError
from sealpoint.format.derive import RootKeys
from sealpoint.format.manifest import Entry
from sealpoint.format.opened import OpenFile, Scratch
from sealpoint.keys import load_identity, load_trust
from tests.adversary import Mutation, flip, mutations
from tests.real import harness, leaks, sealed
from tests.real.sealed import Hold, wait_until

StartWorkload = Callable[..., harness.Workload]


@dataclass
class Target:
    """A workload whose process is gone, and its sealed file."""

    workload: harness.Workload
    before: dict[str, harness.Verdict]
    file: Path
    sealpoint: sealed.Sealpoint
    keys: sealed.Keys

    def restore(self, *options: str | Path, **more) -> sealed.Result:
        return self.sealpoint.run(
            "restore", self.file, "--detach", *self.keys.open, *options, **more
        )

    def assert_nothing_ran(self, files: list[str]) -> None:
        self.sealpoint.settle()
        assert self.workload.remains() == []
        assert sorted(os.listdir(self.workload.dir)) == files
        with pytest.raises(harness.NoAnswerError):
            self.workload.check(timeout=0)

    def assert_refused(self, code: int, *words: str, options: tuple = ()) -> None:
        files = sorted(os.listdir(self.workload.dir))
        self.restore(*options).fails(code, *words)
        self.assert_nothing_ran(files)

    def open(self) -> CheckedFile:
        return CheckedFile.open(str(self.file), load_trust([self.keys.path("signer.pub")]))


@pytest.fixture
def target(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> Callable[..., Target]:
    def make(*kind: str) -> Target:
        running = workload(*kind)
        before = running.assert_intact()
        file = tmp_path / "app.sealed"
        dump = ["dump", "-t", running.pid, "-o", file, "--compress", "zstd", *keys.seal]
        sealpoint.run(*dump, "--metadata-recipient", keys.path("x25519/recipient.pub")).ok()
        running.wait_gone()
        return Target(running, before, file, sealpoint, keys)

    return make


def unlocked(keys: sealed.Keys, checkpoint: CheckedFile) -> OpenFile:
    identity = load_identity(keys.path("identity.key"), passphrase=lambda: b"")
    return checkpoint.unlock([identity])


def roots_of(target: Target) -> RootKeys:
    with target.open() as checkpoint:
        return unlocked(target.keys, checkpoint).roots


# Every mutation


def what_restore_reads(path: Path, keys: sealed.Keys, newest: int) -> None:
    with CheckedFile.open(str(path), load_trust([keys.path("signer.pub")])) as checkpoint:
        assert not newest or checkpoint.authentic.slot.sequence >= newest
        opened = unlocked(keys, checkpoint)
        scratch = Scratch()
        for entry in opened.entries.values():
            for _ in opened.read(entry, scratch):
                pass


def all_mutations(target: Target, other: bytes | None) -> Iterator[Mutation]:
    return mutations(target.file.read_bytes(), roots=roots_of(target), other=other)


@pytest.fixture
def another(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> bytes:
    """Another process sealed by the same signer to the same recipients."""
    running = workload("secret")
    dump = ["dump", "-t", running.pid, "-o", tmp_path / "other", "--compress", "zstd", *keys.seal]
    sealpoint.run(*dump, "--metadata-recipient", keys.path("x25519/recipient.pub")).ok()
    running.wait_gone()
    return (tmp_path / "other").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_mutation_is_readable_to_the_end(
    target: Callable[..., Target], another: bytes, tmp_path: Path
) -> None:
    it = target("secret")
    what_restore_reads(it.file, it.keys, 0)
    path = tmp_path / "mutated"
    readable, count = [], 0
    for mutation in all_mutations(it, another):
        path.write_bytes(mutation.data)
        count += 1
        try:
            what_restore_reads(path, it.keys, mutation.newest)
        except SealpointError:
            continue
        readable.append(mutation.name)
    assert count > 500
    assert readable == []


CHOSEN = (
    r"bit flipped in preamble at 16",
    r"bit flipped in slot \d head",
    r"bit flipped in slot \d stanza 0 body",
    r"bit flipped in slot \d envelope .*checksum corrected",
    r"bit flipped in frame \d+ head",
    r"bit flipped in frame \d+ at",
    r"bit flipped in index entry",
    r"bit flipped in origin .*checksum corrected",
    r"bit flipped in trailer",
    r"truncated to \d{6}",
    r"extended by a byte",
    r"frames of two objects swapped; index fixed",
    r"frame \d+ dropped; re-derived, signed by a stranger",
    r"objects .* swapped; re-derived, a stranger's altogether",
    r"objects .* swapped; re-derived, unsigned",
    r"origin: a stranger's signature$",
    r"header: sequence raised$",
    r"header: signed by a stranger$",
    r"version 2",
    r"suite \d+",
    r"another's origin",
    r"another's frames, index and origin",
    r"another's memory manifest; re-derived, signature kept",
    r"chunk 0 of memory stream .* by a recipient; index kept",
    r"chunk 0 of memory stream .* by a recipient; re-derived, signed by a stranger",
    r"memory manifest: .*; re-derived, signed by a stranger",
    r"memory stripped, role gone, signed by a stranger",
    r"header by a recipient, its old statement",
)


def test_a_choice_of_mutations_runs_nothing(target: Callable[..., Target], another: bytes) -> None:
    it = target("secret")
    good = it.file.read_bytes()
    wanted = dict.fromkeys(CHOSEN)
    for mutation in all_mutations(it, another):
        for pattern, found in wanted.items():
            if found is None and re.search(pattern, mutation.name):
                wanted[pattern] = mutation
    files = sorted(os.listdir(it.workload.dir))
    for pattern, mutation in wanted.items():
        assert mutation is not None, f"the adversary makes no {pattern!r}"
        it.file.write_bytes(mutation.data)
        result = it.restore()
        assert result.code in (3, 4, 5), (mutation.name, result)
        result.fails(result.code)
        assert it.workload.remains() == [], mutation.name
    it.assert_nothing_ran(files)
    it.file.write_bytes(good)
    it.restore().ok()
    it.workload.assert_continues(it.before)


# Damage in every sort of memory


def objects_with(it: Target, images: Path, secret: str) -> list[str]:
    """In which objects a secret lies, according to its sealed file."""
    it.sealpoint.run("open", it.file, "-o", images, *it.keys.open).ok()
    return leaks.scan_directory(images, it.workload.needles)[secret]


def frame_places(it: Target, name: str) -> list[tuple[int, int]]:
    """Where in the file the frames of an object lie: offset and size."""
    with it.open() as checkpoint:
        opened = unlocked(it.keys, checkpoint)
        entry: Entry = opened.entry(name)
        index = checkpoint.authentic.index
        positions = index.frames_of(entry.stream.number)
        first = entry.offset // entry.stream.chunk_size
        last = (entry.offset + entry.size - 1) // entry.stream.chunk_size
        return [index.entry(p)[1:3] for p in positions[first : last + 1]]


def damage(path: Path, place: tuple[int, int]) -> None:
    """One bit, in the file as it lies on the disk."""
    offset, size = place
    with open(path, "r+b") as file:
        file.seek(offset)
        data = file.read(size)
        file.seek(offset)
        file.write(flip(data, size // 2))


MEMORY = {
    "private memory": ("ipc", "env"),
    "shared memory": ("ipc", "shm"),
    "a memfd": ("ipc", "memfd"),
    "shared memory of three": ("tree", "shm"),
    "memory of a grandchild": ("tree", "grandchild"),
    "a pipe": ("ipc", "pipe"),
    "a socket": ("ipc", "queue"),
    "a file without a name": ("ipc", "unlinked"),
}


@pytest.mark.parametrize("what", MEMORY)
def test_a_flipped_bit(target: Callable[..., Target], ram_dir: Path, what: str) -> None:
    """Of shared memory CRIU would not mind: it exits 0 and runs the tree with zeros in it."""
    kind, secret = MEMORY[what]
    it = target(kind)
    for name in objects_with(it, ram_dir / "images", secret):
        damage(it.file, frame_places(it, name)[0])
    it.assert_refused(3)


@pytest.mark.parametrize(
    "name", ["inventory.img", "pstree.img", "core-*.img", "mm-*.img", "files.img"]
)
def test_a_flipped_bit_in_an_image(target: Callable[..., Target], name: str) -> None:
    it = target("ipc")
    name = name.replace("*", str(it.workload.pid))
    damage(it.file, frame_places(it, name)[0])
    it.assert_refused(3)


@pytest.mark.parametrize("change", ["a bit", "the end"])
@pytest.mark.parametrize("what", ["private memory", "shared memory", "a memfd"])
def test_the_file_changes_after_it_was_verified(
    target: Callable[..., Target],
    ram_dir: Path,
    tmp_path: Path,
    criu: Path,
    what: str,
    change: str,
) -> None:
    """Before CRIU reads the pages; all else was verified by then."""
    kind, secret = MEMORY[what]
    it = target(kind)
    files = sorted(os.listdir(it.workload.dir))
    places = [frame_places(it, n)[0] for n in objects_with(it, ram_dir / "images", secret)]
    hold = Hold.criu(tmp_path, criu)
    command = it.sealpoint.start("restore", it.file, "--detach", *it.keys.open, "--criu", hold.path)
    hold.reached()
    if change == "a bit":
        for place in places:
            damage(it.file, place)
    else:
        os.truncate(it.file, min(offset for offset, _ in places) + 100)
    hold.go()
    command.wait().fails(3)
    wait_until(lambda: it.workload.remains() == [], "nothing is left")
    it.assert_nothing_ran(files)


def test_pages_that_criu_does_not_ask_for_are_verified_all_the_same(
    target: Callable[..., Target], ram_dir: Path, tmp_path: Path
) -> None:
    """After CRIU has read what it wants, and before its tree may run: here they change only then."""
    it = target("memory", "--mib", "16")
    files = sorted(os.listdir(it.workload.dir))
    (name,) = set(objects_with(it, ram_dir / "images", "heap"))
    places = frame_places(it, name)
    hook = tmp_path / "asked"
    body = f"""case $1 in --version) echo "Version: 4.1.1"; exit;; esac
find_script() {{ while [ $# -gt 0 ]; do [ "$1" = --action-script ] && script=$2; shift; done; }}
find_script "$@"
touch {hook}
while [ ! -e {tmp_path}/go ]; do sleep 0.01; done
CRTOOLS_SCRIPT_ACTION=post-restore $script"""
    criu = sealed.script(tmp_path / "criu", body)
    command = it.sealpoint.start("restore", it.file, "--detach", *it.keys.open, "--criu", criu)
    wait_until(hook.exists, "CRIU runs")
    damage(it.file, places[-1])
    (tmp_path / "go").touch()
    command.wait().fails(3)
    it.assert_nothing_ran(files)
