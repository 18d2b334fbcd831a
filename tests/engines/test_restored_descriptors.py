"""What sealpoint holds reaches nobody else: neither the restored tree, nor action scripts, nor what --exec-cmd starts.

CRIU inherits descriptors of the images, of a private directory, of sockets.  A task that had one of them could read the
checkpoint, or answer for the gate.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools, rpc
from tests.engines.rpc_calls import dump, places, restore
from tests.real import harness, sealed, stock_criu

__all__ = ["places"]  # a fixture

StartWorkload = Callable[..., harness.Workload]
Restore = Callable[..., None]
PATIENCE = 30.0

# Of every process that runs it: all descriptors but the one that reads them, and where it works.
LISTER = """
import os
found = {}
for name in os.listdir("/proc/self/fd"):
    try:
        found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:
        pass  # by which the names were read
with open(LISTING, "a") as listing:
    for one, target in sorted(found.items()):
        listing.write(f"{os.environ.get('CRTOOLS_SCRIPT_ACTION', '')}\\t{one}\\t{target}\\n")
    listing.write("end of one\\n")
"""


def lister(directory: Path) -> tuple[Path, Path]:
    """A program that lists its descriptors, and where it does."""
    listing, program = directory / "listing", directory / "lister"
    program.write_text(f"#!{sys.executable} -I\nLISTING = {str(listing)!r}\n{LISTER}")
    program.chmod(0o755)
    return program, listing


def listed(listing: Path) -> list[tuple[int, str]]:
    lines = listing.read_text().splitlines()
    assert "end of one" in lines, lines
    words = [line.split("\t")[1:] for line in lines if line != "end of one"]
    return sorted({(int(number), target) for number, target in words})


def held(running: harness.Workload) -> dict[str, list[tuple[int, str]]]:
    """Of every process: its descriptors, its directories and the files that it maps."""
    found = {}
    for name, pid in running.pids.items():
        fds = [(int(n), os.readlink(f"/proc/{pid}/fd/{n}")) for n in os.listdir(f"/proc/{pid}/fd")]
        fds += [(-1, os.readlink(f"/proc/{pid}/{link}")) for link in ("cwd", "root")]
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        fds += [(-2, line.split(None, 5)[5]) for line in maps if len(line.split(None, 5)) == 6]
        # A pipe or a socket is made anew, with another number.
        found[name] = sorted({(n, _alike(target)) for n, target in fds})
    return found


def _alike(target: str) -> str:
    """Without what CRIU changes: a pipe gets another number, shared memory without a name becomes a memfd."""
    return re.sub(r":\[\d+\]", "", target).replace("/memfd:/dev/zero", "/dev/zero")


class Stream:
    """`sealpoint dump` and `restore`."""

    def __init__(self, sealpoint: sealed.Sealpoint, keys: sealed.Keys, directory: Path) -> None:
        self._sealpoint, self._keys = sealpoint, keys
        self._file = directory / "app.sealed"

    def dump(self, running: harness.Workload, *words: str) -> None:
        options = ["-t", str(running.pid), "-o", self._file, *self._keys.seal]
        self._sealpoint.run("dump", *options, *words).ok()

    def restore(self, *words: str) -> None:
        self._sealpoint.run("restore", "-d", self._file, *self._keys.open, *words).ok()

    def restore_in_front(self, *words: str) -> sealed.Running:
        return self._sealpoint.start("restore", self._file, *self._keys.open, *words)


class Typed:
    """The drop-in's command line."""

    def __init__(self, dropin: dropin_tools.DropIn, directory: Path) -> None:
        self._dropin, self._images = dropin, directory / "images"
        self._said = directory / "said"

    def start(self, *words: object) -> subprocess.Popen[bytes]:
        with self._said.open("wb") as said:
            return subprocess.Popen(
                [str(self._dropin.path), *map(str, words), "-D", str(self._images)],
                env=self._dropin.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                process_group=0,
            )

    def run(self, *words: object) -> None:
        assert self.start(*words).wait(PATIENCE) == 0, self._said.read_text()

    def dump(self, running: harness.Workload, *words: str) -> None:
        self.run("dump", "-t", running.pid, *words)

    def restore(self, *words: str) -> None:
        self.run("restore", "-d", *words)

    def restore_in_front(self, *words: str) -> subprocess.Popen[bytes]:
        return self.start("restore", *words)


