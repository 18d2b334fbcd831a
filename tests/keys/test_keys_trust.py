"""Signers, signatures and the trust policy."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from keys_helpers import (
    DAY,
    NOW,
    ec_key,
    ed_key,
    make_ca,
    make_cert,
    pem,
    public_pem,
    rsa_key,
    signed,
)

from sealpoint.errors import FileError, IdentityError, PolicyError, SealpointError, UsageError
from sealpoint.format import dsse
from sealpoint.format.constants import ENVELOPE_TYPE, ORIGIN_TYPE
from sealpoint.keys import TrustPolicy, load_signer, load_trust, text
from sealpoint.keys.generate import generate

SIGNING_KEYS = {
    "ed25519": ed_key,
    "ecdsa-p256": ec_key,
    "ecdsa-p384": lambda: ec_key(ec.SECP384R1),
    "rsa-pss": rsa_key,
}
CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
CODE_SIGNING = "1.3.6.1.5.5.7.3.3"


@pytest.fixture(params=SIGNING_KEYS)
def scheme(request):
    return request.param


@pytest.fixture
def key(scheme):
    return SIGNING_KEYS[scheme]()


@pytest.fixture
def signer(key, write):
    return load_signer(write("signer.key", pem(key)))


@pytest.fixture
def make_signer(write):
    """A signer from a private key and certificates."""

    def make(key, *certificates, **options):
        name = f"signer-{id(key)}.key"
        return load_signer(write(name, pem(key), *(c.pem for c in certificates)), **options)

    return make


def change(envelope, **changes):
    """The envelope with its first signature changed."""
    first = dataclasses.replace(envelope.signatures[0], **changes)
    return dataclasses.replace(envelope, signatures=(first, *envelope.signatures[1:]))


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
        dataclasses.replace(envelope, payload=envelope.payload + b" "),
        dataclasses.replace(envelope, payload_type=ENVELOPE_TYPE),
    ):
        with pytest.raises(FileError, match="does not verify"):
            trust.evaluate(changed)


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
    with pytest.raises(PolicyError, match="nobody known signed this") as caught:
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


# Certificates


def test_a_certificate_of_a_trusted_authority_is_trusted(key, make_signer, write):
    ca = make_ca()
    signer = make_signer(key, ca.issue("Sally", key, usage=("digital_signature",)))
    by_path = load_trust([write("ca.pem", ca.pem)])
    by_bundle = load_trust([], ca_bundles=[write("bundle.pem", ca.pem)])
    for policy in (by_path, by_bundle):
        assert policy.pinned == ()
        verified = policy.evaluate(signed(signer))
        policy.check_time(verified, NOW)
        assert [v.name for v in verified.trusted] == ["CN=Sally"]
        assert verified.trusted[0].certificate.subject == "CN=Sally"


@pytest.mark.parametrize("ca_key", [ec_key, lambda: ec_key(ec.SECP384R1), lambda: rsa_key(1)])
def test_authorities_may_have_ec_and_rsa_keys(ca_key, make_signer, write):
    ca, key = make_ca(key=ca_key()), ed_key()
    signer = make_signer(key, ca.issue("Sally", key))
    assert load_trust([write("ca.pem", ca.pem)]).evaluate(signed(signer)).trusted


def test_a_certificate_issued_by_an_ed25519_authority_can_be_pinned_only(make_signer, write):
    ca, key = make_ca(key=ed_key()), ed_key()
    leaf = ca.issue("Sally", key)
    signer = make_signer(key, leaf)
    with pytest.raises(PolicyError, match="no valid path"):
        load_trust([write("ca.pem", ca.pem)]).evaluate(signed(signer))
    assert load_trust([write("leaf.pem", leaf.pem)]).evaluate(signed(signer)).trusted


def test_a_path_over_carried_intermediates_is_found(make_signer, write):
    ca, key = make_ca(), ec_key()
    middle = make_ca("Middle", issuer=ca)
    leaf = middle.issue("Sally", key)
    policy = load_trust([write("ca.pem", ca.pem)])
    verified = policy.evaluate(signed(make_signer(key, leaf, middle)))
    policy.check_time(verified, NOW)
    with pytest.raises(PolicyError, match="no valid path"):
        policy.evaluate(signed(make_signer(key, leaf)))


UNTRUSTED = {
    "another authority of the same name": lambda ca, key: make_ca().issue("x", key),
    "a self-signed certificate": lambda _, key: make_cert("x", key),
    "an issuer that is no authority": lambda ca, key: ca.issue("y", ca.key).issue("x", key),
    "an unknown critical extension": lambda ca, key: ca.issue("x", key, critical_unknown=True),
    "an authority that signs itself": lambda _, key: make_ca("x", key=key),
}


@pytest.mark.parametrize("make", UNTRUSTED.values(), ids=UNTRUSTED.keys())
def test_a_certificate_is_not_trusted_if_it_is_of(make, make_signer, write):
    ca, key = make_ca(), ec_key()
    if make is UNTRUSTED["an authority that signs itself"]:
        leaf = make_cert("x", key, ca=True, usage=("digital_signature", "key_cert_sign"))
    else:
        leaf = make(ca, key)
    with pytest.raises(PolicyError, match="no valid path"):
        load_trust([write("ca.pem", ca.pem)]).evaluate(signed(make_signer(key, leaf)))


def test_a_path_of_one_authority_to_itself_is_trusted(make_signer, write):
    key = ec_key()  # what `openssl req -x509` makes: CA:TRUE, no keyUsage
    both = make_cert("x", key, ca=True)
    policy = load_trust([write("c.pem", both.pem)])
    policy.check_time(policy.evaluate(signed(make_signer(key, both))), NOW)


def test_a_certificate_without_digital_signature_is_not_trusted(make_signer, write):
    ca, key = make_ca(), ec_key()
    signer = make_signer(key, ca.issue("x", key))
    crippled = ca.issue("x", key, usage=("key_agreement",))
    with pytest.raises(PolicyError, match="digitalSignature"):
        load_trust([write("ca.pem", ca.pem)]).evaluate(
            change(signed(signer), certificates=(crippled.der,))
        )
    with pytest.raises(PolicyError, match="digitalSignature"):
        load_trust([write("leaf.pem", crippled.pem)])


def test_a_required_extended_key_usage_is_required(make_signer, write):
    ca, key = make_ca(), ec_key()
    ca_file = write("ca.pem", ca.pem)
    policy = load_trust([ca_file], extended_key_usage=CODE_SIGNING)
    good = make_signer(key, ca.issue("good", key, extended=CODE_SIGNING))
    any_usage = make_signer(key, ca.issue("good", key, extended="2.5.29.37.0"))
    for signer in (good, any_usage):
        policy.check_time(policy.evaluate(signed(signer)), NOW)
    for options in ({}, {"extended": CLIENT_AUTH}):
        bad = make_signer(key, ca.issue("bad", key, **options))
        with pytest.raises(PolicyError, match="extendedKeyUsage"):
            policy.evaluate(signed(bad))
        assert load_trust([ca_file]).evaluate(signed(bad)).trusted


def expired(ca, key):
    return ca.issue("Sally", key, start=-10 * DAY, end=-5 * DAY)


@pytest.mark.parametrize("captured", [NOW, NOW - 4 * DAY, NOW - 11 * DAY, 0, (1 << 64) - 1])
def test_a_certificate_must_be_valid_at_the_capture_time(captured, make_signer, write):
    ca, key = make_ca(start=-20 * DAY), ec_key()
    signer = make_signer(key, expired(ca, key), allow_expired=True)
    path = write("ca.pem", ca.pem)
    policy = load_trust([path])
    verified = policy.evaluate(signed(signer))
    policy.check_time(verified, NOW - 7 * DAY)  # expired by now, valid then
    with pytest.raises(PolicyError, match="no trusted signer was valid"):
        policy.check_time(verified, captured)
    load_trust([path], allow_expired=True).check_time(verified, captured)
    load_trust([path], at=NOW - 7 * DAY).check_time(verified, captured)


def test_an_authority_that_was_expired_at_the_capture_time_vouches_for_nothing(make_signer, write):
    ca, key = make_ca(start=-10 * DAY, end=-5 * DAY), ec_key()
    signer = make_signer(key, ca.issue("Sally", key, start=-9 * DAY))
    policy = load_trust([write("ca.pem", ca.pem)])
    verified = policy.evaluate(signed(signer))
    policy.check_time(verified, NOW - 7 * DAY)
    with pytest.raises(PolicyError, match="no valid path"):
        policy.check_time(verified, NOW - 2 * DAY)


def test_a_path_that_was_never_valid_is_refused_even_if_expiry_is_overlooked(make_signer, write):
    ca, key = make_ca(start=-10 * DAY, end=-5 * DAY), ec_key()
    signer = make_signer(key, ca.issue("Sally", key, start=-2 * DAY))
    with pytest.raises(PolicyError, match="no valid path"):
        load_trust([write("ca.pem", ca.pem)], allow_expired=True).evaluate(signed(signer))


def test_a_pinned_certificate_counts_in_its_time(make_signer, write):
    key = ec_key()
    cert = make_cert("Sally", key, start=-10 * DAY, end=-5 * DAY)
    path = write("leaf.pem", cert.pem)
    for signer in (make_signer(key), make_signer(key, cert, allow_expired=True)):
        policy = load_trust([path])
        verified = policy.evaluate(signed(signer))
        assert verified.trusted[0].name == "CN=Sally"
        policy.check_time(verified, NOW - 7 * DAY)
        with pytest.raises(PolicyError, match="CN=Sally expired on"):
            policy.check_time(verified, NOW)
        load_trust([path], allow_expired=True).check_time(verified, NOW)


def test_a_key_pinned_raw_and_as_certificate_has_no_expiry(make_signer, write):
    key = ec_key()
    cert = make_cert("Sally", key, start=-10 * DAY, end=-5 * DAY)
    signer = make_signer(key)
    policy = load_trust([write("leaf.pem", cert.pem), signer.key_id])
    policy.check_time(policy.evaluate(signed(signer)), NOW)


def test_one_trusted_signer_that_was_valid_suffices(make_signer, write):
    old, new = ec_key(), ed_key()
    cert = make_cert("Sally", old, start=-10 * DAY, end=-5 * DAY)
    first, second = make_signer(old), make_signer(new)
    policy = load_trust([write("leaf.pem", cert.pem), second.key_id])
    policy.check_time(policy.evaluate(signed(first, second)), NOW)


def test_check_time_without_a_trusted_signer_is_refused_unless_none_is_asked_for(signer):
    verified = TrustPolicy(names_only=True).evaluate(signed(signer))
    with pytest.raises(PolicyError, match="there is none"):
        TrustPolicy().check_time(verified, NOW)
    TrustPolicy(names_only=True).check_time(verified, NOW)
    TrustPolicy(allow_unsigned=True).check_time(verified, NOW)


def test_the_name_of_a_pinned_signer_does_not_come_from_the_file(make_signer):
    key = ec_key()
    raw = make_signer(key)
    # Anybody can issue a certificate for somebody else's public key and put it beside the signature.
    flattering = make_ca("Mallory").issue("The President", key)
    envelope = change(signed(raw), public_key=b"", certificates=(flattering.der,))
    verified = load_trust([raw.key_id]).evaluate(envelope)
    assert "President" not in verified.trusted[0].name


def test_a_certificate_of_another_key_cannot_be_put_beside_a_signature(make_signer):
    signer = make_signer(ec_key())
    envelope = change(signed(signer), public_key=b"", certificates=(make_cert("x", ec_key()).der,))
    with pytest.raises(FileError, match="names another key"):
        load_trust([signer.key_id]).evaluate(envelope)


def test_untrusted_names_are_fit_for_a_terminal(make_signer):
    key = ec_key()
    signer = make_signer(key, make_cert("a\x1b]0;b\x07\u202e", key))
    with pytest.raises(PolicyError) as caught:
        TrustPolicy().evaluate(signed(signer))
    assert caught.value.message.isprintable()


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
    with pytest.raises(IdentityError, match="something else than certificates of authorities"):
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
