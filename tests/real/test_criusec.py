"""Real dumps go through the CRIUsec format and back, and run again: not a byte of them is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, leaks, sealed, stock_criu

StartWorkload = Callable[..., harness.Workload]

KINDS = [("memory", "--mib", "8"), ("ipc",), ("tree",), ("secret",)]


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.suffix != ".log"}


@pytest.fixture
def rsa(keys: sealed.Keys) -> tuple[list[str], list[str]]:
    """Options that encrypt, and options that decrypt."""
    certificate, key = keys.path("x509-rsa/recipient.pem"), keys.path("x509-rsa/identity.key")
    return ["--tls-cert", certificate], ["--tls-key", key]


@pytest.mark.parametrize("command", KINDS, ids=" ".join)
def test_a_plain_dump_to_criusec_and_back_is_restored_by_stock_criu(
    criu: Path,
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    rsa: tuple[list[str], list[str]],
    ram_dir: Path,
    command: tuple[str, ...],
) -> None:
    running = workload(*command)
    before = running.assert_intact()
    plain, encrypted, back = ram_dir / "plain", ram_dir / "criusec", ram_dir / "back"
    stock_criu.plain_dump(criu, running, plain)
    for name in ("dump.log", "dump.out"):
        (plain / name).unlink()
    made = sealpoint.run("convert", plain, "-o", encrypted, "--format", "criusec", *rsa[0]).ok()
    assert "the CRIUsec format protects less" in made.err
    found = leaks.scan_directory(encrypted, running.needles)
    # What is found in the clear was said to be.
    assert all(name in made.err for names in found.values() for name in names), found
    sealpoint.run("verify", encrypted, *rsa[1], "--allow-unsigned").ok()
    sealpoint.run("open", encrypted, "-o", back, *rsa[1]).ok()
    assert contents(back) == contents(plain)
    stock_criu.plain_restore(criu, back)
    running.assert_continues(before)


@pytest.mark.alone
def test_a_criusec_dump_is_sealed_and_restored_by_sealpoint(
    criu: Path,
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    rsa: tuple[list[str], list[str]],
    ram_dir: Path,
    tmp_path: Path,
) -> None:
    running = workload("tree")
    before = running.assert_intact()
    plain, encrypted, file = ram_dir / "plain", ram_dir / "criusec", tmp_path / "app.sealed"
    stock_criu.plain_dump(criu, running, plain)
    sealpoint.run("convert", plain, "-o", encrypted, "--format", "criusec", *rsa[0]).ok()
    with leaks.FileWatcher(running.needles, [tmp_path], ignore=[running.dir]) as watcher:
        convert = ("convert", encrypted, "-o", file, *rsa[1], *keys.seal)
        sealpoint.run(*convert).fails(5, "--allow-unsigned")
        sealpoint.run(*convert, "--allow-unsigned").ok()
        sealpoint.run("verify", file, *keys.open).ok()
    assert watcher.leaks() == []
    sealpoint.run("restore", file, *keys.open, "--detach").ok()
    running.assert_continues(before)


def test_a_sealed_dump_is_converted_for_a_criu_that_reads_criusec(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    rsa: tuple[list[str], list[str]],
    ram_dir: Path,
    tmp_path: Path,
) -> None:
    running = workload("ipc")
    file, encrypted = tmp_path / "app.sealed", ram_dir / "criusec"
    sealpoint.run("dump", "-t", running.pid, "-o", file, *keys.seal).ok()
    to = ("convert", file, "-o", encrypted, "--format", "criusec", *rsa[0], *keys.open)
    sealpoint.run(*to).ok()
    plain, back = ram_dir / "plain", ram_dir / "back"
    sealpoint.run("open", file, "-o", plain, *keys.open).ok()
    sealpoint.run("open", encrypted, "-o", back, *rsa[1]).ok()
    assert contents(plain) == contents(back)
    told = sealpoint.run("verify", encrypted, *rsa[1], "--allow-unsigned", "--json").ok()
    assert json.loads(told.out)["page_digest"] == {"": "matches"}