@pytest.fixture
def stream(sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path) -> Stream:
    return Stream(sealpoint, keys, tmp_path)


@pytest.fixture
def typed(dropin: dropin_tools.DropIn, images: Path, tmp_path: Path) -> Typed:
    return Typed(dropin, tmp_path)


@pytest.fixture(params=["stream", "typed"])
def door(request: pytest.FixtureRequest) -> Stream | Typed:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("kind", ["tree", "ipc"])
def test_a_restored_tree_holds_what_it_held(
    workload: StartWorkload, door: Stream | Typed, kind: str
) -> None:
    running = workload(kind)
    before = held(running)
    door.dump(running)
    running.wait_gone()
    door.restore()
    running.assert_intact()
    assert held(running) == before


@pytest.mark.parametrize("words", [[], ["--leave-stopped"]], ids=str)
def test_a_tree_in_the_foreground_holds_what_it_held(
    workload: StartWorkload, door: Stream | Typed, words: list[str]
) -> None:
    if words and isinstance(door, Stream):
        words = ["--", *words]
    running = workload("tree")
    before = held(running)
    door.dump(running)
    running.wait_gone()
    process = door.restore_in_front(*words)
    try:
        if words:
            stands = lambda: harness.process_state(running.pid) == "T"  # noqa: E731
            sealed.wait_until(stands, "the tree stands", PATIENCE)
        else:
            sealed.wait_until(lambda: answers(running), "the tree runs", PATIENCE)
        assert held(running) == before
    finally:
        running.kill()
        process.wait(PATIENCE)


def answers(running: harness.Workload) -> bool:
    try:
        running.check(1.0)
    except harness.NoAnswerError:
        return False
    return True


def test_a_tree_that_becomes_the_sibling_holds_what_it_held(
    workload: StartWorkload, typed: Typed
) -> None:
    running = workload("tree")
    before = held(running)
    typed.dump(running)
    running.wait_gone()
    typed.restore("--restore-sibling")
    running.assert_intact()
    assert held(running) == before


@pytest.mark.parametrize("sibling", [False, True])
def test_a_tree_restored_by_rpc_holds_what_it_held(
    workload: StartWorkload, dropin: dropin_tools.DropIn, places: dict[str, int], sibling: bool
) -> None:
    running = workload("tree")
    before = held(running)
    assert dump(dropin, running, **places).success
    running.wait_gone()
    reply = restore(dropin, **places, **({"rst_sibling": True} if sibling else {}))
    assert reply.success, reply
    running.assert_intact()
    assert held(running) == before


def test_a_tree_that_runs_on_after_its_dump_holds_what_it_held(
    workload: StartWorkload, door: Stream | Typed
) -> None:
    running = workload("tree")
    before = held(running)
    door.dump(running, "--leave-running")
    running.assert_intact()
    assert held(running) == before


def test_action_scripts_get_the_standard_descriptors_and_no_other(
    workload: StartWorkload, door: Stream | Typed, tmp_path: Path
) -> None:
    program, listing = lister(tmp_path)
    words = ["--action-script", str(program)]
    if isinstance(door, Stream):
        words.insert(0, "--")
    running = workload("tree")
    for step in (door.dump, door.restore):
        step(*([running] if step == door.dump else []), *words)
        if step == door.dump:
            running.wait_gone()
        found = listed(listing)
        assert {number for number, _ in found} <= {0, 1, 2}, found
        assert not any(re.search(r"socket|sealpoint|fuse", target) for _, target in found), found
        listing.unlink()


