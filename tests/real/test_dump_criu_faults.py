"""Dumps with a CRIU that is not there, not usable or fails, and with options for it that may not be: a clear message,
the documented exit code, the process runs on, nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import sealpoint as package
from tests.real import harness, sealed
from tests.real.sealed import pretended_criu

StartWorkload = Callable[..., harness.Workload]


def _plain_file(directory: Path) -> Path:
    (directory / "criu").write_text("#!/bin/sh\n")
    return directory / "criu"


@pytest.mark.parametrize("command", ["dump", "restore"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d / "missing", ("there is no CRIU",)),
        (_plain_file, ("not executable",)),
        (lambda d: sealed.script(d / "x", "echo hello"), ("does not answer as CRIU",)),
        (lambda d: sealed.script(d / "x", "exit 1"), ("does not answer as CRIU",)),
        (lambda d: pretended_criu(d, "", version="3.10"), ("3.10", "too old")),
    ],
    ids=["missing", "not executable", "no CRIU", "one that fails", "an old one"],
)
def test_a_criu_that_cannot_be_used(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
    command: str,
    make: Callable[[Path], Path],
    words: tuple[str, ...],
) -> None:
    path = make(tmp_path)
    if command == "dump":
        arguments = ["dump", "-t", undisturbed.pid, "-o", out, *keys.seal]
    else:
        (tmp_path / "x.sealed").write_bytes(b"")
        arguments = ["restore", tmp_path / "x.sealed", *keys.open]
    sealpoint.run(*arguments, "--criu", path).fails(6, *words, "install criu")


def test_no_criu_in_path(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
) -> None:
    del sealpoint.environment["SEALPOINT_CRIU"]
    if any(shutil.which("criu", path=p) for p in ("/usr/sbin", "/sbin")):
        pytest.skip("this system has one where sealpoint always looks")
    (tmp_path / "empty").mkdir()
    sealpoint.environment["PATH"] = str(tmp_path / "empty")
    # Away from the checkout, whose own CRIU it would find.
    shutil.copytree(Path(package.__file__).parent, tmp_path / "src" / "sealpoint")
    sealpoint.environment["PYTHONPATH"] = str(tmp_path / "src")
    sealpoint.run("dump", "-t", undisturbed.pid, "-o", out, *keys.seal).fails(
        6, "CRIU is not installed", "install criu"
    )


def test_a_criu_that_does_not_know_this_kernel(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
) -> None:
    line = "(00.001) Error (criu/vdso.c:645): vdso: Unexpected rt vDSO area bounds"
    criu = pretended_criu(tmp_path, f"echo '{line}' >$work/criu.log; exit 1")
    dump = ["dump", "-t", undisturbed.pid, "-o", out, "--criu", criu, *keys.seal]
    sealpoint.run(*dump).fails(6, "does not run on this kernel", "install CRIU")


def test_the_criu_that_was_set_up_with_sealpoint_is_found(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
) -> None:
    del sealpoint.environment["SEALPOINT_CRIU"]
    # As in a checkout after `make dev`: another `criu` is first in PATH, and does not work.
    broken = tmp_path / "bin" / "criu"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    sealpoint.environment["PATH"] = f"{broken.parent}:{os.environ['PATH']}"
    sealpoint.run("dump", "-t", undisturbed.pid, "-o", out, *keys.seal, "--leave-running").ok()
    out.unlink()


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("exit 0", 7, "without asking"),
        ("exit 3", 7, "status 3"),
        ("kill -9 $$", 7, "signal 9"),
        ("echo 'criu: unrecognized option' >&2; exit 1", 7, "unrecognized option"),
    ],
)
def test_a_criu_that_does_not_do_its_work(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
    body: str,
    code: int,
    words: str,
) -> None:
    criu = pretended_criu(tmp_path, body)
    dump = ["dump", "-t", undisturbed.pid, "-o", out, "--criu", criu, *keys.seal]
    sealpoint.run(*dump).fails(code, words)


@pytest.mark.parametrize("status", [0, 1])
def test_a_criu_that_sends_nothing_but_asks_for_approval(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
    status: int,
) -> None:
    ask = "CRTOOLS_SCRIPT_ACTION=post-dump $work/gate.sh"
    criu = pretended_criu(tmp_path, f"{ask} || exit 1\nexit {status}")
    dump = ["dump", "-t", undisturbed.pid, "-o", out, "--criu", criu, *keys.seal]
    sealpoint.run(*dump).fails(7, "not a complete checkpoint", "no images of a checkpoint")


def test_a_criu_that_fails_after_the_file_was_named(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
    criu: Path,
) -> None:
    """The process may run on or not: the file is kept, but under a name that nobody takes by mistake."""
    running = workload("secret")
    before = running.assert_intact()
    body = f'case $1 in dump) {criu} "$@" --leave-running; exit 1; esac\nexec {criu} "$@"'
    failing = sealed.script(tmp_path / "failing-criu", body)
    dump = ["dump", "-t", running.pid, "-o", out, "--criu", failing, *keys.seal]
    sealpoint.run(*dump).fails(7, "status 1", "app.sealed.failed")
    assert os.listdir(out.parent) == ["app.sealed.failed"]
    running.assert_continues(before)
    running.kill()
    restore = ["restore", f"{out}.failed", "--detach", *keys.open]
    sealpoint.run(*restore).ok()
    running.assert_continues(before)


def test_a_failure_is_seen_although_whoever_started_us_ignores_the_ends_of_children(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
    criu: Path,
) -> None:
    """A child's exit status is lost where SIGCHLD is ignored, and a supervisor's children inherit that."""
    body = f'case $1 in dump) {criu} "$@" --leave-running; exit 3; esac\nexec {criu} "$@"'
    failing = sealed.script(tmp_path / "failing-criu", body)
    usual = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        command = ["dump", "-t", undisturbed.pid, "-o", out, "--criu", failing, *keys.seal]
        running = sealpoint.start(*command)
    finally:
        signal.signal(signal.SIGCHLD, usual)
    running.wait().fails(7, "status 3")
    (out.parent / "app.sealed.failed").unlink()


@pytest.mark.parametrize(
    "options",
    [
        ("-D", "/tmp"),
        ("-D/tmp",),
        ("--images-dir=/tmp",),
        ("--images-d", "/tmp"),
        ("-jR",),
        ("--leave-running",),
        ("--stream",),
        ("--page-server",),
        ("--page-s",),
        ("--lazy-pages",),
        ("--config", "/dev/null"),
        ("-o", "x.log"),
        ("-t", "1"),
        ("--auto-dedup",),
        ("--track-mem",),
        ("--prev-images-dir", "x"),
    ],
    ids=" ".join,
)
def test_criu_options_that_would_lead_past_the_seal(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    options: tuple[str, ...],
) -> None:
    dump = ["dump", "-t", undisturbed.pid, "-o", out, *keys.seal, "--", *options]
    sealpoint.run(*dump).fails(2, "cannot be used here")


def test_a_criu_option_that_does_not_exist(
    undisturbed: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    dump = ["dump", "-t", undisturbed.pid, "-o", out, *keys.seal, "--", "--no-such-option"]
    sealpoint.run(*dump).fails(2, "--no-such-option is not known to sealpoint")


@pytest.mark.parametrize("options", [("--external", "x--config=/tmp/a"), ("--", "--config", "a")])
def test_a_word_that_criu_would_take_for_a_configuration_file(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    options: tuple[str, ...],
) -> None:
    dump = ["dump", "-t", undisturbed.pid, "-o", out, *keys.seal, "--", *options]
    sealpoint.run(*dump).fails(2, "for --config")
