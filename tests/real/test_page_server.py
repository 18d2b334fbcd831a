"""`criu dump --page-server` and `criu page-server` of the drop-in: memory stays sealed on its way and over there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, leaks, sealed
from tests.real.page_server import Far, Wire, bring_together, dump, far, free_port, near  # noqa: F401 - fixtures
from tests.real.typed import DropIn

StartWorkload = Callable[..., harness.Workload]


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["secret", "ipc", "tree"])
def test_memory_goes_there_sealed_and_is_restored_with_the_rest_beside_it(
    workload: StartWorkload, dropin: DropIn, far: Far, near: Path, tmp_path: Path, kind: str
) -> None:
    running = workload(kind)
    before = running.assert_intact()
    dropin.configure(identities="")  # the far side needs no key, only to know whom to believe
    far.start()
    wire = Wire(far.port)
    with leaks.FileWatcher(running.needles, [tmp_path], ignore=[running.dir]) as watcher:
        status, said = dump(dropin, running.pid, near, wire.port)
        assert status == 0, (said, far.said())
        running.wait_gone()
        wire.close()
        assert far.status() == 0, far.said()
        assert sorted(os.listdir(near)) == ["dump.log", "inventory.img", "stats-dump"]
        assert [p.name for p in far.images.iterdir()] == [p.name for p in far.files()]
        assert len(far.files()) == 1
        assert far.files()[0].stat().st_size > (near / "inventory.img").stat().st_size
        bring_together(near, far)
        dropin.configure()
        status, said = dropin.run("restore", "-d", "-D", far.images)
        assert status == 0, said
    running.assert_continues(before)
    assert watcher.leaks() == []
    assert [n for n in running.needles.values() if n in wire.seen] == []


def test_over_an_inherited_socket(
    workload: StartWorkload, dropin: DropIn, near: Path, tmp_path: Path
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    ours, theirs = socket.socketpair()
    images, log = tmp_path / "far", tmp_path / "far.log"
    images.mkdir()
    server = dropin.start(
        "page-server", "-D", images, "--ps-socket", theirs.fileno(), log=log, fds=(theirs.fileno(),)
    )
    theirs.close()
    with ours:
        status, said = dropin.run(
            "dump", "-t", running.pid, "-D", near, "--page-server", "--ps-socket", ours.fileno(),
            fds=(ours.fileno(),),
        )  # fmt: skip
    assert status == 0, (said, log.read_text())
    assert server.wait(30) == 0
    running.wait_gone()
    (images / "inventory.img").write_bytes((near / "inventory.img").read_bytes())
    status, said = dropin.run("restore", "-d", "-D", images)
    assert status == 0, said
    running.assert_continues(before)


def test_the_server_goes_into_the_background_and_says_its_pid(
    workload: StartWorkload, dropin: DropIn, far: Far, near: Path
) -> None:
    running = workload("secret")
    far.start("--daemon", "--pidfile", "ps.pid", "-W", near)
    assert far.status() == 0
    pid = int((near / "ps.pid").read_text())
    assert harness.process_state(pid) not in (None, "Z")
    status, said = dump(dropin, running.pid, near, far.port, "-R")
    assert status == 0, said
    sealed.wait_until(lambda: harness.process_state(pid) in (None, "Z"), "it has ended", 30)
    assert len(far.files()) == 1


# Strangers on either side


def test_a_stock_page_server_gets_nothing(
    workload: StartWorkload, dropin: DropIn, criu: Path, near: Path, ram_dir: Path
) -> None:
    running = workload("secret")
    port = free_port()
    stock = subprocess.Popen(
        [criu, "page-server", "-D", ram_dir, "--port", str(port), "-o", "ps.log", "-v4"],
        stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"]},
    )
    try:
        log = ram_dir / "ps.log"
        sealed.wait_until(
            lambda: log.exists() and "Starting page server" in log.read_text(), "it listens"
        )
        status, said = dump(dropin, running.pid, near, port)
        assert status == 1
        assert "is not a sealpoint page server: nothing was sent to it" in said
        running.assert_intact()
        stock.wait(30)
        assert not list(ram_dir.glob("page*.img"))
        assert not (near / "inventory.img").exists()
    finally:
        stock.kill()
        stock.wait()


def test_a_stock_dump_is_not_taken(
    workload: StartWorkload, criu: Path, far: Far, ram_dir: Path
) -> None:
    running = workload("secret")
    far.start()
    done = subprocess.run(
        [criu, "dump", "-t", str(running.pid), "-D", str(ram_dir), "--page-server",
         "--address", "127.0.0.1", "--port", str(far.port)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    sealed.wait_until(
        lambda: "memory in the clear is not accepted" in far.said(), "it was turned away"
    )
    assert far.process.poll() is None  # and waits for somebody else
    assert list(far.images.iterdir()) == []
    running.assert_intact()


@pytest.mark.parametrize(
    "junk", [b"", b"x", b"\x89SEALPS\n", pytest.param(os.urandom(64), id="random"), b"\0" * 64]
)
def test_whatever_connects_stores_nothing(far: Far, junk: bytes) -> None:
    far.start()
    with socket.create_connection(("127.0.0.1", far.port)) as stranger:
        stranger.sendall(junk)
        stranger.shutdown(socket.SHUT_WR)
        sealed.wait_until(lambda: "was turned away" in far.said(), "it was turned away")
    assert list(far.images.iterdir()) == []
    assert far.process.poll() is None  # and waits for somebody else


def test_a_file_that_another_signed_is_not_kept(
    workload: StartWorkload, dropin: DropIn, far: Far, near: Path
) -> None:
    """Where the far side knows whom to trust, a wrong signer is noticed while the process still runs."""
    running = workload("secret")
    dropin.configure(trust=f'["{dropin.keys.path("other/signer.pub")}"]')
    far.start()
    status, said = dump(dropin, running.pid, near, far.port)
    assert status != 0
    assert "refused: no trusted signer signed this" in said
    assert far.process.poll() is None  # and waits for somebody else
    assert list(far.images.iterdir()) == []
    assert not (near / "inventory.img").exists()
    running.assert_intact()


# Faults


@pytest.mark.parametrize("cut_after", [200_000, 3_000_000])
def test_a_link_that_is_cut_fails_the_dump_and_nothing_is_kept(
    workload: StartWorkload, dropin: DropIn, far: Far, near: Path, cut_after: int
) -> None:
    running = workload("memory", "--mib", "16")
    far.start()
    wire = Wire(far.port, cut_after)
    status, said = dump(dropin, running.pid, near, wire.port)
    wire.close()
    assert status != 0, said
    assert far.status() == 1
    assert list(far.images.iterdir()) == []
    assert not (near / "inventory.img").exists()
    running.assert_intact()


def test_killing_the_far_side_fails_the_dump(
    workload: StartWorkload, dropin: DropIn, far: Far, near: Path
) -> None:
    running = workload("memory", "--mib", "16")
    far.start()
    script = near / "kill.sh"
    assert far.process is not None
    script.write_text(
        f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != pre-dump ] || kill -9 {far.process.pid}\n'
    )
    script.chmod(0o755)
    status, _ = dump(dropin, running.pid, near, far.port, "--action-script", script)
    assert status != 0
    assert far.status() == -signal.SIGKILL
    assert list(far.images.iterdir()) == []
    assert not (near / "inventory.img").exists()
    running.assert_intact()


def test_killing_the_near_helper_leaves_nothing_on_either_side(
    workload: StartWorkload, dropin: DropIn, far: Far, near: Path
) -> None:
    running = workload("memory", "--mib", "16")
    far.start()
    assert far.process is not None
    script = near / "kill.sh"
    script.write_text(
        '#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = pre-dump ] || exit 0\n'
        f"for p in $(pgrep -f {dropin.path}); do\n"
        f'  [ "$(ps -o sid= -p $p | tr -d " ")" != "$p" ] || [ $p = {far.process.pid} ] || kill -9 $p\ndone\nexit 0\n'
    )
    script.chmod(0o755)
    status, _ = dump(dropin, running.pid, near, far.port, "--action-script", script)
    assert status != 0
    assert far.status() == 1
    assert list(far.images.iterdir()) == []
    assert not (near / "inventory.img").exists()
    running.assert_intact()


def test_a_full_disk_there_is_said_here(
    workload: StartWorkload, dropin: DropIn, far: Far, near: Path
) -> None:
    running = workload("memory", "--mib", "64")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", far.images], check=True)
    try:
        far.start()
        status, said = dump(dropin, running.pid, near, far.port)
        assert status != 0
        assert "refused: no space left" in said
        assert far.status() == 1
        assert list(far.images.iterdir()) == []
    finally:
        far.process.kill() if far.process else None
        subprocess.run(["umount", "-l", far.images], check=True)
    assert not (near / "inventory.img").exists()
    running.assert_intact()


def test_a_dump_that_fails_here_at_last_leaves_no_checkpoint(
    workload: StartWorkload, dropin: DropIn, far: Far, near: Path, tmp_path: Path
) -> None:
    running = workload("secret")
    far.start()
    script = tmp_path / "refuse.sh"
    script.write_text('#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]\n')
    script.chmod(0o755)
    status, _ = dump(dropin, running.pid, near, far.port, "--action-script", script)
    assert status != 0
    running.assert_intact()
    dropin.settle()
    assert not (near / "inventory.img").exists()


# Pages that are not those


def dumped(
    running: harness.Workload, dropin: DropIn, far: Far, near: Path, *options: object
) -> None:
    far.start()
    status, said = dump(dropin, running.pid, near, far.port, *options)
    assert status == 0, said
    assert far.status() == 0
    far.port = free_port()


def test_a_restore_without_the_right_pages_file_runs_nothing(
    workload: StartWorkload, dropin: DropIn, far: Far, near: Path
) -> None:
    running = workload("secret")
    dumped(running, dropin, far, near, "-R")
    (older,) = far.files()
    dumped(running, dropin, far, near)
    running.wait_gone()
    (pages,) = set(far.files()) - {older}
    bring_together(near, far)
    whole = pages.read_bytes()

    def refused(what: str) -> None:
        status, said = dropin.run("restore", "-d", "-D", far.images)
        assert status == 1, what
        assert said.startswith("criu (sealpoint): "), (what, said)
        sealed.wait_until(lambda: running.remains() == [], what, 30)

    pages.unlink()
    refused("missing")
    pages.write_bytes(older.read_bytes())
    refused("an older one, rolled back under its name")
    pages.write_bytes(whole[: len(whole) // 2])
    refused("truncated")
    pages.write_bytes((near / "inventory.img").read_bytes())
    refused("another sealed file")
    damaged = bytearray(whole)
    damaged[-200] ^= 1
    pages.write_bytes(damaged)
    refused("damaged statement")
    older.unlink()
    pages.write_bytes(whole)
    (far.images / "inventory.img").write_bytes(whole)
    refused("the pages file in place of the checkpoint")
    bring_together(near, far)
    status, said = dropin.run("restore", "-d", "-D", far.images)
    assert status == 0, said
    running.assert_intact()


@pytest.mark.parametrize("place", [0.4, 0.7])
def test_a_damaged_page_runs_nothing(
    workload: StartWorkload, dropin: DropIn, far: Far, near: Path, place: float
) -> None:
    running = workload("memory", "--mib", "16")
    dumped(running, dropin, far, near)
    running.wait_gone()
    bring_together(near, far)
    (pages,) = far.files()
    data = bytearray(pages.read_bytes())
    data[int(len(data) * place)] ^= 1
    pages.write_bytes(data)
    status, _ = dropin.run("restore", "-d", "-D", far.images)
    assert status == 1
    sealed.wait_until(lambda: running.remains() == [], "nothing runs", 30)


@pytest.mark.parametrize(
    "arguments",
    [
        ("page-server", "--port", "1", "--lazy-pages"),
        ("page-server", "--port", "1", "--tls"),
        ("page-server", "--port", "1", "--auto-dedup"),
        ("dump", "-t", "1", "--page-server", "--port", "1", "--tls"),
        ("dump", "-t", "1", "--page-server"),
        ("dump", "-t", "1", "--page-server", "--port", "99999"),
        ("dump", "-t", "1", "--page-server", "--ps-socket", "77"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_refused_in_one_line(
    dropin: DropIn, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    status, said = dropin.run(*arguments, cwd=tmp_path)
    assert status == 1
    assert "sealpoint" in said
    assert len(said.splitlines()) == 1, said
