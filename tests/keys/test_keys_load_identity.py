"""Identities out of files."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from hypothesis import HealthCheck, example, given, settings, strategies as st

from sealpoint.errors import IdentityError, SealpointError, SystemEnvironmentError, UsageError
from sealpoint.format.constants import StanzaKind
from sealpoint.keys import identity_file, load_identity, permissions_warning, scrypt
from sealpoint.keys.files import encode_armour
from sealpoint.keys.generate import generate
from tests.keys.keys_helpers import IDENTITIES, ec_key, ed_key, make_cert, pem, rsa_key

MAKERS = {
    "x25519": x25519.X25519PrivateKey.generate,
    "p256": ec_key,
    "p384": lambda: ec_key(ec.SECP384R1),
    "rsa": rsa_key,
}


def never():
    pytest.fail("asked for a passphrase")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_plain_pem_key_is_an_identity_and_nobody_is_asked(kind, write):
    identity = load_identity(write("key", pem(MAKERS[kind]())), passphrase=never)
    assert identity.name.startswith(kind)


@pytest.mark.parametrize("kind", MAKERS)
def test_an_encrypted_pem_key_asks_once(kind, write):
    key = MAKERS[kind]()
    asked = []
    path = write("key", pem(key, b"secret"))
    identity = load_identity(path, passphrase=lambda: asked.append(1) or b"secret")
    assert asked == [1]
    assert identity.fingerprint == load_identity(write("plain", pem(key))).fingerprint


@pytest.mark.parametrize("key", [ec_key(), rsa_key()])
def test_the_traditional_formats_load(key, write):
    data = key.private_bytes(
        ser.Encoding.PEM, ser.PrivateFormat.TraditionalOpenSSL, ser.NoEncryption()
    )
    assert load_identity(write("key", data))


def test_a_certificate_beside_the_key_does_not_matter(write):
    key = ec_key()
    assert load_identity(write("key", make_cert("x", key).pem, pem(key)))


@pytest.mark.parametrize("key", [ed_key(), ec_key(ec.SECP521R1), rsa_key(0, 1024)])
def test_keys_that_cannot_open_are_refused(key, write):
    with pytest.raises(IdentityError):
        load_identity(write("key", pem(key)))


def test_two_private_keys_in_a_file_are_ambiguous(write):
    with pytest.raises(IdentityError, match="more than one"):
        load_identity(write("key", pem(ec_key()), pem(ec_key())))


def test_a_public_file_given_as_identity_says_so(write, tmp_path):
    keys = generate("x25519", str(tmp_path / "k"))
    for path in (keys.public, write("c.pem", make_cert("x", ec_key()).pem)):
        with pytest.raises(IdentityError, match="not an identity") as caught:
            load_identity(path)
        assert "public key" in caught.value.hint


@pytest.mark.parametrize("passphrase", [b"wrong", b"", b"secret\n"])
def test_a_wrong_passphrase_says_so(passphrase, write):
    sealed = identity_file.encode(StanzaKind.X25519, os.urandom(32), b"secret", log2_n=10)
    for path in (write("ours", sealed), write("pem", pem(ec_key(), b"secret"))):
        with pytest.raises(IdentityError, match="wrong passphrase, or the file is damaged"):
            load_identity(path, passphrase=lambda: passphrase)


def test_an_encrypted_file_without_anybody_to_ask_says_so(write):
    sealed = identity_file.encode(StanzaKind.X25519, os.urandom(32), b"secret", log2_n=10)
    for path in (write("ours", sealed), write("pem", pem(ec_key(), b"secret"))):
        with pytest.raises(IdentityError, match="no passphrase was given"):
            load_identity(path)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (StanzaKind.HYBRID, 96),
        (StanzaKind.X25519, 32),
        (StanzaKind.P256, 32),
        (StanzaKind.P384, 48),
    ],
)
def test_raw_keys_of_a_wrong_size_or_value_are_refused(kind, size, write):
    for private in (b"", bytes(size - 1), bytes(size + 1)):
        with pytest.raises(IdentityError):
            load_identity(write("key", identity_file.encode(kind, private, None)))
    if kind in (StanzaKind.P256, StanzaKind.P384):
        for private in (bytes(size), b"\xff" * size):
            with pytest.raises(IdentityError):
                load_identity(write("key", identity_file.encode(kind, private, None)))


@pytest.mark.parametrize(
    "payload", [b"", b"\1", b"\2\2" + bytes(32), b"\1\x63" + bytes(32), b"\1\6x", b"\1\5x"]
)
def test_unknown_versions_and_kinds_are_refused(payload, write):
    with pytest.raises(IdentityError):
        load_identity(write("key", encode_armour(identity_file.PLAIN, payload)))


def test_the_armour_has_one_spelling(write):
    good = identity_file.encode(StanzaKind.X25519, os.urandom(32), None)
    assert load_identity(write("key", b"# a comment\n\n" + good + b"\n"))
    lines = good.split(b"\n")
    bad = [
        good.replace(b"\n", b"\r\n"),
        b"\n".join([lines[0], lines[1][:10], lines[1][10:], *lines[2:]]),
        good + good,
        good + b"junk",
        b"junk\n" + good,
        good.replace(lines[1], lines[1] + b" "),
        pem(ec_key()) + good,
        good.replace(b"=", b""),
    ]
    for data in bad:
        if data != good:
            with pytest.raises(IdentityError):
                load_identity(write("key", data))


def test_every_byte_of_an_encrypted_identity_is_authenticated(write):
    private = os.urandom(32)
    sealed = identity_file.encode(StanzaKind.X25519, private, b"secret", log2_n=10)
    import base64

    body = base64.b64decode(b"".join(sealed.split(b"\n")[1:-2]))
    for at in range(len(body)):
        if at == 1 + scrypt.SALT_SIZE:
            continue
        changed = bytearray(body)
        changed[at] ^= 1
        with pytest.raises(IdentityError):
            load_identity(
                write("key", encode_armour(identity_file.ENCRYPTED, bytes(changed))),
                passphrase=lambda: b"secret",
            )


@pytest.mark.parametrize("cost", [9, 21, 255])
def test_an_identity_file_with_a_cost_out_of_range_is_refused(cost, write):
    body = b"\1" + bytes(16) + bytes([cost]) + bytes(50)
    with pytest.raises(IdentityError):
        load_identity(
            write("key", encode_armour(identity_file.ENCRYPTED, body)), passphrase=lambda: b"x"
        )


_LABELS = [
    identity_file.PLAIN,
    "PRIVATE KEY",
    "RSA PRIVATE KEY",
    "EC PRIVATE KEY",
    "ENCRYPTED PRIVATE KEY",
    "OPENSSH PRIVATE KEY",
    "DSA PRIVATE KEY",
]


@given(
    st.binary(max_size=300)
    | st.builds(encode_armour, st.sampled_from(_LABELS), st.binary(max_size=300))
    | st.builds(
        lambda label, body: b"-----BEGIN %s-----\n%s\n-----END %s-----\n" % (label, body, label),
        st.sampled_from([label.encode() for label in _LABELS]),
        st.binary(max_size=200),
    )
)
@example(b"\xff-----BEGIN SEALPOINT IDENTITY-----\n-----END SEALPOINT IDENTITY-----\n")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_raise_only_our_errors(tmp_path, data):
    path = tmp_path / "key"
    path.write_bytes(data)
    with contextlib.suppress(SealpointError):
        load_identity(str(path), passphrase=lambda: b"x")


@given(kind=st.sampled_from(list(StanzaKind)), private=st.binary(max_size=120))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_payloads_raise_only_our_errors(tmp_path, kind, private):
    path = tmp_path / "key"
    path.write_bytes(identity_file.encode(kind, private, None))
    with contextlib.suppress(SealpointError):
        load_identity(str(path))


@given(st.data())
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_pem_keys_raise_only_our_errors(tmp_path, data):
    text = bytearray(PEM_KEY)
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(28, len(text) - 28))] = data.draw(st.integers(32, 126))
    path = tmp_path / "key"
    path.write_bytes(text)
    with contextlib.suppress(SealpointError):
        load_identity(str(path))


PEM_KEY = pem(ec_key())


def test_a_file_of_begin_lines_takes_linear_time():
    from sealpoint.keys.files import MAX_BUNDLE, pem_blocks

    assert pem_blocks(b"-----BEGIN X-----\n" * (MAX_BUNDLE // 18)) == []


def test_a_missing_key_file_is_a_usage_error():
    with pytest.raises(UsageError, match="no such file"):
        load_identity("/nonexistent")


def test_an_unreadable_key_file_is_a_matter_of_the_machine(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(SystemEnvironmentError, match="no permission"):
        load_identity("/some/key")


def test_a_key_can_come_out_of_a_pipe():
    read, write = os.pipe()
    try:
        os.write(write, pem(ec_key()))
        os.close(write)
        assert load_identity(f"/dev/fd/{read}")
    finally:
        os.close(read)


@pytest.mark.parametrize(
    ("mode", "warns"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)]
)
def test_a_key_file_open_to_others_earns_a_warning(mode, warns, write):
    path = write("key", b"x")
    Path(path).chmod(mode)
    warning = permissions_warning(path)
    assert (warning is not None) is warns
    if warning:
        assert f"{mode:04o}" in warning


def test_no_warning_for_what_is_no_file():
    assert permissions_warning("/nonexistent") is None
    assert permissions_warning("/dev/null") is None


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def openssl(*args: str) -> None:
    done = subprocess.run(["openssl", *args], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this openssl cannot: {done.stderr.decode(errors='replace')[:200]}")


@needs_openssl
@pytest.mark.parametrize(
    ("args", "kind"),
    [
        (["genpkey", "-algorithm", "X25519"], StanzaKind.X25519),
        (["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], StanzaKind.P256),
        (["ecparam", "-name", "secp384r1", "-genkey"], StanzaKind.P384),
        (["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], StanzaKind.RSA_OAEP),
        (["genpkey", "-algorithm", "X25519", "-aes-256-cbc", "-pass", "pass:x"], StanzaKind.X25519),
    ],
)
def test_keys_made_by_openssl_load(args, kind, tmp_path):
    path = str(tmp_path / "key")
    openssl(*args, "-out", path)
    assert load_identity(path, passphrase=lambda: b"x").kind is kind


@needs_openssl
def test_a_certificate_made_by_openssl_loads(tmp_path, context, roots):
    from sealpoint.keys import load_recipient

    key, cert = str(tmp_path / "key"), str(tmp_path / "cert")
    openssl(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=openssl",
        "-keyout",
        key,
        "-out",
        cert,
    )
    stanza = load_recipient(cert).wrap(roots, context)
    assert load_identity(key).unwrap(stanza, context) == roots


@needs_openssl
def test_openssl_decrypts_an_rsa_stanza_of_ours(tmp_path, context, roots):
    key = str(tmp_path / "key")
    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", key)
    recipient = load_identity(key).recipient()
    body = tmp_path / "body"
    body.write_bytes(recipient.wrap(roots, context).body)
    label = context.info(StanzaKind.RSA_OAEP, recipient.fingerprint).hex()
    options = (
        "rsa_padding_mode:oaep",
        "rsa_oaep_md:sha256",
        "rsa_mgf1_md:sha256",
        f"rsa_oaep_label:{label}",
    )
    args = [a for option in options for a in ("-pkeyopt", option)]
    openssl(
        "pkeyutl", "-decrypt", "-inkey", key, "-in", str(body), "-out", str(tmp_path / "out"), *args
    )
    assert (tmp_path / "out").read_bytes() == roots


def test_all_identities_of_the_tests_are_covered_by_a_file_format():
    assert {"hybrid", *MAKERS} == set(IDENTITIES)
