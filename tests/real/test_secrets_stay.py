"""No secret of the process and no key is where others can read it: command lines, environments, logs, core dumps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, sealed
from tests.real.sealed import Hold, stalled_dump

StartWorkload = Callable[..., harness.Workload]

PASSPHRASE = "a passphrase that nobody else may see"


def look_at(sealpoint: sealed.Sealpoint, secrets: list[bytes], but: tuple[int, ...] = ()) -> int:
    """Command line and environment of all that runs by now hold no secret; returns how many processes these are."""
    pids = [pid for pid in sealpoint.processes() if pid not in but]
    for pid in pids:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                text = Path(f"/proc/{pid}/{name}").read_bytes()
                assert [s for s in secrets if s in text] == [], (pid, name)
    return len(pids)


@pytest.fixture
def phrase(tmp_path: Path) -> Path:
    (tmp_path / "phrase").write_text(PASSPHRASE + "\n")
    return tmp_path / "phrase"


def test_key_files_hold_what_is_looked_for(keys: sealed.Keys) -> None:
    assert len(keys.secrets) >= 8


def test_in_no_command_line_and_no_environment_of_a_dump(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    phrase: Path,
    tmp_path: Path,
) -> None:
    running = workload("memory", "--mib", "32")
    secrets = [*running.needles.values(), *keys.secrets, PASSPHRASE.encode()]
    own = tmp_path / "protected"
    sealpoint.run("keygen", own, "--signer", "--passphrase-file", phrase).ok()
    sign = ["--sign", str(own / "signer.key"), "--sign-passphrase-file", str(phrase)]
    with stalled_dump(sealpoint, keys, running, *sign) as (command, target):
        assert look_at(sealpoint, secrets) >= 2
        environment = Path(f"/proc/{command.criu()}/environ").read_bytes()
        assert b"SEALPOINT" not in environment
        target.take()
        command.wait().ok()


def test_in_no_command_line_and_no_environment_of_a_restore(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    phrase: Path,
    tmp_path: Path,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    secrets = [*running.needles.values(), *keys.secrets, PASSPHRASE.encode()]
    file, by = tmp_path / "app.sealed", ["--passphrase-file", phrase]
    dump = ["dump", "-t", running.pid, "-o", file, "-r", "passphrase", *by, *keys.seal[2:]]
    sealpoint.run(*dump).ok()
    running.wait_gone()
    hold = Hold.action(tmp_path, "post-restore")
    command = sealpoint.start(
        "restore", file, "--detach", "-i", "passphrase", *by, *keys.open[2:],
        "--", "--action-script", hold.path,
    )  # fmt: skip
    hold.reached()
    assert look_at(sealpoint, secrets, but=tuple(running.pids.values())) >= 4
    hold.go()
    command.wait().ok()
    running.assert_continues(before)


@pytest.mark.parametrize("kind", ["ipc", "tree"])
def test_in_no_log_of_criu_however_long(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    kind: str,
) -> None:
    running = workload(kind)
    before = running.assert_intact()
    file = tmp_path / "app.sealed"
    logs = [tmp_path / "dump.log", tmp_path / "restore.log"]
    dump = ["dump", "-t", running.pid, "-o", file, *keys.seal, "--criu-log"]
    sealpoint.run(*dump, logs[0], "--", "-v4").ok()
    running.wait_gone()
    restore = ["restore", file, "--detach", *keys.open, "--criu-log"]
    sealpoint.run(*restore, logs[1], "--", "-v4").ok()
    running.assert_continues(before)
    for log in logs:
        text = log.read_bytes()
        assert len(text) > 10_000
        assert log.stat().st_mode & 0o777 == 0o600
        assert [s for s in (*running.needles.values(), *keys.secrets) if s in text] == []


def test_sealpoint_leaves_no_core_dump_and_the_process_keeps_its_limits(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running = workload("memory", "--mib", "32")
    limits = Path(f"/proc/{running.pid}/limits").read_text()
    with stalled_dump(sealpoint, keys, running) as (command, target):
        lines = Path(f"/proc/{command.pid}/limits").read_text().splitlines()
        (core,) = (line for line in lines if "core file" in line)
        assert core.split()[4] == "0"
        stream = target.take()
        command.wait().ok()
    running.kill()
    (tmp_path / "app.sealed").write_bytes(stream)
    sealpoint.run("restore", tmp_path / "app.sealed", "--detach", *keys.open).ok()
    assert Path(f"/proc/{running.pid}/limits").read_text() == limits
