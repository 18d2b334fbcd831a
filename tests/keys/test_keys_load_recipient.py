"""Recipients out of files and literal strings."""

from __future__ import annotations

import contextlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, example, given, settings, strategies as st

from sealpoint.errors import IdentityError, PolicyError, SealpointError, UsageError
from sealpoint.format.constants import StanzaKind
from sealpoint.keys import CertificatePolicy, load_authorities, load_recipient, text
from tests.keys.keys_helpers import (
    DAY,
    IDENTITIES,
    NOW,
    ec_key,
    ed_key,
    make_ca,
    make_cert,
    pem,
    rsa_key,
)

TEXT_KINDS = ["hybrid", "x25519", "p256", "p384"]


def literal(kind: str) -> str:
    recipient = IDENTITIES[kind]().recipient()
    return text.encode_recipient(recipient.kind, recipient.public)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_literal_string_loads(kind):
    recipient = IDENTITIES[kind]().recipient()
    line = text.encode_recipient(recipient.kind, recipient.public)
    loaded = load_recipient(line)
    assert line.startswith(f"sealpoint-{kind}:")
    assert (loaded.kind, loaded.fingerprint) == (recipient.kind, recipient.fingerprint)
    assert loaded.name == f"{kind} {recipient.fingerprint.hex()[:12]}…"


@pytest.mark.parametrize("kind", TEXT_KINDS)
@pytest.mark.parametrize(
    "form", ["{}", "{}\n", "# of Ann\n#\n{}\n", "\r\n# x\r\n{}\r\n\r\n", "{}\n# é\n"]
)
def test_a_recipient_file_loads_with_or_without_comments(kind, form, write):
    line = literal(kind)
    assert load_recipient(write("recipient.pub", form.format(line).encode())).kind is not None


@pytest.mark.parametrize(
    "form",
    [
        "{} ",
        " {}",
        "{}\njunk",
        "{0}\n{0}\n",
        "{}=",
        "{}\t#",
        "",
        "# only\n",
        "x{}",
        "{}\0",
        "{}\x0b{}",
    ],
)
def test_a_recipient_file_with_anything_else_is_refused(form, write):
    line = literal("x25519")
    with pytest.raises(IdentityError):
        load_recipient(
            write("recipient.pub", form.replace("{0}", "{}").replace("{}", line).encode())
        )


@pytest.mark.parametrize("change", ["{}A", "{} ", "{}=", "{}\n", "{}sealpoint-x25519:AAAA"])
def test_a_literal_with_trailing_junk_is_refused(change):
    with pytest.raises(IdentityError):
        load_recipient(change.format(literal("x25519")))


def test_a_mistyped_literal_is_refused_for_its_checksum():
    line = literal("hybrid")
    at = len(line) // 2
    changed = line[:at] + ("A" if line[at] != "A" else "B") + line[at + 1 :]
    with pytest.raises(IdentityError, match="checksum"):
        load_recipient(changed)


def test_the_checksum_covers_the_kind():
    with pytest.raises(IdentityError, match="checksum"):
        load_recipient(literal("x25519").replace("x25519", "p256"))


def test_an_unknown_kind_is_named():
    with pytest.raises(IdentityError, match="unknown kind, 'quantum'"):
        load_recipient(text._encode("quantum", bytes(32)))


def test_the_last_bits_of_base64_are_not_free():
    line = text._encode("x25519", bytes(33 - 2))
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    changed = line[:-1] + digits[digits.index(line[-1]) + 1]
    with pytest.raises(IdentityError, match="damaged"):
        load_recipient(changed)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_key_of_a_wrong_size_is_refused_though_its_checksum_is_right(kind):
    recipient = IDENTITIES[kind]().recipient()
    for public in (recipient.public[:-1], recipient.public + b"\0"):
        with pytest.raises(IdentityError):
            load_recipient(text.encode_recipient(recipient.kind, public))


def test_points_off_the_curve_and_compressed_points_are_refused():
    recipient = IDENTITIES["p256"]().recipient()
    off = recipient.public[:-1] + bytes([recipient.public[-1] ^ 1])
    compressed = bytes([2 + recipient.public[-1] % 2]) + recipient.public[1:33]
    for public in (off, compressed, b"\0", b"\4" + bytes(64)):
        with pytest.raises(IdentityError):
            load_recipient(text.encode_recipient(StanzaKind.P256, public))


def test_a_signer_given_as_recipient_says_so():
    with pytest.raises(IdentityError, match="signer, not a recipient"):
        load_recipient(text.encode_signer(b"abc"))


