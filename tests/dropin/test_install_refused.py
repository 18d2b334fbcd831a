"""What install-criu refuses, and that nothing has changed then."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.dropin.own_machine import fails, installed


def test_a_checkout_is_refused(machine, keys):
    before = machine.snapshot()
    done = machine.sealpoint("install-criu", "--prefix", machine.prefix, *keys.sealing)
    fails(done, 2, "not an installation", "make install")
    assert machine.snapshot() == before
    assert "--from-checkout" not in machine.sealpoint("install-criu", "--help").out


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_a_foreign_criu_is_never_overwritten(machine, keys, kind):
    if kind == "file":
        machine.executable.write_text("#!/bin/sh\nexec /usr/sbin/criu\n")
    elif kind == "link":
        machine.executable.symlink_to("/usr/sbin/criu")
    else:
        machine.executable.mkdir()
    before = machine.snapshot()
    fails(machine.install(*keys.sealing, "--force"), 2, "exists and is not sealpoint's drop-in")
    assert machine.snapshot() == before


def test_the_real_criu_is_never_overwritten(machine, keys, criu):
    fails(
        machine.install(*keys.sealing, "--prefix", criu.parent, "--criu", criu),
        2,
        "is the real CRIU",
    )


def test_a_prefix_that_others_can_change_is_refused(machine, keys):
    before = machine.snapshot()
    machine.prefix.chmod(0o777)
    fails(machine.install(*keys.sealing), 2, "can be changed by others (mode 0777)")
    machine.prefix.chmod(0o755)
    os.chown(machine.prefix, 65534, 65534)
    fails(machine.install(*keys.sealing), 2, "belongs to user 65534")
    os.chown(machine.prefix, 0, 0)
    assert machine.snapshot() == before


def test_keys_are_loaded_before_anything_is_written(machine, keys, others, tmp_path):
    from sealpoint.keys.generate import generate, generate_signer

    locked = tmp_path / "locked"
    generate_signer(str(locked), passphrase=b"secret")
    generate("x25519", str(locked), passphrase=b"secret")
    before = machine.snapshot()
    sign = ("--sign", keys.signer)
    for code, arguments, word in [
        (2, ("-r", "nowhere.pub", *sign), "nowhere.pub"),
        (4, ("-r", keys.identity, *sign), "not a recipient"),
        (2, ("-r", "passphrase", *sign), "cannot ask for a passphrase"),
        (2, ("-r", keys.recipient), "--sign KEY is missing"),
        (2, sign, "-r RECIPIENT is missing"),
        (2, ("-r", keys.recipient, "-r", keys.recipient, *sign), "given twice"),
        (4, ("-r", keys.recipient, "--sign", locked / "signer.key"), "passphrase"),
        (4, ("-r", keys.recipient, "--sign", keys.identity), "identity.key"),
        (4, (*keys.sealing, "-i", locked / "identity.key", "--trust", keys.trust), "passphrase"),
        (4, (*keys.sealing, "-i", keys.recipient, "--trust", keys.trust), "not an identity"),
        (2, (*keys.sealing, "-i", keys.identity), "--trust SIGNER is missing"),
        (4, (*keys.sealing, "-i", keys.identity, "--trust", keys.signer), "private key"),
        (2, (*keys.sealing, "--compress", "best"), "--compress"),
    ]:
        fails(machine.install(*arguments), code, word)
        assert machine.snapshot() == before


def test_a_key_that_others_can_read_is_told(machine, keys):
    keys.signer.chmod(0o644)
    done = machine.install(*keys.sealing)
    assert done.code == 0
    assert "signer.key holds a private key and is open to others" in done.err


def test_a_broken_configuration_is_told_with_its_line(machine, keys):
    machine.config.parent.mkdir()
    machine.config.write_text("# x\nsigner = 3\n")
    before = machine.snapshot()
    fails(machine.install(*keys.sealing, "--force"), 2, "config.toml, line 2: signer")
    assert machine.snapshot() == before


def test_a_criu_that_does_not_work_here(machine, keys, tmp_path):
    before = machine.snapshot()
    fails(machine.install(*keys.sealing, "--criu", tmp_path / "none"), 6, "not an executable CRIU")
    text = machine.program("other", "#!/bin/sh\necho hello\n")
    fails(machine.install(*keys.sealing, "--criu", text), 6, "does not answer as CRIU does")
    broken = machine.program("broken", "#!/bin/sh\necho Version: 4.0\n[ $1 = --version ]\n")
    fails(machine.install(*keys.sealing, "--criu", broken), 6, "does not work here", "--force")
    assert machine.snapshot() == before
    done = machine.install(*keys.sealing, "--criu", broken, "--force")
    assert done.code == 0
    assert "does not work here" in done.err


def test_the_drop_in_is_not_taken_for_the_real_criu(machine, keys, criu):
    installed(machine, keys)
    fails(machine.install("--criu", machine.executable), 2, "is sealpoint's drop-in")
    other = machine.bin / "criu"
    shutil.copy(machine.executable, other)  # also first in PATH
    fails(machine.install("--criu", other), 2, "is sealpoint's drop-in")
    other.unlink()


def test_another_prefix_while_it_is_installed(machine, keys):
    installed(machine, keys)
    fails(
        machine.install(*keys.sealing, "--prefix", machine.prefix.parent / "deep"),
        2,
        f"installed as {machine.executable}",
        "uninstall-criu",
    )


def test_a_prefix_that_comes_too_late_in_path_is_told(machine, keys):
    machine.program("criu", "#!/bin/sh\n")
    machine.services_path = f"{machine.bin}:{machine.prefix}"
    machine.systemctl()
    done = machine.install(*keys.sealing)
    assert done.code == 0, done.err
    assert "a login of root" not in done.err
    assert f"a systemd service finds {machine.bin}/criu before the drop-in" in done.err


def test_only_root_can_install(monkeypatch):
    from sealpoint.errors import SystemEnvironmentError
    from sealpoint.machine import install

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemEnvironmentError, match="only root"):
        install.install(install.Request("/nowhere"))
    with pytest.raises(SystemEnvironmentError, match="only root"):
        install.uninstall()
