"""Dumps that cannot be: a clear message, the documented exit code, the process runs on, nothing is left."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import pytest
import sealed
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sealed import pretended_criu, small_filesystem, stalled_dump

StartWorkload = Callable[..., harness.Workload]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "app.sealed"


@pytest.fixture
def undisturbed(workload: StartWorkload, out: Path) -> Iterator[harness.Workload]:
    """A workload that must be as it was in the end, without an output."""
    running = workload("secret")
    before = running.assert_intact()
    yield running
    running.assert_continues(before)
    if out.parent.is_dir():
        assert os.listdir(out.parent) == []


# Where the output goes


def test_an_output_that_exists_is_kept_byte_for_byte(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    out.write_bytes(b"something dear")
    status = out.stat()
    dump = ["dump", "-t", running.pid, "-o", out, *keys.seal]
    sealpoint.run(*dump).fails(2, "app.sealed exists", "--force")
    assert out.read_bytes() == b"something dear"
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    running.assert_continues(before)

    sealpoint.run(*dump, "--force").ok()
    running.wait_gone()
    assert os.listdir(out.parent) == [out.name]
    sealpoint.run("restore", out, "--detach", *keys.open).ok()
    running.assert_continues(before)


def test_a_forced_dump_that_fails_keeps_what_was_there(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running = workload("memory", "--mib", "16")
    before = running.assert_intact()
    with small_filesystem(tmp_path / "small", "size=4m") as small:
        (small / "app.sealed").write_bytes(b"something dear")
        dump = ["dump", "-t", running.pid, "-o", small / "app.sealed", *keys.seal]
        sealpoint.run(*dump, "--force").fails(6, "no space left")
        assert (small / "app.sealed").read_bytes() == b"something dear"
        assert os.listdir(small) == ["app.sealed"]
    running.assert_continues(before)


@pytest.mark.parametrize(
    ("where", "code", "words"),
    [
        ("missing/app.sealed", 2, "no directory"),
        (".", 2, "is a directory"),
        ("file/app.sealed", 2, "no directory"),
    ],
)
def test_an_output_that_cannot_be(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    where: str,
    code: int,
    words: str,
) -> None:
    (tmp_path / "file").write_text("")
    path = f"{tmp_path}/{where}"
    sealpoint.run("dump", "-t", undisturbed.pid, "-o", path, *keys.seal).fails(code, words)


def test_a_read_only_file_system(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
) -> None:
    with small_filesystem(tmp_path / "small", "ro") as small:
        sealpoint.run("dump", "-t", undisturbed.pid, "-o", small / "app.sealed", *keys.seal).fails(
            6, "cannot create", "Read-only"
        )


def test_a_log_that_cannot_be_written_is_noticed_before(
    undisturbed: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    sealpoint.run(
        "dump", "-t", undisturbed.pid, "-o", out, "--criu-log", "/nowhere/criu.log", *keys.seal
    ).fails(6, "/nowhere/criu.log")


# Which process


@pytest.mark.parametrize("pid", ["0", "-1", "999999999"])
def test_no_such_process(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path, pid: str
) -> None:
    sealpoint.run("dump", f"--tree={pid}", "-o", out, *keys.seal).fails(2, "no process", pid)
    assert os.listdir(out.parent) == []


def test_a_zombie(sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path) -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {})
    try:
        sealed.wait_until(lambda: harness.process_state(pid) == "Z", "it ended")
        sealpoint.run("dump", "-t", pid, "-o", out, *keys.seal).fails(2, str(pid), "has ended")
    finally:
        os.waitpid(pid, 0)
    assert os.listdir(out.parent) == []


def test_a_tree_that_contains_sealpoint(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path, tmp_path: Path
) -> None:
    words = " ".join([*sealed.SEALPOINT, "dump", "-t", "$$", "-o", str(out), *keys.seal])
    body = f"{words} 2>{tmp_path}/err\necho $? >{tmp_path}/code\n"
    shell = sealed.script(tmp_path / "shell", body)
    subprocess.run([shell], env=sealpoint.environment, timeout=60, check=True)
    code, err = int((tmp_path / "code").read_text()), (tmp_path / "err").read_text()
    sealed.Result(code, b"", err).fails(6, "inside the process tree")
    assert os.listdir(out.parent) == []


def test_a_tree_that_contains_a_zombie_can_be_dumped(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    # The zombie's session is the tree's own: that of the tests may lead outside of their pid namespace.
    code = "import os, time\nif os.fork() == 0: os._exit(3)\ntime.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            sealed.wait_until(
                lambda: "Z" in map(harness.process_state, sealed.children(process.pid)),
                "its child has ended",
            )
            sealpoint.run("dump", "-R", "-t", process.pid, "-o", out, *keys.seal).ok()
        finally:
            process.kill()


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_a_process_that_criu_cannot_dump(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    """It belongs to a session of somebody outside of the tree (a shell's job), and --shell-job is not given."""
    # The session's leader is ours: that of the tests may be outside of their pid namespace, where no option helps.
    with subprocess.Popen(
        ["sh", "-c", "sleep 600 >/dev/null & echo $!; wait"], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as shell:  # fmt: skip
        try:
            job = int(shell.stdout.readline())
            sealed.wait_until(lambda: _command(job) == "sleep", "the job runs")
            dump = ["dump", "-t", job, "-o", out, *keys.seal]
            sealpoint.run(*dump).fails(7, "criu dump", "session")
            assert os.listdir(out.parent) == []
            assert harness.process_state(job) in ("S", "R")
            sealpoint.run(*dump, "-R", "--", "--shell-job").ok()
        finally:
            os.killpg(shell.pid, signal.SIGKILL)


def test_without_the_privileges(
    undisturbed: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    drop = shutil.which("setpriv")
    if drop is None:
        pytest.skip("needs setpriv")
    dump = ["dump", "-t", str(undisturbed.pid), "-o", out, *keys.seal]
    result = subprocess.run(
        [drop, "--bounding-set=-all", "--inh-caps=-all", *sealed.SEALPOINT, *dump],
        env=sealpoint.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    sealed.Result(result.returncode, b"", result.stderr).fails(6, "root")


# Two at once


def test_two_processes_at_the_same_time(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    both = [workload("memory", "--mib", "16"), workload("tree")]
    before = [running.assert_intact() for running in both]
    files = [tmp_path / f"{n}.sealed" for n in range(2)]
    commands = [
        sealpoint.start("dump", "-t", running.pid, "-o", file, *keys.seal)
        for running, file in zip(both, files, strict=True)
    ]
    for command, running in zip(commands, both, strict=True):
        command.wait().ok()
        running.wait_gone()
    commands = [sealpoint.start("restore", file, "--detach", *keys.open) for file in files]
    for command in commands:
        command.wait().ok()
    for running, verdicts in zip(both, before, strict=True):
        running.assert_continues(verdicts)


def test_one_process_twice_at_the_same_time(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    running = workload("memory", "--mib", "32")
    before = running.assert_intact()
    with stalled_dump(sealpoint, keys, running) as (command, target):
        second = sealpoint.run("dump", "-t", running.pid, "-o", out, *keys.seal)
        second.fails(7, "criu dump")
        assert os.listdir(out.parent) == []
        stream = target.take()
        command.wait().ok()
    running.assert_continues(before)
    out.write_bytes(stream)
    sealpoint.run("verify", out, *keys.open).ok()


# Which CRIU


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
    sealpoint.run(*dump).fails(7, "criu dump ended with status 1")


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
    sealpoint.run(*dump).fails(7, "no-such-option")


# Which keys


def expired_certificate(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "of yesterday")])
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 9 * day)
        .not_valid_after(now - day)
        .add_extension(x509.KeyUsage(False, False, False, False, True, False, False, False, False), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_an_expired_certificate(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
) -> None:
    certificate = expired_certificate(tmp_path / "old.pem")
    dump = ["dump", "-t", undisturbed.pid, "-o", out, "--tls-cert", certificate, *keys.seal[2:]]
    sealpoint.run(*dump).fails(5, "old.pem", "expired")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["-r", "recipient.pub", "--sign", "missing.key"], (2, 4), "missing.key"),
        (["-r", "missing.pub", "--sign", "signer.key"], (2, 4), "missing.pub"),
        (["-r", "recipient.pub", "--sign", "rubbish"], (4,), "rubbish"),
        (["-r", "rubbish", "--sign", "signer.key"], (4,), "rubbish"),
        (["-r", "recipient.pub", "--sign", "recipient.pub"], (4,), "recipient.pub"),
        (["-r", "identity.key", "--sign", "signer.key"], (4,), "identity.key"),
        (["-r", "recipient.pub"], (2,), "no signing key"),
        (["--sign", "signer.key"], (2,), "no recipient"),
        (["-r", "recipient.pub", "-r", "recipient.pub", "--sign", "signer.key"], (2,), "twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_keys_that_are_not_there_or_no_such_keys(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    options: list[str],
    code: tuple[int, ...],
    words: str,
) -> None:
    with contextlib.suppress(FileExistsError), open(keys.path("rubbish"), "xb") as file:
        file.write(b"\x00 rubbish \xff" * 20)
    named = [o if o.startswith("-") else keys.path(o) for o in options]
    result = sealpoint.run("dump", "-t", undisturbed.pid, "-o", out, *named)
    assert result.code in code, result
    result.fails(result.code, words)


def test_a_wrong_passphrase_of_the_signer(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("one\n")
    wrong.write_text("another\n")
    made = ["keygen", tmp_path / "own", "--signer", "--passphrase-file", right]
    sealpoint.run(*made).ok()
    sign = ["--sign", tmp_path / "own" / "signer.key", "--sign-passphrase-file"]
    dump = ["dump", "-R", "-t", undisturbed.pid, "-o", out, *keys.seal[:2], *sign]
    sealpoint.run(*dump, wrong).fails(4, "passphrase")
    sealpoint.run(*dump, right).ok()
    out.unlink()
