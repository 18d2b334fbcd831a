"""A process tree goes into one sealed file and comes back, and its secrets are found nowhere on the way."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real import harness, leaks, sealed

StartWorkload = Callable[..., harness.Workload]

QUICK = [("memory", "--mib", "16"), ("ipc",), ("tree",), ("secret",)]
WHOLE = pytest.param(("memory",), marks=pytest.mark.slow)
SMALL = ("memory", "--mib", "2")


def assert_sealed(
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    file: Path,
    workload: harness.Workload,
    images: Path,
) -> None:
    """The secrets are in it, each in its image, for whoever has the key: so their absence elsewhere means something."""
    sealpoint.run("open", file, "-o", images, *keys.open).ok()
    found = leaks.scan_directory(images, workload.needles)
    for name, pattern in harness.PLANTED[workload.kind].items():
        assert fnmatch.filter(found.get(name, []), pattern), (name, found)


@contextlib.contextmanager
def watched(workload: harness.Workload, tmp_path: Path) -> Iterator[None]:
    """No secret is in any file that is written meanwhile."""
    with leaks.FileWatcher(workload.needles, [tmp_path], ignore=[workload.dir]) as watcher:
        yield
    assert watcher.leaks() == []


@contextlib.contextmanager
def feed(data: bytes) -> Iterator[int]:
    """The reading end of a pipe through which `data` comes."""
    reader, writer = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(writer, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield reader
    finally:
        os.close(reader)
        thread.join()


@pytest.mark.alone
@pytest.mark.parametrize("command", [*QUICK, WHOLE], ids=" ".join)
def test_dumped_to_a_file_killed_verified_and_restored(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    ram_dir: Path,
    command: tuple[str, ...],
) -> None:
    running = workload(*command)
    before = running.assert_intact()
    file = tmp_path / "out" / "app.sealed"
    file.parent.mkdir()
    with watched(running, tmp_path):
        sealpoint.run("dump", "-t", running.pid, "-o", file, *keys.seal).ok()
        running.wait_gone()
        assert os.listdir(file.parent) == ["app.sealed"]
        assert file.stat().st_mode & 0o777 == 0o600
        sealpoint.run("verify", file, "--trust", keys.path("signer.pub")).ok()
        sealpoint.run("restore", file, "--detach", *keys.open).ok()
    running.assert_continues(before)
    running.assert_intact()
    assert len(running.processes()) == len(running.names)
    assert_sealed(sealpoint, keys, file, running, ram_dir / "images")


@pytest.mark.alone
@pytest.mark.parametrize(
    "spool", [False, True], ids=["held in memory", "held in a spool directory"]
)
@pytest.mark.parametrize("command", [*QUICK, WHOLE], ids=" ".join)
def test_dumped_into_a_pipe_and_restored_from_one(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    command: tuple[str, ...],
    spool: bool,
) -> None:
    running = workload(*command)
    before = running.assert_intact()
    (tmp_path / "spool").mkdir()
    options = ["--spool", tmp_path / "spool"] if spool else []
    with watched(running, tmp_path):
        with sealed.sink() as sink:
            dump = sealpoint.start(
                "dump", "-t", running.pid, "-o", "-", *keys.seal, stdout=sink.writer
            )
            sink.connected()
            stream = sink.take()
        dump.wait().ok()
        running.assert_continues(before)  # a pipe does not tell whether anybody has it
        before = running.assert_intact()
        running.kill()
        with feed(stream) as reader:
            restored = sealpoint.run("restore", "-", "--detach", *options, *keys.open, stdin=reader)
        restored.ok()
    assert list((tmp_path / "spool").iterdir()) == []
    finder = leaks.Finder(running.needles)
    assert finder.in_bytes(stream) == set()
    after = running.assert_intact()
    assert [v.session for v in after.values()] == [v.session for v in before.values()]


@pytest.mark.alone
@pytest.mark.parametrize("command", QUICK, ids=" ".join)
def test_runs_on_when_it_is_left_running_and_can_be_restored_later(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    command: tuple[str, ...],
) -> None:
    running = workload(*command)
    before = running.assert_intact()
    file = tmp_path / "app.sealed"
    with watched(running, tmp_path):
        sealpoint.run("dump", "-R", "-t", running.pid, "-o", file, *keys.seal).ok()
        running.assert_continues(before)
        running.kill()
        sealpoint.run("restore", file, "--detach", *keys.open).ok()
    running.assert_continues(before)


@pytest.mark.alone
@pytest.mark.parametrize(
    "options",
    [
        *(("--compress", c) for c in ("auto", "none", "lz4", "zstd")),
        *(("--suite", s) for s in ("aes-256-gcm", "chacha20-poly1305")),
    ],
    ids=" ".join,
)
def test_every_compression_and_suite(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    running = workload(*SMALL)
    before = running.assert_intact()
    file = tmp_path / "app.sealed"
    with watched(running, tmp_path):
        sealpoint.run("dump", "-t", running.pid, "-o", file, *options, *keys.seal).ok()
        running.wait_gone()
        sealpoint.run("restore", file, "--detach", *keys.open).ok()
    running.assert_continues(before)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("to", "by"),
    [
        (("-r", "x25519/recipient.pub"), ("-i", "x25519/identity.key")),
        (("-r", "p256/recipient.pub"), ("-i", "p256/identity.key")),
        (("--tls-cert", "x509-rsa/recipient.pem"), ("--tls-key", "x509-rsa/identity.key")),
        (("--tls-cert", "x509-ec/recipient.pem"), ("--tls-key", "x509-ec/identity.key")),
        (("-r", "recipient.pub", "-r", "p256/recipient.pub"), ("-i", "p256/identity.key")),
    ],
    ids=["x25519", "p256", "x509-rsa", "x509-ec", "the second of two"],
)
def test_every_kind_of_recipient(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    to: tuple[str, ...],
    by: tuple[str, ...],
) -> None:
    def named(options: tuple[str, ...]) -> list[str]:
        return [o if o.startswith("-") else keys.path(o) for o in options]

    running = workload("secret")
    before = running.assert_intact()
    file = tmp_path / "app.sealed"
    sign, trust = keys.seal[-2:], keys.open[-2:]
    with watched(running, tmp_path):
        sealpoint.run("dump", "-t", running.pid, "-o", file, *named(to), *sign).ok()
        running.wait_gone()
        sealpoint.run("restore", file, "--detach", *named(by), *trust).ok()
    running.assert_continues(before)


@pytest.mark.alone
def test_a_passphrase(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    file, phrase, wrong = tmp_path / "app.sealed", tmp_path / "phrase", tmp_path / "wrong"
    phrase.write_text("correct horse battery staple\n")
    wrong.write_text("correct horse battery stable\n")
    sign, trust = keys.seal[-2:], keys.open[-2:]
    by = ["--passphrase-file", phrase]
    with watched(running, tmp_path):
        sealpoint.run("dump", "-t", running.pid, "-o", file, "-r", "passphrase", *by, *sign).ok()
        running.wait_gone()
        restore = ["restore", file, "--detach", "-i", "passphrase", *trust, "--passphrase-file"]
        sealpoint.run(*restore, wrong).fails(4, "does not open")
        assert running.remains() == []
        sealpoint.run(*restore, phrase).ok()
    running.assert_continues(before)


def test_restored_in_the_foreground_the_command_waits_for_the_end(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running = workload("tree")
    before = running.assert_intact()
    file = tmp_path / "app.sealed"
    sealpoint.run("dump", "-t", running.pid, "-o", file, *keys.seal).ok()
    running.wait_gone()
    command = sealpoint.start("restore", file, *keys.open)
    running.assert_continues(before)
    assert command.process.poll() is None
    for pid in running.processes():
        os.kill(pid, signal.SIGKILL)
    result = command.wait()
    assert "Traceback" not in result.err
    assert running.remains() == []
