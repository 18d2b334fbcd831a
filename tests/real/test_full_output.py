"""A standard output that cannot be written: every command that prints says so, and why; a reader who left is no error.

The commands read a real dump, so that each gets as far as its result.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.cli.app import _COMMANDS
from tests.real import harness, sealed

StartWorkload = Callable[..., harness.Workload]
CANNOT = "cannot write standard output: No space left on device"
NO_SPACE = "no space left for standard output"  # of what `-o -` writes
OPEN = ("-i", "keys/identity.key", "--trust", "keys/signer.pub")
SEAL = ("-r", "keys/recipient.pub", "--sign", "keys/signer.key")
DUMP = ("app.sealed", *OPEN)
# each command that prints what it found or did
PRINTING: tuple[tuple[str, ...], ...] = (
    ("--version",),
    ("keygen", "new"),
    ("keygen", "new", "--signer"),
    ("seal", "app", "-o", "again.sealed", *SEAL),
    ("open", *DUMP, "-o", "out"),
    ("verify", *DUMP),
    ("info", "app.sealed"),
    ("info", "app.sealed", "--json"),
    ("policy", "check", "app.sealed", "--trust", "keys/signer.pub"),
    ("chain", "app.sealed", "--trust", "keys/signer.pub"),
    ("flatten", *DUMP, "-o", "flat.sealed", *SEAL),
    ("store", "init", "more", "--tenant-key", "other-tenant"),
    ("store", "stat", "chunks"),
    ("store", "gc", "chunks"),
    ("rekey", *DUMP, "--add", "other/recipient.pub", "--sign", "keys/signer.key"),
    ("secrets", *DUMP, "--reveal"),
    ("report", *DUMP, "-o", "page.html"),
    ("list", "."),
    ("show", *DUMP),
    ("inspect", *DUMP),
    ("inspect", *DUMP, "--format", "json"),
    ("memparse", *DUMP),
    ("diff", "app.sealed", "app.sealed", *OPEN),
    ("crit", "show", "app.sealed:pstree.img", *OPEN),
    ("crit", "decode", "app.sealed:pstree.img", *OPEN),
    ("crit", "info", "app.sealed:pstree.img", *OPEN),
    ("crit", "x", "app.sealed", "ps", *OPEN),
    ("doctor",),
    ("completion", "bash"),
)  # fmt: skip
WRITING: tuple[tuple[str, ...], ...] = (
    ("seal", "app", "-o", "-", *SEAL),
    ("open", *DUMP, "-o", "-"),
    ("flatten", *DUMP, "-o", "-", *SEAL),
    ("report", *DUMP, "-o", "-"),
)


@pytest.fixture
def checkpoint(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> Path:
    """A directory with `keys`, a dump as `app.sealed`, its images in `app`, and a store of chunks."""
    if keys.directory != tmp_path / "keys":
        (tmp_path / "keys").symlink_to(keys.directory)
    running = workload("tree")
    sealpoint.run("dump", "-t", running.pid, "-o", tmp_path / "app.sealed", *keys.seal).ok()
    running.wait_gone()
    sealpoint.run("keygen", tmp_path / "other").ok()
    sealpoint.run("open", tmp_path / "app.sealed", "-o", tmp_path / "app", *keys.open).ok()
    sealpoint.run("store", "init", tmp_path / "chunks", "--tenant-key", tmp_path / "tenant").ok()
    return tmp_path


def into(
    stream: int, arguments: tuple[str, ...], where: Path, sealpoint: sealed.Sealpoint
) -> tuple[int, str]:
    done = subprocess.run(
        [*sealed.SEALPOINT, *arguments],
        cwd=where,
        env=sealpoint.environment,
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.PIPE,
        text=True,
        timeout=sealed.TIMEOUT,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),
    )
    return done.returncode, done.stderr


def test_every_command_says_that_standard_output_is_full(
    checkpoint: Path, sealpoint: sealed.Sealpoint
) -> None:
    wrong = []
    helps = [(name, "--help") for name in _COMMANDS]
    with open("/dev/full", "wb") as full:
        for arguments in (*PRINTING, *WRITING, ("--help",), *helps):
            code, said = into(full.fileno(), arguments, checkpoint, sealpoint)
            expected = NO_SPACE if arguments in WRITING else CANNOT
            if code != 6 or f"sealpoint: {expected}\n" not in said or ".py" in said:
                wrong.append((arguments, code, said))
    assert not wrong, wrong


def test_a_reader_who_left_ends_every_command_without_a_word(
    checkpoint: Path, sealpoint: sealed.Sealpoint
) -> None:
    wrong = []
    for arguments in PRINTING:
        reader, writer = os.pipe()
        os.close(reader)
        code, said = into(writer, arguments, checkpoint, sealpoint)
        os.close(writer)
        if code != 128 + signal.SIGPIPE or "standard output" in said or ".py" in said:
            wrong.append((arguments, code, said))
    assert not wrong, wrong


def test_the_acknowledgement_of_a_restore_that_cannot_be_written_stops_the_restore(
    checkpoint: Path, sealpoint: sealed.Sealpoint
) -> None:
    with open("/dev/full", "wb") as full:
        code, said = into(full.fileno(), ("restore", *DUMP, "--ack"), checkpoint, sealpoint)
    assert (code, CANNOT in said) == (6, True), said
