"""`seal` and `open` as a user types them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.checkpoint.checkpoint_helpers import (
    attributes,
    listing,
    make_tar,
    member,
    read_tar,
    seal_objects,
)


def test_seal_then_open_says_what_was_done(cli, images, sealing, opening):
    result = cli("seal", images, "-o", "s", *sealing)
    assert result.code == 0
    assert result.err == ""
    assert "images sealed into s: 3 objects, 8.04 KiB in" in result.out
    assert "\na pre-dump: memory only\n" in result.out
    assert b"secret" not in Path("s").read_bytes()
    assert os.stat("s").st_mode & 0o777 == 0o600
    result = cli("open", "s", "-o", "o", *opening)
    assert (result.code, result.err) == (0, "")
    assert result.out == "3 objects, 8.04 KiB, in the clear in o\n"
    assert Path("o/pages-1.img").read_bytes() == Path("images/pages-1.img").read_bytes()


def test_json_results(cli, images, sealing, opening):
    result = cli("seal", images, "-o", "s", *sealing, "--json")
    values = json.loads(result.out)
    assert values["objects"] == 3
    assert values["kinds"] == {"": "pre-dump"}
    assert values["plain_size"] == 8228
    assert values["file_size"] == os.stat("s").st_size
    assert (len(values["checkpoint"]), len(values["origin"])) == (32, 64)
    values = json.loads(cli("open", "s", "-o", "o", *opening, "--json").out)
    assert values == {"output": "o", "objects": 3, "size": 8228}


def test_an_archive_goes_through_pipes_without_touching_a_disk(program, sealing, opening):
    archive = make_tar(member("checkpoint/pages-1.img", b"secret" * 1000))
    done = program("seal", "-", "-o", "-", "--as-files", *sealing, input=archive)
    assert done.code == 0
    assert "standard output: 1 objects" in done.err
    Path("s").write_bytes(done.out.encode(errors="surrogateescape"))
    with open("s", "rb") as file:
        opened = program("open", "-", "-o", "-", *opening, stdin=file)
    assert opened.code == 0
    assert read_tar(opened.out.encode(errors="surrogateescape")) == read_tar(archive)
    piped = program("open", "-", "-o", "-", *opening, input=Path("s").read_bytes())
    assert piped.out == opened.out
    assert listing(".") == {"s"}


def test_binary_output_is_not_written_to_a_terminal(images, sealing, opening, sealed):
    for arguments in (["seal", images, "-o", "-", *sealing], ["open", sealed, "-o", "-", *opening]):
        master, slave = os.openpty()
        done = subprocess.run(
            [sys.executable, "-c", "from sealpoint.cli import main; main()", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(slave)
        os.close(master)
        assert done.returncode == 2
        assert "would go to a terminal" in done.stderr


def test_standard_input_that_is_a_terminal_is_refused(sealing, opening):
    for arguments in (["seal", "-", "-o", "x", *sealing], ["open", "-", "-o", "x", *opening]):
        master, slave = os.openpty()
        done = subprocess.run(
            [sys.executable, "-c", "from sealpoint.cli import main; main()", *arguments],
            stdin=slave,
            capture_output=True,
            text=True,
            timeout=20,
        )
        os.close(slave)
        os.close(master)
        assert done.returncode == 2
        assert "standard input is a terminal" in done.stderr


def test_an_existing_output_is_kept_unless_forced(cli, images, sealing, opening):
    Path("s").write_text("precious")
    result = cli("seal", images, "-o", "s", *sealing)
    assert result.code == 2
    assert "--force" in result.err
    assert Path("s").read_text() == "precious"
    assert cli("seal", images, "-o", "s", *sealing, "--force").code == 0
    assert cli("open", "s", "-o", images, *opening).code == 2
    assert cli("open", "s", "-o", images, *opening, "--force").code == 0


def test_force_does_not_remove_the_directory_that_holds_the_sealed_file(cli, opening, sealed):
    os.mkdir("d")
    os.rename(sealed, "d/s")
    result = cli("open", "d/s", "-o", "d", *opening, "--force")
    assert result.code == 2
    assert "does not replace d" in result.err
    assert Path("d/s").exists()


def test_the_output_does_not_lie_in_the_directory_that_is_sealed(cli, images, sealing):
    for output in ("images/s", "./images/../images/s"):
        result = cli("seal", images, "-o", output, *sealing)
        assert result.code == 2
        assert "would lie in" in result.err
    assert listing(images) == {"inventory.img", "pagemap-1.img", "pages-1.img"}


def test_a_missing_directory_is_named(cli, images, sealing, opening, sealed):
    for arguments in (
        ["seal", images, "-o", "none/s", *sealing],
        ["open", sealed, "-o", "none/o", *opening],
        ["open", sealed, "-o", "none/o.tar", *opening],
    ):
        result = cli(*arguments)
        assert result.code == 2
        assert "there is no directory" in result.err


def test_only_some_objects(cli, sealed, opening):
    assert cli("open", sealed, "-o", "o", *opening, "--only", "core-*").code == 0
    assert listing("o") == {"core-1.img"}
    result = cli("open", sealed, "-o", "p", *opening, "--only", "nothing*")
    assert result.code == 2
    assert "sealpoint info" in result.err


def test_without_a_recipient_or_signer_nothing_is_sealed(cli, images, keys):
    result = cli("seal", images, "-o", "s", "--sign", keys.signer_path)
    assert (result.code, "no recipient" in result.err) == (2, True)
    result = cli("seal", images, "-o", "s", "-r", keys.recipient_path)
    assert (result.code, "no signing key" in result.err) == (2, True)
    result = cli(
        "seal",
        images,
        "-o",
        "s",
        "-r",
        keys.recipient_path,
        "--unsigned",
        "--sign",
        keys.signer_path,
    )
    assert (result.code, "contradict" in result.err) == (2, True)
    assert not os.path.exists("s")


def test_an_unsigned_file_opens_only_where_that_is_asked_for(cli, images, keys, opening):
    assert cli("seal", images, "-o", "s", "-r", keys.recipient_path, "--unsigned").code == 0
    result = cli("open", "s", "-o", "o", *opening)
    assert result.code == 5
    assert "--allow-unsigned" in result.err
    result = cli("open", "s", "-o", "o", "-i", keys.identity_path)
    assert result.code == 5
    assert not os.path.exists("o")
    assert cli("open", "s", "-o", "o", "-i", keys.identity_path, "--allow-unsigned").code == 0


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"-i": "others.identity"}, 4, "not sealed to this identity, but to: x25519"),
        ({"--trust": "others.trust"}, 5, "no trusted signer signed this"),
        ({"-i": None}, 2, "no identity given"),
        ({"-i": "keys.recipient"}, 4, "not an identity"),
        ({"-i": "none"}, 2, "no such file"),
        ({"--trust": "keys.recipient"}, 4, "not the public key of a signer"),
    ],
)
def test_wrong_keys(cli, keys, others, sealed, change, code, words):
    names = {"keys": keys, "others": others}
    options = {"-i": keys.identity_path, "--trust": keys.trust_path}
    for option, value in change.items():
        who, _, what = (value or "").partition(".")
        options[option] = getattr(names[who], what + "_path") if what else value
    arguments = [x for option, value in options.items() if value for x in (option, value)]
    result = cli("open", sealed, "-o", "o", *arguments)
    assert result.code == code
    assert words in result.err
    assert not os.path.exists("o")


@pytest.mark.parametrize("option", ["-r", "--recipient", "--tls-cert"])
def test_a_recipient_has_three_names_and_may_be_literal(cli, images, keys, opening, option):
    literal = Path(keys.recipient_path).read_text().splitlines()[-1]
    for recipient in (keys.recipient_path, literal):
        result = cli(
            "seal", images, "-o", "s", "--force", option, recipient, "--sign", keys.signer_path
        )
        assert result.code == 0
    for name in ("-i", "--identity", "--tls-key"):
        assert cli("open", "s", "-o", name, name, *opening[1:]).code == 0


def test_a_metadata_identity_is_told_what_it_did_not_get(cli, images, keys, others, sealing):
    assert (
        cli("seal", images, "-o", "s", *sealing, "--metadata-recipient", others.recipient_path).code
        == 0
    )
    result = cli("open", "s", "-o", "o", "-i", others.identity_path, "--trust", keys.trust_path)
    assert result.code == 0
    assert "memory objects were left out" in result.err
    assert listing("o") == {"inventory.img"}


def test_a_recipient_twice_is_refused(cli, images, keys, sealing):
    result = cli("seal", images, "-o", "s", *sealing, "-r", keys.recipient_path)
    assert (result.code, "twice" in result.err) == (2, True)
    result = cli("seal", images, "-o", "s", *sealing, "--metadata-recipient", keys.recipient_path)
    assert (result.code, "twice" in result.err) == (2, True)


def test_a_hostile_name_does_not_steer_the_terminal(cli, keys, opening):
    name = "evil\x1b]0;title\x07\x9b31m\u202e"
    seal_objects(keys, "s", {name: (b"", attributes("fifo"))})
    result = cli("open", "s", "-o", "o", *opening)
    assert result.code == 3
    assert "evil" in result.err
    assert all(c.isprintable() or c == "\n" for c in result.err)


def test_headers_that_are_not_kept_are_a_warning(cli, sealing):
    Path("a.tar").write_bytes(make_tar(member("a", pax_headers={"SCHILY.acl.access": "u"})))
    result = cli("seal", "a.tar", "-o", "s", "--as-files", *sealing)
    assert result.code == 0
    assert "warning: the archive's SCHILY.acl.access headers were not kept" in result.err


def test_a_damaged_archive_names_the_file(cli, sealing):
    Path("a.tar").write_bytes(make_tar(member("a", b"1" * 5000))[:3000])
    result = cli("seal", "a.tar", "-o", "s", *sealing)
    assert result.code == 3
    assert "a.tar: the archive is cut short" in result.err


def test_what_is_no_sealed_file_is_said_with_its_name(cli, opening):
    Path("x").write_bytes(b"hello" * 10_000)
    for command in (["open", "x", "-o", "o", *opening], ["verify", "x"], ["info", "x"]):
        result = cli(*command)
        assert result.code == 3
        assert "x: not a sealed checkpoint" in result.err


def test_every_kind_of_generated_key_seals_and_opens(cli, images, keys):
    for kind in ("hybrid", "x25519", "p256", "x509-ec", "x509-rsa"):
        made = json.loads(cli("keygen", kind, "--kind", kind, "--json").out)
        assert (
            cli(
                "seal", images, "-o", f"{kind}.s", "-r", made["public"], "--sign", keys.signer_path
            ).code
            == 0
        )
        result = cli(
            "open",
            f"{kind}.s",
            "-o",
            f"{kind}.o",
            "-i",
            made["private"],
            "--trust",
            keys.trust_path,
        )
        assert result.code == 0, result.err


def test_an_archive_is_recognised_by_content_not_by_name(cli, sealing, opening):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(*[member("a", b"1")[0], io.BytesIO(b"1")])
    Path("archive.zip").write_bytes(out.getvalue())
    assert cli("seal", "archive.zip", "-o", "s", "--as-files", *sealing).code == 0
    assert cli("open", "s", "-o", "o.tar.gz", *opening).code == 0
    assert list(read_tar(Path("o.tar.gz").read_bytes())) == ["a"]
