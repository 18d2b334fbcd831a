"""Page servers and lazy restores by RPC through the drop-in."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools, rpc
from tests.engines.rpc_calls import client, dump, places, restore
from tests.real import harness, sealed

__all__ = ["places"]  # a fixture

StartWorkload = Callable[..., harness.Workload]


@pytest.mark.parametrize("by", ["port", "descriptor"])
def test_memory_goes_to_a_page_server_sealed(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    tmp_path: Path,
    by: str,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    far = tmp_path / "far"
    far.mkdir()
    command = [str(dropin.path), "page-server", "-D", str(far)]
    if by == "port":
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        near = None
        theirs = None
        command += ["--port", str(port)]
        ps: dict[int, object] = {1: "127.0.0.1", 2: port}
    else:
        near, theirs = socket.socketpair()
        command += ["--ps-socket", str(theirs.fileno())]
        ps = {4: near.fileno()}
    log = tmp_path / "far.log"
    with log.open("wb") as out:
        page_server = subprocess.Popen(
            command,
            env=dropin.environment,
            stdin=subprocess.DEVNULL,
            stderr=out,
            pass_fds=[theirs.fileno()] if theirs else [],
        )
    if theirs:
        theirs.close()
    else:
        sealed.wait_until(lambda: b"Listening" in log.read_bytes(), "the page server listens")
    with client(dropin, inherited=[near.fileno()] if near else []) as connection:
        reply = connection.call(rpc.request(rpc.DUMP, pid=running.pid, ps=ps, **places))
    if near:
        near.close()
    assert reply.success, (reply, log.read_text())
    assert page_server.wait(30) == 0, log.read_text()
    running.wait_gone()
    assert os.listdir(images) == ["inventory.img"]
    (pages,) = far.iterdir()
    refused = restore(dropin, rst_sibling=True, **places)
    assert not refused.success
    assert pages.name in refused.message
    pages.rename(images / pages.name)
    restored = restore(dropin, rst_sibling=True, **places)
    assert restored.success, restored
    running.assert_continues(before)


@pytest.mark.parametrize("kind", [rpc.PAGE_SERVER, rpc.PAGE_SERVER_CHLD])
@pytest.mark.parametrize("by", ["port", "descriptor"])
def test_a_page_server_that_is_asked_for_stores_what_is_sealed(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    work: Path,
    tmp_path: Path,
    kind: int,
    by: str,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    far = tmp_path / "far"
    far.mkdir()
    near, theirs = socket.socketpair()
    given = {1: "127.0.0.1", 2: 0} if by == "port" else {4: theirs.fileno()}
    with (
        client(dropin, inherited=[near.fileno()]) as connection,
        rpc.directory_descriptor(far) as there,
        client(dropin) as other,
    ):
        options = {"images_dir_fd": there, "work_dir_fd": there, "ps": given}
        answer = other.call(rpc.request(kind, **options))
        assert answer.success, answer
        server = rpc.decode(rpc.decode(answer.raw)[6])
        assert harness.process_state(server[3]) is not None
        theirs.close()
        ps = {1: "127.0.0.1", 2: server[2]} if by == "port" else {4: near.fileno()}
        reply = connection.call(rpc.request(rpc.DUMP, pid=running.pid, ps=ps, **places))
        assert reply.success, (reply, (far / "criu.log").read_text())
        near.close()
        running.wait_gone()
        with pytest.raises(rpc.ClosedError):  # in the end, and not before if it is CRIU itself
            other.receive()
        if kind == rpc.PAGE_SERVER_CHLD:
            assert harness.process_state(server[3]) is None
    sealed.wait_until(lambda: harness.process_state(server[3]) in (None, "Z"), "it has ended")
    stored = {path.name for path in far.iterdir()} - {"criu.log"}
    assert len(stored) == 1
    (name,) = stored
    assert f"stored {name}" in (far / "criu.log").read_text()
    (far / name).rename(images / name)
    restored = restore(dropin, rst_sibling=True, **places)
    assert restored.success, restored
    running.assert_continues(before)


def test_a_lazy_restore_needs_the_policy_and_a_daemon_of_the_drop_in(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    work: Path,
    criu: Path,
) -> None:
    if subprocess.run([criu, "check", "--feature", "uffd"], capture_output=True).returncode:
        pytest.skip("this kernel does not support userfaultfd")
    running = workload("memory", "--mib", "16")
    before = running.assert_intact()
    assert dump(dropin, running, **places).success
    running.wait_gone()
    options = {"rst_sibling": True, "lazy_pages": True} | places
    refused = restore(dropin, **options)
    assert not refused.success
    assert "allow_lazy_restore" in refused.message
    dropin.configure(allow_lazy_restore=True)
    refused = restore(dropin, **options)
    assert not refused.success
    assert "no sealpoint daemon" in refused.message
    command = [dropin.path, "lazy-pages", "-D", images, "-W", work, "-o", "lazy.log"]
    daemon = subprocess.Popen(command, env=dropin.environment, stdin=subprocess.DEVNULL)
    try:
        sealed.wait_until((work / "lazy-pages.socket").exists, "the daemon listens", 30)
        restored = restore(dropin, **options)
        assert restored.success, restored
        assert daemon.wait(60) == 0
    finally:
        daemon.kill()
        daemon.wait()
    running.assert_continues(before)
