"""keygen."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from sealpoint.errors import SealpointError, SystemEnvironmentError, UsageError
from sealpoint.keys import load_identity, load_recipient, load_signer, load_trust, scrypt
from sealpoint.keys.generate import KINDS, generate, generate_signer


def mode(path: str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


@pytest.mark.parametrize("passphrase", [None, b"pass phrase"])
@pytest.mark.parametrize("kind", KINDS)
def test_generated_keys_open_what_is_sealed_to_them(kind, passphrase, tmp_path, context, roots):
    keys = generate(kind, str(tmp_path / "new" / "dir"), passphrase=passphrase, log2_n=10)
    recipient = load_recipient(keys.public)
    ask = None if passphrase is None else lambda: passphrase
    identity = load_identity(keys.private, passphrase=ask)
    assert identity.unwrap(recipient.wrap(roots, context), context) == roots
    assert identity.fingerprint.hex() == recipient.fingerprint.hex() == keys.fingerprint
    assert Path(keys.private).name == "identity.key"
    assert Path(keys.public).name == "recipient." + ("pem" if "x509" in kind else "pub")
    if keys.text is not None:
        assert load_recipient(keys.text).fingerprint == recipient.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_an_encrypted_identity_needs_its_passphrase(kind, tmp_path):
    keys = generate(kind, str(tmp_path), passphrase=b"right", log2_n=10)
    with pytest.raises(SealpointError):
        load_identity(keys.private)
    with pytest.raises(SealpointError):
        load_identity(keys.private, passphrase=lambda: b"wrong")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_private_files_are_private_whatever_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        keys = generate("x25519", str(tmp_path / "a"))
        signer = generate_signer(str(tmp_path / "a"))
    finally:
        os.umask(before)
    assert mode(keys.private) == mode(signer.private) == 0o600
    assert mode(keys.public) == mode(signer.public) == 0o644


@pytest.mark.parametrize("name", ["identity.key", "recipient.pub"])
def test_nothing_is_overwritten_and_nothing_half_is_left(name, tmp_path):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        generate("x25519", str(tmp_path))
    assert (tmp_path / name).read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_dangling_link_is_not_followed(tmp_path):
    (tmp_path / "identity.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError):
        generate("x25519", str(tmp_path))
    assert not (tmp_path / "elsewhere").exists()


def test_a_second_signer_does_not_overwrite_the_first(tmp_path):
    first = generate_signer(str(tmp_path))
    with pytest.raises(UsageError):
        generate_signer(str(tmp_path))
    assert load_signer(first.private).key_id == first.fingerprint


def test_a_directory_that_cannot_be_made_is_a_matter_of_the_machine(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemEnvironmentError):
        generate("x25519", str(tmp_path / "file" / "dir"))


def test_unknown_kinds_and_empty_passphrases_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="unknown kind") as caught:
        generate("dsa", str(tmp_path))
    assert "hybrid, x25519" in caught.value.hint
    for make in (generate_signer, lambda d, **k: generate("x509-ec", d, **k)):
        with pytest.raises(UsageError, match="empty"):
            make(str(tmp_path), passphrase=b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "usage"), [("x509-rsa", "key_encipherment"), ("x509-ec", "key_agreement")]
)
def test_self_signed_certificates_say_what_they_are_for(kind, usage, tmp_path):
    keys = generate(kind, str(tmp_path))
    cert = x509.load_pem_x509_certificate(Path(keys.public).read_bytes())
    constraints = cert.extensions.get_extension_for_class(x509.BasicConstraints)
    key_usage = cert.extensions.get_extension_for_class(x509.KeyUsage)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    assert key_usage.critical
    assert getattr(key_usage.value, usage)
    assert not key_usage.value.digital_signature
    assert cert.subject.rfc4514_string() == "CN=sealpoint recipient"
    years = (cert.not_valid_after_utc - cert.not_valid_before_utc).days / 365.25
    assert 9.9 < years < 10.1
    cert.verify_directly_issued_by(cert)


@pytest.mark.parametrize("passphrase", [None, b"pass phrase"])
def test_a_generated_signer_signs_and_is_trusted(passphrase, tmp_path):
    from tests.keys.keys_helpers import signed

    keys = generate_signer(str(tmp_path), passphrase=passphrase)
    ask = None if passphrase is None else lambda: passphrase
    signer = load_signer(keys.private, passphrase=ask)
    for trusted in (keys.public, keys.fingerprint, keys.fingerprint.upper(), keys.text):
        verified = load_trust([trusted]).evaluate(signed(signer))
        assert verified.key_ids == (keys.fingerprint,)


def test_private_keys_of_two_runs_differ(tmp_path):
    runs = [generate("hybrid", str(tmp_path / n)).fingerprint for n in "ab"]
    assert runs[0] != runs[1]


def test_the_default_cost_of_an_identity_file_is_2_to_the_17(tmp_path, monkeypatch):
    costs = []
    monkeypatch.setattr(scrypt, "_derive", lambda *a: costs.append(a[2]) or bytes(32))
    generate("x25519", str(tmp_path), passphrase=b"x")
    assert costs == [17]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
@pytest.mark.parametrize("kind", ["x509-rsa", "x509-ec", "signer"])
def test_openssl_reads_our_encrypted_keys(kind, tmp_path):
    if kind == "signer":
        keys = generate_signer(str(tmp_path), passphrase=b"pass phrase")
    else:
        keys = generate(kind, str(tmp_path), passphrase=b"pass phrase")
    command = ["openssl", "pkey", "-in", keys.private, "-noout", "-check", "-passin"]
    right = subprocess.run([*command, "pass:pass phrase"], capture_output=True, check=False)
    if b"unsupported" in right.stderr:
        pytest.skip("this openssl has no scrypt")
    assert right.returncode == 0, right.stderr
    wrong = subprocess.run([*command, "pass:wrong"], capture_output=True, check=False)
    assert wrong.returncode != 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_reads_our_signer_pub(tmp_path):
    keys = generate_signer(str(tmp_path))
    done = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", keys.public, "-noout", "-text"],
        capture_output=True,
        check=True,
    )
    assert b"ED25519" in done.stdout.upper()
