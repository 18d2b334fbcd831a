"""`verify`, `info` and `rekey` as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from sealpoint.format.constants import PREAMBLE_SIZE
from sealpoint.format.preamble import Preamble
from tests.checkpoint.checkpoint_helpers import attributes, seal_objects


def damage(path: str, at: int) -> None:
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 1
    Path(path).write_bytes(data)


def slots(path: str) -> tuple[int, int, int]:
    """Where slot 0, slot 1 and the frames begin."""
    with open(path, "rb") as file:
        preamble = Preamble.decode(file.read(PREAMBLE_SIZE))
    return preamble.slot_offset(0), preamble.slot_offset(1), preamble.frames_offset


def test_verify_with_a_trusted_signer(cli, sealed, keys):
    result = cli("verify", sealed, "--trust", keys.trust_path)
    assert (result.code, result.err) == (0, "")
    assert "s.sealed: intact: every frame matches" in result.out
    assert f"(trusted), key {keys.key_id}" in result.out


def test_verify_without_a_trusted_signer_names_the_signer_and_ends_with_8(cli, sealed, keys):
    result = cli("verify", sealed)
    assert result.code == 8
    assert keys.key_id in result.out
    assert "trusted)" not in result.out
    assert "--trust" in result.err


def test_verify_by_the_key_id_that_it_named(cli, sealed, keys):
    assert cli("verify", sealed, "--trust", keys.key_id).code == 0


def test_verify_with_another_signer_ends_with_5(cli, sealed, others):
    result = cli("verify", sealed, "--trust", others.trust_path)
    assert result.code == 5
    assert "s.sealed: no trusted signer signed this" in result.err


def test_verify_with_an_identity_authenticates_every_chunk(cli, sealed, keys):
    result = cli("verify", sealed, "--trust", keys.trust_path, "-i", keys.identity_path)
    assert result.code == 0
    assert "every chunk is authentic" in result.out


def test_verify_json(cli, sealed, keys):
    values = json.loads(cli("verify", sealed, "--json", "--trust", keys.trust_path).out)
    assert values.pop("checkpoint")
    assert values.pop("frames") > 2
    assert values.pop("bytes") == os.stat(sealed).st_size
    assert values.pop("signers") == [
        {"name": f"ed25519 {keys.key_id[:12]}…", "key": keys.key_id, "trusted": True}
    ]
    assert values == {
        "file": sealed,
        "chunks_authenticated": False,
        "stored_chunks": 0,
        "stored_chunks_checked": False,
        "pages_elsewhere": False,
        "pages_checked": False,
        "parts": [],
        "interrupted_rekey": False,
        "freed": 0,
    }


def test_verify_json_without_trust_is_json_and_8(cli, sealed):
    result = cli("verify", sealed, "--json")
    assert result.code == 8
    assert json.loads(result.out)["signers"][0]["trusted"] is False


def test_verify_finds_a_damaged_frame_slot_and_end(cli, sealed, keys):
    whole = Path(sealed).read_bytes()
    first, _, frames = slots(sealed)
    for at in (0, first + 40, frames + 100, len(whole) - 1, len(whole) - 200):
        Path(sealed).write_bytes(whole)
        damage(sealed, at)
        result = cli("verify", sealed, "--trust", keys.trust_path)
        assert result.code == 3, at
    for size in (0, 10, 1000, len(whole) - 1):
        Path(sealed).write_bytes(whole[:size])
        result = cli("verify", sealed, "--trust", keys.trust_path)
        assert result.code == 3, size
        assert "s.sealed" in result.err


def test_an_unsigned_file_is_intact_and_no_more(cli, images, keys):
    assert cli("seal", images, "-o", "s", "-r", keys.recipient_path, "--unsigned").code == 0
    result = cli("verify", "s")
    assert result.code == 8
    assert "not signed" in result.out
    assert "not signed" in result.err
    assert cli("verify", "s", "--allow-unsigned").code == 0
    assert cli("verify", "s", "--trust", keys.trust_path).code == 5
    assert "nobody" in cli("info", "s").out


def test_verify_from_a_pipe(program, sealed, keys):
    data = Path(sealed).read_bytes()
    assert program("verify", "-", "--trust", keys.trust_path, input=data).code == 0
    assert program("verify", "-", "--trust", keys.trust_path, input=data[:-1]).code == 3
    result = program("verify", "-", "--trust", keys.trust_path, input=b"")
    assert result.code == 3
    assert "standard input" in result.err


def test_info_without_a_key_shows_nothing_of_the_contents(cli, sealed, keys):
    result = cli("info", sealed)
    assert (result.code, result.err) == (0, "")
    assert keys.fingerprint[:16] in result.out
    assert "img" not in result.out
    values = json.loads(cli("info", sealed, "--json").out)
    assert set(values) == {
        "checkpoint",
        "kind",
        "suite",
        "captured",
        "tool",
        "workload",
        "parent",
        "chain",
        "pruned",
        "signers",
        "header_sequence",
        "interrupted_rekey",
        "recipients",
        "file_size",
        "frames",
        "stored_chunks",
    }
    assert values["recipients"] == [
        {
            "name": f"x25519 {keys.fingerprint[:16]}",
            "fingerprint": keys.fingerprint,
            "opens": "memory",
        }
    ]
    assert (values["kind"], values["suite"], values["header_sequence"]) == (
        "full",
        "aes-256-gcm",
        1,
    )


def test_info_with_a_key_lists_the_objects(cli, sealed, keys):
    result = cli("info", sealed, "-i", keys.identity_path)
    assert "memory    core-1.img" in result.out
    values = json.loads(cli("info", sealed, "-i", keys.identity_path, "--json").out)
    assert {"name": "core-1.img", "role": "memory", "size": 4} in values["objects"]
    assert values["memory_objects"] == 2


def test_info_for_a_metadata_identity_counts_what_it_cannot_open(cli, keys, others, sealed):
    seal_objects(
        keys,
        "m",
        {"inventory.img": (b"i", None), "core-1.img": (b"core", None)},
        metadata=[others],
    )
    result = cli("info", "m", "-i", others.identity_path)
    assert "core-1" not in result.out
    assert "(1 objects that this identity cannot open)" in result.out


def test_no_control_character_of_a_file_reaches_the_terminal(cli, keys):
    evil = "\x1b[31mevil\x07\x9b\u202e\r"
    summary = (
        '{"tasks":[{"pid":"1","parent":"0","command":"\\u001b[31mx","memory":"5"}],"container":{}}'
    )
    objects = {
        "core" + evil + ".img": (b"", None),
        "sealpoint-summary.json": (summary.encode(), None),
    }
    seal_objects(keys, "s", objects, workload=evil)
    for arguments in (["info", "s"], ["info", "s", "-i", keys.identity_path], ["verify", "s"]):
        result = cli(*arguments)
        assert all(c.isprintable() or c == "\n" for c in result.out + result.err)
    assert r"\x1b[31mx" in cli("info", "s", "-i", keys.identity_path).out
    assert json.loads(cli("info", "s", "--json").out)["workload"] == evil


@pytest.mark.parametrize(
    "summary",
    [
        b"",
        b"[]",
        b'{"tasks":5,"container":{}}',
        b'{"tasks":[5],"container":{}}',
        b'{"tasks":[{"pid":"x","parent":"0","command":"","memory":"0"}],"container":{}}',
        b'{"tasks":[],"container":{"name":5}}',
        b'{"tasks":[],"container":{},"more":"x"}',
    ],
)
def test_a_hostile_summary_is_an_error_of_the_file(cli, keys, summary):
    seal_objects(keys, "s", {"sealpoint-summary.json": (summary, None)})
    result = cli("info", "s", "-i", keys.identity_path)
    assert result.code == 3
    assert "summary" in result.err


def rekey(cli, keys, file, *arguments):
    return cli("rekey", file, "-i", keys.identity_path, "--sign", keys.signer_path, *arguments)


def test_rekey_adds_and_removes(cli, keys, others, sealed):
    result = rekey(cli, keys, sealed, "--add", others.recipient_path)
    assert (result.code, result.err) == (0, "")
    assert others.fingerprint[:16] in result.out
    assert cli("verify", sealed, "--trust", keys.trust_path, "-i", others.identity_path).code == 0
    result = rekey(cli, keys, sealed, "--remove", others.recipient_path, "--json")
    values = json.loads(result.out)
    assert values["sequence"] == 3
    assert [r["fingerprint"] for r in values["recipients"]] == [keys.fingerprint]
    rekey(cli, keys, sealed, "--add", others.recipient_path)
    assert rekey(cli, keys, sealed, "--remove", others.fingerprint[:10].upper()).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "nothing to change"),
        (["--remove", "zz"], 2, "no such file, and not 8 or more digits"),
        (["--remove", "12345678"], 2, "no recipient of this checkpoint"),
        (["--remove", "SELF"], 2, "nobody would be able to open the memory"),
        (["--remove", "passphrase"], 2, "no recipient of this checkpoint"),
        (["--add", "SELF"], 2, "already"),
        (["--add", "none"], 2, "no such file"),
        (["--add-metadata", "SELF"], 2, "already"),
    ],
)
def test_rekey_refuses_what_cannot_be(cli, keys, sealed, arguments, code, words):
    before = Path(sealed).read_bytes()
    arguments = [keys.recipient_path if a == "SELF" else a for a in arguments]
    result = rekey(cli, keys, sealed, *arguments)
    assert result.code == code
    assert words in result.err
    assert Path(sealed).read_bytes() == before


def test_rekey_needs_identity_and_signer(cli, keys, others, sealed):
    result = cli("rekey", sealed, "--sign", keys.signer_path, "--add", others.recipient_path)
    assert (result.code, "no identity" in result.err) == (2, True)
    result = cli("rekey", sealed, "-i", keys.identity_path, "--add", others.recipient_path)
    assert (result.code, "no signing key" in result.err) == (2, True)
    assert cli("rekey", sealed, "-i", keys.identity_path, "--repair").code == 0
    result = cli("rekey", "-", "-i", keys.identity_path, "--repair")
    assert (result.code, "in place" in result.err) == (2, True)


def test_rekey_by_another_signer_warns(cli, keys, others, sealed):
    change = [
        "rekey",
        sealed,
        "-i",
        keys.identity_path,
        "--sign",
        others.signer_path,
        "--add",
        others.recipient_path,
    ]
    result = cli(*change)
    assert (result.code, "no trusted signer signed this" in result.err) == (5, True)
    result = cli(*change, "--trust", keys.trust_path)
    assert result.code == 0
    assert "trust both signers" in result.err
    assert cli("verify", sealed, "--trust", keys.trust_path).code == 5
    both = ["--trust", keys.trust_path, "--trust", others.trust_path]
    assert cli("verify", sealed, *both).code == 0


def test_an_interrupted_rekey_is_reported_and_repaired(cli, keys, others, sealed):
    first, second, frames = slots(sealed)
    old = Path(sealed).read_bytes()[first:second]
    rekey(cli, keys, sealed, "--add", others.recipient_path)
    whole = bytearray(Path(sealed).read_bytes())
    both = bytearray(whole)
    both[first:second] = old
    Path(sealed).write_bytes(both)
    result = cli("verify", sealed, "--trust", keys.trust_path)
    assert result.code == 0
    assert "--repair" in result.err
    assert "--repair" in cli("info", sealed).out
    assert json.loads(cli("info", sealed, "--json").out)["interrupted_rekey"] is True
    result = rekey(cli, keys, sealed, "--remove", others.recipient_path)
    assert (result.code, "--repair" in result.err) == (2, True)
    both[second + 100 : frames] = bytes(frames - second - 100)
    Path(sealed).write_bytes(both)
    for command in ("verify", "info"):
        result = cli(command, sealed)
        assert result.code == 3
        assert "sealpoint rekey FILE --repair" in result.err
    result = cli("rekey", sealed, "-i", keys.identity_path, "--repair")
    assert result.code == 0
    assert "repaired" in result.out
    assert cli("verify", sealed, "--trust", keys.trust_path).code == 0


def test_rekey_does_not_sign_what_a_removed_recipient_wrote(cli, keys, others, sealed):
    """Whoever could open the file once has its roots, and can make a header for themselves again."""
    rekey(cli, keys, sealed, "--add", others.recipient_path)
    shutil.copy(sealed, "theirs")
    theirs = ["-i", others.identity_path, "--sign", others.signer_path, "--trust", keys.trust_path]
    assert cli("rekey", "theirs", *theirs, "--remove", keys.recipient_path).code == 0
    back = ["-i", others.identity_path, "--sign", others.signer_path, "--allow-unsigned"]
    assert cli("rekey", "theirs", *back, "--add", keys.recipient_path).code == 0
    before = Path("theirs").read_bytes()
    result = rekey(cli, keys, "theirs", "--remove", others.fingerprint)
    assert (result.code, "no trusted signer signed this" in result.err) == (5, True)
    assert Path("theirs").read_bytes() == before
    # The configured signer is the one that signs, too.
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "sealpoint" / "config.toml"
    path.write_text(f'signer = "{keys.signer_path}"\n')
    change = ["rekey", "theirs", "-i", keys.identity_path, "--remove", others.fingerprint]
    assert cli(*change).code == 5
    assert Path("theirs").read_bytes() == before
    assert cli(*change, "--allow-unsigned").code == 0


def test_info_uses_no_key_on_a_strangers_file_where_trust_is_configured(cli, keys, others, sealed):
    opening = ["info", sealed, "-i", keys.identity_path]
    assert cli(*opening).code == 0
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "sealpoint" / "config.toml"
    path.write_text(f'trust = ["{others.trust_path}"]\n')
    result = cli(*opening)
    assert (result.code, result.out) == (5, "")
    assert "no trusted signer signed this" in result.err
    assert cli("info", sealed).code == 0
    assert cli("chain", sealed).code == 5
    for way in (["--allow-unsigned"], ["--trust", keys.trust_path]):
        assert cli(*opening, *way).code == 0
        assert cli("chain", sealed, *way).code == 0


def test_rekey_obeys_the_configured_trust(cli, keys, others, sealed):
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "sealpoint" / "config.toml"
    path.write_text(f'trust = ["{others.trust_path}"]\n')
    result = rekey(cli, keys, sealed, "--add", others.recipient_path)
    assert result.code == 5
    assert cli("verify", sealed).code == 5


def test_keygen_makes_private_files_and_overwrites_nothing(cli):
    result = cli("keygen", "k")
    assert result.code == 0
    assert stat.S_IMODE(os.stat("k/identity.key").st_mode) == 0o600
    assert stat.S_IMODE(os.stat("k").st_mode) == 0o700
    before = Path("k/identity.key").read_bytes()
    assert cli("keygen", "k").code == 2
    assert Path("k/identity.key").read_bytes() == before
    values = json.loads(cli("keygen", "k", "--signer", "--json").out)
    assert values["private"] == "k/signer.key"
    result = cli("keygen", "k2", "--signer", "--kind", "p256")
    assert (result.code, "--kind" in result.err) == (2, True)


def test_keys_that_others_can_read_are_a_warning(cli, keys, sealed, images, tmp_path):
    for name in ("identity", "signer"):
        path = tmp_path / f"{name}.key"
        path.write_bytes(Path(getattr(keys, f"{name}_path")).read_bytes())
        path.chmod(0o644)
    result = cli("info", sealed, "-i", tmp_path / "identity.key")
    assert result.code == 0
    assert "warning" in result.err
    assert "chmod 600" in result.err
    result = cli(
        "seal", images, "-o", "s", "-r", keys.recipient_path, "--sign", tmp_path / "signer.key"
    )
    assert result.code == 0
    assert "chmod 600" in result.err


def test_attributes_of_archives_do_not_disturb_info(cli, keys):
    seal_objects(keys, "s", {"d": (b"", attributes("directory")), "d/f": (b"1", attributes())})
    assert cli("info", "s", "-i", keys.identity_path).code == 0
