"""uninstall-criu: everything is as it was before, or it says why not."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from pathlib import Path

import pytest

from tests.dropin.own_machine import existing, fails, installed


def test_uninstall_leaves_nothing(machine, keys):
    before = machine.snapshot()
    installed(machine, keys)
    assert machine.snapshot() != before
    done = machine.sealpoint("uninstall-criu")
    assert done.code == 0, done.err
    assert f"removed {machine.executable}" in done.out
    assert "left" not in done.out
    assert machine.snapshot() == before
    fails(machine.sealpoint("uninstall-criu"), 2, "nothing is installed")
    assert machine.snapshot() == before


def test_an_existing_configuration_is_used_as_it_is(machine, keys):
    existing(machine, keys)
    text = machine.config.read_bytes()
    done = machine.install()
    assert done.code == 0, done.err
    assert "used as it is" in done.out
    assert "does not say which CRIU" in done.err
    assert machine.config.read_bytes() == text
    assert machine.sealpoint("uninstall-criu").code == 0
    assert machine.config.read_bytes() == text


def test_an_existing_configuration_comes_back_byte_for_byte(machine, keys):
    existing(machine, keys)
    before = machine.snapshot()
    fails(machine.install(*keys.opening), 2, "exists", "--force")
    assert machine.snapshot() == before
    installed(machine, keys, "--force")
    values = tomllib.loads(machine.config.read_text())
    assert values["compress"] == "none"  # what was set and is not given stays
    assert values["identities"] == [str(keys.identity)]
    done = machine.sealpoint("uninstall-criu", "--json")
    assert json.loads(done.out)["left"] == []
    assert machine.snapshot() == before


def test_options_given_again_change_nothing_and_others_change_what_is_ours(machine, keys, others):
    before = machine.snapshot()
    installed(machine, keys)
    text = machine.config.read_bytes()
    installed(machine, keys)
    assert machine.config.read_bytes() == text
    done = machine.install("-r", others.recipient)
    assert done.code == 0, done.err
    values = tomllib.loads(machine.config.read_text())
    assert values["recipients"] == [str(others.recipient)]
    assert values["signer"] == str(keys.signer)
    assert machine.sealpoint("uninstall-criu").code == 0
    assert machine.snapshot() == before


def test_what_was_changed_since_is_left_and_named(machine, keys, others):
    existing(machine, keys)
    installed(machine, keys, "--force")
    machine.config.write_text(machine.config.read_text() + "# edited\n")
    fails(machine.install("-r", others.recipient, "--force"), 2, "was changed since")
    assert machine.install().code == 0  # as it is
    machine.executable.write_text("#!/bin/sh\n")
    done = machine.sealpoint("uninstall-criu")
    assert done.code == 0
    assert f"left {machine.executable}: it was changed since" in done.out
    assert "left /etc/sealpoint/config.toml: it was changed since" in done.out
    assert "config.toml.before-sealpoint: what /etc/sealpoint/config.toml was before" in done.out
    assert machine.executable.read_text() == "#!/bin/sh\n"
    assert machine.config.read_text().endswith("# edited\n")
    assert "# ours" in Path(f"{machine.config}.before-sealpoint").read_text()
    assert not machine.record.exists()


@pytest.mark.parametrize("command", ["uninstall-criu", "install-criu", "doctor"])
@pytest.mark.parametrize("way", ["mode", "owner"])
def test_a_record_that_others_can_write_is_not_believed(machine, keys, command, way):
    """What it names, root removes and runs."""
    installed(machine, keys)
    precious = machine.prefix / "precious"
    precious.write_text("precious")
    values = json.loads(machine.record.read_text())
    digest = hashlib.sha256(b"precious").hexdigest()
    values["criu"] = {"path": str(precious), "ours": [digest], "before": ""}
    machine.record.write_text(json.dumps(values))
    if way == "mode":
        machine.record.chmod(0o666)
    else:
        os.chown(machine.record, 65534, 65534)
    before = machine.snapshot()
    done = machine.install() if command == "install-criu" else machine.sealpoint(command)
    assert done.code != 0
    assert "the record /etc/sealpoint/installed.json is refused" in done.out + done.err
    assert machine.snapshot() == before
    machine.record.chmod(0o644)
    os.chown(machine.record, 0, 0)
    assert machine.sealpoint("uninstall-criu").code == 0
    assert not precious.exists()


def test_nothing_is_removed_where_others_can_change_names(machine, keys):
    installed(machine, keys)
    machine.prefix.chmod(0o777)
    try:
        done = machine.sealpoint("uninstall-criu", "--json")
    finally:
        machine.prefix.chmod(0o755)
    (reason,) = (x for x in json.loads(done.out)["left"] if str(machine.prefix) in x)
    assert "can be changed by others" in reason
    assert machine.executable.exists()