def test_what_exec_cmd_starts_gets_what_it_gets_of_a_plain_criu(
    workload: StartWorkload, stream: Stream, criu: Path, ram_dir: Path, tmp_path: Path
) -> None:
    program, listing = lister(tmp_path)
    stock_criu.plain_dump(criu, workload("secret"), ram_dir)
    command = [str(criu), "restore", "-D", str(ram_dir), "-o", "criu.log"]
    subprocess.run(
        [*command, "--exec-cmd", "--", str(program)], stdin=subprocess.DEVNULL, check=True
    )
    usual = beyond_standard(listing)
    listing.unlink()

    running = workload("secret")
    stream.dump(running)
    running.wait_gone()
    process = stream.restore_in_front("--", "--exec-cmd", "--", str(program))
    assert process.wait(PATIENCE).code == 0
    assert beyond_standard(listing) == usual


def beyond_standard(listing: Path) -> list[str]:
    """What other descriptors lead to: CRIU leaves some of its own open."""
    return sorted(
        os.path.basename(_alike(target)) for number, target in listed(listing) if number > 2
    )


def test_by_rpc_what_exec_cmd_starts_gets_what_it_gets_of_a_plain_criu(
    workload: StartWorkload,
    dropin: dropin_tools.DropIn,
    criu: Path,
    ram_dir: Path,
    places: dict[str, int],
    tmp_path: Path,
) -> None:
    program, listing = lister(tmp_path)
    done = lambda: listing.exists() and "end of one" in listing.read_text()  # noqa: E731
    first = workload("secret")
    stock_criu.plain_dump(criu, first, ram_dir)
    with rpc.directory_descriptor(ram_dir) as images:
        of_plain = {"images_dir_fd": images, "work_dir_fd": places["work_dir_fd"]}
        with rpc.Client(criu, os.environ) as connection:
            reply = connection.call(rpc.request(rpc.RESTORE, exec_cmd=[str(program)], **of_plain))
    assert reply.success, reply
    sealed.wait_until(done, "the command has ended", PATIENCE)
    usual = beyond_standard(listing)
    listing.unlink()
    first.kill()

    running = workload("secret")
    assert dump(dropin, running, **places).success
    running.wait_gone()
    reply = restore(dropin, exec_cmd=[str(program)], **places)
    assert reply.success, reply
    sealed.wait_until(done, "the command has ended", PATIENCE)
    found = beyond_standard(listing)
    for allowed in ("memfd:criu-configuration (deleted)", "socket"):  # see the tests below
        found.remove(allowed)
    assert found == usual


# CRIU's own settings, which it finds by this number, and the socket by which its notifications came: with a plain CRIU
# that is asked to notify the program has it, too.
REACHING = """
import fcntl, json, os, socket
found = {}
for name in sorted(os.listdir("/proc/self/fd"), key=int):
    try:
        target = os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:
        continue
    if "criu-configuration" in target:
        with open(f"/proc/self/fd/{name}", "rb") as file:
            found["settings"] = file.read().decode()
        found["seals"] = fcntl.fcntl(int(name), fcntl.F_GET_SEALS)
    if target.startswith("socket:"):
        one = socket.socket(fileno=int(name))
        if one.type == socket.SOCK_SEQPACKET:
            one.settimeout(30)
            try:
                found["received"] = len(one.recv(1000))
            except OSError as error:
                found["received"] = str(error)
        one.detach()
with open(LISTING + ".new", "w") as listing:
    json.dump(found, listing)
os.rename(LISTING + ".new", LISTING)
"""


def test_by_rpc_what_exec_cmd_starts_can_change_no_settings_and_speaks_to_nobody(
    workload: StartWorkload, dropin: dropin_tools.DropIn, places: dict[str, int], tmp_path: Path
) -> None:
    listing, program = tmp_path / "found", tmp_path / "program"
    program.write_text(f"#!{sys.executable} -I\nLISTING = {str(listing)!r}\n{REACHING}")
    program.chmod(0o755)
    running = workload("secret")
    assert dump(dropin, running, **places).success
    running.wait_gone()
    reply = restore(dropin, exec_cmd=[str(program)], **places)
    assert reply.success, reply
    sealed.wait_until(listing.exists, "the program has ended", PATIENCE)
    found = json.loads(listing.read_text())
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
    assert found == {"settings": "", "seals": seals, "received": 0}
