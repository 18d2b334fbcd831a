"""Signers, signatures and the trust policy; certificates in test_keys_trust_x509."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, example, given, settings, strategies as st

from sealpoint.errors import FileError, IdentityError, PolicyError, SealpointError, UsageError
from sealpoint.format import dsse
from sealpoint.format.constants import ENVELOPE_TYPE, ORIGIN_TYPE, PRUNE_TYPE
from sealpoint.keys import TrustPolicy, load_signer, load_trust, text
from sealpoint.keys.generate import generate
from tests.keys.keys_helpers import (
    DAY,
    NOW,
    change,
    ec_key,
    ed_key,
    make_ca,
    make_cert,
    pem,
    public_pem,
    rsa_key,
    signed,
)

# Signers


def test_a_signer_is_named_by_the_hash_of_its_public_key(signer, key, scheme):
    spki = key.public_key().public_bytes(ser.Encoding.DER, ser.PublicFormat.SubjectPublicKeyInfo)
    assert signer.key_id == hashlib.sha256(spki).hexdigest()
    assert signer.name == f"{scheme} {signer.key_id[:12]}…"
    signature = signer.sign(b"pae")
    assert (signature.keyid, signature.public_key) == (signer.key_id, spki)
    assert signature.certificates == ()
    assert "key=" not in repr(signer)


def test_a_signed_envelope_survives_its_encoding(signer):
    envelope = signed(signer)
    assert dsse.decode(dsse.encode(envelope), ORIGIN_TYPE, "x") == envelope


def test_an_encrypted_signer_asks_once(key, write):
    asked = []
    path = write("k", pem(key, b"secret"))
    assert load_signer(path, passphrase=lambda: asked.append(1) or b"secret")
    assert asked == [1]
    with pytest.raises(IdentityError, match="wrong passphrase"):
        load_signer(path, passphrase=lambda: b"other")
    with pytest.raises(IdentityError, match="no passphrase was given"):
        load_signer(path)


@pytest.mark.parametrize(
    "make", [lambda: ec_key(ec.SECP521R1), lambda: ec_key(ec.SECP256K1), lambda: rsa_key(0, 1024)]
)
def test_keys_that_are_not_accepted_do_not_sign(make, write):
    with pytest.raises(IdentityError, match="not accepted for signatures"):
        load_signer(write("k", pem(make())))


def test_an_identity_given_as_signer_says_so(tmp_path):
    for kind in ("hybrid", "x25519"):
        with pytest.raises(IdentityError, match="no private key to sign with"):
            load_signer(generate(kind, str(tmp_path / kind)).private)


def test_the_chain_of_an_x509_signer_starts_with_its_own_certificate(key, write):
    ca = make_ca()
    leaf = ca.issue("Sally Signer", key, usage=("digital_signature",))
    for order in ((leaf.pem, ca.pem), (ca.pem, leaf.pem)):
        signer = load_signer(write("k", pem(key)), certificate=write("c", *order))
        assert signer.name == "CN=Sally Signer"
        signature = signer.sign(b"pae")
        assert signature.certificates == (leaf.der, ca.der)
        assert signature.public_key == b""


def test_a_certificate_file_goes_before_certificates_beside_the_key(write):
    key = ec_key()
    first, second = make_cert("first", key), make_cert("second", key)
    path = write("k", pem(key), first.pem)
    assert load_signer(path).name == "CN=first"
    assert load_signer(path, certificate=write("c", second.pem)).name == "CN=second"


def test_a_certificate_of_another_key_is_refused(write):
    with pytest.raises(IdentityError, match="no certificate belongs to the private key"):
        load_signer(write("k", pem(ec_key()), make_cert("x", ec_key()).pem))
    with pytest.raises(IdentityError, match="holds no certificate"):
        load_signer(write("k", pem(ec_key())), certificate=write("c", b"nothing"))


def test_a_signer_certificate_needs_digital_signature(write):
    key = ec_key()
    path = write("k", pem(key), make_cert("x", key, usage=("key_agreement",)).pem)
    with pytest.raises(PolicyError, match="digitalSignature"):
        load_signer(path)


@pytest.mark.parametrize(("start", "end"), [(-2 * DAY, -DAY), (DAY, 2 * DAY)])
def test_a_signer_certificate_out_of_its_time_is_refused_unless_allowed(start, end, write):
    key = ec_key()
    path = write("k", pem(key), make_cert("x", key, start=start, end=end).pem)
    with pytest.raises(PolicyError):
        load_signer(path)
    assert load_signer(path, allow_expired=True)


def test_a_chain_that_no_reader_would_decode_is_refused(write):
    key = ec_key()
    many = [make_ca(f"CA {n}").pem for n in range(dsse.MAX_CERTIFICATES)]
    with pytest.raises(IdentityError, match="9 certificates"):
        load_signer(write("k", pem(key), make_cert("x", key).pem, *many))


# Pinned keys


def pins(signer, key, write):
    """Every way to pin a raw key."""
    spki = signer.sign(b"").public_key
    return [write("signer.pub", public_pem(key)), signer.key_id, text.encode_signer(spki)]


def test_a_pinned_signer_is_trusted_however_it_was_pinned(signer, key, write):
    for pin in pins(signer, key, write):
        verified = load_trust([pin]).evaluate(signed(signer))
        assert [v.trusted for v in verified.signatures] == [True]
        assert verified.key_ids == (signer.key_id,)


def test_an_unpinned_signer_is_refused_and_named(signer, key, write):
    other = load_signer(write("other", pem(ed_key())))
    for pin in pins(signer, key, write):
        with pytest.raises(PolicyError, match=other.key_id):
            load_trust([pin]).evaluate(signed(other))


def test_one_trusted_signature_suffices(signer, write):
    other = load_signer(write("other", pem(ed_key())))
    verified = load_trust([signer.key_id]).evaluate(signed(other, signer))
    assert verified.key_ids == (other.key_id, signer.key_id)
    assert [v.key_id for v in verified.trusted] == [signer.key_id]
    assert verified.signatures[0].problem


def test_a_signature_over_anything_else_does_not_verify(signer):
    trust = load_trust([signer.key_id])
    envelope = signed(signer)
    for changed in (
        envelope._replace(payload=envelope.payload + b" "),
        envelope._replace(payload_type=ENVELOPE_TYPE),
    ):
        with pytest.raises(FileError, match="does not verify"):
            trust.evaluate(changed)


@pytest.mark.parametrize("other", [ENVELOPE_TYPE, PRUNE_TYPE, "", "application/json"])
def test_a_statement_that_was_signed_as_another_type_does_not_verify(signer, other):
    made = signed(signer)
    assert made.payload_type == ORIGIN_TYPE
    moved = made._replace(payload_type=other)
    with pytest.raises(FileError, match="does not verify"):
        load_trust([signer.key_id]).evaluate(moved)
    with pytest.raises(FileError, match="is of type"):
        dsse.decode(dsse.encode(moved), ORIGIN_TYPE, "statement")
    with pytest.raises(FileError, match="is of type"):
        dsse.decode(dsse.encode(made), other, "statement")


def test_a_flipped_bit_in_a_signature_does_not_verify(signer):
    envelope = signed(signer)
    sig = envelope.signatures[0].sig
    for at in range(0, len(sig), 5):
        flipped = sig[:at] + bytes([sig[at] ^ 4]) + sig[at + 1 :]
        for policy in (load_trust([signer.key_id]), TrustPolicy(names_only=True)):
            with pytest.raises(FileError):
                policy.evaluate(change(envelope, sig=flipped))
    for other in (b"", sig[:-1], sig + b"\0", bytes(4096)):
        with pytest.raises(FileError):
            load_trust([signer.key_id]).evaluate(change(envelope, sig=other))


def test_a_bad_signature_beside_a_good_one_is_an_error(signer, write):
    other = load_signer(write("other", pem(ed_key())))
    envelope = signed(other, signer)
    with pytest.raises(FileError, match="does not verify"):
        load_trust([signer.key_id]).evaluate(change(envelope, sig=bytes(64)))


def test_an_unsigned_statement_is_refused_unless_allowed():
    with pytest.raises(PolicyError, match="the file is not signed") as caught:
        TrustPolicy().evaluate(signed())
    assert "--allow-unsigned" in caught.value.hint
    assert TrustPolicy(allow_unsigned=True).evaluate(signed()).signatures == ()
    assert TrustPolicy(names_only=True).evaluate(signed()).key_ids == ()


def test_allowing_unsigned_does_not_allow_a_bad_signature(signer):
    broken = change(signed(signer), sig=b"x" * 64)
    for policy in (TrustPolicy(allow_unsigned=True), TrustPolicy(names_only=True)):
        assert policy.evaluate(signed(signer)).trusted == ()
        with pytest.raises(FileError):
            policy.evaluate(broken)


def test_a_signature_without_its_key_is_an_error(signer):
    with pytest.raises(FileError, match="either its key or certificates"):
        load_trust([signer.key_id]).evaluate(change(signed(signer), public_key=b""))


def test_a_key_id_that_is_not_that_of_the_key_is_an_error(signer, write):
    other = load_signer(write("other", pem(ed_key())))
    claimed = change(signed(signer), keyid=other.key_id)
    with pytest.raises(FileError, match="names another key"):
        load_trust([other.key_id]).evaluate(claimed)


def test_a_stranger_cannot_sign_under_a_pinned_key(signer, make_signer):
    envelope = signed(make_signer(ed_key()))
    carried = signer.sign(b"").public_key
    with pytest.raises(FileError, match="does not verify"):
        load_trust([signer.key_id]).evaluate(
            change(envelope, keyid=signer.key_id, public_key=carried)
        )


def test_the_same_signature_twice_is_an_error(signer):
    with pytest.raises(FileError, match="twice"):
        load_trust([signer.key_id]).evaluate(signed(signer, signer))


def test_a_signature_with_key_and_certificate_is_an_error(make_signer):
    key = ec_key()
    signer = make_signer(key, make_cert("x", key))
    spki = key.public_key().public_bytes(ser.Encoding.DER, ser.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(FileError, match="either its key or certificates"):
        load_trust([signer.key_id]).evaluate(change(signed(signer), public_key=spki))


def test_each_signature_is_verified_exactly_once(signer, write, monkeypatch):
    from sealpoint.keys import signature

    other = load_signer(write("other", pem(ed_key())))
    calls, original = [], signature.verify
    monkeypatch.setattr(signature, "verify", lambda *a: calls.append(1) or original(*a))
    load_trust([signer.key_id, other.key_id]).evaluate(signed(signer, other))
    assert len(calls) == 2


def test_carried_keys_that_are_not_accepted_are_errors(make_signer):
    signer = make_signer(ed_key())
    for bad in (ec_key(ec.SECP521R1), rsa_key(0, 1024)):
        spki = bad.public_key().public_bytes(
            ser.Encoding.DER, ser.PublicFormat.SubjectPublicKeyInfo
        )
        carried = change(signed(signer), public_key=spki, keyid=hashlib.sha256(spki).hexdigest())
        with pytest.raises(FileError, match="not accepted"):
            TrustPolicy(names_only=True).evaluate(carried)


def test_a_key_in_another_spelling_is_an_error(make_signer):
    key = ec_key()
    point = key.public_key().public_bytes(ser.Encoding.X962, ser.PublicFormat.CompressedPoint)
    head = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    spki = head + point
    assert ser.load_der_public_key(spki) == key.public_key()
    envelope = change(
        signed(make_signer(key)), public_key=spki, keyid=hashlib.sha256(spki).hexdigest()
    )
    with pytest.raises(FileError):
        TrustPolicy(names_only=True).evaluate(envelope)


def test_a_raw_pinned_key_has_no_expiry(signer):
    policy = load_trust([signer.key_id])
    verified = policy.evaluate(signed(signer))
    for captured in (0, NOW, 1 << 40, (1 << 64) - 1):
        policy.check_time(verified, captured)


# load_trust


def test_the_chain_file_of_a_signer_pins_the_signer_and_not_its_authority(make_signer, write):
    ca, key, other = make_ca(), ec_key(), ec_key()
    leaf = ca.issue("Sally", key)
    policy = load_trust([write("chain.pem", leaf.pem, ca.pem)])
    assert policy.authorities == ()
    assert policy.evaluate(signed(make_signer(key, leaf))).trusted
    with pytest.raises(PolicyError):
        policy.evaluate(signed(make_signer(other, ca.issue("Bob", other))))


def test_what_is_no_signer_is_refused_by_load_trust(write, tmp_path):
    keys = generate("x25519", str(tmp_path / "k"))
    bad = [
        keys.public,
        keys.private,
        keys.text,
        write("a", pem(ed_key())),
        write("b", b""),
        write("c", public_pem(ec_key(ec.SECP521R1))),
        write("d", public_pem(rsa_key(0, 1024))),
        write("e", make_cert("x", ec_key(ec.SECP521R1)).pem),
        "sealpoint-signer:AAAA",
    ]
    for value in bad:
        with pytest.raises(IdentityError):
            load_trust([value])
    with pytest.raises(UsageError, match="no such file"):
        load_trust(["/nonexistent"])
    with pytest.raises(IdentityError, match="something other than certificates of authorities"):
        load_trust([], ca_bundles=[write("f", make_cert("leaf", ec_key()).pem)])


@given(st.text(max_size=150) | st.text(max_size=80).map(lambda t: "sealpoint-signer:" + t))
@example("sealpoint-signer:" + "A" * 43)
@settings(deadline=None)
def test_arbitrary_text_given_as_trust_raises_only_our_errors(value):
    with pytest.raises(SealpointError):
        load_trust([value])


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_arbitrary_bytes_in_a_signer_string_raise_only_our_errors(spki):
    with pytest.raises(SealpointError):
        load_trust([text.encode_signer(spki)])


@given(
    st.lists(
        st.builds(
            dsse.Signature,
            st.text(max_size=70),
            st.binary(max_size=80),
            st.binary(max_size=80),
            st.lists(st.binary(max_size=80), max_size=2).map(tuple),
        ),
        max_size=3,
    )
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_signatures_raise_only_our_errors(signatures):
    envelope = dsse.Envelope(ORIGIN_TYPE, b"{}", tuple(signatures))
    with contextlib.suppress(SealpointError):
        assert TrustPolicy(names_only=True).evaluate(envelope).trusted == ()


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_a_damaged_certificate_never_becomes_trusted(data):
    chain = [bytearray(LEAF.der), bytearray(MIDDLE.der)]
    target = chain[data.draw(st.integers(0, 1))]
    at = data.draw(st.integers(0, len(target) - 1))
    target[at] ^= data.draw(st.integers(1, 255))
    envelope = change(SIGNED, certificates=tuple(bytes(c) for c in chain))
    policy = TrustPolicy(authorities=(ROOT.der,))
    try:
        policy.evaluate(envelope)
    except SealpointError:
        return
    # Some bits around a certificate's own signature mean nothing (the unused bits of its BIT STRING); of what the
    # issuer signed, all do.
    for changed, original in zip(chain, (LEAF.der, MIDDLE.der), strict=True):
        assert to_be_signed(bytes(changed)) == to_be_signed(original)


def to_be_signed(der):
    return x509.load_der_x509_certificate(der).tbs_certificate_bytes


ROOT = make_ca()
MIDDLE = make_ca("Middle", issuer=ROOT)
LEAF = MIDDLE.issue("Sally", ec_key(), usage=("digital_signature",))


def _signed_by_leaf():
    from sealpoint.keys.certificate import parse
    from sealpoint.keys.signer import KeySigner

    chain = [parse(c.der, FileError) for c in (LEAF, MIDDLE)]
    return signed(KeySigner(LEAF.key, chain))


SIGNED = _signed_by_leaf()


def test_the_undamaged_certificates_of_the_test_above_are_trusted():
    assert TrustPolicy(authorities=(ROOT.der,)).evaluate(SIGNED).trusted


# An independent implementation

SSLIB_SCHEMES = {
    "ed25519": ("ed25519", "ed25519"),
    "ecdsa-p256": ("ecdsa", "ecdsa-sha2-nistp256"),
    "ecdsa-p384": ("ecdsa", "ecdsa-sha2-nistp384"),
    "rsa-pss": ("rsa", "rsassa-pss-sha256"),
}


def test_securesystemslib_verifies_our_envelopes(signer, key, scheme):
    sslib = pytest.importorskip("securesystemslib.dsse")
    from securesystemslib.signer import Signature, SSlibKey

    envelope = signed(signer)
    theirs = sslib.Envelope(
        envelope.payload,
        envelope.payload_type,
        {s.keyid: Signature(s.keyid, s.sig.hex()) for s in envelope.signatures},
    )
    keytype, name = SSLIB_SCHEMES[scheme]
    public = public_pem(key).decode()
    if keytype == "ed25519":
        public = key.public_key().public_bytes_raw().hex()
    their_key = SSlibKey(signer.key_id, keytype, name, {"public": public})
    assert theirs.pae() == envelope.pae
    assert list(theirs.verify([their_key], 1)) == [signer.key_id]


def test_we_verify_envelopes_of_securesystemslib(write):
    sslib = pytest.importorskip("securesystemslib.dsse")
    from securesystemslib.signer import CryptoSigner

    theirs_signer = CryptoSigner.generate_ed25519()
    envelope = sslib.Envelope(b"{}", ORIGIN_TYPE, {})
    theirs_signer_signature = envelope.sign(theirs_signer)
    raw = bytes.fromhex(theirs_signer.public_key.keyval["public"])
    spki = bytes.fromhex("302a300506032b6570032100") + raw
    key_id = hashlib.sha256(spki).hexdigest()
    signature = dsse.Signature(key_id, bytes.fromhex(theirs_signer_signature.signature), spki)
    ours = dsse.Envelope(ORIGIN_TYPE, b"{}", (signature,))
    assert load_trust([key_id]).evaluate(ours).trusted


def test_loading_the_package_does_not_load_x509():
    import subprocess
    import sys

    code = "import sys, sealpoint.keys; sys.exit('cryptography.x509' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
