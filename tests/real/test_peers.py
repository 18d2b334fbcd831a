"""Peers that have proved nothing: nothing of them is held, and they keep nobody out."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.checkpoint.live import peer
from sealpoint.checkpoint.opening.access import signing_by
from sealpoint.keys import load_signer
from tests.real import harness, sealed
from tests.real.far_side import FarSide
from tests.real.moving import Receiver, far, migrate, receive
from tests.real.tap import PORT, Tap

__all__ = ["far", "receive"]  # fixtures
StartWorkload = Callable[..., harness.Workload]
JUNK = 600 << 20
HELD = 64 << 20  # bytes of files that a reader may make where it must hold nothing of junk


def pour(command: list[str], environment: dict[str, str], head: bytes) -> tuple[int, str, int]:
    """Exit code, message, and how many bytes of junk after `head` were taken."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (HELD, HELD))
    taken, piece = 0, os.urandom(1 << 20)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(head)
        while taken < JUNK:
            taken += process.stdin.write(piece)
        process.stdin.flush()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    return process.wait(), said, taken


@pytest.mark.parametrize("command", ["restore", "verify", "open", "inspect", "info"])
@pytest.mark.parametrize("head", [b"", b"\x89SEALPT\n"], ids=["junk", "junk after the magic"])
def test_junk_from_a_pipe_is_not_held(
    command: str, head: bytes, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    words = [*sealed.SEALPOINT, command, "-"]
    words += [] if command in ("verify", "info") else keys.open
    words += ["-o", str(tmp_path / "out")] if command == "open" else []
    code, said, taken = pour(words, sealpoint.environment, head)
    assert code in (2, 3), said
    assert "standard input" in said
    assert taken < 32 << 20, "nothing but what a pipe holds was read"


def test_a_file_of_a_stranger_is_not_held(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running, out = workload("memory", "--mib", "8"), tmp_path / "x.sealed"
    seal = ["-r", keys.path("recipient.pub"), "--sign", keys.path("other/signer.key")]
    sealpoint.run("dump", "-t", running.pid, "-o", out, "-R", *seal).ok()
    words = [*sealed.SEALPOINT, "restore", "-", *keys.open]
    code, said, taken = pour(words, sealpoint.environment, out.read_bytes()[:100_000])
    assert code == 5, said
    assert "no trusted signer signed this" in said
    assert taken < 32 << 20


@pytest.mark.parametrize("spool", [False, True], ids=["in memory", "in a file"])
def test_more_than_may_be_held_is_refused_with_the_number(
    spool: bool, workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:  # fmt: skip
    running, out = workload("memory", "--mib", "8"), tmp_path / "x.sealed"
    sealpoint.run("dump", "-t", running.pid, "-o", out, "-R", "--compress", "none", *keys.seal).ok()
    where = ["--spool", str(tmp_path)] if spool else []
    for command in ("restore", "verify"):
        if spool and command == "verify":
            continue
        words = [command, "-", "--max-size", "1M", *where, *keys.open]
        code, said, _ = pour([*sealed.SEALPOINT, *words], sealpoint.environment, out.read_bytes())
        assert code == 6, said
        assert "at most 1048576 bytes are held" in said


# --- receive ------------------------------------------------------------------------------------------------


def message(kind: int, body: bytes = b"") -> bytes:
    return bytes([kind]) + len(body).to_bytes(4, "little") + body


def session(connection: socket.socket) -> bytes:
    hello = b""
    while len(hello) < 5 + 54:
        hello += connection.recv(5 + 54 - len(hello))
    return hello[-32:]


def proof_of(signer: str, context: str, *, right: bool) -> Callable[[sealed.Keys, bytes], bytes]:
    """Of a signer, for this nonce or another."""
    return lambda keys, nonce: message(
        Tap.PROOF, proof(keys, signer, context, nonce if right else bytes(32))
    )


HOSTILE: dict[str, Callable[[sealed.Keys, bytes], bytes]] = {
    "junk": lambda keys, nonce: os.urandom(4096),
    "data at once": lambda keys, nonce: message(Tap.DATA, bytes(1 << 20)),
    "an offer at once": lambda keys, nonce: message(Tap.OFFER, bytes(8)),
    "a proof that is none": lambda keys, nonce: message(Tap.PROOF, b"{}"),
    "a proof of another's": proof_of("other/signer.key", peer.MIGRATION, right=True),
    "a proof for another nonce": proof_of("signer.key", peer.MIGRATION, right=False),
    "a proof for another protocol": proof_of("signer.key", peer.PAGE_SERVER, right=True),
    "a huge proof": lambda keys, nonce: bytes([Tap.PROOF]) + (1 << 30).to_bytes(4, "little"),
}


def proof(keys: sealed.Keys, signer: str, context: str, nonce: bytes) -> bytes:
    return peer.prove(signing_by(load_signer(keys.path(signer))), context, nonce)


def test_strangers_of_every_kind_do_not_use_up_the_one_migration(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    receiver = receive()
    idle = [socket.create_connection((far.address, PORT)) for _ in range(20)]
    for what, hostile in HOSTILE.items():
        with socket.create_connection((far.address, PORT)) as stranger:
            stranger.settimeout(60)
            nonce = session(stranger)
            with contextlib.suppress(OSError):
                stranger.sendall(hostile(keys, nonce))
                while stranger.recv(4096):
                    pass
        assert receiver.process.poll() is None, what
        assert receiver.left() == [], what
    sealpoint.run(*migrate(far, running, keys)).ok()
    said = receiver.wait().ok().err
    assert "made for another connection" in said
    assert "no trusted signer signed this" in said
    running.assert_continues(before)
    for each in idle:
        each.close()


def test_a_trusted_sender_of_junk_is_refused_and_leaves_nothing(
    far: FarSide, receive: Callable[..., Receiver], keys: sealed.Keys
) -> None:
    receiver = receive()
    with socket.create_connection((far.address, PORT)) as sender:
        sender.settimeout(60)
        sender.sendall(
            message(Tap.PROOF, proof(keys, "signer.key", peer.MIGRATION, session(sender)))
        )
        sender.sendall(message(Tap.OFFER, (1 << 20).to_bytes(8, "little")))
        with contextlib.suppress(OSError):
            sender.sendall(message(Tap.DATA, os.urandom(1 << 20)))
            while sender.recv(4096):
                pass
    receiver.wait().fails(3, "not a sealed checkpoint")
    assert receiver.left() == []


def test_a_migration_that_is_larger_than_allowed_is_refused_with_the_number(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    receiver = receive(*keys.open, "--max-size", "1M")
    sealpoint.run(*migrate(far, running, keys)).fails(6, "gave up", "at most 1048576 bytes")
    receiver.wait().fails(6, "at most 1048576 bytes", "--max-size")
    running.assert_intact()


def test_a_sender_of_another_version_is_told_so(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload("memory", "--mib", "8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        command = sealpoint.start("migrate", "-t", running.pid, "--to", address, *keys.seal)
        connection, _ = server.accept()
        with connection:
            connection.sendall(message(Tap.HELLO, b"sealpoint/v1 migration" + bytes(32)))
            command.wait().fails(6, "speaks version 1 of the migration", "version 2")
    running.assert_intact()
