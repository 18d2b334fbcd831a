"""install-criu: what it puts where, and that what it put there works."""

from __future__ import annotations

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import sealpoint
from tests.dropin.own_machine import SEALPOINT, fails, installed
from tests.engines import rpc
from tests.real import harness, sealed


def test_the_installed_criu_is_the_real_one_but_for_dumps(machine, keys, criu):
    installed(machine, keys)
    real = subprocess.run([criu, "--version"], capture_output=True, text=True)
    assert machine.run(machine.executable, "--version").out == real.stdout
    checked = machine.run(machine.executable, "check")
    assert (checked.code, checked.out) == (0, "Looks good.\n")
    wrong = machine.run(machine.executable, "no-such-command")
    assert wrong.code != 0


def test_the_installed_criu_answers_the_rpc_of_engines(machine, keys):
    installed(machine, keys)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(60)
        number = theirs.fileno()
        process = machine.start(machine.executable, "swrk", number, pass_fds=[number])
        theirs.close()
        ours.send(rpc.request(rpc.VERSION))
        answer = rpc.decode(ours.recv(65536))
    assert process.wait(60) == 0
    assert answer[1] == rpc.VERSION
    assert answer[2] == 1
    assert rpc.decode(answer[10])[1] >= 3  # the major version


def test_the_installed_criu_dumps_sealed_and_restores(machine, keys, tmp_path):
    installed(machine, keys)
    images = tmp_path / "images"
    images.mkdir()
    # In the machine with all that it has open: CRIU would have to dump another mount namespace as well.
    victim = machine.start(
        "sh", "-c", "exec sleep 1000 </dev/null >/dev/null 2>&1", start_new_session=True
    )
    status = Path(f"/proc/{victim.pid}/status")
    sealed.wait_until(
        lambda: "Name:\tsleep\nUmask" in (text := status.read_text()) and "State:\tS" in text,
        "it sleeps",
    )
    try:
        dumped = machine.run(machine.executable, "dump", "-t", victim.pid, "-D", images)
    finally:
        victim.kill()
        victim.wait()
    assert dumped.code == 0, dumped.err
    verified = machine.sealpoint("verify", images / "inventory.img", "--trust", keys.trust)
    assert verified.code == 0, verified.err
    restored = machine.run(machine.executable, "restore", "-d", "-D", images)
    assert restored.code == 0, restored.err
    assert Path(f"/proc/{victim.pid}/comm").read_text() == "sleep\n"
    os.kill(victim.pid, 9)
    os.waitpid(victim.pid, 0)
    assert harness.process_state(victim.pid) is None


def test_what_is_written(machine, keys, criu):
    done = machine.install(
        *keys.sealing, *keys.opening, "--compress", "zstd", "--metadata-recipient", literal(keys, machine),
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["executable"] == str(machine.executable)
    assert said["criu"] == str(criu)
    assert said["warnings"] == []
    values = tomllib.loads(machine.config.read_text())
    assert values == {
        "recipients": [str(keys.recipient)],
        "metadata_recipients": [literal(keys, machine)],
        "signer": str(keys.signer),
        "identities": [str(keys.identity)],
        "trust": [str(keys.trust)],
        "compress": "zstd",
        "criu": str(criu),
    }
    assert machine.config.stat().st_mode & 0o7777 == 0o644
    assert machine.executable.stat().st_mode & 0o7777 == 0o755
    first = machine.executable.read_text().splitlines()[0]
    assert first == f"#!{sys.prefix}/bin/python3 -I"


def literal(keys, machine) -> str:
    """The public key of somebody else, as a literal."""
    path = machine.prefix.parent / "literal"
    if not path.exists():
        from sealpoint.keys.generate import generate

        generate("x25519", str(path))
    text = (path / "recipient.pub").read_text().splitlines()
    return next(x for x in text if x.startswith("sealpoint-"))


def test_relative_paths_and_umask_do_not_matter(machine, keys):
    done = machine.run(
        "sh", "-c", 'umask 077; cd "$0"; shift 0; exec "$@"', keys.directory, *SEALPOINT,
        "install-criu", "--from-checkout", "--prefix", machine.prefix.parent / "deep" / "er",
        "-r", "recipient.pub", "--sign", "./signer.key",
    )  # fmt: skip
    assert done.code == 0, done.err
    values = tomllib.loads(machine.config.read_text())
    assert values["recipients"] == [str(keys.recipient)]
    assert values["signer"] == str(keys.signer)
    assert machine.config.parent.stat().st_mode & 0o777 == 0o755
    assert machine.config.stat().st_mode & 0o777 == 0o644
    executable = machine.prefix.parent / "deep" / "er" / "criu"
    assert executable.stat().st_mode & 0o777 == 0o755
    assert "nothing can be restored here" in done.out  # no identity: this machine only dumps
    assert machine.sealpoint("uninstall-criu").code == 0
    assert not executable.parent.parent.exists()
    assert not machine.config.parent.exists()


def test_a_terminal_is_asked_for_what_is_missing(machine, keys):
    answers = [keys.recipient, "", keys.signer, keys.identity, keys.trust]
    master, slave = pty.openpty()
    process = machine.start(
        *SEALPOINT, "install-criu", "--from-checkout", "--prefix", machine.prefix,
        stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    os.close(slave)
    for answer in answers:
        os.write(master, f"{answer}\n".encode())
    output, _ = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0, output
    values = tomllib.loads(machine.config.read_text())
    assert values["recipients"] == [str(keys.recipient)]
    assert values["identities"] == [str(keys.identity)]
    assert values["trust"] == [str(keys.trust)]


def test_without_a_terminal_nobody_is_asked(machine):
    before = machine.snapshot()
    fails(machine.install(), 2, "neither dump nor restore", "--sign KEY")
    assert machine.snapshot() == before


def test_the_executable_survives_an_upgrade_of_the_installation(machine, keys, tmp_path):
    """As `make install` lays it out: a directory for each release, and a link to the current one."""
    prefix = tmp_path / "opt"
    prefix.mkdir()
    (prefix / ".sealpoint-prefix").touch()
    old = release(prefix, "1")
    done = machine.run(
        old / "bin" / "python", "-I", "-c", SEALPOINT[-1],
        "install-criu", "--prefix", machine.prefix, *keys.sealing,
    )  # fmt: skip
    assert done.code == 0, done.err
    first = machine.executable.read_text().splitlines()[0]
    assert first == f"#!{prefix}/current/bin/python3 -I"
    release(prefix, "2")
    shutil.rmtree(old)
    assert machine.run(machine.executable, "--version").code == 0


def test_an_installation_that_others_can_change_is_refused(machine, keys, tmp_path):
    home = release(tmp_path, "1")
    package = next(home.glob("lib/python*/site-packages/sealpoint"))
    package.chmod(0o777)
    done = machine.run(
        home / "bin" / "python", "-I", "-c", SEALPOINT[-1],
        "install-criu", "--prefix", machine.prefix, *keys.sealing,
    )  # fmt: skip
    fails(done, 2, "would run as root", "can be changed by others")


def release(prefix: Path, name: str) -> Path:
    home = prefix / name
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    packages = next(home.glob("lib/python*/site-packages"))
    source = Path(sealpoint.__file__).parent
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, packages / "sealpoint", ignore=ignore)
    import click

    (packages / "dependencies.pth").write_text(f"{Path(click.__file__).parent.parent}\n")
    (prefix / "current.new").symlink_to(name)
    (prefix / "current.new").rename(prefix / "current")
    return home