def test_a_private_key_given_as_recipient_says_so(write):
    with pytest.raises(IdentityError, match="private key, not a recipient"):
        load_recipient(write("identity.key", pem(ec_key())))


def test_a_missing_file_is_a_usage_error():
    with pytest.raises(UsageError, match="no such file"):
        load_recipient("/nonexistent/recipient.pub")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(IdentityError, match="larger than 64 KiB"):
        load_recipient(str(path))


def test_an_endless_device_is_refused():
    with pytest.raises(IdentityError, match="larger than 64 KiB"):
        load_recipient("/dev/zero")


def test_a_directory_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError):
        load_recipient(str(tmp_path))


@given(st.text(max_size=200) | st.text(max_size=80).map(lambda t: "sealpoint-x25519:" + t))
@example("sealpoint-x25519:")
@example("sealpoint-:")
@example("\0")
@example("\ud800")
@example("/dev/null")
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_arbitrary_text_raises_only_our_errors(value):
    with pytest.raises(SealpointError):
        load_recipient(value)


@given(
    st.binary(max_size=300)
    | st.binary(max_size=300).map(
        lambda b: b"-----BEGIN CERTIFICATE-----\n" + b + b"\n-----END CERTIFICATE-----\n"
    )
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_files_raise_only_our_errors(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(SealpointError):
        load_recipient(str(path))


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_damaged_certificates_raise_only_our_errors(data):
    from sealpoint.keys.certificate import parse

    der = bytearray(CERTIFICATE.der)
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(IdentityError):
        parse(bytes(der), IdentityError)


CERTIFICATE = make_cert("fuzzed", ec_key(), usage=("key_agreement",), extended="1.2.3")

GOOD = {
    "rsa": (rsa_key, ("key_encipherment",), StanzaKind.RSA_OAEP),
    "rsa without keyUsage": (rsa_key, None, StanzaKind.RSA_OAEP),
    "p256": (ec_key, ("key_agreement",), StanzaKind.P256),
    "p384": (lambda: ec_key(ec.SECP384R1), ("key_agreement",), StanzaKind.P384),
    "p256 without keyUsage": (ec_key, None, StanzaKind.P256),
}


@pytest.mark.parametrize(("make", "usage", "kind"), GOOD.values(), ids=GOOD.keys())
def test_a_certificate_is_a_recipient_whose_key_opens(make, usage, kind, write, context, roots):
    from sealpoint.keys import load_identity

    key = make()
    cert = make_cert("Ann Analyst", key, usage=usage)
    recipient = load_recipient(write("ann.pem", cert.pem))
    identity = load_identity(write("ann.key", pem(key)))
    assert recipient.kind is kind
    assert recipient.name == "CN=Ann Analyst"
    assert identity.fingerprint == recipient.fingerprint
    assert identity.unwrap(recipient.wrap(roots, context), context) == roots


def test_a_certificate_of_a_p256_key_has_the_fingerprint_of_the_key(write):
    from sealpoint.keys import nist

    key = ec_key()
    recipient = load_recipient(write("c.pem", make_cert("x", key).pem))
    assert recipient.fingerprint == nist.from_key(key).fingerprint


@pytest.mark.parametrize(
    ("make", "usage"),
    [
        (rsa_key, ("digital_signature",)),
        (rsa_key, ("key_agreement",)),
        (ec_key, ("key_encipherment",)),
        (ec_key, ("digital_signature", "key_cert_sign")),
    ],
)
def test_a_certificate_for_another_usage_is_refused(make, usage, write):
    with pytest.raises(PolicyError, match="keyUsage"):
        load_recipient(write("c.pem", make_cert("x", make(), usage=usage).pem))


@pytest.mark.parametrize("make", [ed_key, lambda: ec_key(ec.SECP521R1), lambda: rsa_key(0, 1024)])
def test_a_certificate_with_a_key_that_cannot_receive_is_refused(make, write):
    with pytest.raises(IdentityError):
        load_recipient(write("c.pem", make_cert("x", make()).pem))


@pytest.mark.parametrize(
    ("start", "end", "says"), [(-2 * DAY, -DAY, "expired on"), (DAY, 2 * DAY, "not valid before")]
)
def test_a_certificate_out_of_its_time_is_refused_unless_allowed(start, end, says, write):
    path = write("c.pem", make_cert("x", rsa_key(), start=start, end=end).pem)
    with pytest.raises(PolicyError, match=says):
        load_recipient(path)
    assert load_recipient(path, policy=CertificatePolicy(allow_expired=True))
    assert load_recipient(path, policy=CertificatePolicy(at=NOW + (start + end) // 2))


@pytest.fixture
def ca():
    return make_ca()


def required(*cas, **options) -> CertificatePolicy:
    return CertificatePolicy(authorities=tuple(c.der for c in cas), **options)


def test_a_required_authority_accepts_what_it_issued_and_nothing_else(ca, write):
    good = write("good.pem", ca.issue("x", rsa_key(), usage=("key_encipherment",)).pem)
    self_signed = write("self.pem", make_cert("x", rsa_key()).pem)
    namesake = write("fake.pem", make_ca().issue("x", rsa_key()).pem)
    assert load_recipient(good, policy=required(ca))
    for path in (self_signed, namesake):
        with pytest.raises(PolicyError, match="no valid path"):
            load_recipient(path, policy=required(ca))


def test_a_path_over_intermediates_in_the_file_is_found(ca, write):
    middle = make_ca("Middle", issuer=ca)
    leaf = middle.issue("x", ec_key())
    assert load_recipient(write("c.pem", leaf.pem, middle.pem), policy=required(ca))
    assert load_recipient(write("c.pem", leaf.pem), policy=required(ca, middle))
    with pytest.raises(PolicyError):
        load_recipient(write("c.pem", leaf.pem), policy=required(ca))


BAD_PATHS = {
    "an issuer that is no authority": {"ca": False},
    "an issuer without basicConstraints": {"ca": None},
    "an issuer without keyCertSign": {"usage": ("digital_signature",)},
    "an expired issuer": {"start": -3 * DAY, "end": -2 * DAY},
    "an issuer that is not valid yet": {"start": 2 * DAY, "end": 3 * DAY},
    "an issuer with an unknown critical extension": {"critical_unknown": True},
}


@pytest.mark.parametrize("fault", BAD_PATHS.values(), ids=BAD_PATHS.keys())
def test_a_path_is_refused_over(fault, ca, write):
    middle = make_ca("Middle", issuer=ca, **fault)
    path = write("c.pem", middle.issue("x", ec_key()).pem, middle.pem)
    with pytest.raises(PolicyError, match="no valid path"):
        load_recipient(path, policy=required(ca))


def test_a_path_longer_than_an_authority_allows_is_refused(ca, write):
    short = make_ca("Short", issuer=ca, path_length=0)
    below = make_ca("Below", issuer=short)
    path = write("c.pem", below.issue("x", ec_key()).pem, short.pem, below.pem)
    with pytest.raises(PolicyError, match="no valid path"):
        load_recipient(path, policy=required(ca))


def test_a_path_to_an_expired_authority_is_refused(write):
    old = make_ca(start=-3 * DAY, end=-2 * DAY)
    path = write("c.pem", old.issue("x", ec_key()).pem)
    with pytest.raises(PolicyError, match="no valid path"):
        load_recipient(path, policy=required(old))


def test_allowing_expired_certificates_does_not_waive_the_authority(ca, write):
    old = {"start": -3 * DAY, "end": -2 * DAY}
    ca = make_ca(start=-4 * DAY)
    issued = write("issued.pem", ca.issue("x", ec_key(), **old).pem)
    foreign = write("foreign.pem", make_cert("x", ec_key(), **old).pem)
    assert load_recipient(issued, policy=required(ca, allow_expired=True))
    with pytest.raises(PolicyError):
        load_recipient(foreign, policy=required(ca, allow_expired=True))


def test_a_leaf_with_an_unknown_critical_extension_has_no_path(ca, write):
    path = write("c.pem", ca.issue("x", ec_key(), critical_unknown=True).pem)
    with pytest.raises(PolicyError):
        load_recipient(path, policy=required(ca))


def test_raw_keys_need_no_authority(ca):
    assert load_recipient(literal("hybrid"), policy=required(ca))


def test_a_bundle_holds_authorities_alone(ca, write):
    other = make_ca("Other")
    bundle = write("bundle.pem", b"# text\n", ca.pem, other.pem, ca.pem)
    assert load_authorities([bundle]) == (ca.der, other.der)
    for parts in ([make_cert("leaf", ec_key()).pem], [ca.pem, make_cert("leaf", ec_key()).pem], []):
        with pytest.raises(IdentityError):
            load_authorities([write("bad.pem", *parts)])


def test_a_subject_cannot_write_control_characters_to_a_terminal(write):
    recipient = load_recipient(
        write("c.pem", make_cert("a\x1b[31m\u202eb" + "x" * 50, rsa_key()).pem)
    )
    assert recipient.name.isprintable()
