"""`dump -o - --kill-after ack`: the process ends when the receiver has acknowledged, and not otherwise."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealpoint.checkpoint.opening.access import authenticate
from sealpoint.cli.dump import ack_line
from sealpoint.format.raw import Descriptor
from sealpoint.keys import load_trust
from tests.real import harness, leaks, sealed

StartWorkload = Callable[..., harness.Workload]


@dataclass
class Sent:
    """A dump that has sent all of its stream and waits; the process is frozen."""

    command: sealed.Running
    stream: bytes
    answer: int

    def acknowledge(self, line: bytes) -> sealed.Result:
        os.write(self.answer, line)
        return self.command.wait()


@contextlib.contextmanager
def sent(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, workload: harness.Workload, *options: str
) -> Iterator[Sent]:
    reader, writer = os.pipe()
    with sealed.sink() as sink:
        command = sealpoint.start(
            "dump", "-t", workload.pid, "-o", "-", "--kill-after", "ack", *options, *keys.seal,
            stdin=reader, stdout=sink.writer,
        )  # fmt: skip
        os.close(reader)
        sink.connected()
        made = Sent(command, sink.take(), writer)  # to its end: a receiver must see that, too
        assert command.process.poll() is None
        try:
            yield made
        finally:
            with contextlib.suppress(OSError):
                os.close(writer)


def right_answer(stream: bytes, keys: sealed.Keys) -> bytes:
    fd = os.memfd_create("stream")
    try:
        os.write(fd, stream)
        policy = load_trust([keys.path("signer.pub")])
        reference = authenticate(Descriptor(fd), policy)[0].reference
    finally:
        os.close(fd)
    return ack_line(reference.checkpoint_id, reference.origin_digest)


def test_ends_after_the_acknowledgement_and_not_before(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running = workload("tree")
    before = running.assert_intact()
    with sent(sealpoint, keys, running) as dump:
        assert len(running.processes()) == 3
        with pytest.raises(harness.NoAnswerError):  # frozen: it must not run on beside its copy
            running.check(timeout=0.2)
        dump.acknowledge(right_answer(dump.stream, keys)).ok()
        running.wait_gone()
    file = tmp_path / "app.sealed"
    file.write_bytes(dump.stream)
    sealpoint.run("restore", file, "--detach", *keys.open).ok()
    running.assert_continues(before)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed without acknowledging"),
        (b"sealpoint-ack %s %s\n" % (b"0" * 32, b"0" * 64), "another checkpoint"),
        (b"yes\n", "another checkpoint"),
        (b"x" * 200, "another checkpoint"),
    ],
    ids=["closed", "of another checkpoint", "nonsense", "nonsense without an end"],
)
def test_runs_on_without_the_right_acknowledgement(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    answer: bytes,
    words: str,
) -> None:
    running = workload("tree")
    before = running.assert_intact()
    with sent(sealpoint, keys, running) as dump:
        os.write(dump.answer, answer)
        os.close(dump.answer)
        dump.command.wait().fails(2, words, "runs on")
    running.assert_continues(before)


def test_runs_on_when_half_an_acknowledgement_comes(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    with sent(sealpoint, keys, running) as dump:
        os.write(dump.answer, right_answer(dump.stream, keys)[:-2])
        os.close(dump.answer)
        dump.command.wait().fails(2, "runs on")
    running.assert_continues(before)


def test_runs_on_when_no_acknowledgement_comes_in_time(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    with sent(sealpoint, keys, running, "--ack-timeout", "0.5") as dump:
        dump.command.wait().fails(2, "in time", "runs on")
    running.assert_continues(before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_runs_on_when_the_wait_is_broken_off(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, number: int
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    with sent(sealpoint, keys, running) as dump:
        dump.command.signal(number, group=True)
        code = dump.command.wait().code
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    sealpoint.settle()
    running.assert_continues(before)


@pytest.mark.alone
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
@pytest.mark.parametrize("command", [("ipc",), ("tree",)], ids=" ".join)
def test_from_one_command_to_the_other_over_two_pipes(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    command: tuple[str, ...],
) -> None:
    """As between two machines: the copy gets a pid namespace of its own, as its pids are still taken here."""
    running = workload(*command)
    before = running.assert_intact()
    there = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    data, data_in = os.pipe()
    ack, ack_in = os.pipe()
    log = tmp_path / "receiver.err"
    with leaks.FileWatcher(running.needles, [tmp_path], ignore=[running.dir]) as watcher:
        with open(log, "wb") as err:
            receiver = subprocess.Popen(
                [*there, *sealed.SEALPOINT, "restore", "-", "--ack", *keys.open],
                stdin=data, stdout=ack_in, stderr=err, env=sealpoint.environment,
            )  # fmt: skip
        try:
            dump = sealpoint.start(
                "dump", "-t", running.pid, "-o", "-", "--kill-after", "ack", *keys.seal,
                stdin=ack, stdout=data_in,
            )  # fmt: skip
            for fd in (data, data_in, ack, ack_in):
                os.close(fd)
            assert dump.wait().code == 0, (dump.err.read_text(), log.read_text())
            running.wait_gone()
            running.assert_continues(before)
            assert receiver.poll() is None, log.read_text()
        finally:
            receiver.kill()
            receiver.wait()
    assert watcher.leaks() == []
