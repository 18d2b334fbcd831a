"""`open`, `info`, `verify`, `crit`, `inspect`, `convert` on a dump in the CRIUsec format."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from sealpoint.criusec import limits
from sealpoint.format.raw import Descriptor
from tests.criusec import criusec_made as made
from tests.criusec.criusec_helpers import copy_key, load_vectors, unpack, write

STORED = load_vectors()
PLAIN = STORED["whole"]["plain"]
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def key():
    return copy_key(made.KEY, ".")


@pytest.fixture
def certificate(key):
    """As scripts/criu-keygen of the patches makes it: self-signed, with an empty name."""
    private = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    now, name = dt.datetime.now(dt.UTC), x509.Name([])
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    built = built.public_key(private.public_key()).serial_number(7)
    made_ = built.not_valid_before(now - HOUR).not_valid_after(now + HOUR)
    pem = made_.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    Path("cert.pem").write_bytes(pem)
    return "cert.pem"


@pytest.fixture
def dump():
    return write(unpack(STORED["whole"]), "dump")


def hashed(directory) -> dict[str, str]:
    files = Path(directory).iterdir()
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_open_decrypts_every_file_and_says_what_that_is_worth(cli, dump, key):
    done = cli("open", dump, "-o", "plain", "--tls-key", key)
    assert done.code == 0, done.err
    assert hashed("plain") == PLAIN
    assert "dump is not signed" in done.err
    assert "in the clear in plain" in done.out
    assert {p.stat().st_mode & 0o777 for p in Path("plain").iterdir()} == {0o600}


def test_open_makes_archives_and_takes_parts(cli, dump, key):
    import tarfile

    assert cli("open", dump, "-o", "p.tar.gz", "-i", key, "--only", "pages-*").code == 0
    with tarfile.open("p.tar.gz") as tar:
        data = {n: tar.extractfile(n).read() for n in tar.getnames()}
    assert {n: hashlib.sha256(d).hexdigest() for n, d in data.items()} == {
        n: d for n, d in PLAIN.items() if n.startswith("pages-")
    }
    assert cli("open", dump, "-o", "none", "-i", key, "--only", "x*").code == 2
    assert not Path("none").exists()


@pytest.mark.parametrize("name", ["page-changed", "record-changed", "digest-changed"])
def test_nothing_appears_of_a_dump_that_was_changed(cli, key, name):
    damaged = write(unpack(STORED[name]), "damaged")
    done = cli("open", damaged, "-o", "plain", "-i", key)
    assert done.code == 3
    assert not Path("plain").exists()
    assert cli("verify", damaged, "-i", key).code == 3
    unsigned = ("--allow-unsigned", "--unsigned")
    done = cli("convert", damaged, "-o", "s.sealed", "-i", key, *unsigned, "-r", "nobody")
    assert done.code != 0
    assert not Path("s.sealed").exists()


def test_errors_name_the_file_and_the_offset(cli, key):
    damaged = write(unpack(STORED["record-changed"]), "damaged")
    done = cli("open", damaged, "-o", "plain", "-i", key)
    assert "damaged:core-1.img: a record is not authentic, at offset 12" in done.err


def test_the_wrong_key_and_none_are_told_apart_from_damage(cli, dump, keys):
    done = cli("open", dump, "-o", "plain", "-i", keys.identity_path)
    assert done.code == 4
    assert "RSA private key" in done.err
    assert cli("open", dump, "-o", "plain").code == 2
    subprocess.run(
        ["openssl", "genrsa", "-out", "other.pem", "2048"], check=True, capture_output=True
    )
    os.chmod("other.pem", 0o600)
    done = cli("open", dump, "-o", "plain", "-i", "other.pem")
    assert done.code == 4
    assert "the key does not open the dump" in done.err


def test_info_says_without_a_key_what_is_visible_and_what_is_not_detected(cli, dump):
    done = cli("info", dump)
    assert done.code == 0, done.err
    for text in (*limits.UNDETECTED, *limits.VISIBLE, "signed by   nobody", "RSA key of 2048 bits"):
        assert text in done.out
    values = json.loads(cli("info", dump, "--json").out)
    files = {f["name"]: f for f in values["dumps"][0]["files"]}
    assert files.keys() == PLAIN.keys()
    assert not files["nftables-5.img"]["encrypted"]
    assert files["core-1.img"]["encrypted"]
    assert values["not_detected"] == list(limits.UNDETECTED)


def test_verify_never_ends_as_if_all_were_well_unless_told_so(cli, dump, key):
    done = cli("verify", dump, "-i", key)
    assert done.code == 8
    for text in (*limits.UNDETECTED, "not signed", "ghost-file-2.img"):
        assert text in done.out
    assert "matches without the shared memory of IPC namespaces" in done.out
    assert cli("verify", dump, "-i", key, "--allow-unsigned").code == 0
    values = json.loads(cli("verify", dump, "-i", key, "--allow-unsigned", "--json").out)
    assert values["files"] == len(PLAIN)
    assert values["signers"] == []
    assert "ghost-file-2.img" in values["in_the_clear"]


def test_what_no_reader_can_detect_is_not_claimed_to_be_detected(cli, key):
    """Each vector that opens although it was changed: verify passes it, and says that it would."""
    for name, vector in STORED.items():
        if not vector.get("undetected"):
            continue
        changed = write(unpack(vector), name)
        done = cli("verify", changed, "-i", key)
        assert done.code == 8, (name, done.err)
        assert limits.UNDETECTED[1] in done.out


def test_crit_reads_an_image_by_the_keys_beside_it(cli, dump, key):
    done = cli("crit", "decode", f"{dump}/pstree.img", "--tls-key", key)
    assert done.code == 0, done.err
    assert [e["pid"] for e in json.loads(done.out)["entries"]] == [1, 2]
    for image, extra in (("pipes-data", 70), ("ghost-file-1", 4100), ("ghost-file-2", 50)):
        done = cli("crit", "show", f"{dump}:{image}.img", "-i", key)
        assert done.code == 0, done.err
        assert "extra" in done.out, extra
    # what is not encrypted needs no key
    assert cli("crit", "show", f"{dump}/stats-dump").code == 0
    assert cli("crit", "show", f"{dump}/pstree.img").code == 2


def test_reading_commands_see_the_plain_dump(cli, dump, key):
    done = cli("inspect", dump, "--ps-tree", "--format", "json", "-i", key)
    assert done.code == 0, done.err
    assert json.loads(done.out)[0]["process_tree"][0]["pid"] == 1
    done = cli("crit", "x", dump, "ps", "-i", key)
    assert done.code == 0, done.err


def test_a_dump_in_an_engines_archive_is_read_as_well(cli, key):
    import tarfile

    write(unpack(STORED["whole"]), "box/checkpoint")
    with tarfile.open("box.tar", "w") as tar:
        tar.add("box/checkpoint", "checkpoint")
    done = cli("crit", "decode", "box.tar:checkpoint/pstree.img", "-i", key)
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["entries"]) == 2


def test_a_signature_on_what_nobody_signed_takes_a_word(cli, dump, key, sealing):
    arguments = ("convert", dump, "-o", "s.sealed", "-i", key, "--as-files", *sealing)
    done = cli(*arguments)
    assert done.code == 5
    assert "--allow-unsigned" in done.err
    assert not Path("s.sealed").exists()
    done = cli(*arguments, "--allow-unsigned")
    assert done.code == 0, done.err
    assert "dump is not signed" in done.err


def test_a_sealed_file_made_of_a_dump_names_it_and_opens_to_the_plain_images(
    cli, dump, key, sealing, opening
):
    import blake3

    done = cli(
        *("convert", dump, "-o", "s.sealed", "-i", key, *sealing),
        *("--as-files", "--allow-unsigned", "--json"),
    )
    assert done.code == 0, done.err
    checkpoint = json.loads(done.out)["checkpoint"]
    info = json.loads(cli("info", "s.sealed", "--json").out)
    assert info["kind"] == "derived"
    assert info["checkpoint"] == checkpoint
    assert cli("verify", "s.sealed", *opening).code == 0
    assert cli("open", "s.sealed", "-o", "plain", *opening).code == 0
    assert hashed("plain") == PLAIN
    from sealpoint.format.reader import SealedFile
    from sealpoint.format.statement import Origin

    fd = os.open("s.sealed", os.O_RDONLY)
    try:
        origin = Origin.decode(SealedFile(Descriptor(fd)).origin_envelope.payload)
    finally:
        os.close(fd)
    digest = blake3.blake3(Path(dump, "cipher.img").read_bytes()).digest()
    assert origin.derived_from.origin_digest == digest
    assert origin.derived_from.checkpoint_id == digest[:16]


def test_sealed_to_criusec_and_back_loses_nothing(cli, dump, key, certificate, sealing, opening):
    cli("convert", dump, "-o", "s.sealed", "-i", key, *sealing, "--allow-unsigned", "--as-files")
    to = ("convert", "s.sealed", "-o", "again", "--format", "criusec", "--tls-cert", certificate)
    done = cli(*to, *opening)
    assert done.code == 0, done.err
    assert "the CRIUsec format protects less" in done.err
    for text in limits.VISIBLE:
        assert text in done.err
    assert "ghost-file-2.img" in done.err  # what stays in the clear is named
    assert cli("open", "again", "-o", "plain", "--tls-key", key).code == 0
    assert hashed("plain") == PLAIN
    # a restore by the patched CRIU compares the sum over all pages
    values = json.loads(cli("verify", "again", "-i", key, "--allow-unsigned", "--json").out)
    assert values["page_digest"] == {"": "matches"}
    # only with trust
    assert cli(*to[:3], "other", *to[4:], "-i", opening[1]).code == 5


def test_plain_to_criusec_writes_no_plaintext(cli, dump, key, certificate):
    cli("open", dump, "-o", "plain", "-i", key)
    Path("plain/dump.log").write_bytes(b"a log")
    arguments = ("convert", "plain", "--format", "criusec", "-r", certificate, "-o")
    done = cli(*arguments, "made")
    assert done.code == 0, done.err
    assert "left out, because it is not an image of CRIU: dump.log" in done.err
    assert not Path("made/dump.log").exists()
    clear = {"stats-dump", "ifaddr-5.img", "nftables-5.img", "ip6tables-5.img"}
    for path in Path("plain").iterdir():
        data = path.read_bytes()
        if path.name not in clear | {"dump.log", "ghost-file-2.img"}:
            assert data[12:] not in Path("made", path.name).read_bytes() or not data[12:]
    assert cli(*arguments, "made").code == 2  # never overwritten
    assert cli("convert", "made", "--format", "plain", "-o", "p2", "-i", key).code == 0
    assert hashed("p2") == PLAIN


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plain", "-o", "x"], "not a dump in the CRIUsec format"),
        (["plain", "-o", "x", "--format", "plain"], "sealpoint open"),
        (["dump", "-o", "x", "--format", "criusec", "-r", "cert.pem"], "already"),
        (["plain", "-o", "x.tar", "--format", "criusec", "-r", "cert.pem"], "is a directory"),
        (["plain", "-o", "x", "--format", "criusec"], "one recipient"),
        (["plain", "-o", "x", "--format", "criusec", "-r", "KEYS"], "RSA certificate"),
        (
            [
                "plain",
                "-o",
                "x",
                "--format",
                "criusec",
                "-r",
                "cert.pem",
                "--metadata-recipient",
                "KEYS",
            ],
            "no metadata recipients",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused(cli, dump, key, certificate, keys, arguments, says):
    write({"core-1.img": made.magic("CORE")}, "plain")
    done = cli("convert", *[keys.recipient_path if a == "KEYS" else a for a in arguments])
    assert done.code == 2
    assert says in done.err
    assert not Path("x").exists()


def test_increments_are_not_converted(cli, certificate):
    write({"core-1.img": made.magic("CORE")}, "plain")
    write({"core-1.img": made.magic("CORE")}, "before")
    os.symlink("../before", "plain/parent")
    done = cli("convert", "plain", "-o", "x", "--format", "criusec", "-r", certificate)
    assert done.code == 2
    assert "increment" in done.err


def test_a_link_to_a_parent_is_left_out_and_said_so(cli, dump, key):
    os.symlink("..", f"{dump}/parent")
    done = cli("open", dump, "-o", "plain", "-i", key)
    assert done.code == 0
    assert "parent is left out" in done.err
    assert hashed("plain") == PLAIN


def test_seal_seals_it_as_it_is_and_says_so(cli, dump, key, sealing, opening):
    done = cli("seal", dump, "-o", "s.sealed", *sealing)
    assert done.code == 0, done.err
    assert "sealed as it is" in done.err
    assert cli("open", "s.sealed", "-o", "same", *opening).code == 0
    assert cli("verify", "same", "-i", key, "--allow-unsigned").code == 0


def test_a_full_disk_leaves_nothing(cli, dump, key, certificate, tmp_path, monkeypatch):
    from sealpoint.checkpoint.opening import extract
    from sealpoint.errors import SystemEnvironmentError

    def full(fd, buffers, what):
        raise SystemEnvironmentError(f"no space left for {what}")

    cli("open", dump, "-o", "plain", "-i", key)
    before = sorted(os.listdir("."))
    monkeypatch.setattr(extract, "write_all", full)
    assert cli("open", dump, "-o", "other", "-i", key).code == 6
    to = ("convert", "plain", "-o", "made", "--format", "criusec", "-r", certificate)
    assert cli(*to).code == 6
    assert sorted(os.listdir(".")) == before


def test_force_replaces_the_output_but_never_the_input(cli, dump, key):
    assert cli("open", dump, "-o", "plain", "-i", key).code == 0
    assert cli("open", dump, "-o", "plain", "-i", key).code == 2
    assert cli("open", dump, "-o", "plain", "-i", key, "--force").code == 0
    assert hashed("plain") == PLAIN
    assert cli("open", dump, "-o", dump, "-i", key, "--force").code == 2
    assert Path(dump, "cipher.img").exists()


def test_a_dump_that_nobody_signed_does_not_pass_where_signers_are_named(cli, dump, key, opening):
    """Who exchanges a sealed file for a dump needs no more than the certificate."""
    trust = opening[2:]
    for arguments in (
        ("open", dump, "-o", "plain", "-i", key),
        ("convert", dump, "--format", "plain", "-o", "plain", "-i", key),
    ):
        done = cli(*arguments, *trust)
        assert done.code == 5
        assert "has no signatures" in done.err
        assert not Path("plain").exists()
    Path(os.environ["XDG_CONFIG_HOME"], "sealpoint/config.toml").write_text(
        f'trust = ["{trust[1]}"]\n'
    )
    assert cli("open", dump, "-o", "plain", "-i", key).code == 5
    assert cli("open", dump, "-o", "plain", "-i", key, "--allow-unsigned").code == 0
    assert hashed("plain") == PLAIN


def test_what_stays_in_the_clear_is_named_before_it_is_written(
    cli, dump, key, certificate, monkeypatch
):
    assert cli("open", dump, "-o", "plain", "-i", key).code == 0

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sealpoint.checkpoint.opening.extract.write_directory", stop)
    done = cli("convert", "plain", "-o", "x", "--format", "criusec", "-r", certificate)
    assert done.code == 130
    for name in ("ghost-file-2.img", "nftables-5.img", "stats-dump"):
        assert name in done.err
    assert "ghost-file-1.img" not in done.err
    assert not Path("x").exists()
