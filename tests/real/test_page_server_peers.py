"""Who connects to a page server and has proved nothing, or the wrong thing: nothing is stored."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.checkpoint.live import peer
from sealpoint.checkpoint.opening.access import signing_by
from sealpoint.keys import load_signer
from tests.real import harness
from tests.real.page_server import Far, dump, far, free_port, hello, near, received  # noqa: F401 - fixtures
from tests.real.typed import DropIn

StartWorkload = Callable[..., harness.Workload]


def test_a_page_server_that_does_not_know_whom_to_believe_does_not_start(
    dropin: DropIn, tmp_path: Path
) -> None:
    dropin.configure(trust="")
    status, said = dropin.run("page-server", "--port", free_port(), cwd=tmp_path)
    assert status == 1
    assert "does not know whom to trust" in said
    assert "set trust in" in said


def test_strangers_that_say_nothing_do_not_keep_a_dump_out(
    workload: StartWorkload, dropin: DropIn, far: Far, near: Path
) -> None:
    running = workload("secret")
    far.start()
    idle = [socket.create_connection(("127.0.0.1", far.port)) for _ in range(80)]
    status, said = dump(dropin, running.pid, near, far.port, "-R")
    assert status == 0, (said, far.said())
    assert far.status() == 0, far.said()
    assert len(far.files()) == 1
    for each in idle:
        each.close()


def test_it_listens_on_the_loopback_address_unless_one_is_named(far: Far) -> None:
    far.start()
    table = Path("/proc/net/tcp").read_text().splitlines()
    addresses = [
        line.split()[1] for line in table[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{far.port:04X}")
    ]  # fmt: skip
    assert [a.split(":")[0] for a in addresses] == ["0100007F"]


@pytest.mark.parametrize("what", ["replayed", "another nonce", "another's", "another protocol"])
def test_a_proof_that_is_not_for_this_connection_stores_nothing(
    what: str, workload: StartWorkload, dropin: DropIn, far: Far, near: Path
) -> None:
    far.start()
    with socket.create_connection(("127.0.0.1", far.port)) as sender:
        sender.settimeout(60)
        sender.sendall(hello(2))
        nonce = received(sender, 12 + 32)[12:]
        if what == "replayed":
            with socket.create_connection(("127.0.0.1", far.port)) as other:
                other.settimeout(60)
                other.sendall(hello(2))
                nonce = received(other, 12 + 32)[12:]
        elif what == "another nonce":
            nonce = bytes(32)
        key = dropin.keys.path("other/signer.key" if what == "another's" else "signer.key")
        context = peer.MIGRATION if what == "another protocol" else peer.PAGE_SERVER
        proof = peer.prove(signing_by(load_signer(key)), context, nonce)
        sender.sendall(len(proof).to_bytes(4, "little") + proof)
        assert received(sender, 12)[8] == 1  # refused
    assert list(far.images.iterdir()) == []
    assert far.process.poll() is None


def test_another_version_is_told_so(far: Far) -> None:
    far.start()
    with socket.create_connection(("127.0.0.1", far.port)) as sender:
        sender.settimeout(60)
        sender.sendall(hello(1))
        head = received(sender, 12)
        assert b"speaks version 1" in received(sender, int.from_bytes(head[10:12], "little"))
    assert far.process.poll() is None


def test_a_trusted_sender_of_junk_stores_nothing(dropin: DropIn, far: Far) -> None:
    far.start()
    with socket.create_connection(("127.0.0.1", far.port)) as sender:
        sender.settimeout(60)
        sender.sendall(hello(2))
        nonce = received(sender, 12 + 32)[12:]
        signing = signing_by(load_signer(dropin.keys.path("signer.key")))
        proof = peer.prove(signing, peer.PAGE_SERVER, nonce)
        sender.sendall(len(proof).to_bytes(4, "little") + proof)
        assert received(sender, 12)[8] == 0
        sender.sendall((1 << 20).to_bytes(4, "little") + os.urandom(1 << 20))
        assert received(sender, 12)[8] == 1
    assert far.status() == 1
    assert "not a sealed checkpoint" in far.said()
    assert list(far.images.iterdir()) == []
