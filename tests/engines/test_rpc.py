"""RPC through the drop-in: for the client it is CRIU, for whoever has the images directory there is one sealed file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.state import soft_dirty
from tests.engines import dropin as dropin_tools, rpc
from tests.engines.rpc_calls import client, dump, places, restore
from tests.real import harness, leaks

__all__ = ["places"]  # a fixture

StartWorkload = Callable[..., harness.Workload]
MAGIC_SIZE = 8


def stock(dropin: dropin_tools.DropIn) -> contextlib.AbstractContextManager[rpc.Client]:
    return rpc.Client(dropin.real, dropin.stock_environment)


# --- what passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        rpc.encode({1: rpc.VERSION}),
        rpc.encode({1: rpc.FEATURE_CHECK, 5: {1: True, 2: True}}),
        rpc.encode({5: {1: True}, 1: rpc.FEATURE_CHECK}),
    ],
    ids=["version", "features", "features first"],
)
def test_questions_and_answers_pass_as_they_are(dropin: dropin_tools.DropIn, data: bytes) -> None:
    with client(dropin) as connection:
        through = connection.call(data)
    with stock(dropin) as connection:
        direct = connection.call(data)
    assert through.raw == direct.raw
    assert through.success


def test_several_questions_pass_on_a_connection_that_is_kept_open(
    dropin: dropin_tools.DropIn,
) -> None:
    with client(dropin) as connection:
        for _ in range(3):
            answer = connection.call(rpc.encode({1: rpc.VERSION, 4: True}))
            assert answer.success, answer


@pytest.mark.parametrize("kind", [rpc.CHECK, rpc.CPUINFO_DUMP])
def test_requests_that_hold_no_memory_find_the_directories_of_the_client(
    dropin: dropin_tools.DropIn, places: dict[str, int], images: Path, work: Path, kind: int
) -> None:
    with stock(dropin) as connection:
        direct = connection.call(rpc.request(kind, log_file="direct.log", **places))
    with client(dropin) as connection:
        through = connection.call(rpc.request(kind, log_file="through.log", **places))
    assert through.raw == direct.raw
    assert sorted(os.listdir(work)) == ["direct.log", "through.log"]
    assert os.listdir(images) == (["cpuinfo.img"] if kind == rpc.CPUINFO_DUMP else [])


def test_a_question_needs_no_configuration_and_is_quick(dropin: dropin_tools.DropIn) -> None:
    dropin.configure(recipients=None, signer="/nowhere")
    with client(dropin) as connection:
        assert connection.call(rpc.encode({1: rpc.VERSION})).success


# --- dump and restore --------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("listens", [True, False], ids=["with notifications", "without"])
@pytest.mark.parametrize("kind", ["secret", "ipc", "tree"])
def test_round_trip(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    work: Path,
    tmp_path: Path,
    kind: str,
    listens: bool,
) -> None:
    running = workload(kind)
    before = running.assert_intact()
    options = {"log_file": "dump.log", "notify_scripts": listens} | places
    with leaks.FileWatcher(running.needles, [tmp_path], ignore=[running.dir]) as watcher:
        reply = dump(dropin, running, **options)
        assert reply.success, reply
        assert reply.kind == rpc.DUMP
        running.wait_gone()
        assert os.listdir(images) == ["inventory.img"]
        assert ("post-dump" in reply.scripts) == listens
        restored = restore(dropin, **options | {"log_file": "restore.log", "rst_sibling": True})
        assert restored.success, restored
        assert restored.pid == running.pid
        assert ("post-restore" in restored.scripts) == listens
    running.assert_continues(before)
    assert watcher.traced
    assert watcher.leaks() == []
    assert {"dump.log", "restore.log"} <= set(os.listdir(work))


def test_the_restored_process_is_a_child_of_the_client_if_it_asks_for_that(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: dict[str, int]
) -> None:
    running = workload("secret")
    assert dump(dropin, running, **places).success
    running.wait_gone()
    with client(dropin) as connection:
        reply = connection.call(rpc.request(rpc.RESTORE, rst_sibling=True, **places))
        assert reply.success, reply
        connection.wait()
        parent = Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()[1]
        assert int(parent) == os.getpid()


def test_leave_running_and_again_over_the_older_file(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: dict[str, int], images: Path
) -> None:
    running = workload("secret")
    for _ in range(2):
        before = running.assert_intact()
        assert dump(dropin, running, leave_running=True, **places).success
        running.assert_continues(before)
    assert os.listdir(images) == ["inventory.img"]


def test_logs_go_to_the_images_directory_if_no_other_is_named(
    dropin: dropin_tools.DropIn, workload: StartWorkload, images: Path
) -> None:
    running = workload("secret")
    with rpc.directory_descriptor(images) as fd:
        assert dump(dropin, running, images_dir_fd=fd, log_file="dump.log").success
        running.wait_gone()
        assert sorted(os.listdir(images)) == ["dump.log", "inventory.img", "stats-dump"]
        assert restore(dropin, images_dir_fd=fd, log_file="restore.log").success
    running.assert_intact()


@pytest.mark.parametrize("relative", [True, False])
def test_the_images_directory_can_be_named_by_its_path(
    dropin: dropin_tools.DropIn, workload: StartWorkload, images: Path, relative: bool
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    options = {"images_dir_fd": -1, "images_dir": images.name if relative else str(images)}
    with client(dropin, images.parent) as connection:
        reply = connection.call(rpc.request(rpc.DUMP, pid=running.pid, **options))
        assert reply.success, reply
        connection.wait()
    running.wait_gone()
    assert "inventory.img" in os.listdir(images)
    with client(dropin, images.parent) as connection:
        assert connection.call(rpc.request(rpc.RESTORE, **options)).success
        connection.wait()
    running.assert_continues(before)


def test_the_status_descriptor_of_the_client_is_written_by_criu(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: dict[str, int]
) -> None:
    def run(connection_of: contextlib.AbstractContextManager[rpc.Client]) -> bytes:
        reader, writer = os.pipe()
        try:
            with connection_of as connection:
                data = rpc.request(
                    rpc.DUMP, pid=running.pid, leave_running=True, status_fd=writer, **places
                )
                assert connection.call(data).success
                connection.wait()
            os.set_blocking(reader, False)
            try:
                return os.read(reader, 100)
            except BlockingIOError:
                return b"nothing"
        finally:
            os.close(reader)
            os.close(writer)

    running = workload("secret")
    assert run(client(dropin)) == run(stock(dropin))


def test_a_terminal_comes_back_through_a_descriptor_on_a_notification(
    dropin: dropin_tools.DropIn, tmp_path: Path, places: dict[str, int]
) -> None:
    master, slave = pty.openpty()
    pid = os.fork()
    if pid == 0:  # a session leader whose terminal's other end is ours
        os.setsid()
        fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY
        for fd in (0, 1, 2):
            os.dup2(slave, fd)
        os.closerange(3, 1024)
        os.execv("/bin/cat", ["cat"])
    try:
        os.close(slave)
        os.write(master, b"before\n")
        wait_for(master, b"before")
        with client(dropin) as connection:
            data = rpc.request(rpc.DUMP, pid=pid, log_level=4, orphan_pts_master=True, **places)
            reply = connection.call(data)
            assert reply.success, (reply, (tmp_path / "work/criu.log").read_text())
            connection.wait()
        os.waitpid(pid, 0)
        os.close(master)
        master = -1
        with client(dropin) as connection:
            data = rpc.request(
                rpc.RESTORE, orphan_pts_master=True, notify_scripts=True, rst_sibling=True, **places
            )
            reply = connection.call(data)
            assert reply.success, reply
            assert "orphan-pts-master" in reply.scripts
            [master] = reply.descriptors
            connection.wait()
        os.write(master, b"after\n")
        wait_for(master, b"after")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if master >= 0:
            os.close(master)


def wait_for(fd: int, what: bytes) -> None:
    seen = b""
    os.set_blocking(fd, False)
    deadline = time.monotonic() + 10
    while what not in seen:
        assert time.monotonic() < deadline, seen
        with contextlib.suppress(BlockingIOError):
            seen += os.read(fd, 1000)
        time.sleep(0.005)
    os.set_blocking(fd, True)


def test_a_client_that_refuses_at_a_notification_ends_the_dump(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: dict[str, int], images: Path
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    with client(dropin) as connection:
        data = rpc.request(rpc.DUMP, pid=running.pid, notify_scripts=True, **places)
        reply = connection.call(data, lambda script, _: script != "post-dump")
    assert not reply.success
    running.assert_continues(before)
    assert "inventory.img" not in os.listdir(images)


# --- page server -------------------------------------------------------------------------------------


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (rpc.PAGE_SERVER, {"ps": {1: "192.0.2.1", 2: 1}}, "cannot listen"),
        (rpc.PAGE_SERVER_CHLD, {"ps": {4: 77}}, "descriptor"),
        (rpc.DUMP, {"ps": {2: 0}}, "page server"),
        (rpc.DUMP, {"ps": {4: 77}}, "descriptor"),
        (rpc.DUMP, {"lazy_pages": True}, "lazy"),
        (rpc.DUMP, {"parent_img": "../parent"}, "parent"),
    ],
)
def test_what_would_lead_past_the_seal_is_refused_with_a_reason(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    kind: int,
    options: dict[str, object],
    words: str,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    with client(dropin) as connection:
        reply = connection.call(rpc.request(kind, pid=running.pid, **options, **places))
        assert not reply.success
        assert reply.kind == kind
        assert reply.message.startswith("sealpoint: ")
        assert words in reply.message
    running.assert_continues(before)
    assert os.listdir(images) == []


@pytest.mark.skipif(soft_dirty.supported(), reason="this kernel tracks changes of memory")
@pytest.mark.parametrize("kind", [rpc.PRE_DUMP, rpc.SINGLE_PRE_DUMP])
def test_a_pre_dump_on_a_kernel_that_cannot_is_refused_and_the_tree_runs_on(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    kind: int,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    with client(dropin) as connection:
        reply = connection.call(rpc.request(kind, pid=running.pid, **places))
    assert not reply.success
    assert reply.kind == kind
    assert "CONFIG_MEM_SOFT_DIRTY" in reply.message
    running.assert_continues(before)
    assert os.listdir(images) == []


def test_a_parent_that_is_not_known_costs_a_full_dump_and_the_log_says_so(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
) -> None:
    running = workload("secret")
    parent = images.parent / "parent-images"
    parent.mkdir()
    reply = dump(
        dropin,
        running,
        parent_img="../parent-images",
        auto_dedup=True,
        leave_running=True,
        **places,
    )
    assert reply.success
    assert not (images / "parent").exists()
    logs = [p.read_text(errors="replace") for p in images.parent.rglob("*.log")]
    assert any("a full dump is made: ../parent-images holds no sealed" in text for text in logs)
    running.assert_intact()


@pytest.mark.parametrize(
    "disguise",
    [
        lambda o: o + b"\x08\x01",
        lambda o: o + b"\x08\x81\x00",
        lambda o: o + b"\x08\x81\x80\x80\x80\x10",
        lambda o: b"\x08\x0a" + o + b"\x08\x01",
        lambda o: b"\x08\x01" + o + b"\x08\x04",
    ],
    ids=["last", "long", "beyond 32 bits", "version first", "then a pre-dump"],
)
def test_no_encoding_of_a_dump_gets_past_the_seal(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    disguise: Callable[[bytes], bytes],
) -> None:
    running = workload("secret")
    options = rpc.request(0, pid=running.pid, leave_running=True, **places)[2:]
    with client(dropin) as connection:
        with contextlib.suppress(rpc.ClosedError, ConnectionError):
            connection.call(disguise(options))
    running.assert_intact()
    assert set(os.listdir(images)) <= {"inventory.img"}
    assert leaks.scan_directory(images, running.needles) == {}


@pytest.mark.parametrize("data", [b"\x08", b"\xff" * 40, b"\x12\x7f\x00", b"\x08\x01\x12\x05abc"])
def test_a_request_that_cannot_be_understood_is_refused(
    dropin: dropin_tools.DropIn, data: bytes
) -> None:
    with client(dropin) as connection:
        reply = connection.call(data)
    assert not reply.success
    assert reply.message.startswith("sealpoint: ")


def test_a_configuration_file_of_criu_cannot_lead_past_the_seal(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    tmp_path: Path,
) -> None:
    running = workload("secret")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = tmp_path / "runc.conf"
    file.write_text(f"images-dir {elsewhere}\n")
    reply = dump(dropin, running, config_file=str(file), **places)
    assert not reply.success
    assert f"{file}, line 1" in reply.message
    file.write_text("tcp-established\n")
    assert dump(dropin, running, config_file=str(file), leave_running=True, **places).success
    assert os.listdir(elsewhere) == []
    running.assert_intact()
