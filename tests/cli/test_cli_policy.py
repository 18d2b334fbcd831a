"""`policy check` as a user types it, and what tables of `trust` mean to every command."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.checkpoint.checkpoint_helpers import seal_objects


@pytest.fixture
def configure():
    """Writes the configuration."""
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "sealpoint" / "config.toml"
    return path.write_text


@pytest.fixture
def billing(keys):
    """A sealed file of the workload billing."""
    seal_objects(
        keys,
        "billing.sealed",
        {"inventory.img": (b"x", None)},
        workload="billing",
        captured=int(time.time()),
    )
    return "billing.sealed"


TABLES = {
    'workloads = "billing"': None,
    'workloads = ["shop", "bill*"]': None,
    'kinds = ["full", "derived"]': None,
    'max_age = "1h"': None,
    'workloads = "shop"': "trusted for workloads shop, and this is workload 'billing'",
    'kinds = "merged"': "trusted for kinds merged, and this is kind 'full'",
    'workloads = "billing", kinds = "merged"': "kind 'full'",
}


@pytest.mark.parametrize(("limits", "problem"), TABLES.items())
def test_tables_of_trust_limit_a_signer_at_every_door(
    cli, keys, billing, configure, limits, problem
):
    configure(f'trust = [{{ key = "{keys.trust_path}", {limits} }}]\n')
    told = json.loads(cli("policy", "check", billing, "--json").out)
    assert told["believed"] is (problem is None)
    assert [s["statement"] for s in told["statements"]] == ["contents", "header"]
    opening = ["-i", keys.identity_path]
    doors = (
        ["policy", "check", billing],
        ["verify", billing, *opening],
        ["info", billing, *opening],
        ["open", billing, "-o", "out", *opening],
        ["show", billing, *opening],
        ["chain", billing],
        ["rekey", billing, *opening, "--sign", keys.signer_path, "--remove", "00000000"],
    )
    for door in doors:
        done = cli(*door)
        assert ("no signer is trusted for this checkpoint" in done.err) is (problem is not None), (
            door
        )
        if problem is not None:
            assert done.code == 5, door
            assert problem in done.err
    done = cli("policy", "check", billing)
    assert f"contents: {'yes' if problem is None else 'no'}: " in done.out
    assert ("header: yes" in done.out) is (problem is None)
    # What the command line names is trusted without limits.
    assert cli("verify", billing, *opening, "--trust", keys.trust_path).code == 0


def test_policy_check_says_each_reason(cli, keys, others, billing, configure):
    configure(
        f'[[trust]]\nkey = "{keys.trust_path}"\nworkloads = "shop*"\n'
        f'[[trust]]\nkey = "{keys.trust_path}"\nkinds = "full"\n'
    )
    done = cli("policy", "check", billing)
    assert done.code == 0
    assert "workload billing, kind full, captured" in done.out
    for statement in ("contents", "header"):
        assert f"{statement}: no: " in done.out
        assert f"{statement}: yes: " in done.out
    assert "trusted for workloads shop*, and this is workload 'billing'" in done.out
    assert done.out.endswith("\ntrusted\n")
    done = cli("policy", "check", billing, "--trust", others.trust_path)
    assert done.code == 5
    assert "its key is not trusted" in done.out
    assert "no trusted signer signed this" in done.err
    done = cli("policy", "check", billing, "--trust", others.trust_path, "--allow-unsigned")
    assert (done.code, done.out.endswith("accepted unsigned\n")) == (0, True)


def test_a_header_by_a_signer_who_is_limited_to_another_workload_is_not_believed(
    cli, keys, others, billing, configure
):
    change = ["--add", others.recipient_path, "--sign", others.signer_path]
    trust = ["--trust", keys.trust_path]
    assert cli("rekey", billing, "-i", keys.identity_path, *change, *trust).code == 0
    for workload, code in (("shop", 5), ("billing", 0)):
        configure(
            f'trust = ["{keys.trust_path}", {{ key = "{others.trust_path}", workloads = "{workload}" }}]\n'
        )
        done = cli("policy", "check", billing)
        assert done.code == code
        assert "contents: yes" in done.out
        assert ("header: yes" in done.out) is (code == 0)


def test_policy_check_without_trust_and_of_what_is_no_sealed_file(cli, keys, billing):
    assert cli("policy", "check", billing).code == 5
    Path("x").write_bytes(b"no sealed file")
    done = cli("policy", "check", "x", "--trust", keys.trust_path)
    assert (done.code, "x: " in done.err) == (3, True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('trust = [{ key = "a", workload = "b" }]', "line 1: trust: no such setting in a table"),
        ("trust = [1]", "line 1: trust: must be a list of strings or tables"),
        ('[[trust]]\nworkloads = "x"', "line 1: trust: a table needs either key or authority"),
        ('signer_usages = "x"', "line 1: signer_usages: 'x' is not a dotted object identifier"),
        ('signer_usages = "2.5.29.37.0"', "anyExtendedKeyUsage"),
    ],
)
def test_mistakes_are_told_with_their_line(cli, billing, configure, text, problem):
    configure(text + "\n")
    done = cli("policy", "check", billing)
    assert done.code == 2
    assert problem in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives files to others")
@pytest.mark.parametrize("option", ["--trust", "-i", "-r", "--sign"])
def test_what_the_command_line_names_is_used_with_a_warning(cli, images, keys, tmp_path, option):
    files = {
        "--trust": keys.trust_path,
        "-i": keys.identity_path,
        "-r": keys.recipient_path,
        "--sign": keys.signer_path,
    }
    theirs = tmp_path / "theirs"
    shutil.copy(files[option], theirs)
    theirs.chmod(0o600)
    named = files | {option: str(theirs)}
    seal = ["seal", images, "-r", named["-r"], "--sign", named["--sign"], "--force", "-o", "s"]
    verify = ["verify", "s", "-i", named["-i"], "--trust", named["--trust"]]
    for owner in (0, 65534):
        os.chown(theirs, owner, owner)
        done = [cli(*seal), cli(*verify)]
        assert [d.code for d in done] == [0, 0]
        said = "".join(d.err for d in done)
        assert (f"warning: {theirs} belongs to user 65534" in said) is (owner != 0)
