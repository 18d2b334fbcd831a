"""Dumps with keys, certificates or passphrases that will not do: a clear message, the documented exit code, the
process runs on, nothing is left."""

from __future__ import annotations

import contextlib
import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.real import harness, sealed


def expired_certificate(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "of yesterday")])
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 9 * day)
        .not_valid_after(now - day)
        .add_extension(x509.KeyUsage(False, False, False, False, True, False, False, False, False), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_an_expired_certificate(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
) -> None:
    certificate = expired_certificate(tmp_path / "old.pem")
    dump = ["dump", "-t", undisturbed.pid, "-o", out, "--tls-cert", certificate, *keys.seal[2:]]
    sealpoint.run(*dump).fails(5, "old.pem", "expired")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["-r", "recipient.pub", "--sign", "missing.key"], (2, 4), "missing.key"),
        (["-r", "missing.pub", "--sign", "signer.key"], (2, 4), "missing.pub"),
        (["-r", "recipient.pub", "--sign", "rubbish"], (4,), "rubbish"),
        (["-r", "rubbish", "--sign", "signer.key"], (4,), "rubbish"),
        (["-r", "recipient.pub", "--sign", "recipient.pub"], (4,), "recipient.pub"),
        (["-r", "identity.key", "--sign", "signer.key"], (4,), "identity.key"),
        (["-r", "recipient.pub"], (2,), "no signing key"),
        (["--sign", "signer.key"], (2,), "no recipient"),
        (["-r", "recipient.pub", "-r", "recipient.pub", "--sign", "signer.key"], (2,), "twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_keys_that_are_not_there_or_no_such_keys(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    options: list[str],
    code: tuple[int, ...],
    words: str,
) -> None:
    with contextlib.suppress(FileExistsError), open(keys.path("rubbish"), "xb") as file:
        file.write(b"\x00 rubbish \xff" * 20)
    named = [o if o.startswith("-") else keys.path(o) for o in options]
    result = sealpoint.run("dump", "-t", undisturbed.pid, "-o", out, *named)
    assert result.code in code, result
    result.fails(result.code, words)


def test_a_wrong_passphrase_of_the_signer(
    undisturbed: harness.Workload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("one\n")
    wrong.write_text("another\n")
    made = ["keygen", tmp_path / "own", "--signer", "--passphrase-file", right]
    sealpoint.run(*made).ok()
    sign = ["--sign", tmp_path / "own" / "signer.key", "--sign-passphrase-file"]
    dump = ["dump", "-R", "-t", undisturbed.pid, "-o", out, *keys.seal[:2], *sign]
    sealpoint.run(*dump, wrong).fails(4, "passphrase")
    sealpoint.run(*dump, right).ok()
    out.unlink()
